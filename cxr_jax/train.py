"""The one training loop. It never learns which paper it trains."""

import faulthandler
import functools
import math
import os
import pathlib
import resource
import sys
from typing import Any

import jax
import ml_collections
import numpy as np

from cxr_jax import optimizers, state
from cxr_jax import workdir as workdirs
from cxr_jax.checkpoints import Checkpoints, StopSignal, complete_steps
from cxr_jax.data import pipeline, sources
from cxr_jax.data.sources import combine
from cxr_jax.errors import InputError
from cxr_jax.evaluate import Scorer, example_batch, open_split, variable_shapes
from cxr_jax.figures import save, training_curves
from cxr_jax.initialise import check_frozen, flatten, initialise
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import Task, make_task
from cxr_jax.writers import Writer


def train(
    config: ml_collections.ConfigDict, workdir: pathlib.Path, *, final_split: str = "test"
) -> bool:
    """Trains to `config.total_steps`, from the last checkpoint of `workdir` if there is one.

    Everything that can be wrong with the config, the data and the model is looked at before the
    work directory is written and before anything is compiled.

    Args:
      final_split: the split that will be evaluated at the end; opened early, so that a data set
        without it is refused now and not after the training.

    Returns:
      True when the run is complete, False when SIGTERM ended it (after saving).
    """
    check_numbers(config)
    workdirs.check_config(config, workdir)
    if complete_steps(workdir)[-1:] == [config.total_steps]:
        print(f"{workdir} is trained already, to step {config.total_steps}")
        return True
    task = make_task(config)
    last = task.stages[-1].first_step
    if last >= config.total_steps:
        raise InputError(
            f"config.total_steps={config.total_steps}: the last stage of this training begins with "
            f"step {last}, so it would never come; train longer or make the stages shorter"
        )
    parallel = Parallel.create(config.parallel, config.devices)
    parallel.check_batch_size(config.batch_size)
    parallel.check_batch_size(config.eval_batch_size, "config.eval_batch_size")
    _check_second(config)
    sources.open_source(config.data, final_split)
    source = _open_training(task, config, workdir)
    val_source = open_split(task, config.data, "val", workdir) if config.eval_every else None
    batches = pipeline.train_batches(
        source,
        task.transforms,
        batch_size=config.batch_size // jax.process_count(),
        seed=config.seed,
        threads=config.threads,
        cache_mb=config.cache_mb,
        shard=(jax.process_index(), jax.process_count()),
        stages=task.stages,
    )
    try:
        with StopSignal() as stop:
            return _loop(config, workdir, task, parallel, source, batches, val_source, stop)
    finally:
        batches.close()
        faulthandler.cancel_dump_traceback_later()


def _check_second(config: ml_collections.ConfigDict) -> None:
    data, second = config.data, config.second
    if not second.name:
        return
    if second.labels not in ("given", "hidden"):
        raise InputError(f"config.second.labels={second.labels!r}; expected given or hidden")
    if second.name == data.name and second.get("fold") != data.get("fold"):
        raise InputError(
            f"config.data.fold={data.fold} and config.second.fold={second.fold} of one data set "
            f"{data.name!r}: films of the validation fold would be trained on; set both alike"
        )


def _open_training(task: Task, config: ml_collections.ConfigDict, workdir: pathlib.Path):
    """The training films of `config.data`, and those of `config.second` behind them."""
    source = open_split(task, config.data, "train", workdir, training=True)
    if not config.second.name:
        return source
    hidden = task.labels if config.second.labels == "hidden" else frozenset()
    second = open_split(task, config.second, "train", workdir, hidden=hidden, training=True)
    if (second.name, second.version, len(second)) == (source.name, source.version, len(source)):
        raise InputError(
            f"config.second names the films of config.data ({source.name!r}, {source.version}); "
            "choose another data set, split or seed"
        )
    return combine.Joined(source, second)


