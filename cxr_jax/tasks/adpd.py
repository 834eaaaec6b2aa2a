"""Boxes of pathologies from anatomical regions (Müller et al., MICCAI 2023, 'adpd').

The network (`models/adpd.py`) finds the 29 regions of a film and says of each which pathologies it
holds. A region that has one is its box; boxes of a pathology that overlap are fused (Sec. 3.2).

| method | pathologies are learned from |
| --- | --- |
| `loc` | `region_findings`: labels of every region |
| `mil` | `findings`: labels of the film, of which the regions are the instances |
| `loc+mil` | both |

Loss (Sec. 3.3), as a mean over films of

    5 L1 + 2 GIoU + BCE(presence) + w ASL(pathologies)

The boxes of pathologies are never trained on: `score` alone reads them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax import figures, losses
from cxr_jax.data import boxes as film_boxes
from cxr_jax.data.augment import Augment
from cxr_jax.data.pipeline import Transforms, check_fields
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.records import REGIONS, Record
from cxr_jax.data.sources.base import Source, Subset, names_of, only_with, peek
from cxr_jax.errors import InputError
from cxr_jax.metrics import detection
from cxr_jax.metrics.box_matches import detection_rows, region_rows
from cxr_jax.models.adpd import ADPD, PRESENT_LOGIT, RegionHeads
from cxr_jax.models.backbones import make_backbone
from cxr_jax.ops.box_fusion import finding_boxes
from cxr_jax.ops.boxes import to_centres, to_corners
from cxr_jax.ops.pooling import region_lse
from cxr_jax.tasks.base import Data, Evaluation, Outputs, Task, mean

# What each part of a method learns from.
LABELS = {"loc": "region_findings", "mil": "findings"}
METHODS = ("loc", "mil", "loc+mil")
BOX_WEIGHTS = {"l1": 5.0, "giou": 2.0, "presence": 1.0}  # of the released code
PRESENT = float(1 / (1 + np.exp(-PRESENT_LOGIT)))  # a region whose probability is above is there
_FUSED = ("boxes", "scores")  # what `combine` adds
_SCORED_ONLY = ("boxes", "box_label", "boxes_known")


@dataclasses.dataclass(frozen=True)
class AnatomyDetection(Task):
    """See the module.

    Attributes:
      parts: 'loc', 'mil' or both.
      classes: the K findings; a data set's others are left out.
      untrained: those of `classes` that the training set does not label. Their outputs are noise:
        neither trained, scored, drawn nor told.
      regions: those that the training set has; () is all 29. The others take no part.
      weights: (part, weight) of the terms 'loc' and 'mil'.
      reduction: 'mean' or 'sum' of ASL over the labels of a film.
      mil_over: of which regions a film's pooling takes the mean: 'present' or 'all'.
      balanced: weighs presence by how often the batch has each region.
      threshold: a region has a finding whose probability is above.
      fusion: the IoU above which boxes of a finding are fused; 0: none are.
      most_boxes: of a finding on a film, the best first.
    """

    name: ClassVar[str] = "adpd"
    model: ADPD
    preprocess: Preprocess
    augment: Augment
    parts: tuple[str, ...]
    classes: tuple[str, ...]
    untrained: tuple[str, ...]
    regions: tuple[str, ...]
    weights: tuple[tuple[str, float], ...]
    reduction: str
    mil_over: str
    balanced: bool
    threshold: float
    fusion: float
    most_boxes: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "AnatomyDetection":
        _check(config)
        return cls(
            model=_make_model(config),
            preprocess=Preprocess(**config.preprocess),
            augment=Augment(**config.augment),
            parts=tuple(config.method.split("+")),
            classes=tuple(config.classes),
            untrained=tuple(config.untrained),
            regions=tuple(config.regions),
            weights=tuple(config.asl_weight.items()),
            reduction=config.asl_reduction,
            mil_over=config.mil_over,
            balanced=config.balanced_presence,
            threshold=config.threshold,
            fusion=config.fusion,
            most_boxes=config.most_boxes,
        )

    @property
    def data(self) -> Data:
        return Data(
            # A set without regions can be evaluated too; `_adapt` asks for more of a training set.
            fields=frozenset({"image"}),
            labels=frozenset({"regions", "region_present", *LABELS.values()}),
            transforms=Transforms(example=self._example, finish=self._finish),
            adapt=self._adapt,
            unlabelled=self._unlabelled,
        )

    @property
    def _trained(self) -> np.ndarray:
        """bool [K]: the findings that mean something."""
        return np.array([name not in self.untrained for name in self.classes])

    @property
    def _kept(self) -> np.ndarray:
        """bool [29]: the regions that take part."""
        return np.array([name in (self.regions or REGIONS) for name in REGIONS])

    def _adapt(self, source: Source, *, training: bool) -> Source:
        """The set with its findings numbered as `classes`.

        Raises:
          InputError: it has none of them, or lacks what is trained on.
        """
        if training:
            needed = {"regions", "region_present", *(LABELS[part] for part in self.parts)}
            check_fields(source, needed)
            source = only_with(source, needed)
        names = names_of(source, "findings")
        return source if names == self.classes else _OfClasses(source, names, self.classes)

    def _unlabelled(self, source: Source) -> tuple[str, ...]:
        """Classes that are known of no training film; films are looked at until none is left.

        Raises:
          InputError: that is all of them.
        """
        waiting = self._trained.copy()
        for index in range(len(source)):
            if not waiting.any():
                break
            for part in self.parts:
                known = peek(source, index, LABELS[part])
                waiting &= np.isnan(known).reshape(-1, len(self.classes)).all(axis=0)
        if len(source) and (waiting == self._trained).all():
            raise InputError(
                f"data set {source.name!r} (split {source.split!r}): no finding is known of any "
                f"film ({' and '.join(LABELS[part] for part in self.parts)}), so there is nothing "
                "to learn; choose another config.method, or other data"
            )
        return tuple(n for n, unknown in zip(self.classes, waiting, strict=True) if unknown)

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        shape, count = record["image"].shape, len(self.classes)
        nowhere = np.full((len(REGIONS), 4), np.nan, np.float32)
        absent = np.zeros(len(REGIONS), bool)
        unknown = np.full((len(REGIONS), count), np.nan, np.float32)
        example = {
            "image": self.preprocess.film(record["image"]),
            # The film is stretched to the square, and its boxes with it.
            "regions": self.preprocess.boxes(record.get("regions", nowhere), shape),
            "region_present": np.asarray(record.get("region_present", absent)),
            "regions_known": np.bool_("regions" in record),
            "region_findings": np.asarray(record.get("region_findings", unknown), np.float32),
            "findings": np.asarray(record.get("findings", unknown[0]), np.float32),
        }
        return example | self._boxes(record, example["findings"])

    def _boxes(self, record: Record, findings: np.ndarray) -> dict[str, np.ndarray]:
        """True boxes of findings, padded, and of which findings all are known.

        On a film with boxes that is every finding of which it is known whether it is there. (One
        that is there without a box counts as not there, as in the paper.)
        """
        drawn = self.preprocess.boxes(
            record.get("boxes", np.zeros((0, 4), np.float32)), record["image"].shape
        )
        labels = np.asarray(record.get("box_label", np.zeros(0, np.int32)), np.int32)
        padded, padded_labels = film_boxes.pad(
            drawn, labels, length=film_boxes.MOST, film=record.get("id", "")
        )
        known = ~np.isnan(findings) | np.isin(np.arange(len(findings)), labels)
        known &= self._trained & ("boxes" in record)
        return {"boxes": padded, "box_label": padded_labels, "boxes_known": known}

    def _finish(self, example, rng):
        if rng is not None:
            # Neither trained on, nor kept in the window by the augmentation.
            example = {k: v for k, v in example.items() if k not in _SCORED_ONLY}
            example = self.augment(example, rng)
        return {**example, "image": self.preprocess.normalize(example["image"])}

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1], train=False)

    def _truth(self, batch) -> tuple[jax.Array, jax.Array]:
        """Of the regions: xyxy as shares of the film [B, 29, 4], NaN where absent, and whether they
        are there [B, 29], 1, 0 or NaN: unknown."""
        known = batch["regions_known"][:, None] & self._kept
        present = jnp.where(known, batch["region_present"].astype(jnp.float32), jnp.nan)
        shares = batch["regions"] / self.preprocess.size
        return jnp.where((present == 1)[..., None], shares, jnp.nan), present

    def loss(self, variables, batch, *, rng, step):
        """Boxes and presence of the regions, and their findings, as the module says."""
        out, state = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"], rngs={"dropout": rng}
        )
        shares, present = self._truth(batch)
        there = present == 1
        terms = losses.fixed_box_losses(out["boxes"], to_centres(shares), there)
        terms["presence"] = losses.presence_loss(out["presence"], present, balanced=self.balanced)
        terms |= self._finding_terms(out["findings"], there, batch)
        weights = BOX_WEIGHTS | dict(self.weights)
        total = sum(weights[name] * term for name, term in terms.items())
        return jnp.mean(total), (state, {name: jnp.mean(term) for name, term in terms.items()})

    def _finding_terms(self, logits, there, batch) -> dict[str, jax.Array]:
        """ASL of the parts, [B] each: logits [B, 29, K] of the regions that are `there` [B, 29]."""
        terms = {}
        if "loc" in self.parts:
            known = there[..., None] & self._trained
            labels = jnp.where(known, batch["region_findings"], jnp.nan)
            terms["loc"] = losses.asymmetric_loss(logits, labels, reduction=self.reduction)
        if "mil" in self.parts:
            # No region, no probability: the film takes no part.
            known = there.any(axis=1, keepdims=True) & self._trained
            labels = jnp.where(known, batch["findings"], jnp.nan)
            _, pooled = region_lse(logits, there, over=self.mil_over)
            terms["mil"] = losses.asymmetric_loss(pooled, labels, reduction=self.reduction)
        return terms

    def predict(self, variables, batch):
        """`presence` [B, 29], `regions` [B, 29, 4] (cxcywh, shares of the film), `region_probs`
        [B, 29, K], and `probs` [B, K] of the film, pooled over the regions that are there; 0 where
        none is. `combine` adds `boxes` [B, K, M, 4] (xyxy, shares) and `scores` [B, K, M] of the
        findings, the best first, NaN where there is none."""
        out = self.model.apply(variables, batch["image"], train=False)
        presence = jnp.where(self._kept, jax.nn.sigmoid(out["presence"]), 0.0)
        probs, _ = region_lse(out["findings"], presence > PRESENT, over="present")
        return {
            "presence": presence,
            "regions": out["boxes"],
            "region_probs": jax.nn.sigmoid(out["findings"]),
            "probs": probs,
        }

    def explain(self, variables, batch):
        """`attention` [B, 29, h, w]: where the query of each region looked; its cells sum to 1."""
        return {"attention": self.model.apply(variables, batch["image"], train=False)["attention"]}

    def combine(self, outputs: Sequence[Outputs]) -> Outputs:
        """Means of probabilities and attention; a region's box is the mean of the members' boxes,
        each weighted by its presence. Then the boxes of the findings, of all regions together: one
        member gives exactly itself."""
        members = [{k: np.asarray(v) for k, v in m.items() if k not in _FUSED} for m in outputs]
        combined = mean(members) | {"regions": _mean_boxes(members)}
        there = (combined["presence"] > PRESENT)[..., None]
        positive = there & (combined["region_probs"] > self.threshold) & self._trained
        found = finding_boxes(
            combined["regions"], combined["region_probs"], positive, fusion=self.fusion or None
        )
        fused = {"boxes": found.xyxy, "scores": found.scores}
        return combined | {name: v[:, :, : self.most_boxes] for name, v in fused.items()}

    def score(self, outputs, batch):
        """Rows for `metrics.detection`."""
        rows = detection_rows(
            outputs["boxes"],
            outputs["scores"],
            true_xyxy=batch["boxes"] / self.preprocess.size,
            true_finding=batch["box_label"],
            known=batch["boxes_known"],
        )
        shares, present = self._truth(batch)
        placed = jnp.clip(to_corners(outputs["regions"]), 0, 1)
        called = outputs["presence"] > PRESENT
        rows |= region_rows(placed, called, true_xyxy=shares, present=present)
        there = (present == 1)[..., None] & self._trained
        return rows | {
            "probs": outputs["probs"],
            "labels": jnp.where(self._trained, batch["findings"], jnp.nan),
            "region_probs": outputs["region_probs"],
            "region_labels": jnp.where(there, batch["region_findings"], jnp.nan),
        }

    @property
    def evaluation(self) -> Evaluation:
        return DetectionEvaluation(self.classes)

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        there = np.flatnonzero(outputs["presence"] > PRESENT)
        corners = np.clip(np.asarray(to_corners(outputs["regions"])), 0, 1)
        sides = _sides(record)
        labels, boxes, scores = self._found(record, outputs)
        region = _carrier(outputs, self._trained)
        return figures.boxes_panel(
            record["image"],
            figures.DrawnBoxes(boxes, labels, scores),
            names=self.classes,
            true=figures.DrawnBoxes(record["boxes"], record["box_label"])
            if "boxes" in record
            else None,
            regions=corners[there] * sides,
            chosen=figures.Region(
                REGIONS[region], corners[region] * sides, outputs["attention"][region]
            )
            if "attention" in outputs
            else None,
            title=str(record["id"]),
        )

    def _found(self, record: Record, outputs) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Findings [M], boxes [M, 4] in the film's own pixels, and scores [M], best first."""
        labels, places = np.nonzero(~np.isnan(outputs["scores"]))
        order = np.argsort(-outputs["scores"][labels, places], kind="stable")
        labels, places = labels[order], places[order]
        boxes = outputs["boxes"][labels, places] * _sides(record)
        return labels, boxes, outputs["scores"][labels, places]

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        sides = _sides(record)
        corners = np.clip(np.asarray(to_corners(outputs["regions"])), 0, 1) * sides
        return {
            "boxes": [
                {
                    "finding": self.classes[label],
                    "score": round(float(score), 4),
                    "xyxy_px": _pixels(box),
                }
                for label, box, score in zip(*self._found(record, outputs), strict=True)
            ],
            "findings": {
                name: round(float(p), 4) if trained else None
                for name, p, trained in zip(self.classes, outputs["probs"], self._trained)
            },
            "regions": {
                REGIONS[a]: {
                    "probability": round(float(outputs["presence"][a]), 4),
                    "xyxy_px": _pixels(corners[a]),
                }
                for a in np.flatnonzero(outputs["presence"] > PRESENT)
            },
        }


