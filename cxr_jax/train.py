"""The one training loop. It never learns which paper it trains."""

import contextlib
import dataclasses
import faulthandler
import functools
import os
import pathlib
import resource
import sys
from collections.abc import Callable
from typing import Any

import grain
import jax
import ml_collections
import numpy as np

from cxr_jax import early_stopping, hosts, model_files, optimizers, state, trackers
from cxr_jax import workdir as workdirs
from cxr_jax.checkpoints import Checkpoints, StopSignal, complete_steps, newest_whole
from cxr_jax.data import pipeline, sources
from cxr_jax.early_stopping import EarlyStopping
from cxr_jax.errors import InputError
from cxr_jax.evaluate import Scorer
from cxr_jax.figures import save, training_curves
from cxr_jax.finite import Steps
from cxr_jax.initialise import check_frozen, flatten, initialise
from cxr_jax.inputs import external, splits
from cxr_jax.metrics.bootstrap import numbers
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import Task, make_task
from cxr_jax.trained import variable_shapes
from cxr_jax.writers import Writer

_ASK_EVERY = 10  # steps after which hosts ask each other whether to stop


def train(
    config: ml_collections.ConfigDict,
    workdir: pathlib.Path,
    *,
    final_split: str = "test",
    stop: StopSignal | None = None,
) -> bool:
    """Trains to `config.total_steps`, or to where `config.early_stopping` ends it, from the last
    checkpoint of `workdir` if there is one.

    Everything that can be wrong with the config, the data and the model is looked at before the
    work directory is written and before anything is compiled.

    Args:
      final_split: the split that will be evaluated at the end; opened early, so that a data set
        without it is refused now and not after the training.
      stop: of the command; None listens here.

    Returns:
      True when the run is complete, False when a signal ended it (after saving).
    """
    check_numbers(config)
    if model_files.is_one(workdir):
        raise InputError(
            f"{workdir} is a packed model and no run; give another --workdir, and to begin with "
            f"its weights --config.init_from={workdir}"
        )
    with workdirs.only_writer(workdir):
        workdirs.check_config(config, workdir, _free(config), longer=True)
        newest = hosts.main_first(lambda: newest_whole(workdir)) or 0
        if EarlyStopping.read(config, workdir, until=newest).complete(newest):
            print(f"{workdir} is trained already, to step {newest}")
            return True
        run = open_run(config, workdir, final_split)
        batches = run.batches()
        try:
            with contextlib.nullcontext(stop) if stop else StopSignal() as stop:
                return _train(run, batches, stop)
        finally:
            batches.close()
            faulthandler.cancel_dump_traceback_later()


def _free(config: ml_collections.ConfigDict) -> tuple[str, ...]:
    """What may change where a run is resumed: where validations end it, not when they are."""
    fixed = ("eval_every",) if config.early_stopping.metric else ()
    return tuple(name for name in workdirs.FREE if name not in fixed)


def open_run(config: ml_collections.ConfigDict, workdir: pathlib.Path, final_split: str) -> "Run":
    """Looks at everything that can be wrong; writes and compiles nothing.

    Raises:
      InputError: the first thing that is.
    """
    task = make_task(config)
    _check_stages(task, config)
    parallel = Parallel.create(config.parallel, config.devices)
    parallel.check_batch_size(config.batch_size)
    parallel.check_batch_size(config.eval_batch_size, "config.eval_batch_size")
    splits.check_second(config)
    sources.open_source(config.data, final_split)
    external.check_start(config, split=final_split)
    source = splits.open_training(task, config, workdir)
    return Run(
        config=config,
        workdir=workdir,
        task=task,
        parallel=parallel,
        source=source,
        unlabelled=_unlabelled(task, source),
        validation=splits.open_split(task, config, "val", workdir=workdir)
        if config.eval_every
        else None,
    )


@dataclasses.dataclass(frozen=True)
class Run:
    """What a training consists of."""

    config: ml_collections.ConfigDict
    workdir: pathlib.Path
    task: Task
    parallel: Parallel
    source: sources.Source
    unlabelled: tuple[str, ...]  # outputs that it has no label for
    validation: sources.Source | None

    def batches(self) -> grain.DatasetIterator[pipeline.Batch]:
        """The endless stream of training batches of this host."""
        return pipeline.train_batches(
            self.source,
            self.task.data.transforms,
            batch_size=self.config.batch_size // hosts.count(),
            seed=self.config.seed,
            threads=self.config.threads,
            cache_mb=self.config.cache_mb,
            shard=(hosts.index(), hosts.count()),
            stages=self.task.data.stages,
        )

    def scorer(self) -> Scorer | None:
        """Scores the validation split, where there is one."""
        if self.validation is None:
            return None
        return Scorer(self.task, self.validation, parallel=self.parallel, config=self.config)


