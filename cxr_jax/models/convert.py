"""Weights between this package's variables and other packages', name by name and to the bit.

A variable's path gives its PyTorch name:

| here | there |
| --- | --- |
| `conv0/kernel` of a DenseNet, HWIO (1x1: [in, out]) | `features.conv0.weight`, OIHW |
| `denseblock1/denselayer1/norm1/{scale, bias}` | `features.denseblock1....norm1.{weight, bias}` |
| `batch_stats/.../{mean, var}` | `....{running_mean, running_var}` |
| `backbone/conv0/kernel` | `backbone.features.conv0.weight` |
| `layer1/0/conv1/kernel` of a ResNet, `layer1/0/downsample_{conv, norm}/...` | \
`layer1.0.conv1.weight`, `layer1.0.downsample.{0, 1}....` |
| `b2_1/bn_branch2a/scale` of a ResNet-38 | `b2_1.bn_branch2a.weight` |
| `backbone/b2_1/...` and `f9/kernel` of a SEAM | `b2_1....` and `f9.weight` |
| `heads/fc/{kernel, bias}` of `PCAMHeads`, [C, K], [K] | `fc_0.{weight, bias}` ... `fc_{K-1}` |
| a dense layer's `kernel`, [in, out] | `....weight`, [out, in] |

torchvision's published DenseNet files say `norm.1` where its module says `norm1`; both are read.

A vision transformer is read from the `.npz` files of google-research/vision_transformer:

| here | there |
| --- | --- |
| `embedding/{kernel, bias}`, [p * p * C, D] | `embedding/...`, [p, p, C, D] |
| `cls`, `position`, `norm/...` | `cls`, `Transformer/posembed_input/pos_embedding`, \
`Transformer/encoder_norm/...` |
| `block0/norm1`, `block0/norm2` | `Transformer/encoderblock_0/LayerNorm_0`, `.../LayerNorm_2` |
| `block0/attn/qkv/{kernel, bias}`, [D, 3 D], [3 D] | `.../MultiHeadDotProductAttention_1/{query, \
key, value}/...`, each [D, heads, d], [heads, d] |
| `block0/attn/proj/{kernel, bias}`, [D, D], [D] | `.../MultiHeadDotProductAttention_1/out/...`, \
[heads, d, D], [D] |
| `block0/mlp/fc1`, `block0/mlp/fc2` | `.../MlpBlock_3/Dense_0`, `.../MlpBlock_3/Dense_1` |
"""

import dataclasses
import re
from collections.abc import Iterable, Mapping
from typing import Any

import flax.linen as nn
import jax
import numpy as np
from flax import traverse_util

from cxr_jax.errors import InputError
from cxr_jax.models.densenet import DenseNet
from cxr_jax.models.pcam import PCAMHeads, PCAMNet
from cxr_jax.models.resnet import ResNet
from cxr_jax.models.resnet38 import ResNet38
from cxr_jax.models.seam import SEAM
from cxr_jax.models.vit import ViT

Path = tuple[str, ...]
Variables = dict[str, Any]

_LEAF_NAMES = {"kernel": "weight", "scale": "weight", "mean": "running_mean", "var": "running_var"}
_DENSENET_PART = re.compile(r"(conv0|norm\d+|denseblock\d+|transition\d+)$")
_VIT_BLOCK = re.compile(r"block\d+$")
_PUBLISHED_NAME = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
_RESNET_SHORTCUT = {"downsample_conv": "downsample.0", "downsample_norm": "downsample.1"}
_CONVOLUTIONS = ("fc", "out", "downsample_conv", "fc8", "f8_3", "f8_4", "f8_5", "f9", "f10")
# PyTorch counts batches beside each norm; nothing here reads them.
_COUNTER = "num_batches_tracked"


