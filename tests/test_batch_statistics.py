"""Batch statistics that belong to the weights: before a copy of a teacher, and in an evaluation."""

import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import batch_statistics, checkpoints, evaluate, teacher, train
from cxr_jax.errors import InputError
from cxr_jax.tasks import make_task
from tests.test_loops import ROOT, load_config


class Halving:
    """Statistics go half of the way to the batch's mean, plus the weight."""

    def loss(self, variables, batch, *, rng, step):
        mean = jnp.mean(batch["image"]) + variables["params"]["w"]
        return 0.0, ({"batch_stats": {"mean": (variables["batch_stats"]["mean"] + mean) / 2}}, {})


def one(w, mean):
    return {"params": {"w": jnp.float32(w)}, "batch_stats": {"mean": jnp.float32(mean)}}


def test_statistics_move_and_nothing_else():
    variables = one(1, 0) | {"teacher": one(2, 8), "average": one(3, 4)}
    assert batch_statistics.networks(variables) == ("", "teacher", "average")
    assert teacher.source(variables) == "average"
    batch = {"image": jnp.array([2.0, 4.0])}
    moved = batch_statistics.refresh(
        Halving(), variables, batch, rng=None, step=0, of=("", "average")
    )
    expected = one(1, (0 + 4) / 2) | {"teacher": one(2, 8), "average": one(3, (4 + 6) / 2)}
    jax.tree.map(np.testing.assert_array_equal, moved, expected)


def test_a_network_without_batch_norm_has_none():
    assert batch_statistics.networks({"params": {}, "teacher": {"params": {}}}) == ()


def test_the_shift_is_in_the_batches_deviations():
    before = {"a": {"mean": np.array([0.0, 3.0]), "var": np.ones(2)}}
    after = {"a": {"mean": np.array([4.0, 3.0]), "var": np.array([4.0, 1.0])}}
    # 4 / 2 and 0: the root of (4 + 0) / 2.
    assert batch_statistics.shift(before, after) == pytest.approx(2**0.5, rel=1e-4)
    assert batch_statistics.shift({}, {}) == 0


@pytest.fixture(scope="module")
def config():
    path = ROOT / "configs" / "severity.py"
    config = load_config(path, "smoke,regime=progressive,vit=0").copy_and_resolve_references()
    config.devices = 1
    config.regime.update(stage_steps=2, shares=1, refresh_batches=3, teacher_decay=0.5)
    config.total_steps = 4
    config.eval_steps = (2, 3, 4)
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("refreshed")
    seen = []
    add = train.Steps.add
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(train.Steps, "add", lambda *args: seen.append(args[3]) or add(*args))
        assert train.train(config, workdir)
    return workdir, seen


def test_the_teacher_is_the_average_on_statistics_of_the_next_batches(config, run):
    workdir, seen = run
    before, after = (checkpoints.read_state(workdir, step) for step in (2, 3))
    taught, average = after["model_state"]["teacher"], before["model_state"]["average"]
    jax.tree.map(np.testing.assert_array_equal, taught["params"], average["params"])
    # The average itself, by hand: d = min(0.5, step / (step + 1)) is 0, then 0.5.
    opened = train.open_run(config, workdir, "test")
    batches = opened.batches()
    stream = [next(batches) for _ in range(5)]
    batches.close()
    np.testing.assert_array_equal(seen[2], stream[2]["index"])  # the stream went back
    model, statistics = make_task(config).model, average["batch_stats"]

    @jax.jit
    def further(statistics, image):
        variables = {"params": average["params"], "batch_stats": statistics}
        return model.apply(variables, image, train=True, mutable=["batch_stats"])[1]["batch_stats"]

    for batch in stream[2:5]:
        statistics = further(statistics, batch["image"] * (batch["lungs"] > 0))
    near = lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)  # noqa: E731
    jax.tree.map(near, taught["batch_stats"], jax.device_get(statistics))


def test_a_run_that_is_killed_where_a_stage_begins_resumes_to_the_bit(config, run, tmp_path):
    workdir, _ = run
    shutil.copytree(workdir, tmp_path / "killed")
    for step in (3, 4):
        shutil.rmtree(tmp_path / "killed" / "checkpoints" / str(step))
    assert train.train(config, tmp_path / "killed")
    whole, resumed = (checkpoints.read_state(w, 4) for w in (workdir, tmp_path / "killed"))
    jax.tree.map(np.testing.assert_array_equal, whole, resumed)


def test_an_evaluation_renews_them_and_says_how_far_they_were_off(config, run, tmp_path, capsys):
    shutil.copytree(run[0], tmp_path / "run")
    config = config.copy_and_resolve_references()
    plain = evaluate.evaluate(config, tmp_path / "run", steps=(4,))
    config.refresh_batches = 2
    renewed = evaluate.evaluate(config, tmp_path / "run", steps=(4,))
    told = json.loads((tmp_path / "run" / "results.json").read_text())
    assert told["statistics"]["batches"] == 2
    assert told["statistics"]["shift_sd"][0] > 0
    assert told["changed"] == {"refresh_batches": 2}
    assert "renewed on 2 training batches" in capsys.readouterr().out
    assert plain["test/mse"].value != renewed["test/mse"].value


@pytest.mark.parametrize(
    "changes", [{"regime.refresh_batches": -1}, {"regime.teacher_decay": 1.0}], ids=str
)
def test_a_setting_that_cannot_be_meant_is_one_line(config, changes):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match="refresh_batches"):
        make_task(config)
