"""The one training loop. It never learns which paper it trains."""

import faulthandler
import functools
import json
import math
import os
import pathlib
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

from cxr_jax import evaluate, optimizers, state
from cxr_jax.checkpoints import Checkpoints, StopSignal, read_state
from cxr_jax.data import pipeline, sources
from cxr_jax.errors import InputError
from cxr_jax.figures import save, training_curves
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import make_task
from cxr_jax.writers import Writer, write_json

# Fields that change how a run is watched, not what it computes; all others fix the work directory.
FREE_FIELDS = ("log_every", "figures", "threads", "cache_mb", "hang_warning_s", "bootstrap")


def train(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> bool:
    """Trains to `config.total_steps`, from the last checkpoint of `workdir` if there is one.

    Returns:
      True when the run is complete, False when SIGTERM ended it (after saving).
    """
    check_config(config)
    claim_workdir(config, workdir)
    task = make_task(config)
    parallel = Parallel.create(config.parallel, config.devices)
    parallel.check_batch_size(config.batch_size)

    source = _open(task, config, "train", workdir)
    val_source = _open(task, config, "val", workdir) if config.eval_every else None
    batches = pipeline.train_batches(
        source,
        task.transforms,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        threads=config.threads,
        cache_mb=config.cache_mb,
        shard=(jax.process_index(), jax.process_count()),
    )
    try:
        with StopSignal() as stop:
            return _loop(config, workdir, task, parallel, source, batches, val_source, stop)
    finally:
        batches.close()
        faulthandler.cancel_dump_traceback_later()


def _loop(config, workdir, task, parallel, source, batches, val_source, stop) -> bool:
    example = evaluate.example_batch(task, source)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), example)["params"]
    tx, trainable = optimizers.make_optimizer(
        config.optimizer, shapes, total_steps=config.total_steps, frozen=task.frozen
    )
    train_step = parallel.compile_train_step(
        state.make_train_step(task, tx, trainable, axis_name=parallel.axis_name)
    )
    learning_rate = optimizers.make_schedule(config.optimizer, config.total_steps)
    create = functools.partial(state.create, task, tx, seed=config.seed)
    train_state = jax.jit(create, out_shardings=parallel.replicated)(example)

    with (
        Checkpoints(
            workdir,
            keep_last=config.keep_last,
            keep_every=config.keep_every,
            keep_steps=tuple(config.eval_steps),
        ) as checkpoints,
    ):
        step = checkpoints.latest()
        if step is not None:
            train_state = checkpoints.restore(step, train_state, batches)
            print(f"resuming {workdir} from step {step}")
        else:
            step = 0
            if config.init_from:
                train_state = _init_from(train_state, pathlib.Path(config.init_from))
            print(summary(task, train_state, trainable))
        with Writer(workdir, total_steps=config.total_steps, first_step=step) as writer:
            _watch(config.hang_warning_s)
            while step < config.total_steps and not stop.received:
                batch = parallel.shard_batch(next(batches))
                train_state, scalars = train_step(train_state, batch)
                step += 1
                last = step == config.total_steps
                if step % config.log_every == 0 or last:
                    scalars = {k: float(v) for k, v in jax.device_get(scalars).items()}
                    writer.scalars(step, scalars | {"lr": float(learning_rate(step - 1))})
                    _check_finite(scalars, step, checkpoints)
                    _watch(config.hang_warning_s)
                writer.advance(step)
                if step % config.checkpoint_every == 0 or last or step in config.eval_steps:
                    checkpoints.save(train_state, batches)
                if val_source is not None and (step % config.eval_every == 0 or last):
                    rows = evaluate.run(
                        task, [train_state.variables], val_source, parallel, config, stop=stop
                    ).rows
                    if not stop.received:
                        values = task.report(rows)
                        writer.scalars(step, {f"val/{k}": v for k, v in values.items()})
            faulthandler.cancel_dump_traceback_later()
            checkpoints.save(train_state, batches, wait=True)
    if step < config.total_steps:
        print(f"stopped by SIGTERM at step {step}, saved; the same command resumes from there")
        return False
    save(training_curves(workdir / "metrics.jsonl"), workdir / "figures" / "training.png")
    return True


def _open(task, config, split: str, workdir: pathlib.Path):
    source = sources.open_source(config.data, split)
    source = task.adapt(source, workdir / "cache")
    pipeline.check_fields(source, task.fields)
    return source


def check_config(config: ml_collections.ConfigDict) -> None:
    """Refuses settings no run can mean, before anything is opened or compiled."""
    for name in ("total_steps", "batch_size", "log_every", "checkpoint_every"):
        if config[name] < 1:
            raise InputError(f"config.{name}={config[name]}; it must be at least 1")
    late = [step for step in config.eval_steps if not 0 < step <= config.total_steps]
    if late:
        raise InputError(
            f"config.eval_steps={tuple(config.eval_steps)}: step {late[0]} is not in "
            f"1..config.total_steps={config.total_steps}"
        )
    if config.precision not in ("float32", "bfloat16"):
        raise InputError(f"config.precision={config.precision!r}; expected float32 or bfloat16")