def _loop(config, workdir, task, parallel, source, batches, val_source, stop) -> bool:
    example = example_batch(task, source)
    shapes = variable_shapes(task, example)
    tx, trainable = optimizers.make_optimizer(
        config.optimizer, shapes["params"], total_steps=config.total_steps, frozen=task.frozen
    )
    if not config.init_from and not complete_steps(workdir):
        # `initialise` would say the same, after a minute of compiling.
        check_frozen(trainable, flatten(shapes), (), config.allow_random_frozen)
    train_step = parallel.compile_train_step(
        state.make_train_step(task, tx, trainable, axis_name=parallel.axis_name)
    )
    learning_rate = optimizers.make_schedule(config.optimizer, config.total_steps)
    validate = Scorer(task, val_source, parallel, config) if val_source is not None else None
    create = functools.partial(state.create, task, tx, seed=config.seed)
    train_state = jax.jit(create, out_shardings=parallel.replicated)(example)

    checkpoints = Checkpoints(
        workdir,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        keep_steps=tuple(config.eval_steps),
    )
    with checkpoints:
        step = checkpoints.latest() or 0
        if step:
            train_state = checkpoints.restore(step, train_state, batches)
            print(f"resuming {workdir} from step {step}")
        else:
            train_state = initialise(config, train_state, trainable)
            print(summary(task, train_state, trainable))
        print(
            "reading the first examples and compiling the step: up to a minute on a CPU", flush=True
        )
        workdirs.claim(config, workdir, source)
        with Writer(workdir, total_steps=config.total_steps, first_step=step) as writer:
            _watch(config.hang_warning_s)
            while step < config.total_steps and not stop.received:
                batch = parallel.shard_batch(next(batches))
                train_state, scalars = train_step(train_state, batch)
                step += 1
                last = step == config.total_steps
                saves = step % config.checkpoint_every == 0 or last or step in config.eval_steps
                logs = step % config.log_every == 0 or last
                if logs or saves:
                    scalars = {k: float(v) for k, v in jax.device_get(scalars).items()}
                    _check_finite(scalars, step, checkpoints)  # before a save could hide it
                if logs:
                    writer.scalars(step, scalars | {"lr": float(learning_rate(step - 1))})
                    _watch(config.hang_warning_s)
                writer.advance(step)
                if validate is not None and (step % config.eval_every == 0 or last):
                    rows = validate([train_state.variables], stop=stop).rows
                    if not stop.received:
                        values = task.report(task.units(rows))
                        writer.scalars(step, {f"val/{k}": v for k, v in values.items()})
                # After the validation: a run that is killed between the two repeats both.
                if saves:
                    checkpoints.save(train_state, batches)
            faulthandler.cancel_dump_traceback_later()
            if stop.received:
                _check_finite({"loss": float(scalars["loss"])} if step else {}, step, checkpoints)
            checkpoints.save(train_state, batches, wait=True)
    if step < config.total_steps:
        print(f"stopped by SIGTERM at step {step}, saved; the same command resumes from there")
        return False
    save(training_curves(workdir / "metrics.jsonl"), workdir / "figures" / "training.png")
    return True


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Refuses settings no run can mean."""
    for name, least in (
        ("total_steps", 1),
        ("batch_size", 1),
        ("eval_batch_size", 1),
        ("log_every", 1),
        ("checkpoint_every", 1),
        ("eval_every", 0),
        ("figures", 0),
        ("bootstrap", 0),
        ("threads", 0),
        ("seed", 0),
    ):
        if config[name] < least:
            raise InputError(f"config.{name}={config[name]}; it must be at least {least}")
    for step in config.eval_steps:
        if not 0 < step <= config.total_steps:
            raise InputError(
                f"config.eval_steps={tuple(config.eval_steps)}: step {step} is not in "
                f"1..config.total_steps={config.total_steps}"
            )
    if not 1 <= config.optimizer.accumulate <= config.total_steps:
        raise InputError(
            f"config.optimizer.accumulate={config.optimizer.accumulate}; it must lie in "
            f"1..config.total_steps={config.total_steps}"
        )
    if config.precision not in ("float32", "bfloat16"):
        raise InputError(f"config.precision={config.precision!r}; expected float32 or bfloat16")


def summary(task: Task, train_state: state.TrainState, trainable: Any) -> str:
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


def peak_memory_mb() -> float:
    """Highest resident memory of this process so far, in MiB."""
    scale = 1024 if os.uname().sysname != "Darwin" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
