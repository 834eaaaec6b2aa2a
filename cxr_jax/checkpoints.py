"""Checkpoints: Orbax, asynchronous, atomic, with the state of the data iterator.

`checkpoints/STEP/` has the items `state` (the `TrainState`) and `data` (Grain's iterator). A run
that is killed at any moment finds the last complete step; an unfinished folder is never read.
"""

import contextlib
import errno
import pathlib
import signal
import threading
from typing import Any

import grain
import jax
import numpy as np
import orbax.checkpoint as ocp

from cxr_jax.errors import InputError
from cxr_jax.state import TrainState

FOLDER = "checkpoints"


class Checkpoints:
    """The checkpoints of one work directory. Use as a context manager: closing waits for writes."""

    def __init__(
        self,
        workdir: pathlib.Path,
        *,
        keep_last: int = 1,
        keep_every: int = 0,
        keep_steps: tuple[int, ...] = (),
        write: bool = True,
    ):
        self.folder = pathlib.Path(workdir).resolve() / FOLDER
        policy = ocp.checkpoint_managers
        keep = [policy.LatestN(max(keep_last, 1))]
        if keep_every:
            keep.append(policy.EveryNSteps(keep_every))
        if keep_steps:
            keep.append(policy.CustomSteps(list(keep_steps)))
        options = ocp.CheckpointManagerOptions(
            preservation_policy=policy.AnyPreservationPolicy(keep) if write else None,
            create=write,
            read_only=not write,
            enable_async_checkpointing=write,
        )
        self._manager = ocp.CheckpointManager(self.folder, options=options)

    def __enter__(self):
        return self

    def __exit__(self, kind, error, trace):
        # An error of a write in flight must not hide the error that ends the run.
        with contextlib.suppress(Exception) if kind else contextlib.nullcontext():
            self.wait()
        self._manager.close()

    def steps(self) -> list[int]:
        """Steps with a complete checkpoint, ascending."""
        return sorted(self._manager.all_steps())

    def latest(self) -> int | None:
        return self._manager.latest_step()

    def save(self, state: TrainState, data: grain.DatasetIterator, *, wait: bool = False) -> None:
        """Starts to write; a step that is already there is left alone.

        Raises:
          InputError: the disk is full or not writable, now or in the write before this one.
        """
        step = int(state.step)
        if step in self._manager.all_steps():
            return
        with self._clear_errors(step):
            self._manager.save(
                step,
                args=ocp.args.Composite(
                    state=ocp.args.StandardSave(state), data=grain.checkpoint.CheckpointSave(data)
                ),
                force=True,
            )
        if wait:
            self.wait(step)

    def wait(self, step: int | None = None) -> None:
        """Until the write in flight is complete and visible."""
        with self._clear_errors(step):
            self._manager.wait_until_finished()

    def restore(
        self, step: int, state: TrainState, data: grain.DatasetIterator | None = None
    ) -> TrainState:
        """The state of `step`, shaped and placed like `state`; `data` is set in place.

        Raises:
          InputError: no such step, or the checkpoint is of another model.
        """
        wanted = _abstract(state)
        self._check_fits(step, wanted)
        items = {"state": ocp.args.StandardRestore(wanted)}
        if data is not None:
            items["data"] = grain.checkpoint.CheckpointRestore(data)
        return self._manager.restore(step, args=ocp.args.Composite(**items))["state"]

    def restore_variables(self, step: int, shapes: dict[str, Any]) -> dict[str, Any]:
        """Parameters and model state alone, without the optimizer's; placed as `shapes` says."""
        wanted = {
            "params": shapes["params"],
            "model_state": {k: v for k, v in shapes.items() if k != "params"},
        }
        self._check_fits(step, wanted)
        args = ocp.args.PyTreeRestore(
            wanted,
            restore_args=ocp.checkpoint_utils.construct_restore_args(wanted),
            partial_restore=True,
        )
        # Another handler than for saving: it can leave out items of the stored tree.
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
            found = reader.restore(self.folder / str(step) / "state", args=args)
        return {"params": found["params"], **found["model_state"]}

    def _check_fits(self, step: int, wanted: Any) -> None:
        """Orbax fills what is missing with placeholders, so ask before restoring."""
        self._check_step(step)
        stored = _stored_shapes(self.folder / str(step) / "state")
        for key_path, leaf in jax.tree_util.tree_leaves_with_path(wanted):
            name = _name(key_path)
            if stored.get(name) != tuple(leaf.shape):
                raise InputError(
                    f"{self.folder / str(step)} does not fit this model: {name} is "
                    f"{stored.get(name, 'absent')} there, the model needs {tuple(leaf.shape)}; "
                    "use the config it was trained with"
                )

    def _check_step(self, step: int) -> None:
        if step not in self._manager.all_steps():
            raise InputError(
                f"{self.folder} has no checkpoint of step {step}; it has {self.steps() or 'none'}"
            )

    @contextlib.contextmanager
    def _clear_errors(self, step: int | None):
        try:
            yield
        except Exception as error:
            if not _is_disk_error(error):
                raise
            complete = self.steps()
            raise InputError(
                f"{self.folder}: could not write the checkpoint{f' of step {step}' if step else ''}"
                f" ({_first_line(error)}); free some space and run the same command again, it "
                f"resumes from step {complete[-1] if complete else 0}"
            ) from error


