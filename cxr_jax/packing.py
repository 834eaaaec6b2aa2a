"""From finished runs to a model folder with its card (`model_files`): what `weights pack` does."""

import os
import pathlib
import tempfile
from collections.abc import Sequence
from typing import Any

import ml_collections

from cxr_jax import evaluate, model_files, safe_write, small_files
from cxr_jax import workdir as workdirs
from cxr_jax.errors import InputError
from cxr_jax.trained import TrainedRun
from cxr_jax.writers import metrics_json, provenance, write_json

_ABOUT = {"title": str, "licence": str, "commands": list, "limits": list}
_REMEDY = "see docs/weights.md"


def pack(
    runs: Sequence[pathlib.Path],
    folder: pathlib.Path,
    *,
    about: pathlib.Path,
    steps: tuple[int, ...] = (),
    lungs: str = "",
    split: str = "test",
) -> str:
    """Writes a model of runs that differ in their seed alone, and evaluates it for its card.

    Args:
      runs: work directories; of several the model is an ensemble.
      folder: of the model.
      about: a TOML file with title, licence, commands and limits.
      steps: checkpoints of each run; () takes the run's own.
      lungs: in place of `config.lungs.workdir`, e.g. 'model:lungs'.
      split: whose metrics the card has.

    Returns:
      What was written, for the terminal.

    Raises:
      InputError: the runs do not fit each other, or the file lacks something.
    """
    told = _read_about(about)
    loaded = [TrainedRun.load(run, steps) for run in runs]
    _check_alike(loaded)
    first = loaded[0]
    model = {
        "config": _without_places(first.config, lungs).to_json(),
        "ensemble": [variables for run in loaded for variables in run.ensemble],
        "steps": [step for run in loaded for step in run.steps],
    }
    trained_on = workdirs.trained_on(runs[0])
    card = {
        "name": folder.name,
        **told,
        "task": first.task.name,
        "seeds": [run.config.seed for run in loaded],
        "trained_on": trained_on,
    }
    with tempfile.TemporaryDirectory() as place:
        draft = pathlib.Path(place) / folder.name
        model_files.write(draft, card=card, **model)
        write_json(draft / "data.json", trained_on)
        card["metrics"] = _measure(first, draft, split=split)
    card |= {"evaluated_on": f"{first.config.data.name}, {split}", **provenance()}
    safe_write.make_folder(folder, "FOLDER")
    model_files.write(folder, card=card, **model)
    write_json(folder / "data.json", trained_on)
    size = os.path.getsize(folder / model_files.WEIGHTS)
    return f"{folder}: {len(model['ensemble'])} members, {size / 2**20:.1f} MiB"


def _without_places(config: ml_collections.ConfigDict, lungs: str) -> ml_collections.ConfigDict:
    """The config without what leads to a folder of whoever trained it, or to a checkpoint."""
    config = config.copy_and_resolve_references()
    with config.unlocked():
        config.eval_steps, config.init_from = (), ""
        config.early_stopping.update(metric="", patience=0)
        config.data.update({name: "" for name in ("path", "data_dir") if name in config.data})
        if lungs:
            config.lungs.workdir = lungs
    return config


def _measure(run: TrainedRun, draft: pathlib.Path, *, split: str) -> dict[str, Any]:
    """The metrics of a model, where the data of its runs lie."""
    config = workdirs.read_config(draft)
    with config.unlocked():
        config.data = run.config.data
        config.figures = 0
    metrics = evaluate.evaluate(config, draft, split=split)
    if metrics is None:
        raise InputError("the evaluation was stopped; run the same command again")
    prefix = f"{split}/"
    return {name.removeprefix(prefix): value for name, value in metrics_json(metrics).items()}


def _check_alike(runs: Sequence[TrainedRun]) -> None:
    """Refuses runs that are no ensemble: of other configs but for the seed and the start."""
    free = ("seed", "init_from", *workdirs.FREE)
    there = {k: v for k, v in workdirs.flatten(runs[0].config).items() if k not in free}
    for run in runs[1:]:
        here = {k: v for k, v in workdirs.flatten(run.config).items() if k not in free}
        names = sorted(k for k in there.keys() | here.keys() if there.get(k) != here.get(k))
        if names:
            raise InputError(
                f"{run.workdir} is no further seed of {runs[0].workdir}: config.{names[0]} is "
                f"{here.get(names[0])!r} and {there.get(names[0])!r}"
            )


def _read_about(path: pathlib.Path) -> dict[str, Any]:
    fields = small_files.read_toml(path, "--about", _REMEDY)
    if unknown := sorted(fields.values.keys() - _ABOUT.keys()):
        raise InputError(f"{path} has {unknown[0]!r}; it may have {', '.join(_ABOUT)}")
    return {name: fields.get(name, kind) for name, kind in _ABOUT.items()}