@dataclasses.dataclass(frozen=True)
class Program:
    """What is compiled: `create` makes a fresh state, `step` one update, `refresh` none but of the
    batch statistics."""

    create: Callable[[], state.TrainState]
    step: Callable[..., tuple[state.TrainState, state.Scalars]]
    refresh: Callable[..., tuple[state.TrainState, state.Scalars]]
    learning_rate: Callable[[int], Any]
    trainable: Any


def compile_run(run: Run) -> Program:
    """The functions that the loop calls; compiles nothing yet."""
    task, config, parallel = run.task, run.config, run.parallel
    example = splits.example_batch(task, run.source)
    shapes = variable_shapes(task, example)
    tx, trainable = optimizers.make_optimizer(
        config.optimizer,
        shapes["params"],
        total_steps=config.total_steps,
        frozen=tuple(task.frozen),
    )
    if not config.init_from and not complete_steps(run.workdir):
        # `initialise` would say the same, after a minute of compiling.
        check_frozen(
            trainable,
            flatten(shapes),
            (),
            remedies=task.frozen,
            allowed=config.allow_random_frozen,
        )
    step = state.make_train_step(task, tx, trainable, axis_name=parallel.axis_name)
    refresh = state.make_refresh_step(task, axis_name=parallel.axis_name)
    fresh = functools.partial(state.create, task, tx, seed=config.seed)
    create = jax.jit(fresh, out_shardings=parallel.replicated)
    return Program(
        create=functools.partial(create, example),
        step=parallel.compile_train_step(step),
        refresh=parallel.compile_train_step(refresh),
        learning_rate=optimizers.make_schedule(config.optimizer, config.total_steps),
        trainable=trainable,
    )


def _train(run: Run, batches: grain.DatasetIterator, stop: StopSignal) -> bool:
    """From the first step, or the last checkpoint, to the last step or a signal."""
    config = run.config
    program = compile_run(run)
    checkpoints = Checkpoints(
        run.workdir,
        keep_last=config.keep_last,
        keep_every=config.keep_every,
        keep_steps=tuple(config.eval_steps),
    )
    with checkpoints:
        train_state = _first_state(run, program, checkpoints=checkpoints, batches=batches)
        print(
            "reading the first examples and compiling the step: up to a minute on a CPU", flush=True
        )
        workdirs.claim(config, run.workdir, run.source, unlabelled=run.unlabelled)
        first = int(train_state.step)
        with Writer(
            run.workdir,
            total_steps=config.total_steps,
            first_step=first,
            asked=config.trackers,
            settings=workdirs.flatten(config),
        ) as writer:
            stopping = EarlyStopping.read(config, run.workdir, until=first)
            loop = _Loop(
                run,
                program,
                batches=batches,
                checkpoints=checkpoints,
                writer=writer,
                stop=stop,
                stopping=stopping,
            )
            train_state = loop(train_state)
            if int(train_state.step):  # a run that was stopped before its first step has nothing
                checkpoints.save(train_state, batches, wait=True)
    step = int(train_state.step)
    if not stopping.complete(step):
        print(f"stopped by {stop.name} at step {step}, saved; the same command resumes from there")
        return False
    if told := stopping.told(step):
        print(told, flush=True)
    if hosts.is_main():
        curves = training_curves(run.workdir / "metrics.jsonl")
        save(curves, run.workdir / "figures" / "training.png")
    hosts.wait("trained")
    return True


def _unlabelled(task: Task, source: sources.Source) -> tuple[str, ...]:
    """Outputs that cannot be learned from the training set, which are told."""
    names = task.data.unlabelled(source)
    if names:
        print(
            f"nothing in the training set has a label for {', '.join(names)}: not learned, and "
            "null in predictions",
            flush=True,
        )
    return names


def _first_state(
    run: Run, program: Program, *, checkpoints: Checkpoints, batches: grain.DatasetIterator
) -> state.TrainState:
    """The state of the last checkpoint, and `batches` set to it; else a fresh one."""
    fresh = program.create()
    if step := checkpoints.latest() or 0:
        restored = checkpoints.restore(step, fresh, batches)
        print(f"resuming {run.workdir} from step {step}")
        return restored
    started = initialise(run.config, fresh, program.trainable, remedies=run.task.frozen)
    print(summary(run.task, started, program.trainable))
    return started