def read_state(workdir: pathlib.Path, step: int | None = None) -> dict[str, Any]:
    """The state of a checkpoint as nested dicts of NumPy arrays, whatever model wrote it.

    Args:
      step: None takes the latest.

    Raises:
      InputError: there is no checkpoint, or not of this step.
    """
    folder = pathlib.Path(workdir).resolve() / FOLDER
    if not folder.is_dir():
        raise InputError(f"{workdir} has no checkpoints; give the work directory of a trained run")
    with Checkpoints(workdir, write=False) as checkpoints:
        steps = checkpoints.steps()
    if not steps or (step is not None and step not in steps):
        raise InputError(f"{folder} has no checkpoint of step {step}; it has {steps or 'none'}")
    path = folder / str(steps[-1] if step is None else step) / "state"
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(path).item_metadata.tree
        as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), tree)
        return reader.restore(path, args=ocp.args.PyTreeRestore(restore_args=as_numpy))


def _stored_shapes(folder: pathlib.Path) -> dict[str, tuple[int, ...]]:
    with ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as reader:
        tree = reader.metadata(folder).item_metadata.tree
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {_name(path): tuple(leaf.shape) for path, leaf in leaves}


def _name(key_path: tuple) -> str:
    return "/".join(
        str(getattr(k, "key", getattr(k, "name", getattr(k, "idx", k)))) for k in key_path
    )


def _abstract(tree: Any) -> Any:
    return jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=getattr(x, "sharding", None)),
        tree,
    )


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:300]


def _is_disk_error(error: BaseException | None) -> bool:
    """Orbax and TensorStore wrap the cause, sometimes in text only."""
    codes = {errno.ENOSPC, errno.EFBIG, errno.EDQUOT, errno.EROFS, errno.EACCES}
    texts = ("No space left", "File too large", "Disk quota", "Read-only file", "Permission denied")
    while error is not None:
        if isinstance(error, OSError) and error.errno in codes:
            return True
        if any(text in str(error) for text in texts):
            return True
        error = error.__cause__ or error.__context__
    return False


class StopSignal:
    """SIGTERM asks to stop: training and evaluation poll it, save and end cleanly.

    Orbax looks for the signal only under `jax.distributed`; one process needs this.
    """

    def __init__(self):
        self.received = False
        self._previous = None

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():
            self._previous = signal.signal(signal.SIGTERM, self._note)
        return self

    def __exit__(self, *_):
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)

    def _note(self, *_):
        self.received = True
