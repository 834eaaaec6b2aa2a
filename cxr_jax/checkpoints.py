"""Checkpoints: Orbax, asynchronous, atomic, with the state of the data iterator.

`checkpoints/STEP/` has the items `state` (the `TrainState`) and `data` (Grain's iterator), and the
hashes of their files. A run that is killed at any moment finds the last complete step; an
unfinished folder is never read. A damaged checkpoint is never read either: who resumes sets it
aside (`checkpoints/damaged/`) and goes on from the one before; who only reads says so and ends.
"""

import asyncio
import contextlib
import errno
import math
import os
import pathlib
import shutil
import signal
import threading
from collections.abc import Iterator
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from cxr_jax import hosts, manifests, small_files
from cxr_jax.errors import DISK_ERRORS, InputError, tell_once
from cxr_jax.optimizers import path_of
from cxr_jax.state import TrainState

FOLDER = "checkpoints"
DAMAGED = "damaged"  # in FOLDER: what was set aside
# What may be read of a checkpoint whose model is not known: so much, or so many times its files.
SMALL_BYTES, MAX_UNPACKING = 2**28, 32
SPARE_BYTES = 2_000_000  # metadata, and the small files that a run writes beside its checkpoints


class _WithManifest(ocp.path.atomicity.AtomicRenameTemporaryPath):
    """A checkpoint's folder until it is complete: it gets its number with its hashes or not at all.

    Orbax calls `finalize` in its writing thread, so that no training step waits for the hashing.
    """

    async def finalize(self) -> None:
        """Hashes what was written, and gives the folder its final name."""
        final = pathlib.Path(self.get_final())
        if not final.name.isdigit():  # one of its items
            return await super().finalize()
        if self._checkpoint_metadata_store is not None:
            await asyncio.to_thread(self._checkpoint_metadata_store.wait_until_finished)
        folder = pathlib.Path(self.get())
        await asyncio.to_thread(manifests.write, folder, int(final.name))
        folder.rename(final)
        return None


class _Kept(ocp.checkpoint_managers.PreservationPolicy):
    """Keeps one step, which may become another one."""

    step: int | None = None

    def should_preserve(self, checkpoints, *, context) -> list[bool]:
        """Of each checkpoint, whether it is that step's."""
        del context
        return [checkpoint.step == self.step for checkpoint in checkpoints]


class Checkpoints:
    """The checkpoints of one work directory. Use as a context manager: closing waits for writes."""

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        keep_last: int = 2,
        keep_every: int = 0,
        keep_steps: tuple[int, ...] = (),
    ):
        self.folder = pathlib.Path(workdir).resolve() / FOLDER
        policy = ocp.checkpoint_managers
        self._kept = _Kept()
        keep = [policy.LatestN(max(keep_last, 1)), self._kept]
        if keep_every:
            keep.append(policy.EveryNSteps(keep_every))
        if keep_steps:
            keep.append(policy.CustomSteps(list(keep_steps)))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(keep),
            temporary_path_class=_WithManifest,
            create=True,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        # An error of a write in flight must not hide the error that ends the run.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self._manager.wait_until_finished()
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self._manager.close()

    def latest(self) -> int | None:
        """The last step with a complete checkpoint."""
        return self._manager.latest_step()

    def keep(self, step: int | None) -> None:
        """From now on this step is kept, and no longer the one before."""
        self._kept.step = step

    def save(self, state: TrainState, data: grain.DatasetIterator, *, wait: bool = False) -> None:
        """Starts to write; a step that is already there is left alone.

        Raises:
          InputError: the disk is full or not writable, now or in the write before this one.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._clear_errors(step):
            self._check_space(state)
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(data)
                ),
                force=True,
            )
            if wait:
                self._manager.wait_until_finished()

    def restore(
        self, step: int, state: TrainState, data: grain.DatasetIterator | None = None
    ) -> TrainState:
        """The state of `step`, shaped and placed like `state`; `data` is set in place.

        Raises:
          InputError: no such step, or the checkpoint is of another model, or cannot be read.
        """
        wanted = _abstract(state)
        _check_fits(self.folder, step, wanted)
        items = ocp.args.Composite(state=ocp.args.StandardRestore(wanted))
        with _readable(self.folder / str(step)):
            restored = self._manager.restore(step, args=items)["state"]
            if data is not None:
                _set_stream(data, self.folder / str(step) / "data")
        return restored

    def _check_space(self, state: TrainState) -> None:
        """A write that fails half-way costs pages of its threads' complaints; ask first."""
        needed = sum(x.nbytes for x in jax.tree.leaves(state)) + SPARE_BYTES
        free = shutil.disk_usage(self.folder).free
        if free < needed:
            text = f"No space left: {needed / 1e6:.0f} MB are needed, {free / 1e6:.0f} MB are free"
            raise OSError(errno.ENOSPC, text)

    @contextlib.contextmanager
    def _clear_errors(self, step: int):
        try:
            yield
        except Exception as error:
            if not _is_disk_error(error):
                raise
            complete = complete_steps(self.folder.parent)
            raise InputError(
                f"{self.folder}: could not write a checkpoint at or before step {step} "
                f"({_reason(error)}); free some space and run the same command again, it resumes "
                f"from step {complete[-1] if complete else 0}"
            ) from error


