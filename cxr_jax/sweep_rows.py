"""The rows of a sweep: from a list of variants, or a TOML file, to the runs and their configs.

A row is a name and a config with overrides; a run is a row with a seed. In an override {dir:NAME}
is the work directory of an earlier row's run of the same seed, {seed} the seed.
"""

import collections
import dataclasses
import pathlib
import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

import ml_collections

from cxr_jax import config_files, small_files, train
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from cxr_jax.tasks import make_task

_REMEDY = "see docs/commands.md"
_LIST_KEYS = ("config", "seeds", "metrics", "overrides", "run")
_ROW_KEYS = ("name", "config", "overrides")
# A name is a folder, and a cell of a Markdown table.
_NAME = re.compile(r"\w(?:[\w .,=+-]{0,78}[\w=+-])?")
_REFERENCE = re.compile(r"\{dir:([^{}]*)\}")


@dataclasses.dataclass(frozen=True)
class Row:
    """A line of the table.

    Attributes:
      config: FILE[:VARIANT].
      overrides: '--config.FIELD=VALUE', each.
    """

    name: str
    config: str
    overrides: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Plan:
    """What is to be run: every row with every seed. `metrics`: columns; () are the tasks' own."""

    rows: tuple[Row, ...]
    seeds: tuple[int, ...] = (0,)
    metrics: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class Run:
    """One training.

    Attributes:
      config: resolved, as the child process will.
      needs: names of the rows whose runs of this seed come first.
      command: of the child process.
      columns: the metrics of a table that the task names; () if it names none.
    """

    row: Row
    seed: int
    folder: pathlib.Path
    config: ml_collections.ConfigDict
    needs: tuple[str, ...]
    command: tuple[str, ...]
    columns: tuple[str, ...]

    @property
    def key(self) -> tuple[str, int]:
        """Name and seed, which no other run of the sweep has."""
        return self.row.name, self.seed

    @property
    def starts(self) -> dict[str, pathlib.Path]:
        """Row -> work directory of its run of this seed, of the `needs`."""
        return {name: self.folder.parents[1] / name / self.folder.name for name in self.needs}

    @property
    def label(self) -> str:
        """For a line on the terminal."""
        return f"{self.row.name}, seed {self.seed}"


# Lists.


def from_variants(config: str, variants: Sequence[str]) -> tuple[Row, ...]:
    """A row for each variant, of its name; '' is the config's own setting."""
    stem = pathlib.Path(config).stem
    names = [variant.strip() for variant in variants]
    return tuple(Row(name or stem, f"{config}:{name}" if name else config) for name in names)


def read_list(path: pathlib.Path) -> Plan:
    """Reads a TOML file of rows; docs/commands.md has the format.

    Raises:
      InputError: no such file, no TOML, an unknown key, or a value of another kind.
    """
    fields = small_files.read_toml(path, "--list", _REMEDY)
    try:
        return _plan(fields)
    except (ValueError, RecursionError) as error:
        raise InputError(f"--list={path} is no TOML ({error}); {_REMEDY}") from error


def _plan(fields: small_files.Fields) -> Plan:
    _check_keys(fields, _LIST_KEYS)
    default, shared = fields.get("config", str, ""), _overrides(fields)
    rows = []
    for number, values in enumerate(fields.get("run", list), 1):
        if not isinstance(values, dict):
            raise InputError(f"{fields.path}: a row is a table [[run]]; {_REMEDY}")
        row = fields._replace(values=values, inside=f"run {number}: ")
        _check_keys(row, _ROW_KEYS)
        config = row.get("config", str, default)
        if not config:
            raise InputError(f"{fields.path}: run {number} has no config; {_REMEDY}")
        rows.append(Row(row.get("name", str), config, (*shared, *_overrides(row))))
    seeds, metrics = fields.get("seeds", list, [0]), fields.get("metrics", list, [])
    for name, found, kind in (("seeds", seeds, int), ("metrics", metrics, str)):
        if not all(type(value) is kind for value in found):  # True is no seed
            kinds = "whole numbers" if kind is int else "texts"
            raise InputError(f"{fields.path}: {name}={found}; expected {kinds}")
    return Plan(rows=tuple(rows), seeds=tuple(seeds), metrics=tuple(metrics))


def _check_keys(fields: small_files.Fields, known: Sequence[str]) -> None:
    if unknown := [key for key in fields.values if key not in known]:
        where = f"{fields.path}: {fields.inside}"
        raise InputError(f"{where}unknown key {unknown[0]!r}; expected {', '.join(known)}")


