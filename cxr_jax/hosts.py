"""Several processes as one run: who they are, what they agree on, and what ends them.

The same command runs on every host. Each reads its part of every batch; the state is the same on
all. Host 0 alone writes and speaks; the others read the work directory, which all must see. A host
that dies takes the run along, with a line that says which it was: a collective of the others would
wait for it forever. The same command on every host then resumes from the last checkpoint.
"""

import contextlib
import dataclasses
import os
import pathlib
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any, TypeVar

import jax
import numpy as np
from jax.experimental import multihost_utils

from cxr_jax.errors import InputError, one_line

CLUSTERS = ("slurm", "jobset", "tpu")
PORT = 12345  # of the coordinator where nothing names another
SILENT_S = 30  # a host that is not heard of for so long is taken for dead
_BEAT_S = 2
_JOIN_S = 300  # for the slowest host to begin
_LOST = ("gloo", "nccl", "closed by peer", "connection reset", "remote process", "unavailable")
Value = TypeVar("Value")


@dataclasses.dataclass(frozen=True)
class Place:
    """Which of how many processes this is.

    Attributes:
      coordinator: HOST:PORT of process 0; '' where JAX finds all of this itself.
      processes: how many there are.
      process: the number of this one, from 0.
      cluster: whose environment JAX reads where `coordinator` is ''.
    """

    coordinator: str = ""
    processes: int = 0
    process: int = 0
    cluster: str = ""


def place(
    cluster: str = "",
    *,
    coordinator: str = "",
    processes: int = 0,
    process: int = -1,
    environment: Mapping[str, str] = os.environ,
) -> Place | None:
    """The place that the flags name; None for a run of one process.

    Args:
      cluster: one of `CLUSTERS`: what started this process says the rest.
      coordinator: HOST:PORT, with `processes` and `process`.

    Raises:
      InputError: flags that contradict each other, or an environment without what is needed.
    """
    explicit = bool(coordinator or processes or process >= 0)
    if not cluster and not explicit:
        return None
    if cluster and explicit:
        raise InputError(
            f"--hosts={cluster} reads who is who from the environment; leave out --coordinator, "
            "--processes and --process, or leave out --hosts"
        )
    if cluster and cluster not in CLUSTERS:
        raise InputError(f"--hosts={cluster}; expected one of {', '.join(CLUSTERS)}")
    if cluster == "jobset":
        return _checked(*_of_jobset(environment))
    if cluster == "slurm":
        _needed(environment, "SLURM_JOB_ID", "SLURM_PROCID", "SLURM_STEP_NODELIST", of="srun")
    if cluster:
        return Place(cluster=cluster)
    return _checked(coordinator, processes, process)


def _of_jobset(environment: Mapping[str, str]) -> tuple[str, int, int]:
    """Kubernetes' JobSet gives every pod of an indexed job a name in the network and a number."""
    names = ("JOBSET_NAME", "REPLICATED_JOB_NAME", "JOB_COMPLETION_INDEX", "PROCESSES")
    jobset, job, index, processes = _needed(environment, *names, of="launch/gke_jobset.yaml")
    if not (index.isdecimal() and processes.isdecimal()):
        raise InputError(f"JOB_COMPLETION_INDEX={index}, PROCESSES={processes}; expected numbers")
    return f"{jobset}-{job}-0-0.{jobset}:{PORT}", int(processes), int(index)


def _needed(environment: Mapping[str, str], *names: str, of: str) -> list[str]:
    missing = [name for name in names if not environment.get(name)]
    if missing:
        raise InputError(
            f"the environment has no {missing[0]}, which {of} sets; start with it, or give "
            "--coordinator=HOST:PORT --processes=N --process=I"
        )
    return [environment[name] for name in names]


def _checked(coordinator: str, processes: int, process: int) -> Place:
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 2**16:
        raise InputError(
            f"--coordinator={coordinator or 'nothing'}; expected HOST:PORT of the first process, "
            "with --processes and --process"
        )
    if processes < 1 or not 0 <= process < processes:
        raise InputError(
            f"--processes={processes} --process={process}; expected how many processes there are "
            "and the number of this one, 0 to one less"
        )
    return Place(coordinator, processes, process)


def start(here: Place | None) -> None:
    """Joins the processes of a run, before the first computation; nothing for one process.

    Raises:
      InputError: the port is taken, or the others do not come.
    """
    if here is None:
        return
    if here.coordinator and here.process == 0:
        _check_port(here.coordinator)
    given: dict[str, Any] = {  # on a TPU pod JAX asks the machine
        "cluster_detection_method": None if here.cluster == "tpu" else here.cluster
    }
    if here.coordinator:
        given = {
            "coordinator_address": here.coordinator,
            "num_processes": here.processes,
            "process_id": here.process,
            "cluster_detection_method": "deactivate",
        }
    try:
        jax.distributed.initialize(
            **given,
            initialization_timeout=_JOIN_S,
            heartbeat_timeout_seconds=2 * SILENT_S,  # ours comes first and says more
            shutdown_timeout_seconds=SILENT_S,
        )
    except (RuntimeError, ValueError, TypeError, OSError, KeyError) as error:
        where = here.coordinator or f"the coordinator that {here.cluster} names"
        raise InputError(
            f"the processes of this run do not find each other at {where}: "
            f"{one_line(str(error))[:300]}"
        ) from error
    if count() > 1 and not is_main():
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115  of the whole process


