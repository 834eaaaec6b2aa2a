"""What an evaluation leaves behind fits together: hashes of all its parts, and their comparison."""

import hashlib
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from cxr_jax import manifests
from cxr_jax import workdir as workdirs
from cxr_jax.checkpoints import FOLDER
from cxr_jax.errors import InputError, tell_once

RESULTS = "results.json"


def rows_path(workdir: pathlib.Path, label: str) -> pathlib.Path:
    """Where the rows of an evaluation are."""
    return workdir / f"rows-{label}.npz"


def hashes(
    workdir: pathlib.Path, label: str, *, metrics: Mapping[str, Any], steps: Sequence[int]
) -> dict[str, Any]:
    """SHA-256 of the parts of an evaluation whose rows are written.

    Args:
      metrics: as results.json holds them; those of `label` count.
      steps: of its checkpoints; None is the hash of one of an older version, which has none. Those
        of a model with a card, which has no checkpoints, are left out.
    """
    folder = workdir / FOLDER
    return {
        "metrics": _sha256_of(_metrics(metrics, label)),
        "rows": _sha256(rows_path(workdir, label)),
        "config": _config(workdirs.as_written(workdir)),
        "checkpoints": {
            str(step): manifests.digest(folder / str(step)) for step in steps if folder.exists()
        },
    }


def check(workdir: pathlib.Path, label: str) -> None:
    """Compares an evaluation with what lies in the work directory now.

    Evaluations of older versions cannot be compared, which is told once. Checkpoints that are no
    longer there are not missed.

    Raises:
      InputError: names the part that does not fit.
    """
    path = workdir / RESULTS
    results = _read(path) if path.exists() else {}
    evaluation = results.get("evaluations", {}).get(label)
    if results and evaluation is None:
        raise InputError(
            f"{workdir}: {rows_path(workdir, label).name} is there and {RESULTS} knows no "
            f"evaluation of {label!r}; evaluate again"
        )
    written = (evaluation or {}).get("hashes")
    if written is None:
        tell_once(f"{path}: no hashes of {label!r} (of an older version), so nothing is compared")
        return
    if evaluation["trained_on"] != workdirs.trained_on(workdir):
        raise _misfit(workdir, label, "data.json")
    there = workdir / FOLDER
    kept = [step for step in written["checkpoints"] if (there / step).is_dir()]
    found = hashes(workdir, label, metrics=results["metrics"], steps=kept)
    for step in kept:
        if written["checkpoints"][step] != found["checkpoints"][step]:
            raise _misfit(workdir, label, f"{FOLDER}/{step}")
    # Older versions took the config with the fields that had been added by then.
    if written["config"] == _config(workdirs.flatten(workdirs.read_config(workdir))):
        found["config"] = written["config"]
    names = {"metrics": RESULTS, "rows": rows_path(workdir, label).name, "config": "config.json"}
    for part, name in names.items():
        if written[part] != found[part]:
            raise _misfit(workdir, label, name)


def _misfit(workdir: pathlib.Path, label: str, name: str) -> InputError:
    return InputError(
        f"{workdir}: {name} is not what it was when {label!r} was evaluated, so the results do not "
        f"belong to it; evaluate again (python -m cxr_jax.main --workdir={workdir} --mode=eval)"
    )


def _read(path: pathlib.Path) -> dict[str, Any]:
    """results.json with the parts that `check` reads in their types."""
    try:
        results = json.loads(path.read_text(encoding="utf-8"))
        for evaluation in results.get("evaluations", {}).values():
            if "hashes" in evaluation:
                parts = evaluation["hashes"]
                _ = evaluation["trained_on"], parts["metrics"], parts["rows"], parts["config"]
                _ = {**parts["checkpoints"]}, {**results["metrics"]}
    except (ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
        raise InputError(
            f"{path} is broken ({type(error).__name__}); move it away and evaluate again"
        ) from error
    return results


def _config(fields: Mapping[str, Any]) -> str:
    """Of those that say what was computed."""
    return _sha256_of({k: v for k, v in fields.items() if not workdirs.is_free(k)})


def _metrics(metrics: Mapping[str, Any], label: str) -> dict[str, Any]:
    return {name: value for name, value in metrics.items() if name.startswith(f"{label}/")}


def _sha256_of(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def _sha256(path: pathlib.Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
