"""Time and memory of the neighbourhood affinity, forward and backward, beside other ways to it.

    python benchmarks/affinity.py [--side=56] [--channels=448] [--batch_size=8] [--output=x.json]

All give the same loss, which is printed. `rows` is the one of ops/affinity.py: each row against the
radius rows below it. `pairs` multiplies all pairs of pixels and masks. `shifts` multiplies 80
shifted views one after the other. `gather` stacks the 80 shifted views first.
"""

import pathlib
import sys

sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.methods import compare, timed
from cxr_jax.ops import affinity

RADIUS, FOREGROUND, BACKGROUND = 5, 0.1, 0.01  # the paper's
HIGHEST = jax.lax.Precision.HIGHEST


def offsets() -> list[tuple[int, int]]:
    """(dy, dx) of the 80 neighbours."""
    steps = range(-RADIUS, RADIUS + 1)
    return [(y, x) for y in steps for x in steps if 0 < y * y + x * x <= RADIUS**2]


def rows(unit: jax.Array, marks: jax.Array) -> jax.Array:
    return affinity.similarity_sums(unit, marks, radius=RADIUS, shape="euclid")


def pairs(unit: jax.Array, marks: jax.Array) -> jax.Array:
    batch, height, width, _ = unit.shape
    y, x = (a.ravel() for a in np.mgrid[:height, :width])
    squares = (y[:, None] - y) ** 2 + (x[:, None] - x) ** 2
    near = (squares > 0) & (squares <= RADIUS**2)
    flat = unit.reshape(batch, height * width, -1)
    cosine = jnp.einsum("bic,bjc->bij", flat, flat, precision=HIGHEST) * near
    sums = jnp.einsum("bij,bjm->bim", cosine, marks.reshape(batch, height * width, -1))
    return sums.reshape(marks.shape)


def shifted(x: jax.Array) -> list[jax.Array]:
    """The 80 views of [B, h, w, C], 0 beyond the border."""
    height, width = x.shape[1:3]
    padded = jnp.pad(x, ((0, 0), (RADIUS, RADIUS), (RADIUS, RADIUS), (0, 0)))
    return [
        padded[:, RADIUS + dy : RADIUS + dy + height, RADIUS + dx : RADIUS + dx + width]
        for dy, dx in offsets()
    ]


def shifts(unit: jax.Array, marks: jax.Array) -> jax.Array:
    views = zip(shifted(unit), shifted(marks))
    return sum(jnp.sum(unit * u, axis=-1, keepdims=True) * m for u, m in views)


def gather(unit: jax.Array, marks: jax.Array) -> jax.Array:
    neighbours, kinds = jnp.stack(shifted(unit), axis=3), jnp.stack(shifted(marks), axis=3)
    cosine = jnp.einsum("byxc,byxkc->byxk", unit, neighbours, precision=HIGHEST)
    return jnp.einsum("byxk,byxkm->byxm", cosine, kinds)


METHODS = {"rows": rows, "pairs": pairs, "shifts": shifts, "gather": gather}


def measure(method: str, *, side: int, channels: int, batch_size: int, steps: int) -> dict:
    """Compiles and times one method's loss and gradient, as a row of the result."""
    rng = np.random.default_rng(0)
    features = rng.normal(size=(batch_size, side, side, channels)).astype(np.float32)
    prob = rng.choice([0.001, 0.05, 0.6], size=features.shape[:3]).astype(np.float32)

    def loss(features: jax.Array, prob: jax.Array) -> jax.Array:
        marks = jnp.stack([prob > FOREGROUND, prob < BACKGROUND], axis=-1).astype(jnp.float32)
        sums = METHODS[method](affinity.unit_vectors(features), marks)
        counts = affinity.neighbour_counts(marks, radius=RADIUS, shape="euclid")
        terms = affinity.affinity_terms(sums, counts, marks, empty="count")
        return jnp.mean(terms["nfs"] + terms["nbs"] + 0.5 * terms["nfbd"])

    features, prob = jax.device_put((features, prob))
    row, (value, grad) = timed(jax.value_and_grad(loss), features, prob, steps=steps)
    return row | {
        "loss": round(float(value), 6),
        "gradient_norm": float(f"{jnp.linalg.norm(grad):.5g}"),
    }


if __name__ == "__main__":
    compare(
        __file__,
        __doc__.splitlines()[0],
        tuple(METHODS),
        measure=measure,
        shape={
            "side": (56, "448 px at stride 8"),
            "channels": (448, "64 + 128 + 256"),
            "batch_size": (8, "one bag"),
        },
        steps=5,
    )
