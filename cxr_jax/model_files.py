"""A trained model as a folder of its own: config, weights and a card. Some come with the package.

    config.json           of the run
    weights.safetensors   'params/...' and 'batch_stats/...', of further members of an ensemble
                          'member-1/params/...' and so on
    card.json             what it was trained on, what it measured, how it came about

`python -m cxr_jax.weights pack` writes one; `TrainedRun.load` reads it as it reads a work
directory. A packaged model is meant by its name, 'model:NAME' where a folder has that name too.
"""

import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from cxr_jax import safe_write, small_files
from cxr_jax.errors import InputError

if TYPE_CHECKING:  # importing jax takes seconds
    import jax

    from cxr_jax.tasks.base import Variables

PACKAGED = pathlib.Path(__file__).parent / "packaged" / "models"
CARD, WEIGHTS = "card.json", "weights.safetensors"
SCHEME = "model:"
_REMEDY = "take the folder from a copy, or install the package again"


def names() -> list[str]:
    """The packaged models."""
    return sorted(path.parent.name for path in PACKAGED.glob(f"*/{CARD}"))


def find(name: str | os.PathLike[str]) -> pathlib.Path:
    """The folder of a packaged model or a work directory, by name or path.

    Raises:
      InputError: there is neither; tells the names there are.
    """
    text = str(name)
    packaged = PACKAGED / text.removeprefix(SCHEME)
    known = packaged.name in names() and packaged.parent == PACKAGED
    if known and (text.startswith(SCHEME) or not small_files.exists(text)):
        return packaged
    if text.startswith(SCHEME) or not small_files.exists(text):
        raise InputError(
            f"{text}: there is no such folder and no such model; the models that come along are "
            f"{', '.join(names()) or 'none in this version'}"
        )
    return pathlib.Path(text)


def place(path: str | os.PathLike[str]) -> pathlib.Path:
    """A path as it is, or the folder of the packaged model that 'model:NAME' means.

    Raises:
      InputError: there is no such model.
    """
    return find(path) if str(path).startswith(SCHEME) else pathlib.Path(path)


def is_one(folder: pathlib.Path) -> bool:
    """Whether a folder holds a model with its card, and no run.

    Raises:
      InputError: it holds a model's weights and no card.
    """
    there = small_files.is_file(folder / CARD)
    if not there and small_files.is_file(folder / WEIGHTS):
        raise InputError(f"{folder} has {WEIGHTS} and no {CARD}; {_REMEDY}")
    return there


def read_card(folder: pathlib.Path) -> dict[str, Any]:
    """What is said of a model: `write` has the entries.

    Raises:
      InputError: it is missing or broken.
    """
    return small_files.read_fields(folder / CARD, _REMEDY).values


def write(
    folder: pathlib.Path,
    *,
    config: str,
    ensemble: Sequence["Variables"],
    steps: Sequence[int],
    card: Mapping[str, Any],
) -> None:
    """Writes a model.

    Args:
      folder: is made; what a model consists of is replaced there.
      config: the JSON of its config.
      ensemble: the variables of each member.
      steps: of each member's training.
      card: is written with the hash of the weights.
    """
    from flax import traverse_util

    from cxr_jax import weight_files
    from cxr_jax.writers import write_json

    arrays = {
        f"{_prefix(k)}{name}": array
        for k, variables in enumerate(ensemble)
        for name, array in traverse_util.flatten_dict(dict(variables), sep="/").items()
    }
    safe_write.make_folder(folder, "FOLDER")
    weight_files.write_safetensors(folder / WEIGHTS, arrays, {"package": "cxr_jax"})
    write_json(folder / "config.json", json.loads(config))
    made = {
        "members": len(ensemble),
        "steps": list(steps),
        "sha256": safe_write.digest(folder / WEIGHTS),
    }
    write_json(folder / CARD, {**card, **made})


def restore(
    folder: pathlib.Path, shapes: "Variables", sharding: "jax.sharding.Sharding"
) -> tuple[tuple[int, ...], list["Variables"]]:
    """(steps, the variables of each member) of a model.

    Args:
      folder: of the model.
      shapes: variables as `trained.variable_shapes` gives them.
      sharding: where the arrays go.

    Raises:
      InputError: the weights are not those of the card, or not of the config.
    """
    import jax
    from flax import traverse_util

    from cxr_jax import weight_files

    card = small_files.read_fields(folder / CARD, _REMEDY)
    path = folder / WEIGHTS
    if not small_files.is_file(path) or safe_write.digest(path.resolve()) != card.get(
        "sha256", str
    ):
        raise InputError(f"{path} is not what {CARD} has the hash of; {_REMEDY}")
    arrays = weight_files.read_file(path)
    wanted = traverse_util.flatten_dict(dict(shapes), sep="/")
    ensemble = []
    for k in range(card.get("members", int)):
        member = {}
        for name, shape in wanted.items():
            found = arrays.get(f"{_prefix(k)}{name}")
            if found is None or found.shape != shape.shape or found.dtype != shape.dtype:
                has = "is missing" if found is None else f"is {found.dtype} {list(found.shape)}"
                raise InputError(
                    f"{path}: {_prefix(k)}{name} {has}; the config has {shape.dtype} "
                    f"{list(shape.shape)}; {_REMEDY}"
                )
            member[tuple(name.split("/"))] = jax.device_put(found, sharding)
        ensemble.append(traverse_util.unflatten_dict(member))
    return tuple(card.get("steps", list)), ensemble


def _prefix(member: int) -> str:
    return f"member-{member}/" if member else ""
