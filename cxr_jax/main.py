r"""Train and evaluate.

    python -m cxr_jax.main --config=configs/severity.py:quick
    python -m cxr_jax.main --config=configs/severity.py:quick --config.seed=1 --workdir=DIR
    python -m cxr_jax.main --workdir=DIR --mode=eval [--split=test] [--steps=11000,11500,12000]
    python -m cxr_jax.main --config=SAME --workdir=DIR --mode=eval --config.data.name=manifest \
        --config.data.path=other_hospital.csv       an external test: results under manifest-test/

Without --workdir the run goes to runs/NAME-VARIANT. Running the same command again resumes.
"""

import pathlib
import re
import sys

from absl import flags
from ml_collections import config_flags

from cxr_jax.cli import INTERRUPTED, run_command, setup_jax
from cxr_jax.errors import InputError

FLAGS = flags.FLAGS
_CONFIG = config_flags.DEFINE_config_file(
    "config", None, "A file of configs/ and its variant, e.g. configs/severity.py:quick."
)
_WORKDIR = flags.DEFINE_string("workdir", "", "Where the run lives. Default: runs/NAME-VARIANT.")
_MODE = flags.DEFINE_enum("mode", "train", ["train", "eval"], "train also evaluates at the end.")
_SPLIT = flags.DEFINE_enum("split", "test", ["train", "val", "test"], "What is evaluated.")
_STEPS = flags.DEFINE_list("steps", [], "Checkpoints whose predictions are averaged.")


def main() -> int:
    _parse_flags(sys.argv)
    setup_jax()
    from cxr_jax import evaluate, train, workdir, writers  # importing jax takes seconds

    config = _CONFIG.value
    folder = pathlib.Path(_WORKDIR.value or _default_workdir()).expanduser()
    if config is None:
        config = workdir.read_config(folder)
    split = _SPLIT.value
    if _MODE.value == "train" and not train.train(config, folder, final_split=split):
        return INTERRUPTED
    metrics = evaluate.evaluate(config, folder, split=split, steps=_steps(_STEPS.value))
    if metrics is None:
        print("evaluation stopped by SIGTERM; nothing was written, run it again")
        return INTERRUPTED
    print(writers.metrics_table(metrics))
    print(
        f"\n{folder}: results.json, rows-*.npz, figures/, metrics.jsonl, checkpoints/"
        f"\npeak memory {train.peak_memory_mb() / 1024:.1f} GiB"
        "\nResearch software: not for any clinical use."
    )
    return 0


def _parse_flags(argv: list[str]) -> None:
    if {"--help", "-h", "-help"} & set(argv[1:]):
        print(__doc__)
        print(FLAGS.get_help(include_special_flags=False))
        sys.exit(0)
    for argument in argv:
        if argument.startswith("--config="):
            # A config file imports its neighbours as configs.*, from wherever it is run.
            file = argument.removeprefix("--config=").partition(":")[0]
            if not pathlib.Path(file).is_file():
                raise InputError(f"--config={file}: there is no such file")
            sys.path.insert(0, str(pathlib.Path(file).resolve().parent.parent))
    overrides = [a.partition("=")[0] for a in argv if a.startswith("--config.")]
    if overrides and not any(a.partition("=")[0] == "--config" for a in argv):
        raise InputError(
            f"{overrides[0]} changes a config: give --config=configs/NAME.py[:VARIANT] too (of a "
            "run in --workdir, the one it was trained with)"
        )
    try:
        rest = FLAGS(argv)
    except flags.Error as error:
        raise InputError(f"{error}; see python -m cxr_jax.main --help") from error
    except (AttributeError, KeyError) as error:  # no such field, or a mistake in the config's file
        raise InputError(
            _no_field(str(error.args[0] if error.args else error), overrides)
        ) from error
    except (TypeError, ValueError, OSError) as error:
        # config_flags lets the errors of overrides, and of the config file itself, through.
        words = " ".join(str(error.args[0] if error.args else error).split())
        raise InputError(f"--config: {words}; see python -m cxr_jax.main --help") from error
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; see python -m cxr_jax.main --help")
    if _CONFIG.value is None and not _WORKDIR.value:
        raise InputError("give --config=configs/NAME.py[:VARIANT], or --workdir of a run")


def _no_field(text: str, overrides: list[str]) -> str:
    """config_flags' "'total_step'\\nDid you mean ...?", quoted twice, as a sentence."""
    text = text.replace("\\n", "\n").replace("\\'", "'").strip("'\"")
    name, _, hint = (part.strip("' ") for part in text.partition("\n"))
    flag = next((flag for flag in overrides if name in flag.split(".")), None)
    if flag is None:
        return f"--config: {' '.join(text.split())}; see python -m cxr_jax.main --help"
    return f"{flag}: the config has no such field. {hint}".rstrip()


def _default_workdir() -> str:
    """configs/severity.py:quick -> runs/severity-quick."""
    path = config_flags.get_config_filename(FLAGS["config"])
    name, _, variant = path.partition(":")
    stem = "-".join(filter(None, (pathlib.Path(name).stem, variant)))
    return f"runs/{re.sub(r'[^A-Za-z0-9._=-]+', '-', stem)}"


def _steps(values: list[str]) -> tuple[int, ...]:
    try:
        return tuple(int(value) for value in values)
    except ValueError as error:
        raise InputError(f"--steps={','.join(values)}; expected whole numbers") from error


if __name__ == "__main__":
    run_command(main)
