"""Time and memory of each explanation of a full-size ViT, beside its forward pass.

    python benchmarks/explain.py [--side=16] [--batch_size=4] [--output=x.json]

ViT-B (12 layers, 12 heads, width 768) on a map of side x side x 1024, random weights. `relevance`
gives rollout and raw attention as well; `relevance_3` explains three classes at once. `deletion` is
17 forward passes, of the map's first channel with cells taken away.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.methods import compare, timed
from cxr_jax.explain import attention, faithfulness, gradcam, relevance
from cxr_jax.models.vit import vit_b16

CHANNELS, CLASSES = 1024, 3
VIT = vit_b16()


def logits(params: dict, features: jax.Array) -> jax.Array:
    cls = VIT.apply({"params": params["vit"]}, features, train=False)["cls"]
    return cls @ params["head"]["kernel"] + params["head"]["bias"]


def rollout(params: dict, features: jax.Array) -> jax.Array:
    out = VIT.apply({"params": params["vit"]}, features, train=False, return_attention=True)
    return attention.rollout(out["attention"])


def relevance_of(params: dict, features: jax.Array, num: int = 1) -> jax.Array:
    classes = jnp.tile(jnp.arange(num), (len(features), 1))
    return relevance.relevance_maps(
        VIT, params["vit"], features, head=params["head"], classes=classes
    )["relevance"]


def relevance_3(params: dict, features: jax.Array) -> jax.Array:
    return relevance_of(params, features, CLASSES)


def grad_cam(params: dict, features: jax.Array) -> jax.Array:
    classes = jnp.zeros(len(features), int)
    return gradcam.grad_cam(lambda x: logits(params, x), features, classes)


def deletion(params: dict, features: jax.Array) -> jax.Array:
    first = features[..., 0]

    def probability(film: jax.Array) -> jax.Array:
        changed = jnp.concatenate([film[..., None], features[..., 1:]], axis=-1)
        return jax.nn.softmax(logits(params, changed))[:, 0]

    return faithfulness.deletion(probability, first, 0 * first, heat=first)["score"]


METHODS = {
    "forward": logits,
    "rollout": rollout,
    "relevance": relevance_of,
    "relevance_3": relevance_3,
    "grad_cam": grad_cam,
    "deletion": deletion,
}


def inputs(side: int, batch_size: int) -> tuple[dict, jax.Array]:
    """Random parameters and features."""
    keys = jax.random.split(jax.random.key(0), 3)
    features = jax.random.normal(keys[0], (batch_size, side, side, CHANNELS))
    init = jax.jit(lambda key, x: VIT.init(key, x, train=False)["params"])
    head = {
        "kernel": jax.random.normal(keys[1], (VIT.width, CLASSES)) / VIT.width**0.5,
        "bias": jnp.zeros(CLASSES),
    }
    return {"vit": init(keys[2], features[:1]), "head": head}, features


def measure(method: str, *, side: int, batch_size: int, steps: int) -> dict:
    """Compiles and times one method, as a row of the result."""
    params, features = jax.block_until_ready(inputs(side, batch_size))
    row, out = timed(METHODS[method], params, features, steps=steps)
    return row | {"finite": bool(np.isfinite(out).all())}


if __name__ == "__main__":
    compare(
        __file__,
        __doc__.splitlines()[0],
        tuple(METHODS),
        measure=measure,
        shape={"side": (16, "512 px at stride 32"), "batch_size": (4, "films")},
        steps=3,
    )
