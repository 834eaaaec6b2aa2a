"""What tasks share that give boxes of findings: their films, what is true of them, rows, pictures.

A `Detector` learns K findings (`classes`) and is evaluated on E of them: the same, or those of
another set that `class_mapping` names by them (`data/class_mapping.py`). Films that are trained on
have their findings numbered as the K are, films that are evaluated as the E.

Its `predict` gives `probs` [B, K] of the film, and its `combine` the boxes of findings: `boxes`
[B, E, M, 4] (xyxy, shares of the film) and `scores` [B, E, M], the best first, NaN where there is
none.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from cxr_jax import figures
from cxr_jax.data import boxes as film_boxes
from cxr_jax.data.augment import Augment
from cxr_jax.data.class_mapping import ClassMapping, class_mapping, numbered
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source, has, names_of, never_known
from cxr_jax.errors import InputError
from cxr_jax.metrics import detection
from cxr_jax.metrics.box_matches import detection_rows
from cxr_jax.tasks.base import Evaluation, Outputs, Rows, Task

FOUND = ("boxes", "scores")  # what `combine` adds
OF_BOXES = ("boxes", "box_label", "boxes_known")  # of an example


@dataclasses.dataclass(frozen=True)
class Detector(Task):
    """See the module.

    Attributes:
      model: the network.
      classes: the K findings; a data set's others are left out.
      untrained: those of `classes` that the training set does not label. Their outputs are noise:
        neither trained, scored, drawn nor told.
      mapped: (finding, trained findings that stand for it), of the set that is evaluated; () where
        the classes stand for themselves.
      mapped_positive: such a finding is there by 'mean', or where 'any' of them is.
      most_boxes: of a finding on a film, the best first.
    """

    model: nn.Module
    preprocess: Preprocess
    augment: Augment
    classes: tuple[str, ...]
    untrained: tuple[str, ...]
    mapped: tuple[tuple[str, tuple[str, ...]], ...]
    mapped_positive: str
    most_boxes: int

    @staticmethod
    def shared(config: ml_collections.ConfigDict, *, learns_from: str) -> dict[str, Any]:
        """The attributes above, from a config.

        Args:
          config: of the run.
          learns_from: what a training film must have, for a message.

        Raises:
          InputError: settings that cannot be meant.
        """
        _check(config)
        if config.second.name and config.second.labels != "given":
            raise InputError(
                f"config.second.labels={config.second.labels!r}: nothing can be learned from films "
                f"without {learns_from}; set it to given, or config.second.name to nothing"
            )
        return dict(
            preprocess=Preprocess(**config.preprocess),
            augment=Augment(**config.augment),
            classes=tuple(config.classes),
            untrained=tuple(config.untrained),
            mapped=tuple(config.class_mapping),
            mapped_positive=config.mapped_positive,
            most_boxes=config.most_boxes,
        )

    @property
    def mapping(self) -> ClassMapping:
        """From the K to the E findings."""
        return class_mapping(
            dict(self.mapped),
            trained=self.classes,
            untrained=self.untrained,
            positive_by=self.mapped_positive,
        )

    @property
    def trained(self) -> np.ndarray:
        """bool [K]: the findings that mean something."""
        return np.array([name not in self.untrained for name in self.classes])

    def numbered(self, source: Source, *, training: bool) -> Source:
        """The set with its findings numbered as the K, or as the E, are.

        Raises:
          InputError: it has none of them, or lacks one that the mapping names.
        """
        if self.mapped and not training:
            names = [name for name, _ in self.mapped]
            return numbered(source, names, all_of_them=True, field="class_mapping")
        return numbered(source, self.classes, all_of_them=False, field="classes")

    def unlabelled(self, source: Source, fields: tuple[str, ...]) -> tuple[str, ...]:
        """Classes that no training film labels in any of the `fields` [..., K]; films are looked at
        until none is left.

        Raises:
          InputError: that is all of them.
        """
        waiting = never_known(source, fields, self.trained)
        if len(source) and (waiting == self.trained).all():
            raise InputError(
                f"data set {source.name!r} (split {source.split!r}): no finding is known of any "
                f"film ({' and '.join(fields)}), so there is nothing to learn; choose other data"
            )
        return tuple(n for n, unknown in zip(self.classes, waiting, strict=True) if unknown)

    def example(self, record: Record) -> dict[str, np.ndarray]:
        """The film as the network sees it, its labels, and its true boxes, padded.

        `boxes_known`: all boxes of the finding are known. On a film with boxes that is every
        finding of which it is known whether it is there. (One that is there without a box counts as
        not there, as in the paper.)
        """
        shape = record["image"].shape
        unknown = np.full(len(self.classes), np.nan, np.float32)
        findings = np.asarray(record.get("findings", unknown), np.float32)
        # The film is stretched to the square, and its boxes with it.
        nowhere = np.zeros((0, 4), np.float32)
        drawn = self.preprocess.boxes(record.get("boxes", nowhere), shape)
        labels = np.asarray(record.get("box_label", np.zeros(0, np.int32)), np.int32)
        boxes, padded_labels = film_boxes.pad(
            drawn, labels, length=film_boxes.MOST, film=record.get("id", "")
        )
        known = ~np.isnan(findings) | np.isin(np.arange(len(findings)), labels)
        return {
            "image": self.preprocess.film(record["image"]),
            "findings": findings,
            "boxes": boxes,
            "box_label": padded_labels,
            "boxes_known": known & ("boxes" in record),
        }

    def unboxed(self, example, rng):
        """Augmented where it is trained on, without the boxes: they are neither trained on, nor
        kept in the window by the augmentation."""
        if rng is not None:
            example = {k: v for k, v in example.items() if k not in OF_BOXES}
            example = self.augment(example, rng)
        return {**example, "image": self.preprocess.normalize(example["image"])}

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1], train=False)

    def score(self, outputs, batch):
        """Rows of boxes, and of whole films, for `metrics.detection`."""
        mapping = self.mapping
        rows = detection_rows(
            outputs["boxes"],
            outputs["scores"],
            true_xyxy=batch["boxes"] / self.preprocess.size,
            true_finding=batch["box_label"],
            known=batch["boxes_known"] & mapping.known,
        )
        return rows | {
            "probs": mapping.scores(outputs["probs"]),
            "labels": jnp.where(mapping.known, batch["findings"], jnp.nan),
            # What predictors that are no network are held to.
            "true_xyxy": batch["boxes"] / self.preprocess.size,
            "true_finding": batch["box_label"],
        }

    @property
    def evaluation(self) -> Evaluation:
        return DetectionEvaluation(self.mapping.names)

    def found(self, record: Record, outputs) -> figures.DrawnBoxes:
        """The boxes of findings in the film's own pixels, best first, numbered as the E are."""
        labels, places = np.nonzero(~np.isnan(outputs["scores"]))
        order = np.argsort(-outputs["scores"][labels, places], kind="stable")
        labels, places = labels[order], places[order]
        boxes = outputs["boxes"][labels, places] * film_sides(record)
        return figures.DrawnBoxes(boxes, labels, outputs["scores"][labels, places])

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        return figures.boxes_panel(
            record["image"],
            self.found(record, outputs),
            names=self.mapping.names,
            true=true_boxes(record),
            title=str(record["id"]),
        )

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        found, names = self.found(record, outputs), self.mapping.names
        told = zip(self.classes, outputs["probs"], self.trained, strict=True)
        return {
            "boxes": [
                {
                    "finding": names[label],
                    "score": round(float(score), 4),
                    "xyxy_px": told_pixels(box),
                }
                for box, label, score in zip(*found, strict=True)
            ],
            "findings": {name: round(float(p), 4) if known else None for name, p, known in told},
        }


