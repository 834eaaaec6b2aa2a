"""The one evaluation loop: rows of a whole split, then numbers with intervals, then pictures."""

import contextlib
import dataclasses
import pathlib
import re
import time
from typing import Any

import jax
import ml_collections
import numpy as np
import tqdm

from cxr_jax import batch_statistics, hosts, results, safe_write, small_files
from cxr_jax import workdir as workdirs
from cxr_jax.checkpoints import StopSignal, complete_steps
from cxr_jax.data import pipeline, sources
from cxr_jax.data.audit import stored as audit
from cxr_jax.errors import InputError
from cxr_jax.figures import save
from cxr_jax.inputs import external, splits
from cxr_jax.metrics.bootstrap import FEWEST_GROUPS, Metric, bootstrap
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import Task, make_task
from cxr_jax.tasks.base import Rows, Variables
from cxr_jax.trained import TrainedRun
from cxr_jax.writers import metrics_json, provenance, write_json


@dataclasses.dataclass(frozen=True)
class Result:
    """One pass over a split: a row an example, and the full outputs of the chosen few."""

    rows: Rows  # [N, ...] each, with `id` and `group`
    # Record index -> predict's arrays of that example; None where another host may have them.
    outputs: dict[int, dict[str, np.ndarray] | None]


class Scorer:
    """Scores a split as often as it is asked: compiled once, films prepared once."""

    def __init__(
        self,
        task: Task,
        source: sources.Source,
        *,
        parallel: Parallel,
        config: ml_collections.ConfigDict,
        measure: bool = False,
    ):
        """`measure`: with the task's `measure`, for every example."""
        parallel.check_batch_size(config.eval_batch_size, "config.eval_batch_size")
        self._task, self._parallel = task, parallel
        self._batch_size = config.eval_batch_size // hosts.count()
        self._threads = config.threads
        self._examples = pipeline.Examples(source, task.data.transforms, cache_mb=config.cache_mb)
        functions = [task.predict, *([task.measure] if measure and task.measure else [])]
        self._functions = [parallel.compile_predict(function) for function in functions]
        self._score = parallel.compile_score(task.score)

    def __call__(
        self,
        ensemble: list[Variables],
        *,
        keep_outputs: frozenset[int] = frozenset(),
        stop: StopSignal | None = None,
    ) -> Result:
        """Every example once; the predictions of the `ensemble` are combined as the task says.

        Args:
          keep_outputs: record indices whose arrays are kept for figures.
          stop: polled, so that a signal ends an evaluation too; the rows are then partial.

        Returns:
          Of several hosts each has all rows.
        """
        collected: list[Rows] = []
        outputs: dict[int, dict[str, np.ndarray] | None] = {}
        batches, size = self._batches(), self._batch_size
        total = pipeline.num_batches(len(self._examples), batch_size=size, hosts=hosts.count())
        progress = tqdm.tqdm(
            batches, total=total, desc="evaluate", unit="batch", leave=False, disable=None
        )
        with contextlib.closing(batches):
            for batch in progress:
                if stop is not None and stop.ask():
                    break
                arrays = self._parallel.shard_batch(batch)
                combined = self._task.combine([self._outputs(v, arrays) for v in ensemble])
                rows = hosts.gathered(self._score(combined, arrays))
                batch = hosts.gathered({k: batch[k] for k in pipeline.ADDED})
                collected.append(self._finish(rows, batch))
                for i in np.flatnonzero(batch["valid"]):
                    if (index := int(batch["index"][i])) in keep_outputs:
                        alone = hosts.count() == 1
                        kept = {k: np.asarray(v[i]) for k, v in combined.items()} if alone else None
                        outputs[index] = kept
        names = collected[0] if collected else ()
        return Result({k: np.concatenate([r[k] for r in collected]) for k in names}, outputs)

    def _outputs(self, variables: Variables, arrays: dict[str, jax.Array]) -> dict[str, jax.Array]:
        found: dict[str, jax.Array] = {}
        for function in self._functions:
            found |= function(variables, arrays)
        return found

    def _batches(self):
        return pipeline.eval_batches(
            self._examples.source,
            self._task.data.transforms,
            batch_size=self._batch_size,
            threads=self._threads,
            shard=(hosts.index(), hosts.count()),
            examples=self._examples,
        )

    def _finish(self, rows: Rows, batch: pipeline.Batch) -> Rows:
        """The rows without padding, each with whose it is."""
        rows |= {key: batch[key] for key in ("id", "group", "index")}
        rows = {k: np.asarray(v)[batch["valid"]] for k, v in rows.items()}
        return self._task.evaluation.finish_rows(rows)


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    split: str = "test",
    steps: tuple[int, ...] = (),
    stop: StopSignal | None = None,
    allow_seen: bool = False,
) -> dict[str, Metric] | None:
    """Evaluates checkpoints of a work directory; writes results.json, the rows and the figures.

    The config may name other data than the run was trained on (an external test): its metrics,
    rows and figures are then called DATA-SPLIT, see `inputs.external`.

    Args:
      steps: checkpoints whose predictions are combined; () takes those of `TrainedRun.load`.
      stop: of the command; None listens here.
      allow_seen: an external test may hold patients that were trained on.

    Returns:
      The metrics, or None where a signal ended the evaluation; nothing is written then.
    """
    started = time.monotonic()
    trained, task = workdirs.read_config(workdir), make_task(config)
    settings = (*splits.COMPLETIONS, *task.evaluation.free_settings)
    workdirs.check_config(config, workdir, (*workdirs.FREE_IN_EVALUATION, *settings))
    with workdirs.only_writer(workdir):
        parallel = Parallel.create(config.parallel, config.devices)
        label, seen = _label(config, workdir, split=split, allow_seen=allow_seen)
        source = splits.open_split(task, config, split, workdir=workdir)
        run = TrainedRun.load(workdir, steps, config=config, sharding=parallel.replicated)
        _tell_steps(run)
        run, statistics = _refreshed(run, parallel, trained=trained)
        chosen = task.evaluation.figure_indices(source, config.figures)
        score = Scorer(
            task, source, parallel=parallel, config=config, measure=config.measure_explanations
        )
        with contextlib.nullcontext(stop) if stop else StopSignal() as stop:
            fitted = _fit(run, parallel, trained=trained, split=label, stop=stop)
            result = score(run.ensemble, keep_outputs=frozenset(chosen.tolist()), stop=stop)
        if stop.received:
            return None
        if values := fitted.get("values"):
            result = dataclasses.replace(result, rows=task.evaluation.with_fit(result.rows, values))
        metrics = _measure(task, config, result.rows, label=label)
        evaluation = {
            **_described(run, source, split),
            "fitted": fitted,
            "statistics": statistics,
            "source": external.described(config, split),
            "seen": seen,
            "changed": workdirs.changed(config, trained),
            "wall_s": round(time.monotonic() - started, 1),
            **provenance(),
        }
        if hosts.is_main():
            _write_rows(results.rows_path(workdir, label), result.rows)
            _write_results(run, label, metrics=metrics, evaluation=evaluation)
            _draw(run, source, result, label=label)
        return metrics