@dataclasses.dataclass(frozen=True)
class DetectionEvaluation(Evaluation):
    """Table 1, how regions are placed, and AUC of films and of regions."""

    classes: tuple[str, ...]
    free_settings = ("threshold", "fusion", "most_boxes")
    columns = (
        *("map", "ap_iou10", "ap_iou30", "ap_iou50"),
        *("loc_acc_iou10", "loc_acc_iou30", "loc_acc_iou50", "region_iou", "region_auc"),
    )

    def report(self, units):
        report = detection.detection_report(units, self.classes)
        return report | detection.region_report(units, REGIONS) | detection.label_report(units)


class _OfClasses(Subset):
    """A set with its findings numbered as the task does; what it does not name is unknown."""

    def __init__(self, source: Source, names: Sequence[str], classes: tuple[str, ...]):
        super().__init__(source, list(range(len(source))), partial=source.partial)
        self.findings = classes
        self._columns = np.array([names.index(c) if c in names else -1 for c in classes])
        if (self._columns < 0).all():
            raise InputError(
                f"data set {source.name!r} (split {source.split!r}) has none of config.classes "
                f"({', '.join(classes[:3])}, ...); its findings are {', '.join(names)}"
            )
        self.version += f",findings{'.'.join(map(str, self._columns))}"
        self._numbers = np.full(len(names) + 1, -1, np.int32)  # the last one is that of -1
        there = np.flatnonzero(self._columns >= 0)
        self._numbers[self._columns[there]] = there

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        return {name: self._renumbered(name, value) for name, value in record.items()}

    def peek(self, index: int, field: str) -> Any:
        value = super().peek(index, field)
        return None if value is None else self._renumbered(field, value)

    def _renumbered(self, field: str, value: Any) -> Any:
        if field == "box_label":
            return self._numbers[value]
        if field in LABELS.values():
            chosen = np.asarray(value, np.float32)[..., self._columns]
            return np.where(self._columns < 0, np.float32(np.nan), chosen)
        return value


