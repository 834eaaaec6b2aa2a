"""A second copy of a network that teaches the first: self-training and mean teachers.

The copy is a collection of the variables, `variables["teacher"]` = {"params", "batch_stats", ...},
so it lies in the training state and in every checkpoint like any other model state, and a run that
is killed resumes with the teacher it had. A task makes it in `init`, reads it in `loss` and returns
the new one in the new model state; no gradient flows into it.

`variables["average"]`, where a task keeps one beside it, is a moving average of the student that
copies are taken of, in place of the student as it happens to be at that step.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

Variables = dict[str, Any]

COLLECTION = "teacher"
AVERAGE = "average"
COPIES = (COLLECTION, AVERAGE)


def student(variables: Variables) -> Variables:
    """The variables without copies of the network, as constants."""
    rest = {name: tree for name, tree in variables.items() if name not in COPIES}
    return jax.lax.stop_gradient(rest)


def init(variables: Variables, *, average: bool = False) -> Variables:
    """Adds a teacher that equals the student; with `average` the average too."""
    names = COPIES if average else (COLLECTION,)
    return variables | {name: jax.tree.map(jnp.array, student(variables)) for name in names}


def source(variables: Variables) -> str:
    """The collection that the next copy is taken of: the average; '' is the network itself."""
    return AVERAGE if AVERAGE in variables else ""


def copy_at(steps: Sequence[int], variables: Variables, step: jax.Array) -> Variables:
    """The teacher for this step: at each of `steps` the average, or where there is none the student
    itself; else the last copy."""
    now = jnp.isin(step, jnp.asarray(steps))
    fresh = variables.get(AVERAGE) or student(variables)
    return jax.tree.map(lambda new, old: jnp.where(now, new, old), fresh, variables[COLLECTION])


def ema(
    decay: float, variables: Variables, step: jax.Array, *, collection: str = COLLECTION
) -> Variables:
    """The copy for the next step: a moving average of the student, w' = d w' + (1 - d) w.

    d = min(decay, step / (step + 1)): a plain mean until the average has filled, so that the
    random numbers of the start do not linger. Batch statistics are averaged like parameters.
    """
    step = step.astype(jnp.float32)
    d = jnp.minimum(decay, step / (step + 1))
    return jax.tree.map(
        lambda new, old: d * old + (1 - d) * new, student(variables), variables[collection]
    )
