"""The arrays that a run starts from: those of another run, or of a file, by path patterns.

`config.init_from` names a work directory (its latest checkpoint), a folder that `cxr_jax.weights
import` wrote, or a .safetensors file. Only parameters and batch statistics are taken; optimizer,
step, random key and teacher are the new run's own.
"""

import dataclasses
import math
import pathlib
import re
import types
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import ml_collections
import numpy as np

from cxr_jax import model_files, weight_files
from cxr_jax.checkpoints import FOLDER, read_state
from cxr_jax.errors import InputError
from cxr_jax.models.vit import resample_position
from cxr_jax.optimizers import path_of
from cxr_jax.state import TrainState
from cxr_jax.teacher import COPIES

Arrays = dict[str, np.ndarray]

COLLECTIONS = ("params", "batch_stats")


def read_arrays(path: str | pathlib.Path, step: int | None = None) -> Arrays:
    """Every array of a run or of a file of this package, by path ('params/backbone/...').

    Args:
      path: a work directory, a folder of imported weights, a .safetensors file, or 'model:NAME'.
      step: of a work directory's checkpoint; None takes the latest.

    Raises:
      InputError: `path` is none of the three, or has no such step.
    """
    path = model_files.place(path)
    file = path / weight_files.WEIGHTS if path.is_dir() else path
    if (path / FOLDER).exists() or not path.exists():
        state = read_state(path, step)
        return flatten({"params": state["params"], **state["model_state"]})
    if not file.is_file():
        raise InputError(
            f"{path} has no checkpoints and no {weight_files.WEIGHTS}; give the work directory of "
            "a trained run, a folder that cxr_jax.weights import wrote, or a .safetensors file"
        )
    if step is not None:
        raise InputError(f"{path} has no steps: it is no work directory of a run; leave out --step")
    arrays = weight_files.read_file(file)
    if not any(name.startswith("params/") for name in arrays):
        raise InputError(
            f"{path} has the names of another package (the first is {next(iter(arrays), None)!r}); "
            f"run `python -m cxr_jax.weights import {path} DIR` and give DIR"
        )
    return arrays


def flatten(tree: Any) -> dict[str, Any]:
    """Nested variables -> 'params/backbone/conv0/kernel' -> leaf."""
    return {path_of(path): leaf for path, leaf in jax.tree_util.tree_leaves_with_path(tree)}


def initialise(
    config: ml_collections.ConfigDict,
    train_state: TrainState,
    trainable: Any,
    *,
    remedies: Mapping[str, str] = types.MappingProxyType({}),
) -> TrainState:
    """A fresh state with the arrays of `config.init_from`, where that is given; prints which.

    A teacher in the state, and the average it is taken of, become copies of the student as it is
    then.

    Args:
      trainable: bool pytree like the parameters.
      remedies: as `check_frozen`.

    Raises:
      InputError: an array does not fit, a pattern matches nothing, or a part that is never trained
        would keep its random numbers.
    """
    taken: Arrays = {}
    if config.init_from:
        variables = dict(train_state.variables)
        student = {name: variables[name] for name in COLLECTIONS if name in variables}
        ours = flatten(student)
        taken, report = select(
            {name: leaf.shape for name, leaf in ours.items()},
            read_arrays(config.init_from),
            include=config.init_include,
            exclude=config.init_exclude,
            rename=config.init_rename,
        )
        print(f"init_from {config.init_from}: {report}", flush=True)
        student = jax.tree_util.tree_map_with_path(
            lambda path, old: _placed(taken.get(path_of(path), old), old), student
        )
        # Not the same arrays: the train step donates all, so they must not share their memory.
        copies = {
            name: jax.tree.map(_placed, student, variables[name])
            for name in COPIES
            if name in variables
        }
        variables |= student | copies
        params = variables.pop("params")
        train_state = train_state.replace(params=params, model_state=variables)
    check_frozen(
        trainable,
        flatten(train_state.variables),
        taken,
        remedies=remedies,
        allowed=config.allow_random_frozen,
    )
    return train_state


def _placed(new: Any, old: jax.Array) -> jax.Array:
    """`new` with the dtype and on the devices of `old`, never in the memory of another array."""
    return jax.device_put(np.array(new, old.dtype), old.sharding)


