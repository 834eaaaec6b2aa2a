r"""Train and evaluate.

    python -m cxr_jax.main --config=configs/severity.py:quick
    python -m cxr_jax.main --config=configs/severity.py:quick --config.seed=1 --workdir=DIR
    python -m cxr_jax.main --config=configs/severity.py:quick --mode=show      every field explained
    python -m cxr_jax.main --workdir=DIR --mode=eval [--split=test] [--steps=11000,11500,12000]
    python -m cxr_jax.main --config=SAME --workdir=DIR --mode=eval --config.data.name=manifest \
        --config.data.path=other_hospital.csv       an external test: results under manifest-test/

--config.FIELD=VALUE changes a field. --config.data.name chooses another data set, with the options
of that set; so does --config.second.name. Without --workdir the run goes to runs/NAME-VARIANT.
Running the same command again resumes.
"""

import importlib.util
import pathlib
import re
import sys
import types
from collections.abc import Iterable

import ml_collections
from absl import flags
from ml_collections import config_flags

from cxr_jax.cli import run_command, setup_jax
from cxr_jax.data import sources
from cxr_jax.errors import InputError

FLAGS = flags.FLAGS
_WORKDIR = flags.DEFINE_string("workdir", "", "Where the run lives. Default: runs/NAME-VARIANT.")
_MODE = flags.DEFINE_enum(
    "mode", "train", ["train", "eval", "show"], "train also evaluates; show prints the config."
)
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "What is evaluated.")
_STEPS = flags.DEFINE_list("steps", [], "Checkpoints whose predictions are averaged.")
_ALLOW_SEEN = flags.DEFINE_bool(
    "allow_seen", False, "An external test may hold patients or films that were trained on."
)
_CONFIG_HELP = """\
  --config: A file of configs/ and its variant, e.g. configs/severity.py:quick.
  --config.FIELD: Another value of a field; --mode=show lists them all.
"""
_HELP = "see python -m cxr_jax.main --help"


def main() -> int:
    config, file = _parse_flags(sys.argv)
    if _MODE.value == "show":
        return _show(config, file)
    setup_jax()
    from cxr_jax import (
        checkpoints,
        evaluate,
        train,
        workdir,
        writers,
    )  # importing jax takes seconds

    folder = pathlib.Path(_WORKDIR.value or _default_workdir(file)).expanduser()
    if config is None:
        config = workdir.read_config(folder)
    split = _SPLIT.value
    steps = _steps(_STEPS.value)
    with checkpoints.StopSignal() as stop:
        if _MODE.value == "train" and not train.train(config, folder, final_split=split, stop=stop):
            return stop.status
        metrics = evaluate.evaluate(
            config, folder, split=split, steps=steps, stop=stop, allow_seen=_ALLOW_SEEN.value
        )
    if metrics is None:
        print(f"evaluation stopped by {stop.name}; nothing was written, run it again")
        return stop.status
    print(writers.metrics_table(metrics) or f"no film of {split!r} has a label: nothing to measure")
    print(
        f"\n{folder}: results.json, rows-*.npz, figures/, metrics.jsonl, checkpoints/"
        f"\npeak memory {train.peak_memory_mb() / 1024:.1f} GiB"
        "\nResearch software: not for any clinical use."
    )
    return 0


def _show(config: ml_collections.ConfigDict | None, file: str) -> int:
    """Prints the config; that of a work directory with the meanings of configs/TASK.py, if the
    command runs where that is."""
    from cxr_jax import meanings, workdir

    if config is None:
        config = workdir.read_config(pathlib.Path(_WORKDIR.value).expanduser())
        file = f"configs/{config.task}.py"
    path = pathlib.Path(file.partition(":")[0])
    module = _load(path) if path.is_file() else None
    known = module.meanings() if hasattr(module, "meanings") else {}
    print(meanings.show(config, known))
    return 0


