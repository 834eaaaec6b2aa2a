"""What goes wrong during a training: numbers that are no numbers, an impatient user, more steps."""

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
import sys

import jax.numpy as jnp
import numpy as np
import pytest

from configs import severity as severity_config
from cxr_jax import checkpoints, evaluate, manifests, migrations, report, train
from cxr_jax import workdir as workdirs
from cxr_jax.errors import InputError
from cxr_jax.finite import Steps


def smoke(**changes):
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    config.update(devices=1, total_steps=2, eval_steps=(), figures=0, bootstrap=0)
    config.update(changes)
    return config


@pytest.mark.parametrize("log_every", [1, 100])
def test_numbers_that_are_none_are_told_as_their_step_with_its_examples(log_every, tmp_path):
    config = smoke(total_steps=30, checkpoint_every=20, log_every=log_every)
    config.optimizer.update(name="sgd", lr=1e30, schedule="constant", warmup_steps=0, clip_norm=0.0)
    config.optimizer.momentum = 0.0
    run = train.open_run(config, tmp_path, "test")
    with contextlib.closing(run.batches()) as batches:
        seen = [next(batches)["index"] for _ in range(2)]
    second = ", ".join(str(run.source[int(i)]["id"]) for i in seen[1])
    with pytest.raises(InputError, match=rf"is (nan|inf) at step 2, whose batch was {second}; the"):
        train.train(config, tmp_path)
    assert checkpoints.complete_steps(tmp_path) == []


class NoCheckpoints:
    def latest(self):
        return None


def test_what_has_not_arrived_is_not_waited_for():
    """A step is looked at when its numbers are there; the first bad one is told."""

    class Scalar(float):
        ready = True

        def copy_to_host_async(self):
            pass

        def is_ready(self):
            return self.ready

    steps = Steps([{"id": f"film-{i}"} for i in range(40)], NoCheckpoints())
    waiting = {"loss": Scalar("nan")}
    waiting["loss"].ready = False
    steps.add(1, {"loss": Scalar(0.5)}, np.arange(2))
    steps.add(2, waiting, np.arange(2, 4))
    steps.add(3, {"loss": Scalar("inf")}, np.arange(12))
    waiting["loss"].ready = True
    with pytest.raises(InputError, match="loss is nan at step 2, whose batch was film-2, film-3;"):
        steps.add(4, {"loss": Scalar(0.1)}, np.arange(2))
    with pytest.raises(InputError, match=r"loss is inf at step 3, .*film-7 and 4 more;"):
        steps.finish()
    assert steps.finish() == {"loss": 0.1}


def test_the_numbers_of_the_last_step_are_logged():
    steps = Steps([{"id": "a"}], NoCheckpoints())
    for step in (1, 2, 3):
        steps.add(step, {"loss": jnp.float32(step)}, np.zeros(1, np.int32))
    assert steps.finish() == {"loss": 3.0}


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_both_signals_save_and_resume(number, tmp_path, capsys):
    """A signal in the middle of step 1; then the same command goes on with step 2."""
    config = smoke(checkpoint_every=100, log_every=1)
    with checkpoints.StopSignal() as stop:
        log = train.Writer.scalars
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(
                train.Writer,
                "scalars",
                lambda self, step, values: (signal.raise_signal(number), log(self, step, values)),
            )
            assert not train.train(config, tmp_path, stop=stop)
    assert (stop.name, stop.status) == (signal.Signals(number).name, 128 + number)
    assert f"stopped by {stop.name} at step 1, saved" in capsys.readouterr().out
    assert checkpoints.complete_steps(tmp_path) == [1]
    assert evaluate.evaluate(config, tmp_path, stop=stop) is None
    assert train.train(config, tmp_path)
    assert "from step 1" in capsys.readouterr().out


