"""What is in a checkpoint and how it came there: `colabs/checkpoint_analysis.ipynb` shows it.

Pure functions of a loaded run, or of arrays. They know no task: what a network computes inside is
caught at its modules, whatever network it is.
"""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax.checkpoints import complete_steps, read_state
from cxr_jax.data.records import Record
from cxr_jax.initialise import flatten
from cxr_jax.trained import TrainedRun, make_batch

COLLECTIONS = ("params", "batch_stats")


def parts(variables: Mapping[str, Any]) -> list[dict[str, Any]]:
    """A row a top-level part of the network and collection: `part`, `collection`, `arrays`,
    `numbers`, and `rms`, the root of their mean square."""
    rows = []
    for collection in COLLECTIONS:
        for part, tree in variables.get(collection, {}).items():
            leaves = [np.asarray(leaf, np.float64) for leaf in jax.tree.leaves(tree)]
            numbers = sum(leaf.size for leaf in leaves)
            total = sum(float(np.sum(leaf**2)) for leaf in leaves)
            rows.append(
                {
                    "part": part,
                    "collection": collection,
                    "arrays": len(leaves),
                    "numbers": numbers,
                    "rms": (total / max(numbers, 1)) ** 0.5,
                }
            )
    return rows


def movement(workdir: str | pathlib.Path) -> list[dict[str, Any]]:
    """How the parts moved from each kept checkpoint to the next: a row a step, part and collection
    with `distance`, |new - old| / |old|.

    Raises:
      InputError: a checkpoint that cannot be read.
    """
    before: dict[str, np.ndarray] = {}
    rows = []
    for step in complete_steps(pathlib.Path(workdir)):
        state = read_state(pathlib.Path(workdir), step)
        tree = {"params": state["params"]} | dict(state["model_state"])
        here = flatten({name: tree[name] for name in COLLECTIONS if name in tree})
        if before:
            groups: dict[tuple[str, str], list[str]] = {}
            for name in here:
                collection, part = name.split("/")[:2]
                groups.setdefault((part, collection), []).append(name)
            for (part, collection), names in groups.items():
                moved = sum(float(np.sum((here[n] - before[n]) ** 2)) for n in names) ** 0.5
                length = sum(float(np.sum(before[n] ** 2)) for n in names) ** 0.5
                rows.append(
                    {
                        "step": step,
                        "part": part,
                        "collection": collection,
                        "distance": moved / max(length, 1e-12),
                    }
                )
        before = here
    return rows


def intermediates(
    run: TrainedRun, records: Sequence[Record], member: int = 0
) -> dict[str, np.ndarray]:
    """What every module of the network gives for some records: path -> array [B, ...].

    A module that gives several arrays has an entry for each: 'backbone/final', 'vit/block0/attn/1'.

    Args:
      run: a loaded run.
      records: with the inputs of its task.
      member: of the ensemble.
    """
    task = run.task

    def compute(variables, batch):
        caught: dict[str, jax.Array] = {}

        def catch(call, args, kwargs, context):
            out = call(*args, **kwargs)
            if context.method_name == "__call__":
                path = "/".join(context.module.path)
                for place, leaf in jax.tree_util.tree_leaves_with_path(out):
                    name = "/".join(filter(None, [path, *map(_key, place)]))
                    if isinstance(leaf, jax.Array):
                        caught[name] = leaf
            return out

        with nn.intercept_methods(catch):
            task.predict(variables, batch)
        return caught

    caught = jax.jit(compute)(run.ensemble[member], make_batch(task, records))
    return {name: np.asarray(array) for name, array in caught.items()}


def _key(place: Any) -> str:
    return str(getattr(place, "key", getattr(place, "idx", place)))


def linear_cka(x: np.ndarray, y: np.ndarray) -> float:
    """Linear CKA (Kornblith et al. 2019, Eq. 3) of two sets of features [n, ...] of the same n
    inputs: 1 where one is the other turned and scaled, near 0 where they have nothing in common."""
    x, y = (a.reshape(len(a), -1).astype(np.float64) for a in (x, y))
    x, y = x - x.mean(0), y - y.mean(0)
    # n is small and the features are many: the products of inputs, not of features.
    xx, yy = x @ x.T, y @ y.T
    length = np.linalg.norm(xx) * np.linalg.norm(yy)
    return float(np.sum(xx * yy) / length) if length else float("nan")


def attention_distance(attention: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """How far the heads of a layer look (Dosovitskiy et al. 2021, Fig. 7): [heads], in cells.

    Args:
      attention: [B, heads, 1 + N, 1 + N] (query, key); the first token is [class], left out here.
      grid: (h, w), h w = N.
    """
    rows, columns = np.divmod(np.arange(grid[0] * grid[1]), grid[1])
    apart = np.hypot(rows[:, None] - rows, columns[:, None] - columns)
    cells = attention[:, :, 1:, 1:]
    cells = cells / np.maximum(cells.sum(-1, keepdims=True), 1e-12)
    return (cells * apart).sum(-1).mean((0, 2))


def position_similarity(position: np.ndarray, grid: tuple[int, int]) -> np.ndarray:
    """Cosine of each cell's position embedding with every other's: [N, h, w].

    Args:
      position: [1, 1 + N, D], the first entry that of [class].
      grid: (h, w), h w = N.
    """
    cells = position[0, 1:].astype(np.float64)
    cells = cells / np.maximum(np.linalg.norm(cells, axis=-1, keepdims=True), 1e-12)
    return (cells @ cells.T).reshape(-1, *grid)


def loss_along(
    run: TrainedRun, ends: tuple[int, int], records: Sequence[Record], points: Sequence[float]
) -> np.ndarray:
    """The training loss on the straight line between two checkpoints (Goodfellow et al. 2015):
    [points]. Parameters and batch statistics go along the line.

    Args:
      run: a run whose `ensemble` holds both.
      ends: which members: at 0 and at 1.
      records: with the labels of its task, of one batch.
      points: where on the line; below 0 and above 1 it goes on.
    """
    first, last = (run.ensemble[k] for k in ends)
    batch = make_batch(run.task, records)

    @jax.jit
    def loss(share):
        def between(a, b):
            return a + share * (b - a) if jnp.issubdtype(a.dtype, jnp.floating) else a

        variables = jax.tree.map(between, first, last)
        value, _ = run.task.loss(variables, batch, rng=jax.random.PRNGKey(0), step=run.steps[-1])
        return value

    return np.array([float(loss(jnp.float32(share))) for share in points])
