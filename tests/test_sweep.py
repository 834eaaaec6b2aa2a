"""A sweep: what is refused before anything runs, what is skipped, resumed and gathered."""

import csv
import dataclasses
import json
import os
import shutil
import signal
import statistics
import subprocess
import sys
import time

import numpy as np
import pytest

from cxr_jax import evaluate, manifests, sweep, sweep_rows, sweep_table, train, workdir
from cxr_jax.checkpoints import complete_steps
from cxr_jax.errors import InputError
from cxr_jax.tasks.findings import FindingsEvaluation
from tests.conftest import ROOT, UNOPTIMISED

FINDINGS = str(ROOT / "configs" / "findings.py")
TINY = ("--config.devices=1", "--config.figures=0", "--config.bootstrap=5")
LIST = f"""
config = "{FINDINGS}:smoke"
seeds = [0, 1]
metrics = ["mean_auc", "wrong"]
[overrides]
devices = 1
figures = 0
bootstrap = 5
[[run]]
name = "first"
[[run]]
name = "from first"
[run.overrides]
init_from = "{{dir:first}}"
eval_steps = [2]
optimizer.lr = 0.5
data.seed = "{{seed}}"
"""


def in_this_process(run):
    """Stands for the child process: a tenth of its time."""
    run.folder.mkdir(parents=True, exist_ok=True)
    try:
        assert train.train(run.config, run.folder)
        evaluate.evaluate(run.config, run.folder)
    except InputError as error:
        (run.folder / sweep.LOG).write_text(f"error: {error}\nthe end\n")
        return 2
    return 0


def nothing_may_run(run):
    raise AssertionError(run.label)


class Child:
    """A process that has done its work when it starts, and has ended when it was asked often."""

    def __init__(self, status, asked=0):
        self.returncode, self._status, self._asked = None, status, asked

    def poll(self):
        self._asked -= 1
        if self._asked < 0:
            self.returncode = self._status
        return self.returncode

    def wait(self, timeout):
        raise subprocess.TimeoutExpired("child", timeout)


def command(monkeypatch, *args, child=nothing_may_run):
    """The exit status of the command in this process."""
    monkeypatch.setattr(sweep, "start_child", lambda run, alone: Child(child(run)))
    monkeypatch.setattr(sys, "argv", ["sweep", *map(str, args)])
    return sweep.main()


@pytest.fixture(scope="module")
def listed(tmp_path_factory):
    """A finished sweep of two rows and two seeds: (its folder, the list)."""
    folder = tmp_path_factory.mktemp("sweep")
    file = folder / "list.toml"
    file.write_text(LIST)
    with pytest.MonkeyPatch.context() as patch:
        args = (f"--list={file}", f"--output={folder / 'out'}")
        assert command(patch, *args, child=in_this_process) == 0
    return folder / "out", file


def results(folder, name, seed):
    return json.loads((folder / name / f"seed-{seed}" / "results.json").read_text())


def cells(text, title):
    (found,) = [row for row in text.splitlines() if row.startswith(f"| {title} |")]
    return [cell.strip() for cell in found.split("|")[2:-1]]


def test_the_table_is_that_of_the_results(listed):
    folder, _ = listed
    text = (folder / "table.md").read_text()
    assert text.splitlines()[0] == "| | mean_auc | wrong | seeds | steps | seconds |"
    lines = list(csv.DictReader((folder / "table.csv").open()))
    assert [(line["name"], line["seed"]) for line in lines] == [
        ("first", "0"),
        ("first", "1"),
        ("from first", "0"),
        ("from first", "1"),
    ]
    for name in ("first", "from first"):
        found = [results(folder, name, seed)["metrics"]["test/mean_auc"] for seed in (0, 1)]
        mine = [line for line in lines if line["name"] == name]
        for want, line in zip(found, mine):
            given = [line[f"mean_auc{part}"] for part in ("", "_low", "_high")]
            wanted = [want[part] for part in ("value", "low", "high")]
            assert [float(x) if x else None for x in given] == wanted
            assert line["wrong"] == ""
            assert line["steps"] == "2"
            assert float(line["wall_s"]) > 0
        values = [one["value"] for one in found]
        spread = f"{statistics.mean(values):.3f} +- {statistics.stdev(values):.3f}"
        assert cells(text, name)[:4] == [spread, "-", "2", "2"]
    assert "No run reports wrong." in text
    assert "equal steps" not in text