def check_frozen(
    trainable: Any,
    ours: Iterable[str],
    taken: Iterable[str],
    *,
    remedies: Mapping[str, str],
    allowed: bool,
) -> None:
    """Refuses a part that is never trained and keeps its random numbers.

    Args:
      trainable: bool pytree like the parameters.
      ours: paths of all variables.
      taken: of those that have come from elsewhere.
      remedies: `Task.frozen`, which settings would train what a task never trains.
      allowed: refuses nothing.

    Raises:
      InputError: names the first such array, and what to set.
    """
    still = [name for name, used in flatten(trainable).items() if not used]
    # A norm's statistics belong to its scale: without them a frozen norm divides by nothing known.
    norms = [name.rpartition("/")[0] for name in still if name.endswith("/scale")]
    statistics = [f"batch_stats/{norm}/{kind}" for norm in norms for kind in ("mean", "var")]
    frozen = [f"params/{name}" for name in still] + [n for n in statistics if n in ours]
    random = [name for name in frozen if name not in taken]
    if random and not allowed:
        raise InputError(
            f"{len(random)} frozen arrays would keep their random numbers, e.g. {random[0]}: set "
            f"config.init_from to a run that has them, train the part{_said(remedies)}, or, to "
            "measure speed only, config.allow_random_frozen=True"
        )


def _said(remedies: Mapping[str, str]) -> str:
    settings = sorted(filter(None, set(remedies.values())))
    return f" ({', '.join(settings)})" if settings else ""


@dataclasses.dataclass
class _Part:
    """What became of a top-level part of the model, such as 'backbone'."""

    arrays: int = 0
    taken: int = 0
    numbers: int = 0
    excluded: list[str] = dataclasses.field(default_factory=list)
    absent: list[str] = dataclasses.field(default_factory=list)


def select(
    shapes: Mapping[str, tuple[int, ...]],
    given: Mapping[str, np.ndarray],
    *,
    include: Sequence[str] = (),
    exclude: Sequence[str] = (),
    rename: Sequence[tuple[str, str]] = (),
) -> tuple[Arrays, str]:
    """Which of the given arrays a model takes.

    Patterns are regular expressions of paths without the collection, as in config.optimizer.frozen
    ('backbone/.*' is a part's parameters and its batch statistics).

    Args:
      shapes: of the model's variables, by path with the collection ('params/backbone/...').
      given: the other run's, or the file's, likewise; other collections are left alone.
      include: patterns of the whole path, after renaming; () takes all.
      exclude: patterns of what is not taken though included.
      rename: (pattern, replacement) pairs; each is replaced wherever it occurs in the given paths,
        one pair after the other.

    Returns:
      (the arrays taken, by the model's path; a report of what was taken, what not, and why).

    Raises:
      InputError: a pattern matches nothing, two arrays get one name, an array has another shape
        (square position embeddings are resampled instead) or is not finite, or nothing fits.
    """
    given = {n: x for n, x in given.items() if n.startswith(tuple(f"{c}/" for c in COLLECTIONS))}
    given = _renamed(given, rename)
    included = _matching(include, given, "init_include") if include else set(given)
    excluded = _matching(exclude, [*given, *shapes], "init_exclude")

    parts: dict[str, _Part] = {}
    taken, notes, misshapen = {}, [], []
    for name, shape in shapes.items():
        part = parts.setdefault(_path(name).split("/")[0], _Part())
        part.arrays += 1
        if name not in given:
            part.absent.append(name)
        elif name in excluded or name not in included:
            part.excluded.append(name)
        else:
            fitted, note = _fitted(name, given[name], tuple(shape))
            if fitted is None:
                misshapen.append(name)
                continue
            taken[name] = fitted
            notes += note
            part.taken += 1
            part.numbers += fitted.size
    if misshapen:
        raise _does_not_fit(misshapen, shapes, given)
    unused = [name for name in given if name not in shapes]
    _check_taken(taken, given, include)
    return taken, _report(parts, notes, unused=unused, taken=len(taken))


def _path(name: str) -> str:
    """'params/backbone/conv0/kernel' -> 'backbone/conv0/kernel'."""
    return name.partition("/")[2]


def _compiled(pattern: Any, field: str) -> re.Pattern:
    try:
        return re.compile(pattern)
    except (re.error, TypeError) as error:
        raise InputError(
            f"config.{field} has {pattern!r}, which is no regular expression: {error}"
        ) from error


def _renamed(given: Mapping[str, np.ndarray], rename: Sequence[tuple[str, str]]) -> Arrays:
    names = {name: name for name in given}  # ours -> the file's
    for pair in rename:
        if isinstance(pair, str) or len(pair) != 2:
            raise InputError(f"config.init_rename has {pair!r}; expected (pattern, replacement)")
        pattern, replacement = _compiled(pair[0], "init_rename"), pair[1]
        if not any(pattern.search(_path(name)) for name in names):
            raise _no_match(pair[0], "init_rename", names)
        new: dict[str, str] = {}
        for name, old in names.items():
            collection, _, path = name.partition("/")
            try:
                path = f"{collection}/{pattern.sub(replacement, path)}"
            except (re.error, IndexError, TypeError) as error:
                raise InputError(f"config.init_rename: {pair[1]!r}: {error}") from error
            if path in new:
                raise InputError(
                    f"config.init_rename gives {new[path]} and {old} one name, {path}; make the "
                    "pattern more exact"
                )
            new[path] = old
        names = new
    return {name: given[old] for name, old in names.items()}