def _parse_flags(argv: list[str]) -> tuple[ml_collections.ConfigDict | None, str]:
    """The config, None if it is the work directory's, and FILE[:VARIANT], '' likewise."""
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(__doc__)
        print(_CONFIG_HELP + FLAGS.get_help(include_special_flags=False))
        sys.exit(0)
    file, argv = _take(argv, "config")
    overrides = [a.partition("=")[0] for a in argv if a.startswith("--config.")]
    if overrides and file is None:
        raise InputError(
            f"{overrides[0]} changes a config: give --config=configs/NAME.py[:VARIANT] too (of a "
            "run in --workdir, the one it was trained with)"
        )
    try:
        config, argv = (None, argv) if file is None else _open_config(file, argv)
        rest = FLAGS(argv)
    except flags.Error as error:
        raise InputError(f"{error}; {_HELP}") from error
    except (AttributeError, KeyError) as error:  # no such field, or a mistake in the config's file
        raise InputError(
            _no_field(str(error.args[0] if error.args else error), overrides)
        ) from error
    except (TypeError, ValueError, OSError) as error:
        # config_flags lets the errors of overrides, and of the config file itself, through.
        words = " ".join(str(error.args[0] if error.args else error).split())
        raise InputError(f"--config: {words}; {_HELP}") from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; {_HELP}")
    if config is None and not _WORKDIR.value:
        raise InputError("give --config=configs/NAME.py[:VARIANT], or --workdir of a run")
    return config, file or ""


def _take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The last value of --flag=VALUE or --flag VALUE, None without one; and the other arguments.

    Raises:
      InputError: nothing follows --flag.
    """
    value, rest, waiting = None, [], iter(argv)
    for argument in waiting:
        name, equals, given = argument.partition("=")
        if name not in (f"--{flag}", f"-{flag}"):
            rest.append(argument)
            continue
        value = given if equals else next(waiting, None)
        if value is None:
            raise InputError(f"--{flag} needs a value; {_HELP}")
    return value, rest


def _open_config(file: str, argv: list[str]) -> tuple[ml_collections.ConfigDict, list[str]]:
    """The config of FILE[:VARIANT] with the data sets that the arguments name, defined as the flag
    --config, which sets its other fields; and the arguments without those names.

    Raises:
      InputError: no such file, an unknown variant, data set or option of a data set.
    """
    path, _, variant = file.partition(":")
    module = _load(pathlib.Path(path))
    config = module.get_config(variant) if variant else module.get_config()
    for block in ("data", "second"):
        name, argv = _take(argv, f"config.{block}.name")
        if name is not None:
            config[block] = sources.switched(config[block], name, f"config.{block}.name")
        _check_options(config[block], block, argv)
    config_flags.DEFINE_config_dict("config", config.lock(), sys_argv=argv)
    return FLAGS["config"].value, argv


def _check_options(data: ml_collections.ConfigDict, block: str, argv: Iterable[str]) -> None:
    """Refuses --config.data.OPTION of another data set."""
    for argument in argv:
        flag = argument.partition("=")[0]
        match = re.fullmatch(rf"--?(?:no)?config\.{block}\.(\w+)", flag)
        option = match and match[1]
        if option in (None, *sources.NOT_OPTIONS):
            continue
        if not data.name:
            raise InputError(f"{flag}: there is no second data set; give --config.{block}.name")
        try:
            sources.check_options(data.name, [option])
        except InputError as error:
            raise InputError(f"{flag}: {error}") from error


def _load(path: pathlib.Path) -> types.ModuleType:
    """The module of a config file, which may import its neighbours as configs.* from anywhere.

    Raises:
      InputError: there is no such file.
    """
    if not path.is_file():
        raise InputError(f"--config={path}: there is no such file")
    sys.path.insert(0, str(path.resolve().parent.parent))
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _no_field(text: str, overrides: list[str]) -> str:
    """config_flags' "'total_step'\\nDid you mean ...?", quoted twice, as a sentence."""
    text = text.replace("\\n", "\n").replace("\\'", "'").strip("'\"")
    name, _, hint = (part.strip("' ") for part in text.partition("\n"))
    flag = next((flag for flag in overrides if name in flag.split(".")), None)
    if flag is None:
        return f"--config: {' '.join(text.split())}; {_HELP}"
    return f"{flag}: the config has no such field. {hint}".rstrip()


def _default_workdir(file: str) -> str:
    """configs/severity.py:quick -> runs/severity-quick."""
    name, _, variant = file.partition(":")
    stem = "-".join(filter(None, (pathlib.Path(name).stem, variant)))
    return f"runs/{re.sub(r'[^A-Za-z0-9._=-]+', '-', stem)}"


def _steps(values: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except ValueError as error:
        raise InputError(f"--steps={','.join(values)}; expected whole numbers") from error


if __name__ == "__main__":
    run_command(main)