def _overrides(fields: small_files.Fields) -> tuple[str, ...]:
    """The table `overrides` as flags; optimizer.lr = 1 and optimizer = {lr = 1} are the same."""
    flat = _flat(fields.get("overrides", dict, {}), "")
    return tuple(f"--config.{name}={_text(value)}" for name, value in flat.items())


def _flat(values: Mapping[str, Any], prefix: str) -> dict[str, Any]:
    found = {}
    for key, value in values.items():
        inner = isinstance(value, dict)
        found |= _flat(value, f"{prefix}{key}.") if inner else {f"{prefix}{key}": value}
    return found


def _text(value: Any) -> str:
    """A value of TOML as --config.FIELD takes it."""
    if isinstance(value, bool):
        return str(value).lower()
    return repr(tuple(value)) if isinstance(value, list) else str(value)


# Runs.


def make_runs(plan: Plan, output: pathlib.Path, *, split: str) -> list[Run]:
    """Every run in order: row by row as they are listed, each with all its seeds.

    Resolves each config, makes its task and opens its data, so that a mistake in the last row is
    said before the first is trained.

    Args:
      output: the sweep's folder; a run lies in NAME/seed-K.
      split: that will be evaluated.

    Raises:
      InputError: names the row, and what is wrong with it.
    """
    _check_plan(plan)
    output = output.expanduser().absolute()  # a reference means the same from every folder
    return [_run(plan, i, seed, output=output, split=split)
            for i in range(len(plan.rows)) for seed in plan.seeds]  # fmt: skip


def same_rows(runs: Sequence[Run]) -> list[str]:
    """A line for each pair of rows that come to the same config, as where a variant sets what an
    option has set."""
    seen: dict[str, str] = {}
    lines = []
    for run in (run for run in runs if run.seed == runs[0].seed):
        other = seen.setdefault(run.config.to_json(), run.row.name)
        if other != run.row.name:
            lines.append(
                f"note: rows {other!r} and {run.row.name!r} are the same config and will have the "
                "same results; look at --mode=show for what their options change"
            )
    return lines


def _check_plan(plan: Plan) -> None:
    """Names, seeds and overrides, before a config is resolved."""
    names = [row.name for row in plan.rows]
    for name, count in collections.Counter(names).items():
        if not _NAME.fullmatch(name):
            raise InputError(
                f"row {name[:80]!r}: a name is a folder, of letters, digits, spaces and "
                ". , = + - _, at most 80, and begins with a letter or digit"
            )
        if count > 1:
            raise InputError(f"row {name!r} is there {count} times; give each a name of its own")
    if not names or not plan.seeds:
        raise InputError(f"there are no {'seeds' if names else 'rows'} to run")
    if min(plan.seeds) < 0 or len(set(plan.seeds)) < len(plan.seeds):
        raise InputError(f"seeds {list(plan.seeds)}: each once, 0 or more")
    for i, row in enumerate(plan.rows):
        for override in row.overrides:
            _check_override(override, row, names[:i])


def _check_override(override: str, row: Row, earlier: Sequence[str]) -> None:
    if re.match(r"--config\.seed\b", override):
        raise InputError(f"row {row.name!r}: {override}: give the seeds as --seeds")
    for name in _REFERENCE.findall(override):
        if name not in earlier:
            known = ", ".join(earlier) or "none"
            raise InputError(
                f"row {row.name!r}: {override}: no earlier row has the name {name!r}; before it "
                f"come: {known}"
            )


def _run(plan: Plan, number: int, seed: int, *, output: pathlib.Path, split: str) -> Run:
    row = plan.rows[number]

    def place(name: str) -> pathlib.Path:
        return output / name / f"seed-{seed}"

    overrides = [
        _REFERENCE.sub(lambda found: str(place(found[1])), text.replace("{seed}", str(seed)))
        for text in row.overrides
    ]
    overrides.append(f"--config.seed={seed}")
    try:
        config = config_files.resolved(row.config, overrides)
        train.check_numbers(config)
        columns = make_task(config).evaluation.columns
        for part in ("train", split):
            sources.open_source(config.data, part)
    except InputError as error:
        raise InputError(f"row {row.name!r}: {error}") from error
    needs = [name for text in row.overrides for name in _REFERENCE.findall(text)]
    folder = place(row.name)
    command = [sys.executable, "-m", "cxr_jax.main", f"--config={row.config}", *overrides]
    return Run(
        row=row,
        seed=seed,
        folder=folder,
        config=config,
        needs=tuple(dict.fromkeys(needs)),
        command=(*command, f"--split={split}", f"--workdir={folder}"),
        columns=tuple(columns),
    )
