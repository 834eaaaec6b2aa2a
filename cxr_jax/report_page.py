"""Finished runs as one self-contained HTML page: numbers, curves, charts and drawn cases.

Everything is inside the file, pictures as JPEG; nothing is fetched when it is opened. What may be
long can be filtered: metrics by name, cases by id, by run, and by how wrong they are.
"""

import base64
import dataclasses
import html
import pathlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from cxr_jax import results, safe_write, small_files, tables
from cxr_jax.errors import InputError
from cxr_jax.metrics.bootstrap import Metric
from cxr_jax.tasks import make_task
from cxr_jax.tasks.base import Evaluation, Rows
from cxr_jax.workdir import read_config

TEMPLATE = pathlib.Path(__file__).with_name("report_page.html")
_WIDTH, _QUALITY = 1100, 82  # px and JPEG's, of a picture in the page
_REMEDY = "evaluate the run again"


@dataclasses.dataclass(frozen=True)
class Shown:
    """A run as the page has it.

    Attributes:
      title: of its columns, e.g. 'SEAM, seed 1'.
      metrics: of the split, in the order of the task.
      about: what stands below its title: commit, device, steps, data.
      charts: pictures of the whole split, and of the training: stem -> file.
      cases: index of a film -> its picture.
      errors: index -> how wrong, where the task knows.
      names: index -> id of the film.
    """

    title: str
    metrics: dict[str, Metric]
    about: str
    charts: dict[str, pathlib.Path]
    cases: dict[int, pathlib.Path]
    errors: dict[int, float]
    names: dict[int, str]


def write(
    groups: Mapping[str, Sequence[tuple[pathlib.Path, Rows]]], split: str, output: pathlib.Path
) -> str:
    """Writes the page; gives a line for the terminal.

    Args:
      groups: name, '' for runs without one, -> work directories and the rows of their `split`.
      split: that was evaluated.
      output: an .html file; one that is there is replaced.

    Raises:
      InputError: another ending, or a run without an evaluation of the split.
    """
    if output.suffix.lower() not in (".html", ".htm"):
        raise InputError(f"--html={output}: expected a name that ends in .html")
    runs: list[Any] = []
    columns: dict[str, Any] = {}
    spread: dict[str, Any] = {}
    for name, members in groups.items():
        shown = []
        for folder, rows in members:
            evaluation = make_task(read_config(folder)).evaluation
            columns |= dict.fromkeys(evaluation.columns)
            shown.append(_shown(folder, rows, split, name=name, evaluation=evaluation))
        if len(shown) > 1:
            spread[f"{name or 'runs'}: mean +- sd of {len(shown)}"] = _mean_and_sd(shown)
        runs += shown
    names = dict.fromkeys(name for run in runs for name in run.metrics)
    ordered = [*(n for n in columns if n in names), *(n for n in names if n not in columns)]
    page = TEMPLATE.read_text(encoding="utf-8")
    parts = {
        "SPLIT": html.escape(split),
        "METRICS": _metrics(runs, ordered, spread, main=columns.keys()),
        "CHARTS": "".join(_charts(runs)),
        "RUNS": "".join(_choice(k, run.title) for k, run in enumerate(runs)),
        "CASES": "".join(_cases(runs)),
    }
    for key, text in parts.items():
        page = page.replace(f"@@{key}@@", text)
    safe_write.write_text(output, page)
    count = len({index for run in runs for index in run.cases})
    return f"{output}: {len(runs)} runs, {count} cases, {output.stat().st_size / 2**20:.1f} MiB"


def _shown(
    folder: pathlib.Path, rows: Rows, split: str, *, name: str, evaluation: Evaluation
) -> Shown:
    fields = small_files.read_fields(folder / results.RESULTS, _REMEDY)
    found = fields.get("metrics", dict)
    metrics = {
        key.removeprefix(f"{split}/"): _metric(value)
        for key, value in found.items()
        if key.startswith(f"{split}/") and isinstance(value, dict)
    }
    about = fields.fields("evaluations").fields(split)
    seed = about.get("seed", int, 0)
    steps = ", ".join(map(str, about.get("steps", list, [])))
    told = [
        f"{folder.resolve().parent.name}/{folder.resolve().name}",
        f"steps {steps}",
        f"code {about.get('code_version', str, '?')}",
        about.get("device", str, "?"),
    ]
    indices = rows["index"].tolist() if "index" in rows else list(range(len(rows["id"])))
    wrong = evaluation.case_errors(rows)
    errors = {} if wrong is None else dict(zip(indices, np.asarray(wrong, np.float64).tolist()))
    charts, cases = _pictures(folder / "figures", split)
    return Shown(
        title=f"{name}, seed {seed}" if name else f"{folder.resolve().name}, seed {seed}",
        metrics=metrics,
        about="; ".join(told),
        charts=charts,
        cases=cases,
        errors={index: error for index, error in errors.items() if np.isfinite(error)},
        names=dict(zip(indices, rows["id"].tolist())),
    )