def _torch_names(path: Path, shape: tuple[int, ...]) -> list[str]:
    """The PyTorch names of one variable: one, or K where K heads are one array here."""
    *modules, leaf = path[1:]  # without the collection
    leaf = _LEAF_NAMES.get(leaf, leaf)
    modules = [
        part for module in modules for part in _RESNET_SHORTCUT.get(module, module).split(".")
    ]
    if modules and modules[-1] == "fc":
        prefix = modules[:-2]  # without the name of the heads' module
        return [".".join([*prefix, f"fc_{k}", leaf]) for k in range(shape[-1])]
    for index, module in enumerate(modules):
        inside = index and _VIT_BLOCK.match(modules[index - 1])  # whose norms have such names too
        if _DENSENET_PART.match(module) and not inside:
            modules.insert(index, "features")
            break
    return [".".join([*modules, leaf])]


def _is_convolution(path: Path) -> bool:
    """Whether a [in, out] kernel is a 1x1 convolution there (else a dense layer)."""
    return path[-2] in _CONVOLUTIONS or path[-2].startswith("conv")


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


def _check_names(
    state: Mapping[str, np.ndarray], wanted: Mapping[str, tuple[int, ...]], ignore: Iterable[str]
) -> None:
    """Refuses a state whose names or shapes are not the wanted ones."""
    missing = [name for name in wanted if name not in state]
    if missing:
        raise InputError(
            f"the weights lack {missing[0]!r} ({len(missing)} of {len(wanted)} names are missing); "
            "give the weights of this model."
        )
    unused = [name for name in left_over(state, wanted) if not name.startswith(tuple(ignore))]
    if unused:
        raise InputError(
            f"the weights hold {unused[0]!r}, which this model does not use ({len(unused)} such "
            f"names); give the weights of this model, or name what may be left out in `ignore`."
        )
    misshapen = [name for name, shape in wanted.items() if np.shape(state[name]) != shape]
    if misshapen:
        name = misshapen[0]
        raise InputError(
            f"{name!r} has the shape {np.shape(state[name])} and this model needs {wanted[name]} "
            f"({len(misshapen)} such names); give the weights of a model of this size."
        )


def left_over(state: Iterable[str], used: Iterable[str]) -> list[str]:
    """The names of a state that are not used, without PyTorch's counters of batches."""
    used = set(used)
    return [name for name in state if name not in used and not name.endswith(_COUNTER)]


def from_torch(
    state: Mapping[str, np.ndarray],
    template: Variables,
    *,
    ignore: Iterable[str] = (),
    strip: str = "",
) -> Variables:
    """Fills a model's variables from a PyTorch state; nothing may be left over on either side.

    Args:
      state: name -> array in PyTorch's layout, as `{k: v.numpy() for k, v in state_dict.items()}`.
      template: the model's variables or only their shapes (`jax.eval_shape` of its `init`).
      ignore: beginnings of names that may be left unused, e.g. ('classifier.',). Names ending in
        'num_batches_tracked' always may.
      strip: a beginning that the names there do not have, e.g. 'backbone.'.

    Returns:
      Variables of the template's structure, float32 NumPy arrays.

    Raises:
      InputError: a variable has no array, an array has another shape, or an array is unused. The
        first such name and their number are given.
    """
    state = {_PUBLISHED_NAME.sub(r"\1\2.", name): array for name, array in state.items()}
    flat = traverse_util.flatten_dict(template)
    names = {
        path: [name.removeprefix(strip) for name in _torch_names(path, leaf.shape)]
        for path, leaf in flat.items()
    }

    wanted = {
        name: _torch_shape(path, leaf.shape) for path, leaf in flat.items() for name in names[path]
    }
    _check_names(state, wanted, ignore)
    filled = {}
    for path, leaf in flat.items():
        parts = [_from_layout(path, np.asarray(state[name])) for name in names[path]]
        whole = parts[0] if len(parts) == 1 else np.concatenate(parts, axis=-1)
        filled[path] = np.ascontiguousarray(whole, dtype=np.float32).reshape(leaf.shape)
    return traverse_util.unflatten_dict(filled)


def to_torch(variables: Variables, *, strip: str = "") -> dict[str, np.ndarray]:
    """The PyTorch state of a model's variables: the inverse of `from_torch`, to the bit."""
    state = {}
    for path, leaf in traverse_util.flatten_dict(variables).items():
        array = np.asarray(leaf)
        names = _torch_names(path, array.shape)
        heads = np.split(array, array.shape[-1], axis=-1) if path[-2] == "fc" else [array]
        for name, head in zip(names, heads):
            state[name.removeprefix(strip)] = np.ascontiguousarray(_to_layout(path, head))
    return state


