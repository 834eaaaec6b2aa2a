"""The severity task: how good its maps are is measured where lesions are known."""

import importlib

import jax
import numpy as np
import pytest

from cxr_jax.data import pipeline
from cxr_jax.data.sources.phantom_cxr import PhantomCXR
from cxr_jax.metrics.severity import severity_report
from cxr_jax.tasks import make_task


@pytest.fixture(scope="module", params=["max", "mean"])
def measured(request):
    """A small task with a map that is far from flat, eight phantoms, their prediction and rows."""
    config = importlib.import_module("configs.severity").get_config("smoke")
    config.pool = request.param
    task = make_task(config)
    source = PhantomCXR(split="test", count=8, seed=0, size=128)
    batch = next(pipeline.eval_batches(source, task.data.transforms, batch_size=8, threads=0))
    batch = {k: v for k, v in batch.items() if v.dtype.kind not in "US"}
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), batch)
    head = variables["params"]["head"]
    head = jax.tree.map(lambda x: jax.random.normal(jax.random.PRNGKey(x.size), x.shape) / 2, head)
    variables = {**variables, "params": {**variables["params"], "head": head}}
    outputs = jax.jit(task.predict)(variables, batch)
    return task, batch, outputs, jax.jit(task.measure)(variables, batch)


def test_the_own_map_points_where_it_is_highest(measured):
    _, batch, outputs, rows = measured
    heat, lesion = np.asarray(outputs["map"]), np.asarray(batch["lesion"]) > 0
    step = lesion.shape[1] // heat.shape[1]
    middles = lesion[:, step // 2 :: step, step // 2 :: step]
    valid = lesion.any(axis=(1, 2))
    assert valid.any()
    assert not valid.all()
    np.testing.assert_array_equal(rows["map_valid"], valid)
    hits = [middles[b][heat[b] == heat[b].max()].mean() for b in range(8)]
    np.testing.assert_allclose(rows["map_hit"], hits, atol=1e-6)


def test_controls_know_the_lungs_and_no_lesion(measured):
    _, batch, outputs, rows = measured
    lesion = np.asarray(batch["lesion"]) > 0
    side = np.asarray(outputs["map"]).shape[1]
    step = lesion.shape[1] // side
    zones = np.asarray(batch["zones"])[:, step // 2 :: step, step // 2 :: step] > 0
    middles = lesion[:, step // 2 :: step, step // 2 :: step]
    chance = (zones & middles).sum(axis=(1, 2)) / zones.sum(axis=(1, 2))
    np.testing.assert_allclose(rows["lungs_hit"], chance, atol=0.05)
    assert (rows["lungs_hit"] > rows["lungs_chance"])[rows["lungs_valid"]].all()


def test_they_stand_in_the_report_where_they_were_measured(measured):
    task, batch, outputs, rows = measured
    report = severity_report(jax.device_get(task.score({**outputs, **rows}, batch)))
    plain = severity_report(jax.device_get(task.score(outputs, batch)))
    for name in ("map", "gradcam", "brightness", "lungs"):
        for what in ("hit", "share", "deletion", "insertion"):
            assert 0 <= report[f"{name}_{what}"].value <= 1
        assert f"{name}_hit" not in plain
    assert report["map_deletion"].value != report["lungs_deletion"].value
    for name in plain:
        np.testing.assert_equal(report[name].value, plain[name].value)