def _metric(value: Mapping[str, Any]) -> Metric:
    numbers = (value.get(k) for k in ("value", "low", "high"))
    value_, low, high = (
        float(x) if isinstance(x, int | float) and not isinstance(x, bool) else None
        for x in numbers
    )
    return Metric(value_, low, high, int(value.get("n") or 0))


def _mean_and_sd(shown: Sequence[Shown]) -> tables.Line:
    nan = float("nan")
    reports = [
        {n: nan if m.value is None else m.value for n, m in run.metrics.items()} for run in shown
    ]
    shared = [name for name in reports[0] if all(name in report for report in reports)]
    return tables.mean_and_sd([{name: report[name] for name in shared} for report in reports])


def _pictures(
    folder: pathlib.Path, split: str
) -> tuple[dict[str, pathlib.Path], dict[int, pathlib.Path]]:
    """Charts by stem, cases by the index in their name."""
    charts: dict[str, pathlib.Path] = {}
    cases: dict[int, pathlib.Path] = {}
    pattern = re.compile(rf"{re.escape(split)}-(?:(?:worst|best)-\d+-)?(\d{{4,}})-.*")
    for path in sorted(folder.glob("*.png")):
        if match := pattern.fullmatch(path.stem):
            cases.setdefault(int(match[1]), path)
        elif path.stem == "training" or path.stem.startswith(f"{split}-"):
            charts[path.stem] = path
    return charts, cases


def _metrics(
    runs: Sequence[Shown],
    names: Sequence[str],
    spread: Mapping[str, tables.Line],
    *,
    main: Iterable[str],
) -> str:
    """A table: a row a metric, a column a run, and before them means over runs."""
    heads = [f"<th>{html.escape(title)}</th>" for title in spread]
    heads += [
        f"<th>{html.escape(run.title)}<small>{html.escape(run.about)}</small></th>" for run in runs
    ]
    rows = [f"<tr><th>metric</th>{''.join(heads)}</tr>"]
    main = set(main)
    for name in names:
        cells = [line.get(name, "-") for line in spread.values()]
        cells += [
            tables.with_interval(run.metrics[name]) if name in run.metrics else "-" for run in runs
        ]
        kind = "main" if name in main or not main else "more"
        texts = "".join(f"<td>{html.escape(cell)}</td>" for cell in cells)
        rows.append(f'<tr class="{kind}"><th>{html.escape(name)}</th>{texts}</tr>')
    return f"<table id=metrics>{''.join(rows)}</table>"


def _charts(runs: Sequence[Shown]) -> Iterable[str]:
    stems = dict.fromkeys(stem for run in runs for stem in run.charts)
    for stem in stems:
        pictures = "".join(
            f"<figure><figcaption>{html.escape(run.title)}</figcaption>{_image(run.charts[stem])}"
            "</figure>"
            for run in runs
            if stem in run.charts
        )
        yield (
            f"<details><summary>{html.escape(stem)}</summary><div class=row>{pictures}</div>"
            "</details>"
        )


def _choice(k: int, title: str) -> str:
    return f'<label><input type=checkbox checked data-run="{k}">{html.escape(title)}</label>'


def _cases(runs: Sequence[Shown]) -> Iterable[str]:
    """Films that were drawn, each with the pictures of all runs; `data-error`: the mean error."""
    for index in sorted({index for run in runs for index in run.cases}):
        name = next(run.names[index] for run in runs if index in run.names)
        errors = [run.errors[index] for run in runs if index in run.errors]
        mean = f"{np.mean(errors):.4f}" if errors else ""
        pictures = "".join(
            f'<figure data-run="{k}"><figcaption>{html.escape(run.title)}{_wrong(run, index)}'
            f"</figcaption>{_image(run.cases[index])}</figure>"
            for k, run in enumerate(runs)
            if index in run.cases
        )
        yield (
            f'<article data-name="{html.escape(name.lower())}" data-error="{mean}" '
            f'data-index="{index}"><h3>{html.escape(name)}</h3><div class=row>{pictures}</div>'
            "</article>"
        )


def _wrong(run: Shown, index: int) -> str:
    return f": wrong by {run.errors[index]:.3f}" if index in run.errors else ""


def _image(path: pathlib.Path) -> str:
    """A picture of a work directory as an <img> with its data; a line where it cannot be read."""
    data = np.frombuffer(path.read_bytes(), np.uint8)
    picture = cv2.imdecode(data, cv2.IMREAD_COLOR) if len(data) else None
    if picture is None:
        return f"<p>{html.escape(path.name)} cannot be read</p>"
    height, width = picture.shape[:2]
    if width > _WIDTH:
        size = (_WIDTH, max(1, round(height * _WIDTH / width)))
        picture = cv2.resize(picture, size, interpolation=cv2.INTER_AREA)
    _, encoded = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _QUALITY])
    text = base64.b64encode(encoded.tobytes()).decode()
    return f'<img loading=lazy alt="{html.escape(path.stem)}" src="data:image/jpeg;base64,{text}">'