def vit_names(layers: int) -> dict[str, tuple[Path, int | None]]:
    """The names of a published vision transformer of so many layers.

    Returns:
      Name -> (path of the variable in `ViT`, None or which third of it: 0 the queries' part, 1 the
      keys', 2 the values').
    """
    names = {
        "embedding/kernel": ("embedding", "kernel"),
        "embedding/bias": ("embedding", "bias"),
        "cls": ("cls",),
        "Transformer/posembed_input/pos_embedding": ("position",),
        "Transformer/encoder_norm/scale": ("norm", "scale"),
        "Transformer/encoder_norm/bias": ("norm", "bias"),
    }
    found = {name: (path, None) for name, path in names.items()}
    for index in range(layers):
        there, here = f"Transformer/encoderblock_{index}", f"block{index}"
        attention = f"{there}/MultiHeadDotProductAttention_1"
        for norm, ours in (("LayerNorm_0", "norm1"), ("LayerNorm_2", "norm2")):
            for leaf in ("scale", "bias"):
                found[f"{there}/{norm}/{leaf}"] = ((here, ours, leaf), None)
        for leaf in ("kernel", "bias"):
            for third, part in enumerate(("query", "key", "value")):
                found[f"{attention}/{part}/{leaf}"] = ((here, "attn", "qkv", leaf), third)
            found[f"{attention}/out/{leaf}"] = ((here, "attn", "proj", leaf), None)
            for dense, ours in (("Dense_0", "fc1"), ("Dense_1", "fc2")):
                found[f"{there}/MlpBlock_3/{dense}/{leaf}"] = ((here, "mlp", ours, leaf), None)
    return found


