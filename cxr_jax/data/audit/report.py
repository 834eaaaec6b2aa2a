"""The audit of a data set as JSON, as text, and as a sheet of the pairs that look like copies."""

from collections.abc import Iterable
from typing import Any

import cv2
import numpy as np

from cxr_jax.data.audit import duplicates, features, shortcuts, tables
from cxr_jax.data.audit.films import Films, Label
from cxr_jax.errors import one_line

TREES, QUICK_TREES = 100, 50
_QUICK_LABELS = 3
_GAIN = 0.15  # of the way from chance to 1, from which a warning is given
_TIED = 0.3  # Cramér's V, likewise
_FEW = 30  # patients of the rarest class, below which only gross differences would be found
_NAMED_PAIRS = 200
_SHEET_PAIRS = 24
_TILE = 240  # px
_ALIKE = "all films are alike in it | | "
_METRICS = ("accuracy", "balanced_accuracy", "auc")


def audit(films: Films, *, quick: bool = False) -> dict[str, Any]:
    """Everything that was found.

    Args:
      films: of the set.
      quick: the first labels only, by small forests.

    Returns:
      JSON: `name`, `films`, `total`, `file_features` (what they are of), `labels` (name ->
      `shortcuts.told_by` with `tables`), `patients`, `copies` (None where none were looked for),
      `notes` and `warnings`.
    """
    labels = dict(_first(films.labels)) if quick else films.labels
    found = _told(films, labels, trees=QUICK_TREES if quick else TREES)
    copies = _copies(films) if films.prints else None
    return {
        "name": films.name,
        "films": len(films.ids),
        "total": films.total,
        "file_features": films.files,
        "labels": found,
        "patients": tables.patients(films, labels),
        "copies": copies,
        "notes": [one_line(note) for note in films.notes],
        "warnings": [*_told_warnings(found), *_tied_warnings(found), *_copy_warnings(copies)],
    }


def _first(labels: dict[str, Label]) -> list[tuple[str, Label]]:
    """Labels of the whole film; where there are none, the most even findings."""
    whole = [(name, label) for name, label in labels.items() if label.field != "findings"]
    even = sorted(labels.items(), key=lambda item: -_rarest(item[1]))
    return (whole or even)[:_QUICK_LABELS]


def _rarest(label: Label) -> int:
    """Films of the class that has fewest."""
    return int(np.bincount(label.values + 1, minlength=len(label.classes) + 1)[1:].min())


def _told(films: Films, labels: dict[str, Label], *, trees: int) -> dict[str, Any]:
    """Of each label what is told of it, and its tables."""
    subsets = {name: features.columns(name) for name in (*features.GROUPS, "all")}
    found, asked = {}, {}
    for name, label in labels.items():
        alike = asked.setdefault(_partition(label), name)
        told = shortcuts.told_by(
            films.features,
            label.values,
            films.groups,
            classes=label.classes,
            subsets=subsets,
            trees=trees,
            reason="" if alike == name else f"it parts the films as {alike!r} does",
        )
        found[name] = told | {"tables": tables.cross_tables(films, label)}
    return found


def _partition(label: Label) -> bytes:
    """The same for labels that part the films alike, under whatever names."""
    names, first, numbers = np.unique(label.values, return_index=True, return_inverse=True)
    # Numbered as they come up; what nobody knows stays -1.
    order = np.argsort(np.argsort(np.where(names < 0, -1, first)))
    return (order - (names[0] < 0))[numbers].tobytes()


def headline(found: dict[str, Any]) -> dict[str, Any]:
    """The main numbers of `audit`, see `stored.headline`."""
    told = {name: label["told"] for name, label in found["labels"].items() if label["told"]}
    copies = found["copies"]
    return {
        "films": found["films"],
        "total": found["total"],
        "told": {
            name: {by: round(s["balanced_accuracy"]["value"], 3) for by, s in scores.items() if s}
            for name, scores in told.items()
        },
        "chance": {
            name: round(found["labels"][name]["chance"]["balanced_accuracy"], 3) for name in told
        },
        "copies": copies["across_splits"] + copies["across_patients"] if copies else None,
        "warnings": found["warnings"],
    }


