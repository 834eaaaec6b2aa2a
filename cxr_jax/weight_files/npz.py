"""Arrays from .npz files, such as the published vision transformers'."""

import math
import os
import pathlib
import zipfile

import numpy as np

from cxr_jax.errors import InputError
from cxr_jax.weight_files.base import MAX_BYTES, ZIP_ERRORS, Arrays, Malformed, check_size

_MAX_UNPACKING = 64  # of an .npz; trained numbers hardly shrink when they are packed


def read_vit_npz(path: str | os.PathLike) -> Arrays:
    """The arrays of an .npz, such as the published vision transformers'; never a pickle in it.

    Raises:
      InputError: as `read_file`.
    """
    path = pathlib.Path(path)
    check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(_npy_bytes(archive, info) for info in archive.infolist())
        if total > min(MAX_BYTES, _MAX_UNPACKING * path.stat().st_size):
            raise Malformed(f"it unpacks to {total:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, *ZIP_ERRORS) as error:
        raise InputError(
            f"{path} is no .npz of arrays, or it is damaged ({error}); fetch it again"
        ) from error


def _npy_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """The size of one member, after its header has been held against it."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise Malformed(f"{info.filename} is of version {version}")
        read = np.lib.format.read_array_header_1_0
        read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise Malformed(f"{info.filename} is a pickle, which was not run")
        if file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise Malformed(f"{info.filename} says it has the shape {shape}, which does not fit")
    return info.file_size