def claim_workdir(config: ml_collections.ConfigDict, workdir: pathlib.Path) -> None:
    """Writes config.json, or checks that the one there is of this run.

    Raises:
      InputError: the folder belongs to another config (names up to three fields), or cannot be
        written.
    """
    path = workdir / "config.json"
    wanted = json.loads(config.to_json())
    if path.exists():
        found = read_config(workdir)
        there, here = _flat(json.loads(found.to_json())), _flat(wanted)
        names = sorted(
            name
            for name in there.keys() | here.keys()
            if there.get(name) != here.get(name) and name.split(".")[0] not in FREE_FIELDS
        )
        if names:
            shown = "; ".join(
                f"{n} is {there.get(n, 'absent')!r} there and {here.get(n, 'absent')!r} here"
                for n in names[:3]
            )
            raise InputError(
                f"{workdir} holds a run of another config ({shown}"
                f"{f'; {len(names) - 3} more' if len(names) > 3 else ''}); use another --workdir"
            )
        return
    try:
        (workdir / "figures").mkdir(parents=True, exist_ok=True)
        write_json(path, wanted)
    except OSError as error:
        raise InputError(f"{workdir} cannot be written: {error.strerror or error}") from error


def read_config(workdir: pathlib.Path) -> ml_collections.ConfigDict:
    """The config of a work directory.

    Raises:
      InputError: no work directory, or config.json is broken.
    """
    path = workdir / "config.json"
    if not path.is_file():
        raise InputError(f"{workdir} is no work directory: it has no config.json")
    try:
        config = ml_collections.ConfigDict(_tuples(json.loads(path.read_text(encoding="utf-8"))))
        _ = config.task, config.data.name
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{path} is not a config of cxr_jax: {error}") from error
    return config.lock()


def _tuples(value: Any) -> Any:
    """JSON has lists where configs have tuples."""
    if isinstance(value, dict):
        return {k: _tuples(v) for k, v in value.items()}
    return tuple(_tuples(v) for v in value) if isinstance(value, list) else value


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, dict) and value:
        return {
            name: leaf
            for key, item in value.items()
            for name, leaf in _flat(item, f"{prefix}.{key}" if prefix else key).items()
        }
    return {prefix: value}


def summary(task, train_state: state.TrainState, trainable: Any) -> str:
    """How many parameters there are, how many are trained, and the parts that are not."""
    sizes = jax.tree.map(np.size, train_state.params)
    total = sum(jax.tree.leaves(sizes))
    trained = sum(jax.tree.leaves(jax.tree.map(lambda n, t: n * t, sizes, trainable)))
    still = [name for name, part in trainable.items() if not any(jax.tree.leaves(part))]
    frozen = f"; frozen: {', '.join(still)}" if still else ""
    return (
        f"task {task.name}: {total / 1e6:.2f} M parameters, {trained / 1e6:.2f} M trained{frozen}"
    )


def _check_finite(scalars: dict[str, float], step: int, checkpoints: Checkpoints) -> None:
    bad = [name for name, value in scalars.items() if not math.isfinite(value)]
    if bad:
        raise InputError(
            f"{bad[0]} is {scalars[bad[0]]} at step {step}; the last checkpoint is of step "
            f"{checkpoints.latest() or 0}. Lower config.optimizer.lr or set "
            "config.optimizer.clip_norm, and use another --workdir"
        )


def _watch(seconds: int) -> None:
    """Dumps every thread's stack if no step is logged for so long: a live but stuck run says why.

    XLA's own flags do not notice a host that is alive but stuck (jax issue 38503).
    """
    if seconds:
        # Not sys.stderr: in notebooks it is no file.
        faulthandler.dump_traceback_later(seconds, repeat=True, file=sys.__stderr__)


def _init_from(train_state: state.TrainState, workdir: pathlib.Path) -> state.TrainState:
    """Parameters and batch statistics of another run where path and shape agree; says what did."""
    other = read_state(workdir)
    loaded, report = optimizers.merge_by_path(
        {"params": train_state.params, **train_state.model_state},
        {"params": other["params"], **other["model_state"]},
    )
    print(f"init_from {workdir}: {report}")
    placed = jax.tree.map(
        lambda new, old: jax.device_put(new, old.sharding),
        loaded,
        {"params": train_state.params, **train_state.model_state},
    )
    return train_state.replace(params=placed.pop("params"), model_state=placed)


def peak_memory_mb() -> float:
    """Highest resident memory of this process so far, in MiB."""
    import resource

    scale = 1024 if os.uname().sysname != "Darwin" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
