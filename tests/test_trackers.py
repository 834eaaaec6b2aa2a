"""Numbers that go to other places too, with stand-ins for their packages."""

import json
import sys
import types

import pytest

from cxr_jax import trackers
from cxr_jax.errors import InputError
from cxr_jax.writers import Writer


class FakeWandb(types.ModuleType):
    """Keeps what it gets, under the id of the run."""

    def __init__(self):
        super().__init__("wandb")
        self.began, self.logged, self.finished = [], [], 0

    def Settings(self, **kwargs):
        return kwargs

    def init(self, **kwargs):
        self.began.append(kwargs)
        return types.SimpleNamespace(
            id=kwargs["id"] or "abc",
            log=lambda values, step: self.logged.append((step, values)),
            finish=lambda: setattr(self, "finished", self.finished + 1),
        )


class FakeMLflow(types.ModuleType):
    """Likewise, as the one client."""

    def __init__(self):
        super().__init__("mlflow")
        self.runs, self.metrics, self.params, self.ended = [], [], {}, []

    def MlflowClient(self):
        return self

    def get_experiment_by_name(self, name):
        assert name == trackers.PROJECT
        return types.SimpleNamespace(experiment_id="7") if self.runs else None

    def create_experiment(self, name):
        return "7"

    def create_run(self, experiment, run_name):
        self.runs.append((experiment, run_name))
        return types.SimpleNamespace(info=types.SimpleNamespace(run_id=f"r{len(self.runs)}"))

    def log_param(self, run, name, value):
        self.params[name] = value

    def log_metric(self, run, name, value, step):
        self.metrics.append((run, name, value, step))

    def set_terminated(self, run):
        self.ended.append(run)


@pytest.fixture
def fakes(monkeypatch):
    wandb, mlflow = FakeWandb(), FakeMLflow()
    monkeypatch.setitem(sys.modules, "wandb", wandb)
    monkeypatch.setitem(sys.modules, "mlflow", mlflow)
    monkeypatch.delenv("WANDB_PROJECT", raising=False)
    monkeypatch.delenv("MLFLOW_EXPERIMENT_NAME", raising=False)
    return wandb, mlflow


def write(workdir, first, values):
    told = {"asked": "wandb, mlflow", "settings": {"seed": 3}}
    with Writer(workdir, total_steps=20, first_step=first, **told) as writer:
        writer.scalars(first + 5, values)


def test_training_and_validation_go_to_all_and_a_resumed_run_goes_on(tmp_path, fakes):
    wandb, mlflow = fakes
    write(tmp_path, 0, {"loss": 1.0})
    write(tmp_path, 5, {"val/mean_auc": 0.7})
    assert wandb.logged == [(5, {"loss": 1.0}), (10, {"val/mean_auc": 0.7})]
    assert [began["id"] for began in wandb.began] == [None, "abc"]
    assert wandb.began[0]["config"] == {"seed": 3}
    assert wandb.began[0]["project"] == trackers.PROJECT
    assert wandb.finished == 2
    assert mlflow.runs == [("7", tmp_path.name)]
    assert mlflow.metrics == [("r1", "loss", 1.0, 5), ("r1", "val/mean_auc", 0.7, 10)]
    assert mlflow.params == {"seed": "3"}
    assert json.loads((tmp_path / trackers.FILE).read_text()) == {"wandb": "abc", "mlflow": "r1"}
    assert list((tmp_path / "tensorboard").iterdir())


def test_tensorboard_alone_is_the_default(tmp_path):
    with Writer(tmp_path, total_steps=2) as writer:
        writer.scalars(1, {"loss": 1.0})
    assert not (tmp_path / trackers.FILE).exists()
    assert list((tmp_path / "tensorboard").iterdir())


def test_mistakes_are_told(tmp_path, fakes, monkeypatch):
    wandb, _ = fakes
    with pytest.raises(InputError, match="expected some of wandb, mlflow"):
        trackers.names("wandb,comet")

    def refuses(**kwargs):
        raise RuntimeError("no account\nat all")

    monkeypatch.setattr(wandb, "init", refuses)
    with pytest.raises(InputError, match="wandb does not begin: no account at all"):
        trackers.start("wandb", tmp_path, first_step=0, settings={})
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(InputError, match=r"pip install 'cxr_jax\[trackers\]'"):
        trackers.start("wandb", tmp_path, first_step=0, settings={})