def _mean_boxes(members: Sequence[Outputs]) -> np.ndarray:
    """The regions' boxes [B, 29, 4] of the members, weighted by their presence."""
    weights = np.stack([member["presence"] for member in members])[..., None]
    total = weights.sum(axis=0)
    shares = np.where(total > 0, weights / np.where(total > 0, total, 1), 1 / len(members))
    found = np.sum(shares * np.stack([member["regions"] for member in members]), axis=0)
    return found.astype(np.float32)


def _carrier(outputs: dict[str, np.ndarray], trained: np.ndarray) -> int:
    """The region that is there with the most probable finding; any, where none is there."""
    there = outputs["presence"] > PRESENT
    probs = np.where(there[:, None] & trained, outputs["region_probs"], -1.0)
    return int(np.unravel_index(np.argmax(probs), probs.shape)[0])


def _sides(record: Record) -> np.ndarray:
    """[4]: what makes xyxy in pixels of the film of shares of it."""
    height, width = record["image"].shape
    return np.array([width, height, width, height], np.float64)


def _pixels(box: np.ndarray) -> list[float]:
    return [round(float(x), 1) for x in box]


def _make_model(config: ml_collections.ConfigDict) -> ADPD:
    """The network of `config.model`, whose cells must divide the film."""
    c, dtype = config.model.copy_and_resolve_references(), jnp.dtype(config.precision)
    backbone = make_backbone(config, dtype)
    stride = backbone.strides[backbone.stop_at]
    if config.preprocess.size % stride:
        raise InputError(
            f"config.preprocess.size={config.preprocess.size}: the backbone's stride {stride} must "
            "divide it"
        )
    fields = {name: value for name, value in c.items() if name != "backbone"}
    heads = RegionHeads(len(config.classes), dropout=c.dropout)
    return ADPD(backbone=backbone, heads=heads, num_regions=len(REGIONS), dtype=dtype, **fields)


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant."""
    for name, known in (
        ("method", METHODS),
        ("asl_reduction", ("mean", "sum")),
        ("mil_over", ("present", "all")),
    ):
        if config[name] not in known:
            raise InputError(f"config.{name}={config[name]!r}; expected {', '.join(known)}")
    classes, regions = tuple(config.classes), tuple(config.regions)
    if not classes or len(set(classes)) < len(classes):
        raise InputError(f"config.classes={classes}; expected at least one name, each once")
    if wrong := set(config.untrained) - set(classes):
        raise InputError(f"config.untrained has {min(wrong)!r}, which config.classes has not")
    if wrong := set(regions) - set(REGIONS):
        raise InputError(f"config.regions has {min(wrong)!r}; they are {', '.join(REGIONS)}")
    for name, low, high in (("threshold", 0, 1), ("fusion", 0, 1), ("most_boxes", 1, 29)):
        if not low <= config[name] <= high:
            raise InputError(f"config.{name}={config[name]}; it must lie in {low}..{high}")
    for part, weight in config.asl_weight.items():
        if part not in LABELS or not 0 < weight < np.inf:
            raise InputError(f"config.asl_weight.{part}={weight}; expected a positive number")
    if config.second.name and config.second.labels != "given":
        raise InputError(
            f"config.second.labels={config.second.labels!r}: nothing can be learned from films "
            "without regions; set it to given, or config.second.name to nothing"
        )
