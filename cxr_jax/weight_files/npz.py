"""Arrays from .npz files, such as the published vision transformers'."""

import os
import pathlib

from cxr_jax import small_files
from cxr_jax.weight_files.base import MAX_BYTES, Arrays, check_size

_MAX_UNPACKING = 64  # of an .npz; trained numbers hardly shrink when they are packed


def read_vit_npz(path: str | os.PathLike) -> Arrays:
    """The arrays of an .npz, such as the published vision transformers'; never a pickle in it.

    Raises:
      InputError: as `read_file`.
    """
    check_size(path)
    limit = min(MAX_BYTES, _MAX_UNPACKING * pathlib.Path(path).stat().st_size)
    return small_files.read_npz(path, "fetch it again", limit=limit)