def _refreshed(
    run: TrainedRun, parallel: Parallel, *, trained: ml_collections.ConfigDict
) -> tuple[TrainedRun, dict[str, Any]]:
    """The run with batch statistics renewed on `config.refresh_batches` training batches, those of
    its last stage, and how far those of each checkpoint were off; the run itself and {} for 0.

    Args:
      trained: the config of the run, whose films these are, whatever is evaluated.
    """
    count, task = run.config.refresh_batches, run.task
    of = batch_statistics.networks(run.ensemble[0])
    if not count or not of:
        return run, {}

    def refresh(variables: Variables, batch: dict[str, jax.Array]):
        step, axis = jax.numpy.int32(run.steps[-1]), parallel.axis_name
        rng = batch_statistics.step_key(jax.random.PRNGKey(trained.seed), step, batch)
        moved = batch_statistics.refresh(
            task, variables, batch, rng=rng, step=step, of=of, axis_name=axis
        )
        return moved, {}

    compiled = parallel.compile_train_step(refresh)
    batches = _last_batches(run, trained)
    ensemble = [jax.tree.map(jax.numpy.copy, variables) for variables in run.ensemble]
    with contextlib.closing(batches):
        for _ in range(count):
            batch = parallel.shard_batch(next(batches))
            ensemble = [compiled(variables, batch)[0] for variables in ensemble]
    shifts = [
        round(batch_statistics.shift(old["batch_stats"], new["batch_stats"]), 4)
        for old, new in zip(run.ensemble, ensemble)
    ]
    print(
        f"batch statistics renewed on {count} training batches; the running means were off by "
        f"{', '.join(map(str, shifts))} standard deviations",
        flush=True,
    )
    return dataclasses.replace(run, ensemble=ensemble), {"batches": count, "shift_sd": shifts}


