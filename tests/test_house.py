"""The house itself: how large its rooms are, which way the doors open, what the hall knows, and
that one more paper is one file and one config."""

import ast
import json
import pathlib
import re
import shutil
import statistics

import cv2
import numpy as np
import pytest

from cxr_jax import evaluate, predict, report, tasks, train
from cxr_jax.data.phantoms import phantom
from cxr_jax.data.records import FINDINGS
from cxr_jax.inputs import splits
from cxr_jax.parallel import Parallel
from cxr_jax.trained import TrainedRun
from tests.conftest import ROOT
from tests.exercise import config as exercise_config
from tests.exercise import heart

FILES = sorted([*(ROOT / "cxr_jax").rglob("*.py"), *(ROOT / "configs").glob("*.py")])
HALL = ("train", "evaluate", "report", "predict", "initialise", "workdir", "trained", "state")
HALL += ("checkpoints", "parallel", "optimizers", "writers", "tables")
HALL += ("sweep", "sweep_rows", "sweep_table", "sweep_references", "early_stopping")
ORGANS = ("lung", "lesion", "heart", "cardiac", "chest", "rib", "zone")


def test_no_two_test_files_have_one_name():
    """pytest imports them by name alone: the second one would not be collected in a whole run."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def functions(path: pathlib.Path) -> list[tuple[str, int]]:
    """(name, lines) of every function of a file, methods and inner ones too."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [
        (f"{path.relative_to(ROOT)}: {node.name}", node.end_lineno - node.lineno + 1)
        for node in ast.walk(tree)
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
    ]


def test_functions_and_files_are_small():
    sizes = [size for path in FILES for size in functions(path)]
    assert statistics.median(lines for _, lines in sizes) <= 10
    assert not [(name, lines) for name, lines in sizes if lines > 60]
    lines = {str(p.relative_to(ROOT)): len(p.read_text("utf-8").splitlines()) for p in FILES}
    assert not {name: count for name, count in lines.items() if count > 600}


def module_of(path: pathlib.Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


MODULES = {module_of(path): path for path in FILES}


def imports(name: str) -> set[str]:
    """The modules of this project that a module names in an import, at the top or in a function."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name}: a relative import"
            inside = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import module` needs the module, `from module import name` the module.
            found |= {i if i in MODULES else node.module for i in inside}
    return found & MODULES.keys() - {name}


def assert_no_circle(graph: dict[str, set[str]]):
    """Takes away whoever needs nobody that is left, until nobody is left."""
    left = {name: set(needs) - {name} for name, needs in graph.items()}
    while free := [name for name, needs in left.items() if not needs & left.keys()]:
        for name in free:
            del left[name]
    assert not left, f"these import one another: {sorted(left)}"


def test_no_module_imports_itself_by_a_way_round():
    """Imports inside functions count too."""
    assert_no_circle({name: imports(name) for name in MODULES})


def room(module: str) -> str:
    """The folder under cxr_jax, or the file beside the folders."""
    return ".".join(module.split(".")[:2])


def test_no_room_opens_into_one_that_opens_into_it():
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        graph.setdefault(room(name), set()).update(room(i) for i in imports(name))
    assert_no_circle(graph)


def test_arrows_go_one_way():
    """Commands -> loops -> tasks -> models, ops, losses, metrics, figures; data knows no models."""
    graph: dict[str, set[str]] = {}
    for name in MODULES:
        graph.setdefault(room(name), set()).update(room(i).split(".")[-1] for i in imports(name))
    assert not graph["cxr_jax.data"] - {
        *("cxr_jax", "data", "errors", "cli", "small_files", "safe_write", "ops")
    }
    assert not graph["cxr_jax.ops"] - {"cxr_jax", "ops"}
    assert not graph["cxr_jax.models"] & {"tasks", "inputs", "train", "evaluate", "trained"}
    assert not graph["cxr_jax.tasks"] & {"inputs", "train", "evaluate", "trained", "checkpoints"}
    assert not any("configs" in needs for name, needs in graph.items() if name[:7] == "cxr_jax")
    package = [name for name in MODULES if not name.startswith("configs")]
    users = {name for name in package if "cxr_jax.tasks.lungs" in imports(name)}
    assert users == {"cxr_jax.tasks"}, "the table of tasks alone"


def test_nothing_private_is_taken_from_another_module():
    for name, path in MODULES.items():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cxr_jax"):
                private = [a.name for a in node.names if a.name.startswith("_")]
                assert not private, f"{name} takes {private} from {node.module}"


@pytest.mark.parametrize("module", HALL)
def test_the_hall_knows_no_paper(module):
    text = (ROOT / "cxr_jax" / f"{module}.py").read_text(encoding="utf-8").lower()
    for word in (*tasks.TASKS, *FINDINGS, *ORGANS):
        assert not re.search(rf"\b{word}s?\b", text), f"{module}.py says {word!r}"


def test_a_task_has_ten_names_and_four_options():
    public = [name for name in vars(tasks.Task) if not name.startswith("_")]
    ten = ["name", "data", "frozen", "init", "loss", "predict", "score", "evaluation", "figure"]
    assert {*public, "name"} == {*ten, "describe", "explain", "measure", "combine", "layers"}


# Rooms where nobody should have to count arguments; elsewhere rows of tables may have four.
NAMED = ("report", "evaluate", "train", "trained", "predict", "inputs", "tasks", "metrics")


def test_long_calls_name_their_arguments():
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in MODULES.items()}
    kinds = (ast.FunctionDef, ast.ClassDef)
    ours = {n.name for tree in trees.values() for n in ast.walk(tree) if isinstance(n, kinds)}
    for name, tree in trees.items():
        most = 3 if room(name).removeprefix("cxr_jax.") in NAMED else 4
        for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
            called = ast.unparse(call.func)
            foreign = called.startswith(("cv2.", "np.", "jnp.", "jax."))
            if called.rpartition(".")[2] in ours and not foreign:
                assert len(call.args) <= most, f"{name}:{call.lineno}: {called}"


# A sixth paper.


def test_the_exercise_is_short():
    lines = pathlib.Path(heart.__file__).read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 120


@pytest.fixture(scope="module")
def exercise(tmp_path_factory):
    """A finished run of the exercise, in the unchanged hall: (work directory, metrics)."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(tasks.TASKS, "heart", heart.HeartTask.from_config)
        config = exercise_config.get_config().copy_and_resolve_references()
        config.devices, config.keep_last = 1, 2
        workdir = tmp_path_factory.mktemp("exercise")
        assert train.train(config, workdir)
        yield workdir, evaluate.evaluate(config, workdir)


def test_it_trains_and_evaluates(exercise):
    workdir, metrics = exercise
    assert metrics.keys() == {"test/auc_covid", "test/box_px"}
    assert metrics["test/box_px"].n == 5
    lines = [json.loads(line) for line in (workdir / "metrics.jsonl").open()]
    assert {"loss", "box", "class", "grad_norm"} <= lines[-1].keys()
    results = json.loads((workdir / "results.json").read_text())
    assert (results["task"], results["steps"]) == ("heart", [1, 2])
    assert results["data"]["audit"] is None  # no prepared set, no audit
    assert len(list((workdir / "figures").glob("test-0*.png"))) == 2


def test_it_predicts_in_the_films_own_pixels_and_draws_its_attention(exercise, tmp_path):
    workdir, _ = exercise
    film = phantom(5, 0, 256)["image"][:, :200]
    cv2.imwrite(str(tmp_path / "film.png"), film)
    explained = []
    drawn = heart.overlays.draw_heat
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            heart.overlays, "draw_heat", lambda ax, heat: (explained.append(heat), drawn(ax, heat))
        )
        assert predict.predict([tmp_path / "film.png"], workdir, tmp_path / "out") == 0
    (line,) = [json.loads(text) for text in (tmp_path / "out" / "predictions.jsonl").open()]
    x1, y1, x2, y2 = line["heart_xyxy_px"]
    assert 0 <= max(x1, x2) <= 200 and 0 <= max(y1, y2) <= 256  # noqa: PT018
    (attention,) = explained
    assert attention.shape == film.shape
    assert 0 <= attention.min() < attention.max() <= 1
    assert (tmp_path / "out" / line["picture"]).stat().st_size > 10_000


