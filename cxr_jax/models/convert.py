"""Weights between this package's variables and a PyTorch state, name by name and to the bit.

A variable's path gives its PyTorch name:

| here | there |
| --- | --- |
| `conv0/kernel` of a DenseNet, HWIO (1x1: [in, out]) | `features.conv0.weight`, OIHW |
| `denseblock1/denselayer1/norm1/{scale, bias}` | `features.denseblock1....norm1.{weight, bias}` |
| `batch_stats/.../{mean, var}` | `....{running_mean, running_var}` |
| `backbone/conv0/kernel` | `backbone.features.conv0.weight` |
| `heads/fc/{kernel, bias}` of `PCAMHeads`, [C, K], [K] | `fc_0.{weight, bias}` ... `fc_{K-1}` |
| a dense layer's `kernel`, [in, out] | `....weight`, [out, in] |

torchvision's published DenseNet files say `norm.1` where its module says `norm1`; both are read.
"""

import re
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from flax import traverse_util

from cxr_jax.errors import InputError

Path = tuple[str, ...]
Variables = dict[str, Any]

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_DENSENET_PART = re.compile(r"(conv0|norm\d+|denseblock\d+|transition\d+)$")
_PUBLISHED_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
# PyTorch counts batches beside each norm; nothing here reads them.
_COUNTER = "num_batches_tracked"


def _torch_names(path: Path, shape: tuple[int, ...]) -> list[str]:
    """The PyTorch names of one variable: one, or K where K heads are one array here."""
    *modules, leaf = path[1:]  # without the collection
    leaf = _LEAF_NAMES.get(leaf, leaf)
    if modules and modules[-1] == "fc":
        prefix = modules[:-2]  # without the name of the heads' module
        return [".".join([*prefix, f"fc_{k}", leaf]) for k in range(shape[-1])]
    for index, module in enumerate(modules):
        if _DENSENET_PART.match(module):
            modules.insert(index, "features")
            break
    return [".".join([*modules, leaf])]


def _is_convolution(path: Path) -> bool:
    """Whether a [in, out] kernel is a 1x1 convolution there (else a dense layer)."""
    return path[-2].startswith(("conv", "fc"))


def _torch_shape(path: Path, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of one array there; of one head where the variable holds all."""
    if path[-1] != "kernel":
        return (1,) if path[-2] == "fc" else shape
    out = 1 if path[-2] == "fc" else shape[-1]
    if len(shape) == 4:
        return (out, shape[2], *shape[:2])
    return (out, shape[0], 1, 1) if _is_convolution(path) else (out, shape[0])


def _from_layout(path: Path, array: np.ndarray) -> np.ndarray:
    """One PyTorch array in this package's layout."""
    if path[-1] != "kernel":
        return array
    if array.ndim == 4 and array.shape[2:] == (1, 1) and _is_convolution(path):
        array = array[:, :, 0, 0]
    return array.T if array.ndim == 2 else array.transpose(2, 3, 1, 0)


def _to_layout(path: Path, array: np.ndarray) -> np.ndarray:
    """The inverse of `_from_layout`."""
    if path[-1] != "kernel":
        return array
    if array.ndim == 4:
        return array.transpose(3, 2, 0, 1)
    return array.T[:, :, None, None] if _is_convolution(path) else array.T


def from_torch(
    state: Mapping[str, np.ndarray], template: Variables, *, ignore: Iterable[str] = ()
) -> Variables:
    """Fills a model's variables from a PyTorch state; nothing may be left over on either side.

    Args:
      state: name -> array in PyTorch's layout, as `{k: v.numpy() for k, v in state_dict.items()}`.
      template: the model's variables or only their shapes (`jax.eval_shape` of its `init`).
      ignore: beginnings of names that may be left unused, e.g. ('classifier.',). Names ending in
        'num_batches_tracked' always may.

    Returns:
      Variables of the template's structure, float32 NumPy arrays.

    Raises:
      InputError: a variable has no array, an array has another shape, or an array is unused. The
        first such name and their number are given.
    """
    state = {_PUBLISHED_NAME.sub(r"\1\2.", name): array for name, array in state.items()}
    flat = traverse_util.flatten_dict(template)
    names = {path: _torch_names(path, leaf.shape) for path, leaf in flat.items()}

    missing = [name for path in flat for name in names[path] if name not in state]
    if missing:
        raise InputError(
            f"the weights lack {missing[0]!r} ({len(missing)} of "
            f"{sum(map(len, names.values()))} names are missing); give the weights of this model."
        )
    ignore = tuple(ignore)
    known = {name for path in flat for name in names[path]}
    unused = [n for n in state if n not in known and not n.endswith(_COUNTER)]
    unused = [n for n in unused if not (ignore and n.startswith(ignore))]
    if unused:
        raise InputError(
            f"the weights hold {unused[0]!r}, which this model does not use ({len(unused)} such "
            f"names); give the weights of this model, or name what may be left out in `ignore`."
        )
    misshapen = [
        (name, np.shape(state[name]), _torch_shape(path, leaf.shape))
        for path, leaf in flat.items()
        for name in names[path]
        if np.shape(state[name]) != _torch_shape(path, leaf.shape)
    ]
    if misshapen:
        name, found, wanted = misshapen[0]
        raise InputError(
            f"{name!r} has the shape {found} and this model needs {wanted} ({len(misshapen)} such "
            f"names); give the weights of a model of this size."
        )
    filled = {}
    for path, leaf in flat.items():
        parts = [_from_layout(path, np.asarray(state[name])) for name in names[path]]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        filled[path] = np.ascontiguousarray(whole, dtype=np.float32).reshape(leaf.shape)
    return traverse_util.unflatten_dict(filled)


def to_torch(variables: Variables) -> dict[str, np.ndarray]:
    """The PyTorch state of a model's variables: the inverse of `from_torch`, to the bit."""
    state = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        array = np.asarray(leaf)
        names = _torch_names(path, array.shape)
        heads = np.split(array, array.shape[-1], axis=-1) if path[-2] == "fc" else [array]
        for name, head in zip(names, heads):
            state[name] = np.ascontiguousarray(_to_layout(path, head))
    return state