def _last_batches(run: TrainedRun, trained: ml_collections.ConfigDict):
    """Training batches as the last stage has them."""
    last = run.task.data.stages[-1]
    return pipeline.train_batches(
        splits.open_training(run.task, trained, run.workdir),
        run.task.data.transforms,
        batch_size=trained.batch_size // hosts.count(),
        seed=trained.seed,
        threads=trained.threads,
        cache_mb=trained.cache_mb,
        shard=(hosts.index(), hosts.count()),
        stages=(dataclasses.replace(last, first_step=0),),
    )


def _tell_steps(run: TrainedRun) -> None:
    """Which checkpoints are evaluated, and that there are later ones."""
    print(f"evaluating {run.workdir}: steps {', '.join(map(str, run.steps))}", flush=True)
    newest = max(complete_steps(run.workdir), default=0)  # a model with a card has none
    if newest > max(run.steps):
        print(
            f"there is a later checkpoint, of step {newest}, which --steps or config.eval_steps "
            "would choose",
            flush=True,
        )


def _label(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, split: str, allow_seen: bool
) -> tuple[str, dict[str, Any]]:
    """The name of this evaluation, and how much of an external test was trained on."""
    earlier = _read_results(workdir / results.RESULTS).get("evaluations", dict, {})
    label = external.label(config, workdir, split=split, earlier=earlier)
    if label == split:
        return label, {}
    return label, external.check_unseen(config, workdir, split=split, allowed=allow_seen)


def _fit(
    run: TrainedRun,
    parallel: Parallel,
    *,
    trained: ml_collections.ConfigDict,
    split: str,
    stop: StopSignal,
) -> dict[str, Any]:
    """What the task chooses on the validation films that the run was trained beside: `values` and
    `examples`, or the `reason` why there are none; {} for a task that chooses nothing.

    Args:
      trained: the config of the run, whose data these films are, whatever is evaluated.
      split: that is evaluated; the validation split is not scored with what it chose itself.
    """
    if not run.task.evaluation.fits:
        return {}
    if split == "val":
        return {"reason": "this is the validation split, on which it would be chosen"}
    try:
        data = trained.data
        source = splits.open_split(run.task, run.config, "val", workdir=run.workdir, data=data)
        score = Scorer(run.task, source, parallel=parallel, config=run.config)
        rows = score(run.ensemble, stop=stop).rows
        if stop.received:
            return {}
        return {"values": run.task.evaluation.fit(rows), "examples": len(source)}
    except InputError as error:
        print(f"nothing is chosen on validation films: {error}")
        return {"reason": str(error)}


def _measure(
    task: Task, config: ml_collections.ConfigDict, rows: Rows, *, label: str
) -> dict[str, Metric]:
    """LABEL/NAME -> number with interval; none where the split has no truth at all, only
    predictions."""
    units = task.evaluation.units(rows)
    patients = len(np.unique(units["group"]))
    if not patients:
        return {}
    if config.bootstrap and patients < FEWEST_GROUPS:
        print(f"{label}: {patients} patients, too few for intervals ({FEWEST_GROUPS} are needed)")
    found = bootstrap(
        task.evaluation.report_of(units),
        units,
        units["group"],
        resamples=config.bootstrap,
        seed=config.seed,
    )
    # n = 0: the data set has no such truth (no masks, say), so there is no such metric.
    return {f"{label}/{name}": m for name, m in found.items() if m.n or m.reason}