@dataclasses.dataclass(frozen=True)
class DetectionEvaluation(Evaluation):
    """Table 1 of ADPD, and AUC of films."""

    classes: tuple[str, ...]
    free_settings = ("threshold", "fusion", "most_boxes", "class_mapping")
    columns = (
        *("map", "ap_iou10", "ap_iou30", "ap_iou50"),
        *("loc_acc_iou10", "loc_acc_iou30", "loc_acc_iou50", "mean_auc"),
    )

    def report(self, units):
        told = detection.film_report(units) if "probs" in units else {}
        return detection.detection_report(units, self.classes) | told

    def references(self, rows: Rows, training: Source) -> dict[str, Rows]:
        """What needs no learning: random boxes, and the mean box of each finding on the training
        films, with a score that is the share of films that have one. And the most that one box a
        finding can reach: the largest true one."""
        films, findings = np.shape(rows["known"])
        rng = np.random.default_rng(0)
        corners = np.sort(rng.random((films, findings, 1, 2, 2)), axis=3)
        chance = corners.reshape(films, findings, 1, 4), rng.random((films, findings, 1))
        found = {"chance: random boxes": reference_rows(rows, *chance)}
        if (constant := _mean_training_boxes(training, self.classes)) is not None:
            boxes, shares = (np.broadcast_to(x, (films, *x.shape)) for x in constant)
            found["constant: mean training box"] = reference_rows(rows, boxes, shares)
        found["bound: the largest true box of a finding"] = reference_rows(rows, *_largest(rows))
        return found


