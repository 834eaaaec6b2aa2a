"""Arrays from and to .safetensors files."""

import os
import pathlib
from collections.abc import Mapping

import numpy as np
import safetensors.numpy

from cxr_jax import safe_write
from cxr_jax.errors import InputError
from cxr_jax.small_files import reason
from cxr_jax.weight_files.base import Arrays, check_size

WEIGHTS = "weights.safetensors"  # in a folder that `cxr_jax.weights import` wrote


def read_safetensors(path: str | os.PathLike) -> Arrays:
    """The arrays of a .safetensors file.

    Raises:
      InputError: as `read_file`.
    """
    check_size(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, AttributeError, TypeError) as error:
        # Beside its own error: KeyError and the like for a dtype that NumPy lacks.
        raise InputError(
            f"{path} is no .safetensors file, or it is damaged ({reason(error)}); fetch it again"
        ) from error


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of a .safetensors file.

    Raises:
      InputError: as `read_file`.
    """
    check_size(path)
    try:
        with safetensors.safe_open(path, "np") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is no .safetensors file, or it is damaged ({reason(error)}); fetch it again"
        ) from error


def write_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes arrays and text about them; a reader sees the whole file or the one before."""
    path = pathlib.Path(path)
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()},
        metadata=dict(metadata),
    )
    with safe_write.replacing(path) as partial:
        partial.write_bytes(content)
