"""The one evaluation loop: rows of a whole split, then numbers with intervals, then pictures."""

import contextlib
import dataclasses
import pathlib
import re
import time

import jax
import ml_collections
import numpy as np
import tqdm

from cxr_jax.checkpoints import Checkpoints, StopSignal
from cxr_jax.data import pipeline, sources
from cxr_jax.errors import InputError
from cxr_jax.figures import save
from cxr_jax.metrics.bootstrap import Metric, bootstrap
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import make_task
from cxr_jax.tasks.base import Rows, Task, Variables
from cxr_jax.writers import metrics_json, provenance, write_json


@dataclasses.dataclass(frozen=True)
class Result:
    """One pass over a split: a row an example, and the full outputs of the chosen few."""

    rows: Rows  # [N, ...] each, with `id` and `group`
    outputs: dict[int, dict[str, np.ndarray]]  # record index -> predict's arrays of that example


def run(
    task: Task,
    ensemble: list[Variables],
    source: sources.Source,
    parallel: Parallel,
    config: ml_collections.ConfigDict,
    *,
    keep_outputs: frozenset[int] = frozenset(),
    stop: StopSignal | None = None,
) -> Result:
    """Scores every example once; the prediction is the mean over `ensemble`.

    Args:
      keep_outputs: record indices whose arrays are kept for figures.
      stop: polled, so that SIGTERM ends an evaluation too; the rows are then partial.
    """
    parallel.check_batch_size(config.eval_batch_size, "config.eval_batch_size")
    predict = parallel.compile_predict(task.predict)
    score = parallel.compile_score(task.score)
    collected: list[Rows] = []
    outputs: dict[int, dict[str, np.ndarray]] = {}
    total = -(-len(source) // config.eval_batch_size)
    batches = pipeline.eval_batches(
        source, task.transforms, batch_size=config.eval_batch_size, threads=config.threads
    )
    with contextlib.closing(batches):
        for batch in tqdm.tqdm(
            batches, total=total, desc="evaluate", unit="batch", leave=False, disable=None
        ):
            if stop is not None and stop.received:
                break
            arrays = parallel.shard_batch(batch)
            predicted = [predict(variables, arrays) for variables in ensemble]
            mean = jax.tree.map(lambda *xs: sum(xs) / len(xs), *predicted)
            rows = jax.device_get(score(mean, arrays))
            valid = batch["valid"]
            names = {key: batch[key] for key in ("id", "group", "index")}
            rows = {k: np.asarray(v)[valid] for k, v in (rows | names).items()}
            collected.append(task.finish_rows(rows))
            for i in np.flatnonzero(valid):
                if (index := int(batch["index"][i])) in keep_outputs:
                    outputs[index] = {k: np.asarray(v[i]) for k, v in mean.items()}
    if not collected:
        return Result({}, {})
    rows = {key: np.concatenate([r[key] for r in collected]) for key in collected[0]}
    return Result(rows, outputs)


def example_batch(task: Task, source: sources.Source) -> dict[str, np.ndarray]:
    """One example as a batch, for its shapes."""
    batches = pipeline.eval_batches(source, task.transforms, batch_size=1, threads=0)
    with contextlib.closing(batches):
        return {k: v for k, v in next(batches).items() if v.dtype.kind not in "US"}


def evaluate(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    split: str = "test",
    steps: tuple[int, ...] = (),
) -> dict[str, Metric]:
    """Evaluates checkpoints of a work directory; writes results.json, the rows and the figures.

    Args:
      steps: checkpoints whose predictions are averaged; () takes `config.eval_steps`, and the
        latest checkpoint where that is empty too.
    """
    started = time.monotonic()
    task = make_task(config)
    parallel = Parallel.create(config.parallel, config.devices)
    source = task.adapt(sources.open_source(config.data, split), workdir / "cache")
    pipeline.check_fields(source, task.fields)
    steps, ensemble = restore_variables(
        task, example_batch(task, source), parallel, workdir, steps or tuple(config.eval_steps)
    )

    chosen = np.unique(np.linspace(0, len(source) - 1, config.figures).astype(int))
    with StopSignal() as stop:
        result = run(
            task,
            ensemble,
            source,
            parallel,
            config,
            keep_outputs=frozenset(chosen.tolist() if config.figures else []),
            stop=stop,
        )
    if stop.received:
        raise InputError("evaluation was ended by SIGTERM; nothing was written, run it again")
    rows = result.rows
    metrics = {
        f"{split}/{name}": metric
        for name, metric in bootstrap(
            task.report,
            rows,
            rows["group"],
            resamples=config.bootstrap,
            seed=config.seed,
            counts=task.counts,
        ).items()
    }
    np.savez_compressed(workdir / f"rows-{split}.npz", **rows)
    write_json(
        workdir / "results.json",
        {
            "metrics": metrics_json(metrics),
            "task": task.name,
            "split": split,
            "steps": list(steps),
            "seed": config.seed,
            "data": {"name": source.name, "version": source.version, "examples": len(source)},
            "precision": config.precision,
            "wall_s": round(time.monotonic() - started, 1),
            **provenance(),
        },
    )
    folder = workdir / "figures"
    for index, outputs in result.outputs.items():
        record = source[index]
        name = re.sub(r"[^A-Za-z0-9._-]+", "_", str(record["id"]))[:80]
        save(task.figure(record, outputs), folder / f"{split}-{index:04d}-{name}.png")
    for name, figure in task.summary_figures(rows).items():
        save(figure, folder / f"{split}-{name}.png")
    return metrics


def restore_variables(
    task: Task,
    example: dict[str, np.ndarray],
    parallel: Parallel,
    workdir: pathlib.Path,
    steps: tuple[int, ...] = (),
) -> tuple[tuple[int, ...], list[Variables]]:
    """(steps, the variables of each) of a work directory, placed on the devices.

    Args:
      example: a batch of the task, for its shapes.
      steps: () takes the latest checkpoint.

    Raises:
      InputError: a step is missing, or the checkpoint is of another model.
    """
    abstract = jax.eval_shape(task.init, jax.random.PRNGKey(0), example)
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=parallel.replicated),
        dict(abstract),
    )
    with Checkpoints(workdir, write=False) as checkpoints:
        if not (found := checkpoints.steps()):
            raise InputError(f"{workdir} has no checkpoint yet; train it first")
        steps = tuple(steps) or (found[-1],)
        return steps, [checkpoints.restore_variables(step, shapes) for step in steps]