def _described(run: TrainedRun, source: sources.Source, split: str) -> dict[str, Any]:
    """What was evaluated, for results.json."""
    config = run.config
    return {
        "task": run.task.name,
        "steps": list(run.steps),
        "seed": config.seed,
        "data": {
            "name": source.name,
            "version": source.version,
            "split": split,
            "fold": config.data.get("fold", -1),
            "examples": len(source),
            "audit": audit.headline(sources.open_source(config.data, split)),
        },
        "trained_on": workdirs.trained_on(run.workdir),
        "history": workdirs.history(run.workdir),
        "init_from": config.init_from,
        **splits.provenance(config),
        "precision": config.precision,
    }


def _draw(run: TrainedRun, source: sources.Source, result: Result, *, label: str) -> None:
    """The chosen records, with what explains them, the worst and the best, and the charts of the
    split."""
    run, folder = run.alone(), run.workdir / "figures"
    for path in folder.glob(f"{label}-*"):
        if re.match(rf"{re.escape(label)}-(worst|best)-\d", path.name):
            path.unlink()  # of an earlier evaluation; these are other records
    drawn = {index: f"{index:04d}" for index in result.outputs}
    for index, stem in (_extremes(run, result) | drawn).items():
        record = source[index]
        outputs = result.outputs.get(index)
        if outputs is None or run.task.explain is not None:
            outputs = run.explain(record)
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(record["id"]))[:80]
        save(run.task.figure(record, outputs), folder / f"{label}-{stem}-{name}.png")
    for name, figure in run.task.evaluation.figures(result.rows).items():
        save(figure, folder / f"{label}-{name}.png")


def _extremes(run: TrainedRun, result: Result) -> dict[int, str]:
    """Index -> stem, of the records that are most and least wrong: a quarter each of
    `config.figures`."""
    errors = run.task.evaluation.case_errors(result.rows)
    count = run.config.figures // 4
    if errors is None or not count:
        return {}
    order = [k for k in np.argsort(errors, kind="stable") if np.isfinite(errors[k])]
    ends = {"worst": order[::-1][:count], "best": order[: max(0, min(count, len(order) - count))]}
    index = result.rows["index"]
    return {
        int(index[k]): f"{which}-{place}-{int(index[k]):04d}"
        for which, rows in ends.items()
        for place, k in enumerate(rows, 1)
    }


def _write_rows(path: pathlib.Path, rows: Rows) -> None:
    with safe_write.replacing(path) as part, part.open("wb") as file:
        np.savez_compressed(file, **rows)  # type: ignore[arg-type]  # a row may have any name


def _read_results(path: pathlib.Path) -> small_files.Fields:
    """What is there of earlier evaluations."""
    if small_files.exists(path):
        return small_files.read_fields(path, "remove it")
    return small_files.Fields(path, {}, "remove it")


def _write_results(
    run: TrainedRun, label: str, *, metrics: dict[str, Metric], evaluation: dict[str, Any]
) -> None:
    """The newest evaluation on top; metrics of other splits stay, with how they came about."""
    path, ours = run.workdir / results.RESULTS, metrics_json(metrics)
    hashes = results.hashes(run.workdir, label, metrics=ours, steps=run.steps)
    evaluation = evaluation | {"hashes": hashes}
    old = _read_results(path)
    there = old.get("metrics", dict, {})
    kept = {k: v for k, v in there.items() if not k.startswith(f"{label}/")}
    write_json(
        path,
        {
            "metrics": ours | kept,
            **evaluation,
            "evaluations": old.get("evaluations", dict, {}) | {label: evaluation},
        },
    )