# Warnings


def _told_warnings(labels: dict[str, Any]) -> Iterable[str]:
    for name, label in labels.items():
        if not label["told"]:
            continue
        chance = label["chance"]["balanced_accuracy"]
        scores = {by: s["balanced_accuracy"] for by, s in label["told"].items() if s}
        clear = {by: score["value"] for by, score in scores.items() if _is_clear(score, chance)}
        if not clear:
            continue
        together = clear.pop("all", None)
        best, *others = sorted(clear, key=lambda by: -clear[by]) or ["all"]
        value = clear.get(best, together)
        source = "all features together" if best == "all" else f"{best} alone"
        more = "".join(f", {by} {clear[by]:.2f}" for by in others)
        yield one_line(
            f"{name}: classes can be told apart from {source}: balanced accuracy {value:.2f} "
            f"(chance {chance:.2f}{more}"
            + (f"; all together {together:.2f})" if together and best != "all" else ")")
        )


def _is_clear(score: dict[str, Any], chance: float) -> bool:
    """Far above chance, and by three standard errors: many groups and labels are looked at."""
    above = score["value"] - chance
    return above >= _GAIN * (1 - chance) and above > 1.5 * (score["value"] - score["low"])


def _tied_warnings(labels: dict[str, Any]) -> Iterable[str]:
    for name, label in labels.items():
        for by in ("split", "view"):
            v = label["tables"][by]["cramers_v"]
            if v is not None and v >= _TIED and label["films"] >= 50:
                yield one_line(f"{name}: class and {by} go together (Cramér's V {v:.2f})")


def _copy_warnings(copies: dict[str, Any] | None) -> Iterable[str]:
    if copies is None:
        return
    where = {
        "across_splits": "different splits",
        "across_patients": "different patients of a split",
    }
    for key, words in where.items():
        if count := copies[key]:
            split = key == "across_splits"
            first = next(p for p in copies["pairs"] if (p["splits"][0] != p["splits"][1]) == split)
            ids = " and ".join(f"{i!r} ({s})" for i, s in zip(first["ids"], first["splits"]))
            yield one_line(f"{count} pairs of films in {words} look like copies, e.g. {ids}")


def _copies(films: Films) -> dict[str, Any]:
    """JSON: how many pairs there are, and the first of them, those across splits before others."""
    places = [f"{split}\0{group}" for split, group in zip(films.splits, films.groups)]
    pairs = duplicates.find(films.prints, places)
    across = [films.splits[p.a] != films.splits[p.b] for p in pairs]
    order = sorted(range(len(pairs)), key=lambda i: not across[i])[:_NAMED_PAIRS]
    return {
        "crops_looked_for": len(films.prints) <= duplicates.MOST_WINDOWED,
        "across_splits": sum(across),
        "across_patients": len(pairs) - sum(across),
        "exact": sum(pair.exact for pair in pairs),
        "pairs": [_named(films, pairs[i]) for i in order],
    }


def _named(films: Films, pair: duplicates.Pair) -> dict[str, Any]:
    both = (pair.a, pair.b)
    return {
        "films": list(both),
        "ids": [films.ids[i] for i in both],
        "splits": [films.splits[i] for i in both],
        "groups": [films.groups[i] for i in both],
        "bits_apart": pair.bits,
        "correlation": pair.correlation,
        "exact": pair.exact,
    }


# Text


def text(found: dict[str, Any]) -> str:
    """The tables of `audit` for the terminal."""
    lines = [f"{found['name']}: {found['films']} of {found['total']} films looked at"]
    lines += [f"note: {note}" for note in found["notes"]]
    lines += [f"size, file: {found['file_features']}"]
    for name, label in found["labels"].items():
        lines += ["", *_label_lines(name, label)]
    lines += ["", *_patient_lines(found["patients"]), *_copy_lines(found["copies"]), ""]
    lines += [f"warning: {warning}" for warning in found["warnings"]] or ["no warnings"]
    return "\n".join(map(one_line, lines))