def test_what_needs_no_model_stands_beside_the_rows(listed, monkeypatch):
    folder, file = listed
    read = []

    def references(self, rows, training):
        read.append(training.split)
        kept = {name: row for name, row in rows.items() if name != "log_odds"}
        return {"coin": kept | {"probs": np.full_like(rows["probs"], 0.5)}}

    args = f"--list={file}", f"--output={folder}"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FindingsEvaluation, "references", references)
        assert command(patch, *args) == 0
    assert read == ["train"] * 2  # the seeds of the task's first row
    text = (folder / "table.md").read_text()
    assert cells(text, "coin") == ["0.500 +- 0.000", "-", "-", "-", "-"]
    lines = list(csv.DictReader((folder / "table.csv").open()))[-2:]
    assert [(x["name"], x["seed"], x["mean_auc"], x["wrong"]) for x in lines] == [
        ("coin", "", "0.5", "")
    ] * 2
    assert command(monkeypatch, *args) == 0  # other tests read this table
    assert "coin" not in (folder / "table.md").read_text()


def test_a_row_starts_from_the_run_of_its_seed(listed):
    folder, _ = listed
    for seed in (0, 1):
        config = workdir.read_config(folder / "from first" / f"seed-{seed}")
        assert config.init_from == str(folder / "first" / f"seed-{seed}")
        assert (config.seed, config.data.seed) == (seed, seed)
        assert (config.eval_steps, config.optimizer.lr) == ((2,), 0.5)


def test_what_is_finished_is_not_run_again(listed, monkeypatch, capsys):
    folder, file = listed
    before = (folder / "table.md").read_text()
    assert command(monkeypatch, f"--list={file}", f"--output={folder}") == 0
    assert capsys.readouterr().out.count("done already") == 4
    assert (folder / "table.md").read_text() == before


def test_an_evaluation_that_does_not_fit_is_made_again(listed, monkeypatch, tmp_path):
    folder, file = listed
    shutil.copytree(folder, tmp_path / "out")
    (run, *_) = sweep_rows.make_runs(sweep_rows.read_list(file), tmp_path / "out", split="test")
    assert sweep_table.finished(run, "test") is not None
    assert sweep_table.finished(run, "val") is None
    path = run.folder / "results.json"
    whole = json.loads(path.read_text())
    for change in ({"steps": [1]}, {"changed": {"threshold": 0.3}}, {"trained_on": {}}):
        other = {**whole, "evaluations": {"test": whole["evaluations"]["test"] | change}}
        path.write_text(json.dumps(other))
        assert sweep_table.finished(run, "test") is None, change
    path.write_text(json.dumps(whole))
    shutil.rmtree(run.folder / "checkpoints" / "2")
    assert sweep_table.finished(run, "test") is None


def test_a_run_whose_start_was_trained_anew_is_no_longer_done(listed, monkeypatch, capsys):
    folder, file = listed
    args = (f"--list={file}", f"--output={folder}")
    start, after = (folder / name / "seed-1" for name in ("first", "from first"))
    digest = manifests.digest(start / "checkpoints" / "2")
    notes = after / sweep_table.NOTES
    before = notes.read_text()
    assert json.loads(before)["starts"] == {"first": digest}
    assert "starts" not in (start / sweep_table.NOTES).read_text()
    try:
        notes.write_text(before.replace(digest, "0" * 64))
        assert command(monkeypatch, *args) == 1
        said = capsys.readouterr()
        (told,) = said.err.splitlines()
        assert told.startswith(
            "run 4 of 4, from first, seed 1: left out, for it began with 'first'"
        )
        assert told.endswith(f"remove {after}, to train it again")
        assert said.out.count("done already") == 3
        assert cells((folder / "table.md").read_text(), "from first")[2] == "1 of 2"
    finally:
        notes.write_text(before)
    assert command(monkeypatch, *args) == 0
    assert cells((folder / "table.md").read_text(), "from first")[2] == "2"


def test_rows_of_unequal_length_are_told_and_missing_seeds_too(listed, tmp_path):
    folder, file = listed
    plan = sweep_rows.read_list(file)
    longer = sweep_rows.Row("longer", f"{FINDINGS}:smoke", (*TINY, "--config.total_steps=3"))
    plan = sweep_rows.Plan(rows=(plan.rows[0], longer), seeds=(0, 1))
    runs = sweep_rows.make_runs(plan, folder, split="test")
    done = [sweep_table.finished(run, "test") for run in runs]
    assert [one is not None for one in done] == [True, True, False, False]
    text = sweep_table.write(tmp_path, runs, done[:1], ())
    assert "Not at equal steps: rows of findings are trained for 2, 3 steps." in text
    assert cells(text, "first")[-3:-1] == ["1 of 2", "2"]
    assert set(cells(text, "longer")[:-3]) == {"-"}
    assert cells(text, "longer")[-3:] == ["0 of 2", "3", "-"]
    assert "mean_auc" in text.splitlines()[0]


