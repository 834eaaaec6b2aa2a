"""One device, eight devices and pmap give the same update."""

import functools

import jax
import numpy as np
import pytest

from configs import severity
from cxr_jax import optimizers, state
from cxr_jax.data import pipeline, sources
from cxr_jax.errors import InputError
from cxr_jax.inputs import splits
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import make_task


def config(*, frozen_norms: bool):
    config = severity.get_config("smoke").copy_and_resolve_references()
    config.batch_size = 8
    config.data.train = 8
    # Plain SGD: Adam would divide the rounding of a zero gradient by itself.
    config.optimizer.update(name="sgd", lr=0.1, schedule="constant", warmup_steps=0, clip_norm=0.0)
    config.model.freeze_norms = frozen_norms
    config.model.backbone.update(block_sizes=(1,), tap="block1")
    config.model.head_blocks = 2
    return config


@functools.cache
def one_update(mode: str, devices: int, *, frozen_norms: bool):
    c = config(frozen_norms=frozen_norms)
    task = make_task(c)
    source = sources.open_source(c.data, "train")
    parallel = Parallel.create(mode, devices)
    example = splits.example_batch(task, source)
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), example)["params"]
    tx, trainable = optimizers.make_optimizer(
        c.optimizer, shapes, total_steps=2, frozen=tuple(task.frozen)
    )
    create = functools.partial(state.create, task, tx, seed=0)
    start = jax.jit(create, out_shardings=parallel.replicated)(example)
    before = jax.device_get(start.params)
    step = parallel.compile_train_step(
        state.make_train_step(task, tx, trainable, axis_name=parallel.axis_name)
    )
    batches = pipeline.train_batches(source, task.data.transforms, batch_size=8, seed=0, threads=0)
    after, scalars = step(start, parallel.shard_batch(next(batches)))
    batches.close()
    variables, scalars = jax.device_get((after.variables, scalars))
    return {"variables": variables, "scalars": scalars}, before


def largest_difference(a, b) -> float:
    return max(jax.tree.leaves(jax.tree.map(lambda x, y: float(np.max(np.abs(x - y))), a, b)))


def test_one_device_and_eight_give_the_same_update():
    """Global view: batch norm too is over the whole batch."""
    one, before = one_update("jit", 1, frozen_norms=False)
    eight, _ = one_update("jit", 8, frozen_norms=False)
    change = largest_difference(one["variables"]["params"], before)
    difference = largest_difference(one["variables"], eight["variables"])
    print(f"largest difference {difference:.2e}, largest change {change:.2e}")
    assert change > 1e-3  # the update does something
    # Sums over the batch in another order, in float32, through batch norm: 1e-5 was seen.
    assert difference < 5e-5
    for name, value in one["scalars"].items():
        np.testing.assert_allclose(value, eight["scalars"][name], rtol=1e-4, err_msg=name)


def test_pmap_gives_the_same_update_where_batch_norm_is_frozen():
    one, before = one_update("jit", 1, frozen_norms=True)
    eight, _ = one_update("jit", 8, frozen_norms=True)
    mapped, _ = one_update("pmap", 8, frozen_norms=True)
    change = largest_difference(one["variables"]["params"], before)
    for name, other in (("pmap", mapped), ("jit", eight)):
        difference = largest_difference(one["variables"], other["variables"])
        print(f"{name} on 8: largest difference {difference:.2e}, largest change {change:.2e}")
        assert difference < 5e-5  # as above
        for key, value in one["scalars"].items():
            np.testing.assert_allclose(value, other["scalars"][key], rtol=1e-4, err_msg=key)
    assert change > 1e-3  # the update does something


def test_pmap_normalises_by_the_devices_part():
    """The modes are not the same thing: with live batch norm they must differ."""
    whole, _ = one_update("jit", 8, frozen_norms=False)
    parts, _ = one_update("pmap", 8, frozen_norms=False)
    assert largest_difference(whole["variables"], parts["variables"]) > 1e-3


def test_batches_must_divide_over_the_devices():
    with pytest.raises(InputError, match="batch_size=6 does not divide over 8 devices"):
        Parallel.create("jit", 8).check_batch_size(6)
    with pytest.raises(InputError, match="devices=99"):
        Parallel.create("jit", 99)
    with pytest.raises(InputError, match="parallel='tpu'"):
        Parallel.create("tpu")