def complete_steps(workdir: pathlib.Path) -> list[int]:
    """Steps with a complete checkpoint, ascending; without Orbax's manager, so it is cheap."""
    folder = pathlib.Path(workdir) / FOLDER
    if not folder.is_dir():
        return []
    # Orbax renames a folder to its number when, and only when, it is complete.
    return sorted(int(p.name) for p in folder.iterdir() if p.name.isdigit() and p.is_dir())


def newest_whole(workdir: pathlib.Path) -> int | None:
    """The last step whose checkpoint is as it was written; later ones are set aside, which the
    terminal is told. For the one writer of a work directory only.

    Raises:
      InputError: a damaged one cannot be set aside.
    """
    folder = pathlib.Path(workdir).resolve() / FOLDER
    for step in reversed(complete_steps(workdir)):
        problem = _problem(folder, step)
        if problem is None:
            return step
        place = _set_aside(folder, step)
        print(f"{folder / str(step)} is damaged: {problem}; set aside as {place}", flush=True)
        if not complete_steps(workdir):
            print(f"no whole checkpoint is left in {folder}: from step 0", flush=True)
    return None


def _set_aside(folder: pathlib.Path, step: int) -> pathlib.Path:
    """Renames a checkpoint; nothing is deleted and nothing replaced."""
    aside = folder / DAMAGED
    try:
        aside.mkdir(exist_ok=True)
        numbers = (f"{step}-{i}" for i in range(1, 1_000_000))
        place = next(aside / name for name in numbers if not (aside / name).exists())
        return (folder / str(step)).rename(place)
    except OSError as error:
        raise InputError(
            f"{folder / str(step)} is damaged and cannot be set aside ({error.strerror}): move it "
            "away yourself"
        ) from error


def _problem(folder: pathlib.Path, step: int) -> str | None:
    """What is wrong with a checkpoint, None if nothing. One of an older version has no hashes,
    which is told; but not after one that has."""
    place = folder / str(step)
    if manifests.is_hashed(place):
        return manifests.damage(place, step)
    before = [s for s in complete_steps(folder.parent) if s < step]
    if any(manifests.is_hashed(folder / str(s)) for s in before):
        return f"{manifests.MANIFEST!r} is missing"
    tell_once(f"{folder}: no {manifests.MANIFEST} (of an older version), so it is used unchecked")
    return None


def _check_whole(folder: pathlib.Path, step: int) -> None:
    """Before a checkpoint is read by whoever is not its writer.

    Raises:
      InputError: there is none of this step, or it is damaged.
    """
    _check_step(folder, step)
    if problem := _problem(folder, step):
        others = [s for s in complete_steps(folder.parent) if s != step]
        raise InputError(
            f"{folder / str(step)} is damaged: {problem}; the training command sets it aside and "
            f"resumes from the one before, or choose another step: there are {others or 'none'}"
        )


def _set_stream(data: grain.DatasetIterator, folder: pathlib.Path) -> None:
    """Sets the stream of batches to where it was. Every host's stands at the same batch, so that
    other hosts than those that wrote it, or more or fewer, may go on."""
    place = min(folder.glob("process_*-of-*.json"))
    data.set_state(small_files.read_fields(place, "move the checkpoint away").values)
    data.start_prefetch()