def _label_lines(name: str, label: dict[str, Any]) -> list[str]:
    counts = ", ".join(
        f"{k} {n} ({label['patients'][k]} patients)" for k, n in label["classes"].items()
    )
    lines = [f"{name}: {counts or 'no film'}"]
    if label["reason"]:
        return [*lines, f"not measured: {label['reason']}"]
    lines += ["| told from | accuracy | balanced accuracy | AUC |", "|---|---|---|---|"]
    chance = " | ".join(f"{label['chance'][metric]:.3f}" for metric in _METRICS)
    lines += [f"| chance | {chance} |"]
    for by, scores in label["told"].items():
        cells = " | ".join(_cell(scores[m]) for m in _METRICS) if scores else _ALIKE
        lines.append(f"| {by} | {cells} |")
    rarest = min(label["patients"], key=label["patients"].__getitem__)
    if (count := label["patients"][rarest]) < _FEW:
        lines.append(
            f"note: class {rarest!r} has {count} patients: only what differs grossly is found"
        )
    for by, table in label["tables"].items():
        if len(table["columns"]) > 1:
            rows = "; ".join(f"{k} {row}" for k, row in table["rows"].items() if any(row))
            lines.append(f"by {by} {', '.join(table['columns'])}: {rows}".replace("'", ""))
    return lines


def _cell(score: dict[str, Any]) -> str:
    if score["value"] is None:
        return "not defined"
    spread = "" if score["sd"] is None else f" +- {score['sd']:.3f}"
    inside = f" [{score['low']:.2f}, {score['high']:.2f}]" if "low" in score else ""
    return f"{score['value']:.3f}{spread}{inside}"


def _patient_lines(patients: dict[str, Any]) -> list[str]:
    films = ", ".join(f"{n}: {k}" for n, k in list(patients["films_per_patient"].items())[:12])
    several = [f"{n} {k}" for n, k in patients["patients_in_several_classes"].items() if k]
    return [
        f"{patients['patients']} patients; patients by number of films: {films}",
        f"patients with films of several classes: {', '.join(several) or 'none'}",
    ]


def _copy_lines(copies: dict[str, Any] | None) -> list[str]:
    if copies is None:
        return []
    crops = "" if copies["crops_looked_for"] else "; crops were not looked for, of so many films"
    lines = [
        f"films that look like copies: {copies['across_splits']} pairs across splits, "
        f"{copies['across_patients']} across patients of a split; {copies['exact']} to the pixel"
        + crops
    ]
    for pair in copies["pairs"][:10]:
        ids = " and ".join(f"{i!r} ({s})" for i, s in zip(pair["ids"], pair["splits"]))
        lines.append(f"  {ids}: correlation {pair['correlation']}, {pair['bits_apart']} bits apart")
    return lines


# Picture


def sheet(films: Films, copies: dict[str, Any]) -> np.ndarray | None:
    """The first pairs side by side, uint8 [h, w], two pairs a row; None where there is none."""
    tiles = [_pair_tile(films, pair) for pair in copies["pairs"][:_SHEET_PAIRS]]
    if not tiles:
        return None
    if len(tiles) % 2:
        tiles.append(np.full_like(tiles[0], 255))
    return np.vstack([np.hstack(tiles[i : i + 2]) for i in range(0, len(tiles), 2)])


def _pair_tile(films: Films, pair: dict[str, Any]) -> np.ndarray:
    halves = []
    for number, name, split in zip(pair["films"], pair["ids"], pair["splits"]):
        source, index = films.places[number]
        film = source[index]["image"]
        scale = _TILE / max(film.shape)
        size = [max(1, round(side * scale)) for side in film.shape[::-1]]
        tile = np.full((_TILE + 24, _TILE + 8), 255, np.uint8)
        tile[: size[1], : size[0]] = cv2.resize(film, size, interpolation=cv2.INTER_AREA)
        # The font has ASCII only; a name may hold anything.
        words = ascii(f"{split}: {name}")[1:-1][:34]
        cv2.putText(tile, words, (2, _TILE + 16), cv2.FONT_HERSHEY_SIMPLEX, 0.38, 0, 1, cv2.LINE_AA)
        halves.append(tile)
    return np.hstack(halves)
