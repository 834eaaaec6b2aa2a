"""Files of weights, as name -> array: .pth without PyTorch, .safetensors, a ViT's .npz.

Nothing that a file holds is ever run (`pth` says how), and memory is bounded by the file's own
size: every length is checked against it before anything is read.
"""

from cxr_jax.weight_files.base import MAX_BYTES
from cxr_jax.weight_files.kinds import read_file
from cxr_jax.weight_files.pth import read_pth
from cxr_jax.weight_files.safetensors import WEIGHTS, read_metadata, write_safetensors

__all__ = [
    "MAX_BYTES",
    "WEIGHTS",
    "read_file",
    "read_metadata",
    "read_pth",
    "write_safetensors",
]
