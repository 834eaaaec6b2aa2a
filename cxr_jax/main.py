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

Several hosts, each with this command and a --workdir that all see (launch/):
    ... --hosts=slurm|jobset|tpu        or        --coordinator=HOST:PORT --processes=N --process=I
"""

import contextlib
import pathlib
import re
import sys

import ml_collections
from absl import flags

from cxr_jax import config_files
from cxr_jax.cli import run_command, setup_jax
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
_HOSTS = flags.DEFINE_string("hosts", "", "What started a process on each host.")
_COORDINATOR = flags.DEFINE_string(
    "coordinator", "", "HOST:PORT of process 0, in place of --hosts."
)
_PROCESSES = flags.DEFINE_integer("processes", 0, "How many there are.")
_PROCESS = flags.DEFINE_integer("process", -1, "The number of this one, from 0.")
_CONFIG_HELP = """\
  --config: A file of configs/ and its variant, e.g. configs/severity.py:quick.
  --config.FIELD: Another value of a field; --mode=show lists them all.
"""


def main() -> int:
    config, file = _parse_flags(sys.argv)
    if _MODE.value == "show":
        return _show(config, file)
    setup_jax()
    from cxr_jax import hosts  # importing jax takes seconds

    hosts.start(
        hosts.place(
            _HOSTS.value,
            coordinator=_COORDINATOR.value,
            processes=_PROCESSES.value,
            process=_PROCESS.value,
        )
    )
    folder = pathlib.Path(_WORKDIR.value or _default_workdir(file)).expanduser()
    with hosts.watched():
        return _run(config, folder)


def _run(config: ml_collections.ConfigDict | None, folder: pathlib.Path) -> int:
    """Trains and evaluates; the exit status."""
    from cxr_jax import checkpoints, evaluate, model_files, train, workdir, writers

    if folder.resolve().is_relative_to(model_files.PACKAGED.resolve()):
        raise InputError(
            f"{folder} is the model as it was installed, and results are written beside it: copy "
            "the folder and give the copy"
        )
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
    """Prints the config; that of a work directory with the meanings of configs/TASK.py."""
    from cxr_jax import meanings, workdir

    if config is None:
        config = workdir.read_config(pathlib.Path(_WORKDIR.value).expanduser())
        file = f"configs/{config.task}.py"
    module = None
    with contextlib.suppress(InputError):  # a task of the user's own may have no such file
        module = config_files.load(pathlib.Path(file.partition(":")[0]))
    known: dict[str, str] = getattr(module, "meanings", dict)()
    print(meanings.show(config, known))
    return 0


def _parse_flags(argv: list[str]) -> tuple[ml_collections.ConfigDict | None, str]:
    """The config, None if it is the work directory's, and FILE[:VARIANT], '' likewise."""
    file, argv = config_files.take(argv, "config")
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(_help(file, [a for a in argv if a.startswith("--config.")]))
        sys.exit(0)
    overrides = [a.partition("=")[0] for a in argv if a.startswith("--config.")]
    if overrides and file is None:
        raise InputError(
            f"{overrides[0]} changes a config: give --config=configs/NAME.py[:VARIANT] too (of a "
            "run in --workdir, the one it was trained with)"
        )
    with config_files.told_in_one_line(overrides):
        config, argv = (None, argv) if file is None else config_files.open_config(file, argv)
        rest = FLAGS(argv)
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; {config_files.HELP}")
    if config is None and not _WORKDIR.value:
        raise InputError("give --config=configs/NAME.py[:VARIANT], or --workdir of a run")
    return config, file or ""


def _help(file: str | None, overrides: list[str]) -> str:
    """Of the command; of a config what its file says, and every field as it is overridden."""
    if file is None:
        configs = [f"  {name:<17} {title}" for name, title in config_files.packaged().items()]
        ours = FLAGS.module_help(FLAGS.find_module_defining_flag("workdir")).strip()
        return "\n".join(
            [
                str(__doc__),
                "Configs, whose variants and fields --config=NAME.py --help tells:",
                *configs,
                "",
                _CONFIG_HELP + ours.partition("\n")[2],  # without the file's name
            ]
        )
    from cxr_jax import meanings

    module = config_files.load(pathlib.Path(file.partition(":")[0]))
    with config_files.told_in_one_line(overrides):
        values = flags.FlagValues()
        config, argv = config_files.open_config(file, [sys.argv[0], *overrides], values)
        values(argv)
    known: dict[str, str] = getattr(module, "meanings", dict)()
    return f"{module.__doc__}\nEvery field, for --config.FIELD=VALUE, as {file} has it:\n\n" + (
        meanings.show(config, known)
    )


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