def test_dry_prints_the_commands_in_order_and_writes_nothing(monkeypatch, tmp_path, capsys):
    variants = "--variants=smoke;smoke,pool=lse"
    args = (f"--config={FINDINGS}", variants, "--seeds=3,1", f"--output={tmp_path / 'out'}")
    assert command(monkeypatch, *args, *TINY, "--dry") == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.rpartition("/out/")[2] for line in lines] == [
        "smoke/seed-3",
        "smoke/seed-1",
        "smoke,pool=lse/seed-3",
        "smoke,pool=lse/seed-1",
    ]
    assert all("-m cxr_jax.main --config=" in line for line in lines)
    assert all("--config.bootstrap=5 --config.seed=" in line for line in lines)
    assert not (tmp_path / "out").exists()


def test_a_row_that_fails_stops_no_other(monkeypatch, tmp_path, capsys):
    file = tmp_path / "list.toml"
    text = LIST.replace("[0, 1]", "[0]")
    file.write_text(
        text.replace('"first"\n', '"first"\noverrides.init_from = "nowhere"\n')
        + '[[run]]\nname = "last"\n'
    )
    args = (f"--list={file}", f"--output={tmp_path / 'out'}")
    assert command(monkeypatch, *args, child=in_this_process) == 1
    said = capsys.readouterr()
    failed, left_out = said.err.splitlines()[-2:]
    assert failed.startswith("run 1 of 3, first, seed 0: failed, exit status 2: error: ")
    assert failed.endswith(f"see {tmp_path}/out/first/seed-0/log.txt")
    assert "nowhere" in failed
    assert "left out, for it needs 'first', which is not done" in left_out
    table = (tmp_path / "out" / "table.md").read_text()
    assert cells(table, "last")[2] == "1"
    assert cells(table, "from first")[2] == "0 of 1"
    assert "1 of 3 runs are done; to go on: python -m cxr_jax.sweep" in said.out


def test_two_runs_at_once_and_none_before_what_it_begins_with(monkeypatch, tmp_path, capsys):
    (tmp_path / "list.toml").write_text(LIST)
    events, going = [], set()

    class Slow(Child):
        def __init__(self, run, alone):
            assert not alone
            super().__init__(in_this_process(run), asked=2 + run.seed)
            self.label = run.label
            going.add(self.label)
            events.append(("start", self.label, len(going)))

        def poll(self):
            if super().poll() is not None and self.label in going:
                going.remove(self.label)
                events.append(("end", self.label, len(going)))
            return self.returncode

    monkeypatch.setattr(sweep, "start_child", Slow)
    args = [f"--list={tmp_path / 'list.toml'}", f"--output={tmp_path / 'out'}", "--jobs=2"]
    monkeypatch.setattr(sys, "argv", ["sweep", *args])
    assert sweep.main() == 0
    order = [(what, label) for what, label, _ in events]
    assert order[:2] == [("start", "first, seed 0"), ("start", "first, seed 1")]
    for seed in (0, 1):
        ended = order.index(("end", f"first, seed {seed}"))
        assert ended < order.index(("start", f"from first, seed {seed}"))
    assert max(count for *_, count in events) == 2
    assert cells((tmp_path / "out" / "table.md").read_text(), "from first")[2] == "2"
    monkeypatch.setattr(sys, "argv", ["sweep", *args[:2], "--jobs=0"])
    with pytest.raises(InputError, match="--jobs=0"):
        sweep.main()


def test_several_at_once_begin_with_what_most_others_wait_for(monkeypatch, tmp_path):
    """'end' waits for 'middle', which waits for 'start': neither is left out."""
    rows = {"alone": "", "start": "", "middle": "{dir:start}", "end": "{dir:middle}"}
    text = f'config = "{FINDINGS}:smoke"\n'
    for name, begin in rows.items():
        text += f'[[run]]\nname = "{name}"\n'
        text += f'overrides = {{init_from = "{begin}"}}\n' if begin else ""
    (tmp_path / "list.toml").write_text(text)
    started = []

    class Recorded(Child):
        def __init__(self, run, alone):
            started.append(run.label)
            super().__init__(in_this_process(run), asked=2)

    monkeypatch.setattr(sweep, "start_child", Recorded)
    args = [f"--list={tmp_path / 'list.toml'}", f"--output={tmp_path / 'out'}", "--jobs=4", *TINY]
    monkeypatch.setattr(sys, "argv", ["sweep", *args])
    assert sweep.main() == 0
    assert [label.split(",")[0] for label in started] == ["start", "alone", "middle", "end"]


