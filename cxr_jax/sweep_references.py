"""What stands in a sweep's table beside its rows: predictors that are no model, and bounds."""

from collections.abc import Sequence

from cxr_jax import report
from cxr_jax.data import sources
from cxr_jax.metrics.bootstrap import numbers
from cxr_jax.sweep_table import Finished
from cxr_jax.tasks import make_task

Reports = dict[str, list[dict[str, float]]]


def references(done: Sequence[Finished], split: str) -> Reports:
    """Those that the tasks of the finished runs name, on the films that these were scored on.

    Of each task the first row is looked at, all its seeds. A reference that several tasks name is
    taken from the first one.

    Returns:
      Name -> the metrics on the films of each seed.

    Raises:
      InputError: what is there of a run cannot be read.
    """
    rows = {}  # task -> the name of its first row
    for one in done:
        rows.setdefault(one.run.config.task, one.run.row.name)
    found: Reports = {}
    for task, name in rows.items():
        told: Reports = {}
        for one in done:
            if (one.run.config.task, one.run.row.name) == (task, name):
                for reference, values in _of_run(one, split).items():
                    told.setdefault(reference, []).append(values)
        found = told | found
    return found


def _of_run(one: Finished, split: str) -> dict[str, dict[str, float]]:
    evaluation = make_task(one.run.config).evaluation
    rows = report.read_rows(one.run.folder, split)
    training = sources.open_source(one.run.config.data, "train")
    beside = evaluation.references(rows, training)
    return {k: numbers(evaluation.report(evaluation.units(r))) for k, r in beside.items()}
