"""Which kind of weight file it is, told by its content."""

import os
import pathlib
import zipfile

from cxr_jax.errors import InputError
from cxr_jax.small_files import ZIP_ERRORS, reason
from cxr_jax.weight_files.base import ZIP_MAGIC, Arrays, check_size
from cxr_jax.weight_files.npz import read_vit_npz
from cxr_jax.weight_files.pth import read_pth
from cxr_jax.weight_files.safetensors import read_safetensors


def read_file(path: str | os.PathLike) -> Arrays:
    """Reads a file of weights of any kind; its content says which, not its name.

    Returns:
      Name -> array in the file's own layout and dtype, in its order. Arrays may share memory and
      be read-only.

    Raises:
      InputError: there is no such file, it is none of weights, it is truncated or malformed, it
        holds anything but tensors, or it is larger than MAX_BYTES.
    """
    path = pathlib.Path(path)
    check_size(path)
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(ZIP_MAGIC):
        return read_vit_npz(path) if _zip_has(path, ".npy") else read_pth(path)
    # Before the pickles, which begin with \x80: so may the length of a safetensors header. As such
    # a length the beginning of a pickle is larger than any file.
    length = int.from_bytes(start[:8], "little")
    if start[8:] == b"{" and length <= path.stat().st_size:
        return read_safetensors(path)
    if start.startswith(b"\x80") or path.suffix in (".pth", ".pt"):
        return read_pth(path)
    if start[8:] == b"{" or path.suffix == ".safetensors":
        return read_safetensors(path)
    raise InputError(
        f"{path} holds no weights: it is neither a .pth, nor a .safetensors, nor an .npz file"
    )


def _zip_has(path: pathlib.Path, suffix: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(suffix) for name in archive.namelist())
    except ZIP_ERRORS as error:
        raise InputError(
            f"{path} is damaged ({reason(error)}): it begins as a .pth or .npz and does not end as "
            "one; fetch it again"
        ) from error