def test_its_ensemble_is_no_mean(exercise):
    outputs = [
        {"probs": np.array([[0.8, 0.1, 0.1]]), "box": np.zeros((1, 4))},
        {"probs": np.array([[0.4, 0.3, 0.3]]), "box": np.ones((1, 4))},
    ]
    task = heart.HeartTask.from_config(exercise_config.get_config())
    assert task.combine(outputs)["box"].tolist() == [[0.0] * 4]


def test_the_tasks_own_way_to_combine_is_used_everywhere(exercise, tmp_path, monkeypatch):
    """One that adds a mark: it must be in the rows, and in what is told of a film."""
    workdir, _ = exercise
    marked = lambda self, outputs: {**outputs[0], "box": np.full_like(outputs[0]["box"], 0.5)}  # noqa: E731
    monkeypatch.setattr(heart.HeartTask, "combine", marked)
    config = exercise_config.get_config().copy_and_resolve_references()
    config.devices, config.keep_last = 1, 2
    task = tasks.make_task(config)
    source = splits.open_split(task, config, "test", workdir=workdir)
    run = TrainedRun.load(workdir, config=config)
    score = evaluate.Scorer(task, source, parallel=Parallel.create("jit", 1), config=config)
    rows = score(run.ensemble).rows
    middle = config.preprocess.size / 2
    for row, px in zip(rows["index"], rows["px"]):
        true = task.data.transforms.example(source[int(row)])["regions"][heart.HEART]
        np.testing.assert_allclose(px, np.abs(middle - true).mean(), rtol=1e-5)
    cv2.imwrite(str(tmp_path / "film.png"), phantom(5, 0, 128)["image"])
    predict.predict([tmp_path / "film.png"], workdir, tmp_path / "out")
    (line,) = [json.loads(text) for text in (tmp_path / "out" / "predictions.jsonl").open()]
    assert line["heart_xyxy_px"] == [64.0] * 4


def test_only_what_is_drawn_is_explained(exercise, monkeypatch, tmp_path):
    """The records that the evaluation chooses, and no others."""
    workdir, _ = exercise
    explained, chosen = [], np.array([1, 4])
    explain = TrainedRun.explain
    monkeypatch.setattr(
        TrainedRun, "explain", lambda self, r: (explained.append(r["id"]), explain(self, r))[1]
    )
    monkeypatch.setattr(heart.HeartEvaluation, "figure_indices", lambda self, source, count: chosen)
    copy = tmp_path / "run"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "figures")
    config = exercise_config.get_config().copy_and_resolve_references()
    config.devices, config.keep_last = 1, 2
    evaluate.evaluate(config, copy)
    drawn = sorted(path.name[:9] for path in (copy / "figures").glob("test-0*.png"))
    assert drawn == ["test-0001", "test-0004"]
    assert len(explained) == 2


def test_it_reports_over_seeds(exercise):
    workdir, metrics = exercise
    table = report.report([workdir], "test", pool=False, resamples=20)
    assert table.splitlines()[0] == "| | auc_covid | box_px |"
    value = metrics["test/box_px"].value
    assert f"{value:.3f}" in table
    both = report.compare({"one": [workdir], "two": [workdir]}, "test", ("box_px",))
    assert "two minus one" in both