def _matching(patterns: Sequence[str], names: Iterable[str], field: str) -> set[str]:
    if isinstance(patterns, str):
        raise InputError(f"config.{field}={patterns!r}; expected a tuple, ({patterns!r},)")
    names, found = list(names), set()
    for pattern in patterns:
        compiled = _compiled(pattern, field)
        hits = {name for name in names if compiled.fullmatch(_path(name))}
        if not hits:
            raise _no_match(pattern, field, names)
        found |= hits
    return found


def _no_match(pattern: str, field: str, names: Iterable[str]) -> InputError:
    tops = sorted({_path(name).split("/")[0] for name in names})
    return InputError(
        f"config.{field}: {pattern!r} matches no array; the top-level parts are {', '.join(tops)} "
        f"(patterns are of paths without params/ or batch_stats/, e.g. {tops[0]}/.*)"
        if tops
        else f"config.{field}: there is no array that {pattern!r} could match"
    )


def _fitted(
    name: str, array: np.ndarray, shape: tuple[int, ...]
) -> tuple[np.ndarray | None, list[str]]:
    """The array in the model's shape, None where it has another; and what had to be done."""
    if array.dtype.kind not in "fV" or not np.isfinite(array.astype(np.float32)).all():
        raise InputError(
            f"init_from: {name} is not finite, or of dtype {array.dtype}; give another run or "
            f"file, or leave it out with config.init_exclude=({_path(name)!r},)"
        )
    if array.shape == shape:
        return array, []
    if name.endswith("/position") and len(array.shape) == 3 and _same_but_cells(array.shape, shape):
        old, new = (math.isqrt(cells - 1) for cells in (array.shape[1], shape[1]))
        if old**2 == array.shape[1] - 1 and new**2 == shape[1] - 1:
            moved = resample_position(np.asarray(array, np.float32), (old, old), (new, new))
            return np.asarray(moved), [f"{_path(name)} resampled from {old}x{old} to {new}x{new}"]
    return None, []


def _does_not_fit(names: list[str], shapes: Mapping, given: Arrays) -> InputError:
    paths = [_path(name) for name in names]
    if len(paths) > 4:  # whole parts are easier to write, and then what the user means
        paths = sorted({f"{path.split('/')[0]}/.*" for path in paths})
    more = f" ({len(names)} such arrays)" if len(names) > 1 else ""
    return InputError(
        f"init_from: {names[0]} has the shape {given[names[0]].shape} there and "
        f"{tuple(shapes[names[0]])} here{more}; use a config of that size, or leave out what does "
        f"not fit with config.init_exclude={tuple(dict.fromkeys(paths))!r}"
    )


def _same_but_cells(a: tuple[int, ...], b: tuple[int, ...]) -> bool:
    return len(b) == 3 and (a[0], a[2]) == (b[0], b[2]) and min(a[1], b[1]) > 1


def _check_taken(taken: Arrays, given: Arrays, include: Sequence[str]) -> None:
    for pattern in include:
        if not any(re.fullmatch(pattern, _path(name)) for name in taken):
            raise InputError(
                f"config.init_include: {pattern!r} takes nothing: the model lacks such an array, "
                "or config.init_exclude takes it away"
            )
    if not taken:
        raise InputError(
            "init_from: no array of the given weights has a name of this model's; theirs is "
            f"{next(iter(given), 'none at all')!r}, for one (config.init_rename changes names)"
        )


def _report(parts: Mapping[str, _Part], notes: list[str], *, unused: list[str], taken: int) -> str:
    """A line for the whole, then one a part, then what else there is to say."""
    lines = [f"{taken} arrays taken"]
    width = max(map(len, parts))
    for name, part in parts.items():
        line = f"  {name:<{width}}  {part.taken} of {part.arrays} arrays, {part.numbers:,} numbers"
        for why, names in (("not there", part.absent), ("excluded", part.excluded)):
            if names:
                line += f"; {len(names)} {why}, left as initialised (e.g. {names[0]})"
        lines.append(line)
    lines += [f"  {note} cells" for note in notes]
    if unused:
        lines.append(f"  not used: {len(unused)} arrays that this model has not (e.g. {unused[0]})")
    return "\n".join(lines)
