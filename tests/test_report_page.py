"""The page of `report --html`: what stands in it, and that it works in a browser."""

import json
import re
import shutil
import subprocess

import cv2
import numpy as np
import pytest

from configs import severity as severity_config
from cxr_jax import config_files, report
from cxr_jax.errors import InputError
from cxr_jax.tasks import make_task


def load(file):
    return config_files.resolved(f"configs/{file}.py:smoke", [])


IDS = ["film <b>", "film-1", "film-2"]


def make_run(folder, *, seed=0, value=0.75, wrong=(0.0, 0.5, 0.25)):
    """A finished severity run of three films, without checkpoints."""
    (folder / "figures").mkdir(parents=True)
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    config.seed = seed
    (folder / "config.json").write_text(config.to_json())
    labels = np.zeros((3, 3, 2), np.float32)
    probs = labels.copy()
    probs[:, 0, 0] = wrong
    rows = {
        "id": np.array(IDS),
        "group": np.array(IDS),
        "index": np.array([4, 7, 9]),
        "probs": probs,
        "labels": labels,
        "valid": np.ones((3, 3, 2), bool),
    }
    np.savez(folder / "rows-test.npz", **rows)
    metrics = {
        "test/mse": {"value": value, "low": value - 0.1, "high": value + 0.1, "n": 3},
        "test/odd & rare": {"value": None, "low": None, "high": None, "n": 0},
        "val/mse": {"value": 9.0, "low": None, "high": None, "n": 3},
    }
    about = {"seed": seed, "steps": [1, 2], "code_version": "0.1+abc", "device": "1 x cpu"}
    results = {"metrics": metrics, "evaluations": {"test": about}}
    (folder / "results.json").write_text(json.dumps(results))
    picture = np.full((20, 1500, 3), 40 * (1 + seed), np.uint8)
    names = ["training", "test-scatter", "test-0004-film", "test-worst-1-0007-film", "val-0001-x"]
    for name in names:
        cv2.imwrite(str(folder / "figures" / f"{name}.png"), picture)
    return folder


@pytest.fixture
def page(tmp_path):
    """(text, path) of a page of two seeds of A and one run of B."""
    first, second = make_run(tmp_path / "a0"), make_run(tmp_path / "a1", seed=1, value=0.25)
    runs = {"A": [first, second], "B": [make_run(tmp_path / "b0", value=0.5)]}
    path = tmp_path / "page.html"
    told = report.page(runs, "test", path)
    assert told.startswith(f"{path}: 3 runs, 2 cases")
    return path.read_text(encoding="utf-8"), path


def test_the_numbers_are_those_of_the_results(page):
    text, _ = page
    rows = dict(re.findall(r"<tr class=\"\w+\"><th>(.*?)</th>(.*?)</tr>", text))
    cells = re.findall(r"<td>(.*?)</td>", rows["mse"])
    assert cells == [
        "0.500 +- 0.354",
        "0.750 [0.650, 0.850]",
        "0.250 [0.150, 0.350]",
        "0.500 [0.400, 0.600]",
    ]
    assert re.findall(r"<td>(.*?)</td>", rows["odd &amp; rare"]) == ["-", "-", "-", "-"]
    assert "9.000" not in text  # of another split
    for words in ("A, seed 0", "A, seed 1", "B, seed 0", "steps 1, 2", "code 0.1+abc", "1 x cpu"):
        assert words in text


def test_cases_have_their_error_and_a_picture_of_each_run(page):
    text, _ = page
    cases = re.findall(
        r"<article data-name=\"(.*?)\" data-error=\"(.*?)\" data-index=\"(\d+)\"", text
    )
    assert cases == [("film &lt;b&gt;", "0.0000", "4"), ("film-1", "0.5000", "7")]
    # Two cases and two charts, of three runs; all pictures are inside.
    assert len(re.findall(r"<img .*?src=\"data:image/jpeg;base64,", text)) == 12
    assert not re.search(r"(src|href)=\"(?!data:)", text)
    assert "<b>" not in text


def test_an_error_is_that_of_one_example():
    """By hand, of each kind of task that has one."""
    nan = np.nan
    made = {file: make_task(load(file)).evaluation for file in ("severity", "findings", "lungs")}
    valid = np.array([[[1, 1], [0, 0], [0, 0]], [[0, 0]] * 3], bool)
    labels, probs = np.zeros((2, 3, 2)), np.zeros((2, 3, 2))
    labels[0, 0], probs[0, 0], probs[0, 1] = (1, 0), (0.25, 0.5), 0.9
    rows = {"valid": valid, "labels": labels, "probs": probs}
    np.testing.assert_allclose(made["severity"].case_errors(rows), [0.25, nan])
    rows = {"probs": np.full((2, 10), 0.25), "labels": np.full((2, 10), nan)}
    rows["labels"][0, :2] = 1, 0
    np.testing.assert_allclose(made["findings"].case_errors(rows), [0.5, nan])
    np.testing.assert_allclose(made["lungs"].case_errors({"lung_dice": [1, 0.75]}), [0, 0.25])
    rows = {"probs": np.array([[0.75, 0.25, 0], [0.5, 0.25, 0.25]]), "label": np.array([0, 2])}
    wrong = make_task(load("diagnosis")).evaluation.case_errors(rows)
    np.testing.assert_allclose(wrong, [0.25, 0.75])
    assert make_task(load("adpd")).evaluation.case_errors({}) is None


def test_what_cannot_be_is_one_line(tmp_path):
    run = {"": [make_run(tmp_path / "run")]}
    with pytest.raises(InputError, match=r"ends in \.html"):
        report.page(run, "test", tmp_path / "page.png")
    with pytest.raises(InputError, match=r"rows-val\.npz is missing"):
        report.page(run, "val", tmp_path / "page.html")
    (tmp_path / "run" / "figures" / "test-0004-film.png").write_bytes(b"no picture")
    assert "1 runs" in report.page(run, "test", tmp_path / "page.html")
    assert "test-0004-film.png cannot be read" in (tmp_path / "page.html").read_text()


SCRIPT = """<script>
const said = [];
const state = () => [...document.querySelectorAll("#cases article:not([hidden])")]
  .map(x => x.dataset.index).join();
const say = (id, value) => {
  $(id).value = value; $(id).dispatchEvent(new Event("input")); said.push(state());
};
said.push(state());
say("case-order", "worst"); say("case-filter", "film-1"); say("case-filter", "");
const boxes = document.querySelectorAll("input[data-run]");
boxes[0].click(); said.push(document.querySelectorAll("figure[data-run='0']:not([hidden])").length);
const rows = () => document.querySelectorAll("#metrics tr[class]:not([hidden])").length;
said.push(rows()); $("all-metrics").click(); said.push(rows());
$("metric-filter").value = "rare"; $("metric-filter").dispatchEvent(new Event("input"));
said.push(rows(), $("count").textContent);
document.title = "said: " + said.join("|");
</script>"""


def test_it_filters_and_sorts_in_a_browser(page, tmp_path):
    browser = shutil.which("chromium") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("there is no chromium to open the page in")
    text, path = page
    path.write_text(text.replace("</body>", f"{SCRIPT}</body>"), encoding="utf-8")
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    command += [f"--user-data-dir={tmp_path / 'profile'}", path.as_uri()]
    told = subprocess.run(command, capture_output=True, text=True, timeout=120).stdout
    (said,) = re.findall(r"<title>said: (.*?)</title>", told)
    assert said == "4,7|7,4|7|7,4|0|1|2|1|2 of 2 films"
