"""Devices. The only file that knows how many there are and how a batch is spread over them.

`jit` (default): one program over a mesh of all devices; the batch is sharded along the axis
`data`, the state is replicated, and every mean is over the global batch, batch norm's too: one
device and eight give the same update. `pmap`: each device runs the step on its own part and
gradients, batch statistics and scalars are averaged over the axis `data`; batch norm then
normalises by the device's part, and the two modes agree where batch norm is frozen.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from cxr_jax import hosts
from cxr_jax.errors import InputError

AXIS = "data"
MODES = ("jit", "pmap")


@dataclasses.dataclass(frozen=True)
class Parallel:
    """How functions of (state, batch) run on `devices`."""

    mode: str
    devices: tuple[jax.Device, ...]

    @classmethod
    def create(cls, mode: str, devices: int = 0) -> "Parallel":
        """`devices` 0 takes all there are."""
        if mode not in MODES:
            raise InputError(f"config.parallel={mode!r}; expected one of {', '.join(MODES)}")
        found = jax.devices()
        if devices > len(found):
            raise InputError(f"config.devices={devices}, but there are {len(found)}")
        if hosts.count() > 1 and (mode == "pmap" or devices not in (0, len(found))):
            raise InputError(
                f"config.parallel={mode!r}, config.devices={devices}: a run of {hosts.count()} "
                "hosts takes all their devices, and with jit"
            )
        return cls(mode, tuple(found[: devices or len(found)]))

    @property
    def axis_name(self) -> str | None:
        """What `make_train_step` averages over."""
        return AXIS if self.mode == "pmap" else None

    @property
    def mesh(self) -> Mesh:
        """All devices along one axis."""
        return Mesh(np.asarray(self.devices), (AXIS,))

    @property
    def replicated(self) -> NamedSharding:
        """The same copy on every device."""
        return NamedSharding(self.mesh, PartitionSpec())

    @property
    def sharded(self) -> NamedSharding:
        """Split along the first axis."""
        return NamedSharding(self.mesh, PartitionSpec(AXIS))

    def check_batch_size(self, batch_size: int, name: str = "config.batch_size") -> None:
        """The global batch must divide evenly over the devices."""
        if batch_size < 1 or batch_size % len(self.devices):
            raise InputError(
                f"{name}={batch_size} does not divide over {len(self.devices)} devices; "
                "choose a multiple, or fewer devices with config.devices"
            )

    def shard_batch(self, batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        """Host arrays [B, ...] -> device arrays; B is this host's part of the global batch.

        Text (ids) stays on the host.
        """
        return {
            name: jax.make_array_from_process_local_data(self.sharded, array)
            for name, array in batch.items()
            if array.dtype.kind not in "US"
        }

    def replicate(self, tree: Any) -> Any:
        """The same copy on every device."""
        return jax.device_put(tree, self.replicated)

    def compile_train_step(self, step: Callable) -> Callable:
        """(state, batch) -> (state, scalars). The state is donated: do not use it afterwards."""
        if self.mode == "jit":
            return jax.jit(
                step,
                in_shardings=(self.replicated, self.sharded),
                out_shardings=(self.replicated, self.replicated),
                donate_argnums=0,
            )
        count = len(self.devices)
        mapped = jax.pmap(
            step, axis_name=AXIS, in_axes=(None, 0), out_axes=None, devices=self.devices
        )

        def pmap_step(state, batch):
            parts = jax.tree.map(lambda x: x.reshape(count, -1, *x.shape[1:]), batch)
            state, scalars = mapped(state, parts)
            # Under pmap a result lives per device; the next call and the checkpoint want it whole.
            return self.replicate(state), scalars

        return pmap_step

    def compile_predict(self, predict: Callable) -> Callable:
        """(variables, batch) -> arrays [B, ...]; the same program in both modes."""
        return jax.jit(
            predict, in_shardings=(self.replicated, self.sharded), out_shardings=self.sharded
        )

    def compile_score(self, score: Callable) -> Callable:
        """(outputs, batch) -> rows [B, ...]."""
        return jax.jit(score, in_shardings=(self.sharded, self.sharded), out_shardings=self.sharded)