IMPATIENT = """
import signal
from cxr_jax.checkpoints import StopSignal
from cxr_jax.cli import run_command
def command():
    with StopSignal() as stop:
        signal.raise_signal(signal.SIGINT)
        assert stop.received
        print("still here", flush=True)
        signal.raise_signal(signal.SIGNAL)
        print("never")
# A batch that takes its time holds nobody up.
concurrent.futures.ThreadPoolExecutor().submit(time.sleep, 60)
run_command(command)
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
def test_a_second_interrupt_ends_at_once(name):
    code = f"import concurrent.futures, time\n{IMPATIENT.replace('SIGNAL', name)}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=50, check=False
    )
    assert (done.returncode, done.stdout) == (130, "still here\n")
    assert "Ctrl-C again ends at once" in done.stderr


def test_a_run_may_be_made_longer_which_is_noted(tmp_path, capsys):
    assert train.train(smoke(), tmp_path)
    with pytest.raises(InputError, match=r"total_steps is 2 there and 1 here"):
        train.train(smoke(total_steps=1), tmp_path)
    longer = smoke(total_steps=3, eval_steps=(2, 3))
    with pytest.raises(InputError, match=r"total_steps is 2 there and 3 here"):
        evaluate.evaluate(longer, tmp_path)  # it has not been trained so far
    other = smoke(total_steps=3, seed=5)
    with pytest.raises(InputError, match="seed is 0 there and 5 here"):
        train.train(other, tmp_path)
    assert not (tmp_path / workdirs.HISTORY).exists()
    assert train.train(longer, tmp_path)
    assert "trained longer than it was begun for" in capsys.readouterr().out
    (entry,) = workdirs.history(tmp_path)
    assert entry["from_step"] == 2
    assert entry["changes"] == {"eval_steps": [[], [2, 3]], "total_steps": [2, 3]}
    lines = [json.loads(line)["step"] for line in (tmp_path / "metrics.jsonl").open()]
    assert lines == [1, 2, 3]
    evaluate.evaluate(longer, tmp_path)
    results = json.loads((tmp_path / "results.json").read_text())
    assert results["history"] == [entry]
    assert results["steps"] == [2, 3]


# A finished result.


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """A run whose test split was evaluated."""
    workdir = tmp_path_factory.mktemp("evaluated")
    assert train.train(smoke(), workdir)
    evaluate.evaluate(smoke(), workdir)
    return workdir


def test_results_say_what_they_came_from(evaluated):
    results = json.loads((evaluated / "results.json").read_text())
    hashes = results["hashes"]
    assert hashes == results["evaluations"]["test"]["hashes"]
    place = evaluated / "checkpoints" / "2"
    assert hashes["checkpoints"] == {"2": manifests.digest(place)}
    assert hashes["rows"] == hashlib.sha256((evaluated / "rows-test.npz").read_bytes()).hexdigest()
    assert all(len(hashes[part]) == 64 for part in ("config", "metrics"))
    assert {"name", "version"} <= results["data"].keys()
    assert "1 run" in report.report([evaluated], "test", pool=False, resamples=0)


def other_json(name, change):
    def damage(workdir):
        value = json.loads((workdir / name).read_text())
        change(value)
        (workdir / name).write_text(json.dumps(value))

    return damage


def other_rows(workdir):
    with np.load(workdir / "rows-test.npz") as arrays:
        rows = {name: arrays[name] for name in arrays.files}
    np.savez_compressed(workdir / "rows-test.npz", **(rows | {"probs": rows["probs"][::-1]}))


def other_checkpoint(workdir):
    place = workdir / "checkpoints" / "2"
    (place / "state" / "_sharding").write_text("{}")
    manifests.write(place, 2)


@pytest.mark.parametrize(
    "damage, named",
    [
        (other_rows, r"rows-test\.npz"),
        (other_checkpoint, "checkpoints/2"),
        (other_json("config.json", lambda c: c.update(seed=7)), r"config\.json"),
        (other_json("data.json", lambda d: d.update(version="another")), r"data\.json"),
        (other_json("results.json", lambda r: r["metrics"]["test/mse"].update(value=0.0)), "resul"),
    ],
    ids=["rows", "checkpoint", "config", "data", "metrics"],
)
def test_a_report_refuses_parts_that_do_not_fit(evaluated, tmp_path, damage, named):
    workdir = shutil.copytree(evaluated, tmp_path / "run")
    damage(workdir)
    with pytest.raises(InputError, match=rf"run: {named}.* is not what it was when 'test'"):
        report.report([workdir], "test", pool=False, resamples=0)


def test_a_report_needs_no_checkpoint_and_ignores_how_a_run_was_watched(evaluated, tmp_path):
    workdir = shutil.copytree(evaluated, tmp_path / "run")
    shutil.rmtree(workdir / "checkpoints")
    other_json("config.json", lambda c: c.update(log_every=7))(workdir)
    assert "1 run" in report.report([workdir], "test", pool=False, resamples=0)


def test_a_field_that_a_later_version_adds_changes_no_result(evaluated, tmp_path, monkeypatch):
    workdir = shutil.copytree(evaluated, tmp_path / "run")
    monkeypatch.setitem(migrations.ADDED, "optimizer.lookahead", 5)
    assert "1 run" in report.report([workdir], "test", pool=False, resamples=0)
    # Of a version that hashed the config with what had been added by then.
    flat = workdirs.flatten(workdirs.read_config(workdir))
    assert flat["optimizer.lookahead"] == 5
    fields = {name: value for name, value in flat.items() if not workdirs.is_free(name)}
    text = json.dumps(fields, sort_keys=True).encode()
    digest = hashlib.sha256(text).hexdigest()
    change = other_json(
        "results.json", lambda r: r["evaluations"]["test"]["hashes"].update(config=digest)
    )
    change(workdir)
    assert "1 run" in report.report([workdir], "test", pool=False, resamples=0)


def test_a_report_says_what_it_cannot_compare(evaluated, tmp_path, capsys):
    workdir = shutil.copytree(evaluated, tmp_path / "run")
    other_json("results.json", lambda r: r["evaluations"]["test"].pop("hashes"))(workdir)
    assert "1 run" in report.report([workdir], "test", pool=False, resamples=0)
    assert "no hashes of 'test' (of an older version)" in capsys.readouterr().err
    (workdir / "rows-test.npz").rename(workdir / "rows-val.npz")
    with pytest.raises(InputError, match="knows no evaluation of 'val'"):
        report.report([workdir], "val", pool=False, resamples=0)


@pytest.mark.parametrize(
    "text", ["", "[1]", "[" * 100_000, '{"evaluations": {"test": {"hashes": 7}}}', '{"evaluations"']
)
def test_broken_results_are_one_line(evaluated, tmp_path, text):
    workdir = shutil.copytree(evaluated, tmp_path / "run")
    (workdir / "results.json").write_text(text)
    with pytest.raises(InputError, match=r"results\.json is broken"):
        report.report([workdir], "test", pool=False, resamples=0)