def test_a_signal_reaches_the_run_and_the_same_command_goes_on(monkeypatch, tmp_path, capsys):
    output = tmp_path / "out"
    args = [f"--config={FINDINGS}", "--variants=smoke", "--seeds=0,1", f"--output={output}", *TINY]
    args += ["--config.eval_steps=()", "--config.total_steps=100000"]
    env = os.environ | {"XLA_FLAGS": UNOPTIMISED}
    child = subprocess.Popen(
        [sys.executable, "-m", "cxr_jax.sweep", *args],
        cwd=ROOT,
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    folder = output / "smoke" / "seed-0"
    while len(complete_steps(folder)) < 2 and child.poll() is None:
        time.sleep(0.1)
    try:
        with pytest.raises(InputError, match=r"seed-0: another process \(pid"):
            command(monkeypatch, *args)
        child.send_signal(signal.SIGTERM)
        said, _ = child.communicate(timeout=60)
    finally:
        if child.poll() is None:  # the test has failed: neither the sweep nor its run may stay
            child.kill()
            os.kill(int((folder / workdir.LOCK).read_text().split()[1]), signal.SIGKILL)
    assert child.returncode == 128 + signal.SIGTERM, said
    assert "SIGTERM ends the sweep" in said
    assert "0 of 2 runs are done; to go on: python -m cxr_jax.sweep --config=" in said
    assert "stopped by SIGTERM at step" in (folder / sweep.LOG).read_text()
    step = complete_steps(folder)[-1]
    started = []

    def resumed(run):
        started.append((run.seed, complete_steps(run.folder)))
        run.folder.mkdir(parents=True, exist_ok=True)
        (run.folder / sweep.LOG).touch()
        return 2

    capsys.readouterr()
    command(monkeypatch, *args, child=resumed)
    assert [(seed, steps[-1:]) for seed, steps in started] == [(0, [step]), (1, [])]


def test_another_config_in_the_folder_is_refused(listed, monkeypatch):
    folder, file = listed
    with pytest.raises(InputError, match=r"first/seed-0 holds a run of another config.*lr is"):
        command(monkeypatch, f"--list={file}", f"--output={folder}", "--config.optimizer.lr=1")


@pytest.mark.parametrize(
    "args, words",
    [
        (("--variants=smoke;smok",), r"row 'smok': variant 'smok'; expected one of"),
        (("--variants=" + "x" * 5000,), r"name is a folder"),
        (("--variants=smoke;smoke",), r"row 'smoke' is there 2 times"),
        (("--variants=smoke", "--config.total_step=3"), r"row 'smoke': .*total_step.*no such"),
        (("--variants=smoke", "--config.total_steps=0"), r"row 'smoke': .*at least 1"),
        (("--variants=smoke", "--config.pool=no"), r"row 'smoke': .*'no'"),
        (("--variants=smoke", "--config.seed=3"), r"give the seeds as --seeds"),
        (("--variants=smoke", "--config.init_from={dir:smoke}"), r"no earlier row has the name"),
        (("--variants=smoke", "--seeds=0,0"), r"each once"),
        (("--variants=smoke", "--seeds=a"), r"--seeds=a; expected whole numbers"),
        (("--variants=smoke", "--workdir=x"), r"unexpected argument '--workdir=x'"),
        (("--variants=quick", "--config.data.name=chexpert"), r"row 'quick': .*prepare"),
        ((), r"give --config=configs/NAME\.py and --variants"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, tuple) else "",
)
def test_a_mistake_is_told_before_anything_runs(args, words, monkeypatch, tmp_path):
    monkeypatch.setenv("CXR_DATA_DIR", str(tmp_path / "data"))
    with pytest.raises(InputError, match=words):
        command(monkeypatch, f"--config={FINDINGS}", f"--output={tmp_path / 'out'}", *args)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "change, words",
    [
        (("[[run]]", "[[runs]]"), r"unknown key 'runs'; expected config, seeds"),
        (('name = "first"', 'title = "first"'), r"run 1: unknown key 'title'"),
        (('name = "first"', "name = 3"), r"has a whole number as run 1: name, expected a text"),
        (('name = "first"', 'name = "../first"'), r"row '\.\./first': a name is a folder"),
        (('name = "first"', 'name = "a|b"'), r"a name is a folder"),
        (("seeds = [0, 1]", 'seeds = ["0"]'), r"seeds=\['0'\]; expected whole numbers"),
        (("seeds = [0, 1]", "seeds = 2020-01-01"), r"seeds, expected a list"),
        (("seeds = [0, 1]", "seeds = [0, 1"), r"is no TOML"),
        (("{dir:first}", "{dir:second}"), r"no earlier row has the name 'second'"),
        (("config = ", "x = " + "[" * 5000 + "\nconfig = "), r"is no TOML"),
    ],
    ids=lambda value: value[1][:30] if isinstance(value, tuple) else "",
)
def test_a_list_with_a_mistake_is_refused(change, words, monkeypatch, tmp_path):
    file = tmp_path / "list.toml"
    assert change[0] in LIST
    file.write_text(LIST.replace(*change))
    with pytest.raises(InputError, match=words):
        command(monkeypatch, f"--list={file}", f"--output={tmp_path / 'out'}")


def test_a_run_is_a_process_with_its_log(tmp_path):
    """Its exit status, and what it said."""
    row = sweep_rows.Row("one", f"{FINDINGS}:smoke", TINY)
    (run,) = sweep_rows.make_runs(sweep_rows.Plan(rows=(row,)), tmp_path, split="test")
    program = "import sys; print('hello'); sys.exit('error: no')"
    object.__setattr__(run, "command", (sys.executable, "-c", program))
    assert sweep.start_child(run, alone=True).wait() == 1
    log = (tmp_path / "one" / "seed-0" / sweep.LOG).read_text()
    first, *said = log.splitlines()
    assert first.startswith(f"$ {sys.executable} -c ")
    assert sorted(said) == ["error: no", "hello"]


def test_rows_that_come_to_the_same_config_are_told(tmp_path):
    """A variant may set again what an option has set: smoke has two layers whatever `size` says."""
    rows = sweep_rows.from_variants("configs/diagnosis.py", ["smoke", "smoke,size=2x4", "quick"])
    runs = sweep_rows.make_runs(sweep_rows.Plan(rows=rows, seeds=(0, 1)), tmp_path, split="test")
    (line,) = sweep_rows.same_rows(runs)
    assert "rows 'smoke' and 'smoke,size=2x4' are the same config" in line


def test_an_array_job_trains_each_run_alone_and_wave_after_wave(tmp_path, monkeypatch, capsys):
    (tmp_path / "list.toml").write_text(LIST)
    monkeypatch.setattr(sweep, "start_child", lambda run, alone: Child(in_this_process(run)))
    args = ["sweep", f"--list={tmp_path / 'list.toml'}", f"--output={tmp_path / 'out'}"]

    def run(*more):
        monkeypatch.setattr(sys, "argv", [*args, *more])
        return sweep.main(), capsys.readouterr()

    assert run("--waves")[1].out == "1-2\n3-4\n"
    status, told = run("--run=3")
    assert status == 1
    assert "needs 'first', which is not done" in told.err
    assert "--config.init_from" in run("--run=3", "--dry")[1].out
    assert run("--run=1")[0] == 0
    assert run("--waves")[1].out == "2-3\n4\n"
    assert run("--run=3")[0] == 0
    assert cells((tmp_path / "out" / "table.md").read_text(), "from first")[2] == "1 of 2"
    for number in (-1, 5):
        with pytest.raises(InputError, match="the runs 1 to 4"):
            run(f"--run={number}")


def test_waves_as_ranges(tmp_path):
    (tmp_path / "list.toml").write_text(LIST)
    first = sweep_rows.make_runs(
        sweep_rows.read_list(tmp_path / "list.toml"), tmp_path, split="test"
    )[0]

    def run(name, seed, *needs):
        row = dataclasses.replace(first.row, name=name)
        return dataclasses.replace(first, row=row, seed=seed, needs=needs)

    runs = [run("a", 0), run("a", 1), run("b", 0, "a"), run("c", 0), run("d", 0, "b")]
    assert sweep.waves(runs, set()) == ["1-2,4", "3", "5"]
    assert sweep.waves(runs, {("a", 0), ("c", 0)}) == ["2-3", "5"]
    assert sweep.waves(runs, {run.key for run in runs}) == []
