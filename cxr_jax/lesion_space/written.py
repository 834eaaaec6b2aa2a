"""The files of a lesion space, and what is told of it."""

import csv
import functools
import io
import pathlib
from typing import Any

import numpy as np

from cxr_jax import figures, safe_write, writers
from cxr_jax.data.records import LESION_TYPES
from cxr_jax.lesion_space import pictures
from cxr_jax.lesion_space.collected import Found
from cxr_jax.lesion_space.space import Space, in_two_dimensions, k_means
from cxr_jax.metrics.bootstrap import Value
from cxr_jax.metrics.lesion_maps import cluster_report
from cxr_jax.trained import TrainedRun

COLUMNS = (
    *("slice", "lesion", "x0", "y0", "x1", "y1", "place_x", "place_y", "heat", "slice_prob"),
    *("cluster", "score", "distance", "type"),
)
TYPES = LESION_TYPES[1:]
_DRAWS = 200  # of clusters that mean nothing


def write(
    folder: pathlib.Path, run: TrainedRun, found: Found, space: Space, *, slices: int, seed: int
) -> dict[str, Any]:
    """Writes all files of the module `__main__`; gives what is in report.json."""
    placed = _placed(space, found)
    safe_write.write_text(folder / "lesions.csv", _table(found, placed))
    space.save(folder / "space.npz")
    places = in_two_dimensions(found.features, seed)
    chart = pictures.space_chart(found, placed["cluster"], space, places)
    figures.save(chart, folder / "space.png")
    if len(space.distances):
        figures.save(pictures.elbow_chart(space), folder / "elbow.png")
    if (sheet := pictures.examples_sheet(found, placed)) is not None:
        figures.save(sheet, folder / "clusters.png")
    if len(found) and slices:
        safe_write.make_folder(folder / "slices", "--output")
        for number in pictures.chosen_slices(found, slices):
            panel = pictures.slice_panel(run, found, placed["cluster"], number)
            figures.save(panel, folder / "slices" / f"{number:05d}.png")
    report = _report(found, space, placed)
    writers.write_json(folder / "report.json", report | {"provenance": writers.provenance()})
    return report


def _placed(space: Space, found: Found) -> dict[str, np.ndarray]:
    if len(space):
        return space.place(found.features)
    none = np.zeros(0)
    return {"distances": np.zeros((0, 0)), "score": none, "cluster": none.astype(int)}


def _table(found: Found, placed: dict[str, np.ndarray]) -> str:
    """A line a lesion; clusters and a slice's lesions are counted from 1."""
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(COLUMNS)
    count: dict[int, int] = {}
    for k in range(len(found)):
        number = count[found.slices[k]] = count.get(found.slices[k], 0) + 1
        cluster = int(placed["cluster"][k])
        places = [f"{x:.1f}" for x in (*found.boxes[k], *found.points[k])]
        shares = [f"{x:.4f}" for x in (found.heat[k], found.probs[k])]
        told = [f"{placed['score'][k]:.4g}", f"{placed['distances'][k, cluster]:.4g}"]
        kind = LESION_TYPES[found.types[k]] if found.types[k] > 0 else ""
        table.writerow([found.ids[k], number, *places, *shares, cluster + 1, *told, kind])
    return text.getvalue()


def _report(found: Found, space: Space, placed: dict[str, np.ndarray]) -> dict[str, Any]:
    sizes = np.bincount(placed["cluster"], minlength=len(space)).tolist()
    report = {
        "slices": len(found.source),
        "slices_with_lesions": len(np.unique(found.slices)),
        "lesions": len(found),
        "clusters": [
            {"lesions": size, "type": LESION_TYPES[kind] if kind > 0 else None}
            for size, kind in zip(sizes, space.types)
        ],
        "metrics": {},
    }
    if found.masked.any():
        on = found.on_lesion[found.masked]
        told = {"places_on_a_lesion": Value(float(on.mean()), len(on))}
        told |= _types_report(found, space, placed["cluster"])
        report["metrics"] = {
            name: {
                "value": None if np.isnan(v.value) else round(v.value, 4),
                "n": v.count,
                **({"undefined": v.reason} if v.reason else {}),
            }
            for name, v in told.items()
        }
    return report


def _types_report(found: Found, space: Space, clusters: np.ndarray) -> dict[str, Value]:
    """Table 7, by the types that the clusters stood for where the space was fitted; beside it what
    matching finds in as many clusters of grey levels alone, and in clusters that mean nothing."""
    types = np.where(found.types > 0, found.types - 1, -1)
    names = [name.replace(" ", "_") for name in TYPES]
    of_types = functools.partial(cluster_report, types=types, num_clusters=len(space), names=names)
    if not (types >= 0).any():
        return {"cluster_accuracy": Value(np.nan, 0, "no place lies on a lesion of a known type")}
    known = (space.types > 0).any()
    told = of_types(
        clusters, matched=np.where(space.types > 0, space.types - 1, -1) if known else None
    )
    if not len(space):
        return told
    blind = of_types(k_means(found.brightness[:, None], len(space), 0).labels_)
    rng = np.random.default_rng(0)
    drawn = [of_types(rng.permutation(clusters)) for _ in range(_DRAWS)]
    for name in ("mean_sensitivity", "mean_specificity"):
        told[f"brightness_{name}"] = blind[name]
        told[f"chance_{name}"] = Value(
            float(np.mean([one[name].value for one in drawn])),
            blind[name].count,
            blind[name].reason,
        )
    return told


def told(report: dict[str, Any]) -> str:
    """The report in lines."""
    lines = [
        f"{report['lesions']} lesions on {report['slices_with_lesions']} of {report['slices']} "
        "slices"
    ]
    for number, cluster in enumerate(report["clusters"], start=1):
        kind = f", stands for {cluster['type']}" if cluster["type"] else ""
        lines.append(f"cluster {number}: {cluster['lesions']}{kind}")
    for name, metric in report["metrics"].items():
        value = metric.get("undefined") or f"{metric['value']:.4f}"
        lines.append(f"{name:32s} {value}  n={metric['n']}")
    return "\n".join(lines)