def reference_rows(rows: Rows, boxes: np.ndarray, scores: np.ndarray) -> Rows:
    """Rows of other boxes [N, E, M, 4] (shares of the film) with scores [N, E, M] on the films of
    `rows`."""
    made = detection_rows(
        np.asarray(boxes, np.float32),
        np.asarray(scores, np.float32),
        true_xyxy=rows["true_xyxy"],
        true_finding=rows["true_finding"],
        known=rows["known"],
    )
    kept = {name: rows[name] for name in ("id", "group", "true_xyxy", "true_finding")}
    return kept | {name: np.asarray(value) for name, value in made.items()}


def of_findings(rows: Rows) -> np.ndarray:
    """bool [N, E, T]: whether a true box of a film is of a finding."""
    findings = np.arange(np.shape(rows["known"])[1])
    return np.asarray(rows["true_finding"])[:, None] == findings[:, None]


def _largest(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """The largest true box of each film and finding [N, E, 1, 4], scored 1, or NaN without one."""
    boxes = np.asarray(rows["true_xyxy"], np.float64)  # [N, T, 4]
    areas = np.prod(boxes[..., 2:] - boxes[..., :2], axis=-1)
    areas = np.where(of_findings(rows), np.nan_to_num(areas)[:, None], 0.0)
    chosen = np.take_along_axis(boxes, areas.argmax(axis=2)[..., None], axis=1)
    scores = np.where(areas.max(axis=2) > 0, 1.0, np.nan)
    return chosen[:, :, None], scores[..., None]


def _mean_training_boxes(
    training: Source, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Of each finding the mean box [E, 1, 4], shares of the film, and the share of films that have
    one [E, 1], both NaN where none has; None where no training film has a box."""
    names = names_of(training, "findings")
    total, boxed, films = np.zeros((len(classes), 4)), np.zeros(len(classes)), 0
    for index in tqdm.tqdm(range(len(training)), "training films", unit="film", disable=None):
        if not has(training, index, "boxes"):
            continue
        record, films = training[index], films + 1
        shares = record["boxes"] / film_sides(record)
        for k, name in enumerate(classes):
            ours = shares[record["box_label"] == (names.index(name) if name in names else -2)]
            if len(ours):
                total[k] += ours.mean(axis=0)
                boxed[k] += 1
    if not boxed.any():
        return None
    count = np.where(boxed > 0, boxed, np.nan)
    return (total / count[:, None])[:, None], (count / films)[:, None]


def predicted(outputs: Sequence[Outputs]) -> list[Outputs]:
    """What `predict` and `explain` gave, on the host, without what `combine` may have added."""
    return [{k: np.asarray(v) for k, v in out.items() if k not in FOUND} for out in outputs]


def check_stride(size: int, stride: int) -> None:
    """Refuses a film whose side of `size` pixels the backbone's stride does not divide."""
    if size % stride:
        raise InputError(
            f"config.preprocess.size={size}: the backbone's stride {stride} must divide it"
        )


def film_sides(record: Record) -> np.ndarray:
    """[4]: what makes xyxy in pixels of the film of shares of it."""
    height, width = record["image"].shape
    return np.array([width, height, width, height], np.float64)


def told_pixels(box: np.ndarray) -> list[float]:
    """A box in pixels as it is told."""
    return [round(float(x), 1) for x in box]


def true_boxes(record: Record) -> figures.DrawnBoxes | None:
    """Those of findings that a film has, None where nobody drew any."""
    if "boxes" not in record:
        return None
    return figures.DrawnBoxes(record["boxes"], record["box_label"])


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant."""
    classes = tuple(config.classes)
    if not classes or len(set(classes)) < len(classes):
        raise InputError(f"config.classes={classes}; expected at least one name, each once")
    if wrong := set(config.untrained) - set(classes):
        raise InputError(f"config.untrained has {min(wrong)!r}, which config.classes has not")
    table = tuple(config.class_mapping)
    if not all(isinstance(row, tuple) and len(row) == 2 for row in table):
        raise InputError(
            f"config.class_mapping={table}; expected pairs: (finding, (trained findings,))"
        )
    if len({name for name, _ in table}) < len(table):
        raise InputError("config.class_mapping has a finding twice")
    class_mapping(dict(table), trained=classes)
    if config.mapped_positive not in ("mean", "any"):
        raise InputError(f"config.mapped_positive={config.mapped_positive!r}; expected mean, any")
    if config.most_boxes < 1:
        raise InputError(f"config.most_boxes={config.most_boxes}; expected at least 1")