def _check_port(coordinator: str) -> None:
    port = int(coordinator.rpartition(":")[2])
    with socket.socket() as trial:
        trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            trial.bind(("", port))
        except OSError as error:
            raise InputError(
                f"--coordinator={coordinator}: port {port} of this machine cannot be used "
                f"({error.strerror}); choose another one, the same on every host"
            ) from error


def count() -> int:
    """Processes of this run. Asks no device: a signal's handler may call it."""
    return jax.process_count() if jax.distributed.is_initialized() else 1


def index() -> int:
    """The number of this one."""
    return jax.process_index() if jax.distributed.is_initialized() else 0


def is_main() -> bool:
    """Whether this one writes."""
    return index() == 0


def wait(name: str) -> None:
    """Until all have come here; `name` says where that is."""
    if count() > 1:
        multihost_utils.sync_global_devices(name)


def main_first(function: Callable[[], Value]) -> Value:
    """`function()` of host 0, and when that is done, of the others."""
    if is_main():
        value = function()
        wait("main first")
        return value
    wait("main first")
    return function()


def any_of(flag: bool) -> bool:
    """Whether it is true on some host; all must ask."""
    if count() == 1:
        return flag
    return bool(np.any(multihost_utils.process_allgather(np.asarray(flag))))


def gathered(arrays: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Whole, on every host: arrays [B, ...] that are spread over their devices, or of which each
    has its own part, text too."""
    if count() == 1:
        return jax.device_get(dict(arrays))  # all at once: one wait for the device
    return {name: _gathered(array) for name, array in arrays.items()}


def _gathered(array: Any) -> np.ndarray:
    if isinstance(array, jax.Array) or array.dtype.kind not in "US":
        return np.asarray(multihost_utils.process_allgather(array, tiled=True))
    width = array.dtype.itemsize // 4
    widest = int(np.max(multihost_utils.process_allgather(np.asarray(width)))) or 1
    codes = array.astype(f"U{widest}").view(np.uint32).reshape(len(array), widest)
    whole = np.ascontiguousarray(multihost_utils.process_allgather(codes, tiled=True))
    return whole.view(f"U{widest}").reshape(-1)


def own(tree: Any) -> Any:
    """Replicated arrays as this host's own, which it may compute with alone."""
    if count() == 1:
        return tree
    return jax.tree.map(
        lambda x: x.addressable_data(0) if isinstance(x, jax.Array) else x,
        tree,
    )


def check_shared(marker: pathlib.Path) -> None:
    """After host 0 has written `marker` and all have waited for it.

    Raises:
      InputError: this host does not see it.
    """
    if not marker.exists():
        raise InputError(
            f"{marker.parent}: host {index()} of {count()} does not see what host 0 wrote there; "
            "--workdir must lie on a disk that all hosts share"
        )


@contextlib.contextmanager
def watched() -> Iterator[None]:
    """A run of several hosts: none goes on, or waits, when another has ended."""
    if count() == 1:
        yield
        return
    watch = _Watch()
    watch.start()
    try:
        yield
    except Exception as error:
        if not isinstance(error, InputError) and _is_lost(error):
            watch.join(SILENT_S + 2 * _BEAT_S)  # it ends the process, and knows which host it was
        watch.leave(f"{type(error).__name__}: {error}")
        raise
    except BaseException as error:
        watch.leave(type(error).__name__)
        raise
    wait("end")
    watch.leave("")


def _is_lost(error: Exception) -> bool:
    text = str(error).lower()
    return any(sign in text for sign in _LOST)


class _Watch(threading.Thread):
    """Beats for this host in the coordinator's table, and looks at the others' beats."""

    def __init__(self):
        super().__init__(name="hosts", daemon=True)
        # The table is not in JAX's public face; Orbax takes it from the same place.
        from jax._src import distributed

        self._table = distributed.global_state.client
        self._left = threading.Event()
        self._heard = {i: ("", time.monotonic()) for i in range(count()) if i != index()}

    def run(self) -> None:
        """Until this host leaves, or another is gone: that ends the process."""
        beats = 0
        while not self._left.wait(_BEAT_S):
            beats += 1
            self._set("beat", str(beats))
            if problem := self._problem():
                text = (
                    f"error: {problem}; host {index()} of {count()} ends too. The same command on "
                    "every host resumes from the last checkpoint"
                )
                sys.stderr.write(f"{one_line(text)}\n")
                sys.stderr.flush()
                os._exit(1)

    def leave(self, reason: str) -> None:
        """The last word of this host; '' where all is done."""
        self._left.set()
        self._set("beat", f"ended {one_line(reason)[:300]}" if reason else "done")

    def _problem(self) -> str:
        now = time.monotonic()
        for other, (last, since) in self._heard.items():
            beat = self._get("beat", other)
            if beat is None:
                if other == 0 or now - since > SILENT_S:
                    return f"host {other} of {count()} has ended: it does not answer"
            elif beat.startswith("ended"):
                return f"host {other} of {count()} has {beat}"
            elif beat != last or beat == "done":
                self._heard[other] = (beat, now)
            elif now - since > SILENT_S:
                return f"host {other} of {count()} has not been heard of for {SILENT_S} s"
        return ""

    def _set(self, name: str, value: str) -> None:
        with contextlib.suppress(Exception):  # host 0 is gone, which `_get` notices
            self._table.key_value_set(f"cxr/{name}/{index()}", value, allow_overwrite=True)

    def _get(self, name: str, other: int) -> str | None:
        """None where there is no table any more; '' before the first beat."""
        try:
            return self._table.key_value_try_get(f"cxr/{name}/{other}")
        except Exception as error:  # of XLA's own kinds
            return "" if "NOT_FOUND" in str(error) else None