def _vit_shape(
    name: str, shape: tuple[int, ...], *, third: int | None, model: ViT, channels: int
) -> tuple[int, ...]:
    """The shape there of a variable of this shape here, `channels` being the image's."""
    head = (model.num_heads, model.width // model.num_heads)
    if third is not None:
        return (*shape[:-1], *head)
    if name.endswith("/out/kernel"):
        return (*head, model.width)
    if name == "embedding/kernel":
        return (model.patch_size, model.patch_size, channels, model.width)
    return shape


def from_vit_npz(
    arrays: Mapping[str, np.ndarray], model: ViT, template: Variables, *, ignore: Iterable[str] = ()
) -> Variables:
    """Fills a `ViT` from a published `.npz`; nothing may be left over on either side.

    Args:
      arrays: name -> array, as google-research/vision_transformer names them.
      model: the transformer, on raw patches.
      template: its variables or only their shapes.
      ignore: beginnings of names that may be left unused.

    Returns:
      Variables of the template's structure, float32 NumPy arrays.

    Raises:
      InputError: as `from_torch`.
    """
    flat = {path[1:]: leaf for path, leaf in traverse_util.flatten_dict(template).items()}
    names = vit_names(model.num_layers)
    channels = flat["embedding", "kernel"].shape[0] // model.patch_size**2
    wanted = {
        name: _vit_shape(name, flat[path].shape, third=third, model=model, channels=channels)
        for name, (path, third) in names.items()
    }
    _check_names(arrays, wanted, ignore)
    parts: dict[Path, list[np.ndarray]] = {}
    for name, (path, third) in names.items():
        shape = flat[path].shape
        shape = shape if third is None else (*shape[:-1], model.width)
        parts.setdefault(path, []).append(np.asarray(arrays[name], np.float32).reshape(shape))
    filled = {
        ("params", *path): np.ascontiguousarray(np.concatenate(found, axis=-1))
        for path, found in parts.items()
    }
    return traverse_util.unflatten_dict(filled)


def to_vit_npz(variables: Variables, model: ViT) -> dict[str, np.ndarray]:
    """The published names and layouts of a `ViT` on raw patches: the inverse, to the bit."""
    flat = traverse_util.flatten_dict(variables["params"])
    channels = flat["embedding", "kernel"].shape[0] // model.patch_size**2
    arrays = {}
    for name, (path, third) in vit_names(model.num_layers).items():
        array = np.asarray(flat[path])
        shape = _vit_shape(name, array.shape, third=third, model=model, channels=channels)
        if third is not None:
            array = np.split(array, 3, axis=-1)[third]
        arrays[name] = np.ascontiguousarray(array.reshape(shape))
    return arrays


# What the files of each kind hold beside the network: classifiers, and what the forward pass of
# PCAM does not use. The first name tells the kind.
KINDS = {
    "vit": ("Transformer/encoder_norm/scale", ("head/", "pre_logits/")),
    "pcam": ("backbone.features.conv0.weight", ("backbone.classifier.", "bn_", "attention_map.")),
    "densenet": ("features.conv0.weight", ("classifier.",)),
    "seam": ("f9.weight", ()),
    "resnet38": ("conv1a.weight", ("fc8.", "f8_3.", "f8_4.", "f8_5.", "f9.", "f10.")),
    "resnet": ("layer1.0.conv1.weight", ("fc.",)),
}


@dataclasses.dataclass(frozen=True)
class Imported:
    """A file's weights as variables.

    Attributes:
      kind: one of KINDS.
      network: what the names and shapes say it is, in words.
      variables: of the network alone, nested; 'params' and, but for a ViT, 'batch_stats'.
      unused: names that no network here has, such as a classifier's.
    """

    kind: str
    network: str
    variables: Variables
    unused: list[str]


def import_state(state: Mapping[str, np.ndarray], kind: str = "auto") -> Imported:
    """Reads a published state without a config: its names and shapes say which network it is.

    Args:
      state: name -> array as `weight_files.read_file` gives it.
      kind: one of KINDS; 'auto' tells it by the names.

    Raises:
      InputError: no kind or another one, or what is there is not one whole network.
    """
    state = {_PUBLISHED_NAME.sub(r"\1\2.", name): array for name, array in state.items()}
    kind = _kind(state) if kind == "auto" else kind
    if kind not in KINDS:
        raise InputError(f"kind {kind!r}; expected auto, {', '.join(KINDS)}")
    marker, ignore = KINDS[kind]
    if marker not in state:
        raise InputError(
            f"the weights lack {marker!r}, which every {kind} has; their first name is "
            f"{next(iter(state), None)!r}. Give another --kind, or the weights of a {kind}"
        )
    if kind == "vit":
        model, side = _vit(state)
        variables = from_vit_npz(state, model, _template(model, *side), ignore=ignore)
        used = vit_names(model.num_layers)
    else:
        infer = {
            "pcam": _pcam,
            "densenet": _densenet,
            "resnet": _resnet,
            "resnet38": _resnet38,
            "seam": _seam,
        }
        model = infer[kind](state)
        strip = "backbone." if kind == "seam" else ""  # its heads stand beside the backbone's parts
        variables = from_torch(state, _template(model, 64, 64), ignore=ignore, strip=strip)
        used = to_torch(variables, strip=strip)
    return Imported(kind, _words(model), variables, left_over(state, used))


def _kind(state: Mapping[str, np.ndarray]) -> str:
    for kind, (marker, _) in KINDS.items():
        if marker in state:
            return kind
    raise InputError(
        f"the weights are of no kind that is known ({', '.join(KINDS)}): their first of "
        f"{len(state)} names is {next(iter(state), None)!r}"
    )


def _template(model: nn.Module, height: int, width: int) -> Variables:
    image = jax.ShapeDtypeStruct((1, height, width, 3), np.float32)
    return jax.eval_shape(lambda x: model.init(jax.random.key(0), x, train=False), image)


def _words(model: nn.Module) -> str:
    """'DenseNet(growth_rate=32, ...)': what was told from the names, without the rest."""
    hidden = ("parent", "name", "dtype", "stop_at", "dropout")
    fields = [f.name for f in dataclasses.fields(model) if f.name not in hidden]
    values = ((field, getattr(model, field)) for field in fields)
    values = ((k, _words(v) if isinstance(v, nn.Module) else v) for k, v in values)
    return f"{type(model).__name__}({', '.join(f'{k}={v}' for k, v in values)})"


def _side(state: Mapping[str, np.ndarray], name: str, axis: int, ndim: int) -> int:
    """One side of an array that the network's sizes are told from."""
    if name not in state:
        raise InputError(
            f"the weights lack {name!r}, which would say how large the network is: they are of no "
            "network that import knows"
        )
    shape = np.shape(state[name])
    if len(shape) != ndim or 0 in shape:
        raise InputError(f"{name!r} has the shape {shape}; expected {ndim} sides, none of them 0")
    return shape[axis]


def _count(state: Mapping[str, np.ndarray], pattern: str) -> int:
    """How many different first groups the names have; a gap is found when names are compared."""
    return len({found[1] for name in state if (found := re.match(pattern, name))})


def _densenet(state: Mapping[str, np.ndarray], prefix: str = "") -> DenseNet:
    features = f"{prefix}features."
    blocks = _count(state, re.escape(features) + r"denseblock(\d+)\.")
    layers = [
        _count(state, re.escape(f"{features}denseblock{i + 1}.") + r"denselayer(\d+)\.")
        for i in range(blocks)
    ]
    first = f"{features}denseblock1.denselayer1"
    growth = _side(state, f"{first}.conv2.weight", 0, 4)
    return DenseNet(
        growth_rate=growth,
        block_sizes=tuple(layers),
        init_features=_side(state, f"{features}conv0.weight", 0, 4),
        bn_size=max(_side(state, f"{first}.conv1.weight", 0, 4) // growth, 1),
    )


def _pcam(state: Mapping[str, np.ndarray]) -> PCAMNet:
    _side(state, "fc_0.weight", 0, 4)
    return PCAMNet(_densenet(state, "backbone."), PCAMHeads(_count(state, r"fc_(\d+)\.")))


def _resnet(state: Mapping[str, np.ndarray]) -> ResNet:
    stages = _count(state, r"layer(\d+)\.")
    return ResNet(
        block_sizes=tuple(_count(state, rf"layer{i + 1}\.(\d+)\.") for i in range(stages)),
        bottleneck="layer1.0.conv3.weight" in state,
        init_features=_side(state, "conv1.weight", 0, 4),
        stop_at=f"layer{stages}",
    )


def _resnet38(state: Mapping[str, np.ndarray]) -> ResNet38:
    return ResNet38(width=_side(state, "conv1a.weight", 0, 4) / 64)


def _seam(state: Mapping[str, np.ndarray]) -> SEAM:
    backbone = _resnet38(state)
    classes = _side(state, "fc8.weight", 0, 4) - 1  # channel 0 is the background
    pcm_width = _side(state, "f9.weight", 0, 4) / 192
    return SEAM(
        backbone,
        classes=classes,
        neighbourhood=False,
        width=backbone.width,
        pcm_width=pcm_width,
    )


def _vit(state: Mapping[str, np.ndarray]) -> tuple[ViT, tuple[int, int]]:
    """The transformer, and an image (height, width in px) that has its number of cells."""
    query = "Transformer/encoderblock_0/MultiHeadDotProductAttention_1/query/kernel"
    model = ViT(
        num_layers=_count(state, r"Transformer/encoderblock_(\d+)/"),
        num_heads=_side(state, query, 1, 3),
        width=_side(state, query, 0, 3),
        mlp_dim=_side(state, "Transformer/encoderblock_0/MlpBlock_3/Dense_0/kernel", 1, 2),
        patch_size=_side(state, "embedding/kernel", 0, 4),
    )
    if model.width % model.num_heads:
        raise InputError(
            f"{query!r} has the shape {np.shape(state[query])}: its width {model.width} is no "
            f"multiple of its {model.num_heads} heads"
        )
    position = "Transformer/posembed_input/pos_embedding"
    cells = _side(state, position, 1, 3) - 1
    if cells < 1:
        raise InputError(f"{position!r} has no entry beside the [class] token's")
    # One row of cells: for the shapes, only their number matters.
    return model, (model.patch_size, cells * model.patch_size)