@contextlib.contextmanager
def _readable(folder: pathlib.Path) -> Iterator[None]:
    """What Orbax raises about a checkpoint that it cannot read, as one line."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # of Orbax, TensorStore, JSON, Grain: whatever their files made
        raise InputError(
            f"{folder} cannot be read ({type(error).__name__}): it is damaged, or of another "
            "version of Orbax; move it away to use the one before"
        ) from error


def restore_variables(
    workdir: pathlib.Path,
    shapes: dict[str, Any],
    *,
    sharding: jax.sharding.Sharding,
    steps: tuple[int, ...] = (),
) -> tuple[tuple[int, ...], list[dict[str, Any]]]:
    """(steps, the variables of each): parameters and model state without the optimizer's.

    Args:
      shapes: variables as `trained.variable_shapes` gives them.
      sharding: where the arrays go.
      steps: () takes the latest checkpoint.

    Raises:
      InputError: there is no such checkpoint, or it is damaged or of another model.
    """
    folder = pathlib.Path(workdir).resolve() / FOLDER
    found = complete_steps(workdir)
    if not found:
        raise InputError(f"{workdir} has no checkpoint yet; train it first")
    steps = tuple(steps) or (found[-1],)
    wanted = {
        "params": shapes["params"],
        "model_state": {k: v for k, v in shapes.items() if k != "params"},
    }
    wanted = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), wanted
    )
    args = ocp.args.PyTreeRestore(
        wanted,
        restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
        partial_restore=True,
    )
    ensemble = []
    for step in steps:
        _check_whole(folder, step)
        _check_fits(folder, step, wanted)
        # Another handler than for saving: it can leave out items of the stored tree.
        with (
            _readable(folder / str(step)),
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader,
        ):
            tree = reader.restore(folder / str(step) / "state", args=args)
        ensemble.append({"params": tree["params"], **tree["model_state"]})
    return steps, ensemble


def read_state(workdir: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """The state of a checkpoint as nested dicts of NumPy arrays, whatever model wrote it.

    Args:
      step: None takes the latest.

    Raises:
      InputError: there is no checkpoint, or not of this step, or it is damaged.
    """
    steps = complete_steps(workdir)
    if not steps:
        raise InputError(f"{workdir} has no checkpoints; give the work directory of a trained run")
    step = steps[-1] if step is None else step
    folder = pathlib.Path(workdir).resolve() / FOLDER
    _check_whole(folder, step)
    place = folder / str(step)
    with _readable(place), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(place / "state").item_metadata.tree
        _check_size(place, tree)
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(place / "state", args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _check_size(folder: pathlib.Path, tree: Any) -> None:
    """Refuses arrays that are large where what lies on the disk is small: trained numbers hardly
    shrink when they are packed, and those of an optimizer that are 0 are a part of all."""
    claimed = 0
    for leaf in jax.tree.leaves(tree):
        storage = getattr(leaf, "storage", None)  # a chunk is read whole, however small the array
        numbers = max(math.prod(leaf.shape), math.prod(getattr(storage, "chunk_shape", None) or ()))
        claimed += numbers * np.dtype(leaf.dtype).itemsize
    there = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    if claimed > max(SMALL_BYTES, MAX_UNPACKING * there):
        raise InputError(
            f"{folder} says that it holds {claimed:,} bytes and lies in {there:,}; no trained "
            "numbers shrink so much: take the checkpoint from a copy"
        )


def _check_step(folder: pathlib.Path, step: int) -> None:
    found = complete_steps(folder.parent)
    if step not in found:
        raise InputError(
            f"{folder} has no checkpoint of step {step}; it has {found or 'none'}: choose with "
            "--steps"
        )


def _check_fits(folder: pathlib.Path, step: int, wanted: Any) -> None:
    """Orbax fills what is missing with placeholders, so ask before restoring."""
    _check_step(folder, step)
    with _readable(folder / str(step)):
        stored = _stored_shapes(folder / str(step) / "state")
    for key_path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
        name = path_of(key_path)
        if stored.get(name) != tuple(leaf.shape):
            raise InputError(
                f"{folder / str(step)} does not fit this model: {name} is "
                f"{stored.get(name, 'absent')} there, the model needs {tuple(leaf.shape)}; "
                "use the config it was trained with"
            )


def _stored_shapes(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
    _check_size(folder.parent, tree)
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {path_of(path): tuple(leaf.shape) for path, leaf in leaves}


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        tree,
    )


_DISK_TEXTS = (
    "No space left",
    "File too large",
    "Disk quota",
    "Read-only file",
    "Permission denied",
)


def _reason(error: BaseException | None) -> str:
    """The system's own words, wherever Orbax and TensorStore have wrapped them."""
    while error is not None:
        for text in _DISK_TEXTS:
            if text in str(error):
                return (isinstance(error, OSError) and error.strerror) or text
        error = error.__cause__ or error.__context__
    return "the disk refused it"


def _is_disk_error(error: BaseException | None) -> bool:
    """Orbax and TensorStore wrap the cause, sometimes in text only."""
    while error is not None:
        if isinstance(error, OSError) and error.errno in DISK_ERRORS:
            return True
        if any(text in str(error) for text in _DISK_TEXTS):
            return True
        error = error.__cause__ or error.__context__
    return False


class StopSignal:
    """SIGTERM and Ctrl-C ask to stop: training and evaluation poll it, save and end cleanly. A
    second one ends at once.

    Of several hosts each may be told, and at another step; what one was told, all follow once they
    have asked each other (`ask`).

    Attributes:
      received: whether to stop.
      name: of the signal.
      status: of the process: 128 + the signal's number.
    """

    def __init__(self):
        self.received = False
        self.name = ""
        self.status = 0
        self._told = False  # this host was
        self._previous = {}

    def ask(self) -> bool:
        """Whether to stop; all hosts ask at the same step, and get the same answer."""
        if hosts.count() > 1 and hosts.any_of(self._told) and not self.received:
            self._receive(signal.SIGTERM if not self._told else self._number)
        return self.received

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_):
        for number, previous in self._previous.items():
            signal.signal(number, previous)

    def _note(self, number: int, _):
        if self._told:
            raise KeyboardInterrupt
        if number == signal.SIGINT:
            # Not print: the signal may have come in the middle of one.
            os.write(2, b"\nstopping after this step; Ctrl-C again ends at once, unsaved\n")
        self._told, self._number = True, number
        if hosts.count() == 1:
            self._receive(number)

    def _receive(self, number: int) -> None:
        self.received = True
        self.name, self.status = signal.Signals(number).name, 128 + number
