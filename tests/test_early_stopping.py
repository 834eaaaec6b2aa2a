"""Early stopping: which step is the best, where a run ends, and that a signal changes neither."""

import json
import math
import pathlib

import jax
import numpy as np
import pytest

from cxr_jax import checkpoints, early_stopping, evaluate, tasks, train
from cxr_jax.early_stopping import EarlyStopping
from cxr_jax.errors import InputError
from cxr_jax.trained import TrainedRun
from tests.exercise import config as exercise_config
from tests.exercise import heart

STEPS, PATIENCE = 40, 6


@pytest.fixture(autouse=True)
def exercise(monkeypatch):
    """The tiny task of the exercise."""
    monkeypatch.setitem(tasks.TASKS, "heart", heart.HeartTask.from_config)


def make_config(**changes):
    config = exercise_config.get_config().copy_and_resolve_references()
    config.update(devices=1, total_steps=STEPS, eval_steps=(), eval_every=2, log_every=10)
    config.update(checkpoint_every=3, keep_last=1, figures=0, bootstrap=0)
    # An error that training makes smaller, taken for a gain: the first validation is the best.
    config.early_stopping.update(metric="box_px", patience=PATIENCE, highest=True)
    config.optimizer.lr = 0.01
    config.update_from_flattened_dict(changes)
    return config


class Signal:
    """One that comes at the n-th time that it is asked for."""

    name, status = "SIGTERM", 143

    def __init__(self, asked: int):
        self._left = asked

    @property
    def received(self) -> bool:
        self._left -= 1
        return self._left < 0

    def ask(self) -> bool:
        return self.received


def validations(workdir: pathlib.Path) -> dict[int, float]:
    lines = map(json.loads, (workdir / "metrics.jsonl").open())
    return {line["step"]: line["val/box_px"] for line in lines if "val/box_px" in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """An uninterrupted run that ended early."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, "heart", heart.HeartTask.from_config)
        workdir = tmp_path_factory.mktemp("whole")
        assert train.train(make_config(), workdir)
    return workdir


def test_it_ends_when_nothing_was_gained_and_keeps_the_best(whole, capsys):
    seen = validations(whole)
    best = max(seen, key=seen.get)
    assert list(seen) == list(range(2, best + PATIENCE + 1, 2))
    assert best + PATIENCE < STEPS
    # keep_last is 1: the best one stays although eight others were written since.
    assert checkpoints.complete_steps(whole) == [best, best + PATIENCE]
    assert train.train(make_config(), whole)
    assert f"is trained already, to step {best + PATIENCE}" in capsys.readouterr().out


def test_the_best_is_what_is_evaluated(whole):
    config, seen = make_config(), validations(whole)
    run = TrainedRun.load(whole, config=config)
    assert run.steps == (max(seen, key=seen.get),)
    assert TrainedRun.load(whole, (8,), config=config).steps == (8,)
    found = evaluate.evaluate(config, whole, split="val")
    assert found["val/box_px"].value == pytest.approx(max(seen.values()), rel=1e-5)
    results = json.loads((whole / "results.json").read_text())
    assert results["steps"] == list(run.steps)


# It is asked for once a step and three times in a validation: in the first validation and in a step
# later on; in the validation that ends the run, the 18th to 20th time.
@pytest.mark.parametrize("times", [[4, 6], [18]], ids=str)
def test_a_run_that_is_stopped_at_any_moment_ends_the_same(whole, tmp_path, times):
    config = make_config()
    ended = [train.train(config, tmp_path, stop=Signal(asked)) for asked in times]
    assert not any(ended)
    assert train.train(config, tmp_path)
    assert validations(tmp_path) == validations(whole)
    assert checkpoints.complete_steps(tmp_path) == checkpoints.complete_steps(whole)
    for step in checkpoints.complete_steps(whole):
        ours, theirs = (checkpoints.read_state(d, step) for d in (tmp_path, whole))
        jax.tree.map(np.testing.assert_array_equal, ours, theirs)


def test_without_patience_the_run_goes_on_and_keeps_the_best(tmp_path):
    config = make_config(total_steps=7, **{"early_stopping.patience": 0})
    assert train.train(config, tmp_path)
    seen = validations(tmp_path)
    assert list(seen) == [2, 4, 6, 7]
    assert checkpoints.complete_steps(tmp_path) == sorted({max(seen, key=seen.get), 7})


def test_it_is_off_unless_it_is_asked_for(tmp_path):
    config = make_config(total_steps=3, **{"early_stopping.metric": ""})
    config.early_stopping.patience = 0
    assert train.train(config, tmp_path)
    assert checkpoints.complete_steps(tmp_path) == [3]
    assert early_stopping.best_steps(config, tmp_path) == ()


def scripted(values, *, patience=4, highest=True):
    config = make_config(**{"early_stopping.patience": patience, "early_stopping.highest": highest})
    return EarlyStopping(config, dict(zip(range(2, STEPS, 2), values)))


@pytest.mark.parametrize(
    "values, highest, best, ends",
    [
        ([1.0, 2.0, 2.0, 1.0, 1.0], True, 4, [8, 10]),  # of equals the first
        ([1.0, 2.0, 0.5, 1.0], False, 6, []),
        ([math.nan, math.nan, 1.0], True, 6, []),
        ([math.nan, math.nan], True, None, [4]),  # never defined: counted from the start
        ([3.0, 1.0, 4.0, 1.0, 5.0], True, 10, []),
    ],
)
def test_the_rule(values, highest, best, ends):
    """Validations at the steps 2, 4, ... with a patience of 4; other steps end nothing."""
    rule = scripted(values, highest=highest)
    assert rule.best == best
    assert [step for step in range(STEPS) if rule.ends(step)] == ends


def test_a_metric_that_is_not_reported_is_named():
    with pytest.raises(InputError, match=r"early_stopping.metric='box_px'; .* reports auc, px"):
        scripted([]).add(2, {"auc": 1.0, "px": 2.0})


def test_a_run_whose_validations_are_lost_is_one_line(whole, tmp_path):
    (tmp_path / "checkpoints").symlink_to(whole / "checkpoints")
    with pytest.raises(InputError, match=r"metrics.jsonl is missing.*val/box_px was best"):
        early_stopping.best_steps(make_config(), tmp_path)


def test_when_it_is_validated_is_no_longer_free(whole):
    with pytest.raises(InputError, match=r"eval_every is 2 there and 3 here"):
        train.train(make_config(eval_every=3), whole)


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"eval_every": 0}, "needs validations"),
        ({"eval_steps": (4,)}, "both choose what is evaluated"),
        ({"early_stopping.patience": -1}, "patience=-1"),
        ({"early_stopping.metric": ""}, "with it a metric"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_one_line(changes, words):
    with pytest.raises(InputError, match=words):
        train.check_numbers(make_config(**changes))
