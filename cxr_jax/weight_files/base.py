"""What every kind of weight file shares: its limit, and what is wrong with it."""

import os
import pathlib

import numpy as np

from cxr_jax import small_files
from cxr_jax.errors import InputError

Arrays = dict[str, np.ndarray]

MAX_BYTES = 2**32  # of a file and of the arrays in it; no network here has a quarter of it

ZIP_MAGIC = b"PK\x03\x04"


def check_size(path: str | os.PathLike) -> None:
    """Refuses what is no file, or a larger one than is read, with an `InputError`."""
    path = pathlib.Path(path)
    if not small_files.is_file(path):
        raise InputError(f"{path} is no file; give a .pth, .safetensors or .npz file of weights")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(
            f"{path} has {size:,} bytes; files of weights of up to {MAX_BYTES:,} are read"
        )