class _Loop:
    """Step after step: what is logged, validated and saved when."""

    def __init__(
        self,
        run: Run,
        program: Program,
        *,
        batches: grain.DatasetIterator,
        checkpoints: Checkpoints,
        writer: Writer,
        stop: StopSignal,
        stopping: EarlyStopping,
    ):
        self._run, self._config, self._program = run, run.config, program
        self._batches, self._checkpoints = batches, checkpoints
        self._writer, self._stop, self._stopping = writer, stop, stopping
        checkpoints.keep(stopping.best)
        self._validate = run.scorer()
        self._steps = Steps(run.source, checkpoints)

    def __call__(self, train_state: state.TrainState) -> state.TrainState:
        """Runs to `total_steps`, to where validations end it, or a signal; every save but the
        last one."""
        config, step = self._config, int(train_state.step)
        _watch(config.hang_warning_s)
        if self._stopping.lacks(step):
            self._log_validation(step, train_state)
        while not (self._stopping.complete(step) or self._stopped(step)):
            train_state = self._refreshed(step, train_state)
            batch = next(self._batches)
            train_state, scalars = self._program.step(
                train_state, self._run.parallel.shard_batch(batch)
            )
            step += 1
            self._steps.add(step, scalars, batch["index"])
            last = step == config.total_steps
            saves = step % config.checkpoint_every == 0 or last or step in config.eval_steps
            if step % config.log_every == 0 or last:
                self._log(step)
            elif saves:  # a save must not hide that the run has come to nothing
                self._steps.finish()
            self._writer.advance(step)
            if config.eval_every and (step % config.eval_every == 0 or last):
                saves |= self._log_validation(step, train_state)
            # After the validation: a run that is killed between the two repeats both.
            if saves:
                self._checkpoints.save(train_state, self._batches)
        faulthandler.cancel_dump_traceback_later()
        self._steps.finish()
        return train_state

    def _stopped(self, step: int) -> bool:
        """Whether a signal came; several hosts ask each other now and then only, for they wait for
        the device meanwhile."""
        if hosts.count() > 1 and step % _ASK_EVERY:
            return self._stop.received
        return self._stop.ask()

    def _refreshed(self, step: int, train_state: state.TrainState) -> state.TrainState:
        """The state, with batch statistics that belong to its weights where a stage that asks for
        it begins. The films are the next ones of the stream, which then goes back: a run that is
        killed meanwhile resumes from a checkpoint before, and does the same again."""
        stages = self._run.task.data.stages
        count = next((s.refresh_batches for s in stages if s.first_step == step), 0)
        if not count:
            return train_state
        here = self._batches.get_state()
        for _ in range(count):
            batch = self._run.parallel.shard_batch(next(self._batches))
            train_state, _ = self._program.refresh(train_state, batch)
        self._batches.set_state(here)
        return train_state

    def _log(self, step: int) -> None:
        values = self._steps.finish()
        rate = float(self._program.learning_rate(step - 1))
        self._writer.scalars(step, values | {"lr": rate})
        _watch(self._config.hang_warning_s)

    def _log_validation(self, step: int, train_state: state.TrainState) -> bool:
        """True where this is the best so far by `early_stopping`, so that it is to be kept."""
        self._steps.finish()
        assert self._validate is not None  # eval_every asks for it
        rows = self._validate([train_state.variables], stop=self._stop).rows
        if self._stop.received:
            return False
        evaluation = self._run.task.evaluation
        values = numbers(evaluation.report(evaluation.units(rows)))
        self._writer.scalars(step, {f"val/{k}": v for k, v in values.items()})
        best = self._stopping.add(step, values)
        if best:
            self._checkpoints.keep(step)
        return best


def _check_stages(task: Task, config: ml_collections.ConfigDict) -> None:
    last = task.data.stages[-1].first_step
    if last >= config.total_steps:
        raise InputError(
            f"config.total_steps={config.total_steps}: the last stage of this training begins with "
            f"step {last}, so it would never come; train longer or make the stages shorter"
        )


def check_numbers(config: ml_collections.ConfigDict) -> None:
    """Refuses settings no run can mean."""
    for name, least in (
        ("total_steps", 1),
        ("batch_size", 1),
        ("eval_batch_size", 1),
        ("log_every", 1),
        ("checkpoint_every", 1),
        ("keep_every", 0),
        ("eval_every", 0),
        ("figures", 0),
        ("bootstrap", 0),
        ("refresh_batches", 0),
        ("threads", 0),
        ("seed", 0),
    ):
        if config[name] < least:
            raise InputError(f"config.{name}={config[name]}; it must be at least {least}")
    for step in config.eval_steps:
        if type(step) is not int or not 0 < step <= config.total_steps:
            raise InputError(
                f"config.eval_steps={tuple(config.eval_steps)}, the checkpoints that are "
                f"evaluated: {step!r} is no step of 1..config.total_steps={config.total_steps}; "
                "set both, --config.eval_steps='()' for the last step alone"
            )
    if not 1 <= config.optimizer.accumulate <= config.total_steps:
        raise InputError(
            f"config.optimizer.accumulate={config.optimizer.accumulate}; it must lie in "
            f"1..config.total_steps={config.total_steps}"
        )
    early_stopping.check(config)
    trackers.names(config.trackers)
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


def _watch(seconds: int) -> None:
    """Dumps every thread's stack if no step is logged for so long: a live but stuck run says why.

    XLA's own flags do not notice a host that is alive but stuck (jax issue 38503).
    """
    if seconds and sys.__stderr__:
        # Not sys.stderr: in notebooks it is no file.
        faulthandler.dump_traceback_later(seconds, repeat=True, file=sys.__stderr__)


def peak_memory_mb() -> float:
    """Highest resident memory of this process so far, in MiB."""
    scale = 1024 if os.uname().sysname != "Darwin" else 1024**2
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / scale
