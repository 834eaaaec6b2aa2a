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

Films without boxes of regions can learn from lung masks (`regions_from='lungs'`, ours): the lungs
and their six zones are eight of the regions, and a zone whose severity score is above 0 has an
opacity (`data/zone_regions.py`).
"""

import dataclasses
import warnings
from collections.abc import Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from cxr_jax import figures, losses
from cxr_jax.data.pipeline import Transforms, check_fields
from cxr_jax.data.records import REGIONS, Record
from cxr_jax.data.sources.base import Source, has, names_of, only_with
from cxr_jax.data.zone_regions import LUNG_ROWS, OPACITY, with_zone_regions
from cxr_jax.errors import InputError
from cxr_jax.metrics import detection
from cxr_jax.metrics.box_matches import region_rows
from cxr_jax.models.adpd import ADPD, PRESENT_LOGIT, RegionHeads
from cxr_jax.models.backbones import make_backbone
from cxr_jax.ops.box_fusion import finding_boxes
from cxr_jax.ops.boxes import iou, to_centres, to_corners
from cxr_jax.ops.pooling import region_lse
from cxr_jax.tasks.base import Data, Evaluation, Outputs, Rows, mean
from cxr_jax.tasks.detection import (
    DetectionEvaluation,
    Detector,
    check_stride,
    film_sides,
    of_findings,
    predicted,
    reference_rows,
    told_pixels,
    true_boxes,
)

# What each part of a method learns from.
LABELS = {"loc": "region_findings", "mil": "findings"}
METHODS = ("loc", "mil", "loc+mil")
BOX_WEIGHTS = {"l1": 5.0, "giou": 2.0, "presence": 1.0}  # of the released code
PRESENT = float(1 / (1 + np.exp(-PRESENT_LOGIT)))  # a region whose probability is above is there


@dataclasses.dataclass(frozen=True)
class AnatomyDetection(Detector):
    """See the module.

    Attributes:
      parts: 'loc', 'mil' or both.
      regions: those that the training set has; () is all 29. The others take no part.
      regions_from: 'record', or 'lungs': the eight that lung masks give.
      weights: (part, weight) of the terms 'loc' and 'mil'.
      reduction: 'mean' or 'sum' of ASL over the labels of a film.
      asl: the keywords gamma_neg, gamma_pos and clip of `losses.asymmetric_loss`.
      mil_over: of which regions a film's pooling takes the mean: 'present' or 'all'.
      mil_sharpness: of that pooling, r of `region_lse`.
      balanced: weighs presence by how often the batch has each region.
      threshold: a region has a finding whose probability is above.
      fusion: the IoU above which boxes of a finding are fused; 0: none are.
    """

    name: ClassVar[str] = "adpd"
    model: ADPD
    parts: tuple[str, ...]
    regions: tuple[str, ...]
    regions_from: str
    weights: tuple[tuple[str, float], ...]
    reduction: str
    asl: tuple[tuple[str, float], ...]
    mil_over: str
    mil_sharpness: float
    balanced: bool
    threshold: float
    fusion: float

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "AnatomyDetection":
        _check(config)
        return cls(
            model=_make_model(config),
            **cls.shared(config, learns_from="regions"),
            parts=tuple(config.method.split("+")),
            regions=tuple(config.regions),
            regions_from=config.regions_from,
            weights=tuple(config.asl_weight.items()),
            reduction=config.asl_reduction,
            asl=tuple(config.asl.items()),
            mil_over=config.mil_over,
            mil_sharpness=config.mil_sharpness,
            balanced=config.balanced_presence,
            threshold=config.threshold,
            fusion=config.fusion,
        )

    @property
    def data(self) -> Data:
        made_of = {"lungs"} if self.regions_from == "lungs" else set()
        return Data(
            # A set without regions can be evaluated too; `_adapt` asks for more of a training set.
            fields=frozenset({"image"} | made_of),
            labels=frozenset({"regions", "region_present", *LABELS.values()}),
            transforms=Transforms(example=self._example, finish=self.unboxed),
            adapt=self._adapt,
            unlabelled=self._unlabelled,
        )

    @property
    def _kept(self) -> np.ndarray:
        """bool [29]: the regions that take part."""
        chosen = np.array([name in (self.regions or REGIONS) for name in REGIONS])
        if self.regions_from == "lungs":
            chosen &= np.isin(np.arange(len(REGIONS)), LUNG_ROWS)
        return chosen

    def _needed(self, source: Source) -> set[str]:
        """The fields that are trained on, lung masks aside."""
        if self.regions_from == "lungs":
            of_film = "findings" if "findings" in source.fields else "severity"
            return {"severity" if part == "loc" else of_film for part in self.parts}
        return {"regions", "region_present", *(LABELS[part] for part in self.parts)}

    def _adapt(self, source: Source, *, training: bool) -> Source:
        if training:
            needed = self._needed(source)
            check_fields(source, needed)
            source = only_with(source, needed)
        return self.numbered(source, training=training)

    def _unlabelled(self, source: Source) -> tuple[str, ...]:
        needed = self._needed(source)
        if "severity" not in needed:
            return self.unlabelled(source, tuple(LABELS[part] for part in self.parts))
        # Scores tell of opacities alone; another finding is learned where films are labelled.
        others = tuple(name for name in self.classes if name != OPACITY)
        if "findings" not in needed:
            return tuple(name for name in others if name not in self.untrained)
        return tuple(n for n in self.unlabelled(source, ("findings",)) if n in others)

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        example = self.example(record)
        if self.regions_from == "lungs" and "lungs" in record:
            record = self._with_regions(record)
            example["findings"] = np.asarray(record["findings"], np.float32)
        nowhere = np.full((len(REGIONS), 4), np.nan, np.float32)
        absent = np.zeros(len(REGIONS), bool)
        unknown = np.full((len(REGIONS), len(example["findings"])), np.nan, np.float32)
        return example | {
            "regions": self.preprocess.boxes(record.get("regions", nowhere), record["image"].shape),
            "region_present": np.asarray(record.get("region_present", absent)),
            "regions_known": np.bool_("regions" in record),
            "region_findings": np.asarray(record.get("region_findings", unknown), np.float32),
        }

    def _with_regions(self, record: Record) -> Record:
        """The record with the regions of its lungs; its scores are its findings where those are
        unknown."""
        findings = record.get("findings")
        if findings is None or np.isnan(findings).all():
            record = {name: value for name, value in record.items() if name != "findings"}
        unknown = np.full(len(self.classes), np.nan, np.float32)
        return {"findings": unknown} | with_zone_regions(record, findings=self.classes)

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
        terms, asl = {}, {"reduction": self.reduction, **dict(self.asl)}
        if "loc" in self.parts:
            known = there[..., None] & self.trained
            labels = jnp.where(known, batch["region_findings"], jnp.nan)
            terms["loc"] = losses.asymmetric_loss(logits, labels, **asl)
        if "mil" in self.parts:
            # No region, no probability: the film takes no part.
            known = there.any(axis=1, keepdims=True) & self.trained
            labels = jnp.where(known, batch["findings"], jnp.nan)
            _, pooled = region_lse(logits, there, over=self.mil_over, r=self.mil_sharpness)
            terms["mil"] = losses.asymmetric_loss(pooled, labels, **asl)
        return terms

    def predict(self, variables, batch):
        """`presence` [B, 29], `regions` [B, 29, 4] (cxcywh, shares of the film), `region_probs`
        [B, 29, K], and `probs` [B, K] of the film, pooled over the regions that are there as in
        training; 0 where none is, or where `mil_over='all'` gives less. `combine` adds `boxes`
        [B, K, M, 4] (xyxy, shares) and `scores` [B, K, M] of the findings, the best first, NaN
        where there is none."""
        out = self.model.apply(variables, batch["image"], train=False)
        presence = jnp.where(self._kept, jax.nn.sigmoid(out["presence"]), 0.0)
        there, r = presence > PRESENT, self.mil_sharpness
        probs, _ = region_lse(out["findings"], there, over=self.mil_over, r=r)
        return {
            "presence": presence,
            "regions": out["boxes"],
            "region_probs": jax.nn.sigmoid(out["findings"]),
            "probs": jnp.maximum(probs, 0.0),
        }

    def explain(self, variables, batch):
        """`attention` [B, 29, h, w]: where the query of each region looked; its cells sum to 1."""
        return {"attention": self.model.apply(variables, batch["image"], train=False)["attention"]}

    def combine(self, outputs: Sequence[Outputs]) -> Outputs:
        """Means of probabilities and attention; a region's box is the mean of the members' boxes,
        each weighted by its presence. Then the boxes of the findings, of all regions together: one
        member gives exactly itself."""
        members = predicted(outputs)
        combined = mean(members) | {"regions": _mean_boxes(members)}
        there = (combined["presence"] > PRESENT)[..., None]
        mapping = self.mapping
        found = finding_boxes(
            combined["regions"],
            mapping.scores(combined["region_probs"]),
            there & mapping.positive(combined["region_probs"], self.threshold),
            fusion=self.fusion or None,
        )
        fused = {"boxes": found.xyxy, "scores": found.scores}
        return combined | {name: v[:, :, : self.most_boxes] for name, v in fused.items()}

    def score(self, outputs, batch):
        """Rows for `metrics.detection`."""
        shares, present = self._truth(batch)
        placed = jnp.clip(to_corners(outputs["regions"]), 0, 1)
        called = outputs["presence"] > PRESENT
        rows = super().score(outputs, batch)
        rows |= region_rows(placed, called, true_xyxy=shares, present=present)
        mapping = self.mapping
        known = (present == 1)[..., None] & mapping.known
        return rows | {
            "region_probs": mapping.scores(outputs["region_probs"]),
            "region_labels": jnp.where(known, batch["region_findings"], jnp.nan),
            "region_xyxy": shares,
        }

    @property
    def evaluation(self) -> Evaluation:
        return RegionEvaluation(self.mapping.names, fusion=self.fusion)

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        there = np.flatnonzero(outputs["presence"] > PRESENT)
        corners = _corners(record, outputs)
        region = _carrier(outputs, self.trained)
        # A region that was not found has no place to be drawn.
        looked = outputs.get("attention") if region in there else None
        return figures.boxes_panel(
            record["image"],
            self.found(record, outputs),
            names=self.mapping.names,
            true=true_boxes(record),
            regions=corners[there],
            chosen=None
            if looked is None
            else figures.Region(REGIONS[region], corners[region], looked[region]),
            title=str(record["id"]),
        )

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        corners = _corners(record, outputs)
        told = super().describe(record, outputs)
        if not (outputs["presence"] > PRESENT).any():
            told["findings"] = dict.fromkeys(told["findings"])
            told["note"] = "no region was found on this film: nothing is said of its findings"
        return told | {
            "regions": {
                REGIONS[a]: {
                    "probability": round(float(outputs["presence"][a]), 4),
                    "xyxy_px": told_pixels(corners[a]),
                }
                for a in np.flatnonzero(outputs["presence"] > PRESENT)
            }
        }


@dataclasses.dataclass(frozen=True)
class RegionEvaluation(DetectionEvaluation):
    """Table 1, how regions are placed, and AUC of films and of regions."""

    fusion: float = 0.0
    columns = (*DetectionEvaluation.columns, "region_iou", "region_auc")

    def report(self, units):
        report = super().report(units)
        if "region_iou" in units:
            report |= detection.region_report(units, REGIONS)
            report |= detection.region_label_report(units)
        return report

    def references(self, rows: Rows, training: Source) -> dict[str, Rows]:
        """Of the true regions: those that truly have a finding, as a perfect region method has
        them that does not know which fit best (a better order of the scores, or a choice among
        them, may have more); of these the one nearest to a true box, as one that is not fused
        could choose; all of them; and a random one. Without looking at the film: the mean regions
        of the training films, and of these the one that most often has the finding."""
        found = super().references(rows, training)
        if (constant := _mean_regions(training, self.classes)) is not None:
            found["constant: mean training regions"] = _constant_rows(rows, *constant)
        labels = np.asarray(rows["region_labels"])  # [N, A, E]
        corners = np.asarray(rows["region_xyxy"])
        there = ~np.isnan(corners).any(axis=-1)
        if not there.any():
            return found
        everywhere, true = np.broadcast_to(there[..., None], labels.shape), labels == 1
        ones, fusion = np.ones(labels.shape), self.fusion or None
        draws = np.random.default_rng(0).random(labels.shape)
        kinds = {
            "chance: a random region": (everywhere, draws, None),
            "constant: all regions, fused": (everywhere, ones, fusion),
            "true regions of true findings, fused": (true, ones, fusion),
            "the nearest of these, not fused": (true, _nearness(rows), None),
        }
        centres = np.nan_to_num(np.asarray(to_centres(corners)))
        for name, (positive, scores, threshold) in kinds.items():
            boxes = finding_boxes(centres, scores, positive, fusion=threshold)
            found[name] = reference_rows(rows, boxes.xyxy[:, :, :1], boxes.scores[:, :, :1])
        return found


def _mean_regions(
    training: Source, classes: tuple[str, ...]
) -> tuple[np.ndarray, np.ndarray] | None:
    """Of the training films: the mean region [29, 4], shares of the film, NaN where none has it,
    and how often it has each finding [29, E]; None where no film has regions."""
    names = names_of(training, "findings")
    columns = [names.index(name) if name in names else -1 for name in classes]
    boxes, labels = [], []
    for index in tqdm.tqdm(range(len(training)), "training films", unit="film", disable=None):
        if not has(training, index, "region_findings"):
            continue
        record = training[index]
        boxes.append(record["regions"] / film_sides(record))
        known = np.asarray(record["region_findings"], np.float64)[:, columns]
        labels.append(np.where(np.less(columns, 0), np.nan, known))
    if not boxes:
        return None
    with warnings.catch_warnings():  # a region that no film has
        warnings.simplefilter("ignore", RuntimeWarning)
        return np.nanmean(boxes, axis=0), np.nanmean(labels, axis=0)


def _constant_rows(rows: Rows, regions: np.ndarray, shares: np.ndarray) -> Rows:
    """Rows of the same regions, with the same findings, on every film."""
    films = len(rows["known"])
    placed = np.broadcast_to(regions, (films, *regions.shape)).astype(np.float32)
    probs = np.broadcast_to(shares, (films, *shares.shape))
    centres = np.nan_to_num(np.asarray(to_centres(placed)))
    boxes = finding_boxes(centres, np.nan_to_num(probs), probs > 0, fusion=None)
    made = reference_rows(rows, boxes.xyxy[:, :, :1], boxes.scores[:, :, :1])
    there = ~np.isnan(placed).any(axis=-1)
    present = rows["region_present"]
    of_regions = region_rows(placed, there, true_xyxy=rows["region_xyxy"], present=present)
    made |= {name: np.asarray(value) for name, value in of_regions.items()}
    kept = {name: rows[name] for name in ("labels", "region_labels")}
    # A film's probability is that of its likeliest region: the same for every film.
    return made | kept | {"region_probs": probs, "probs": np.nan_to_num(probs).max(axis=1)}


def _nearness(rows: Rows) -> np.ndarray:
    """[N, 29, E]: the IoU of each region with the nearest true box of each finding, 0 without."""
    overlaps = iou(rows["region_xyxy"][:, :, None], rows["true_xyxy"][:, None])  # [N, 29, T]
    pairs = np.where(
        of_findings(rows)[:, None], np.nan_to_num(np.asarray(overlaps))[:, :, None], 0.0
    )
    return pairs.max(axis=-1, initial=0.0)


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


def _corners(record: Record, outputs: dict[str, np.ndarray]) -> np.ndarray:
    """xyxy [29, 4] of the regions in pixels of the film, kept to it."""
    return np.clip(np.asarray(to_corners(outputs["regions"])), 0, 1) * film_sides(record)


def _make_model(config: ml_collections.ConfigDict) -> ADPD:
    """The network of `config.model`, whose cells must divide the film."""
    c, dtype = config.model.copy_and_resolve_references(), jnp.dtype(config.precision)
    backbone = make_backbone(config, dtype)
    check_stride(config.preprocess.size, backbone.strides[backbone.stop_at])
    fields = {name: value for name, value in c.items() if name != "backbone"}
    heads = RegionHeads(len(config.classes), dropout=c.dropout)
    return ADPD(backbone=backbone, heads=heads, num_regions=len(REGIONS), dtype=dtype, **fields)


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant."""
    for name, known in (
        ("method", METHODS),
        ("asl_reduction", ("mean", "sum")),
        ("mil_over", ("present", "all")),
        ("regions_from", ("record", "lungs")),
    ):
        if config[name] not in known:
            raise InputError(f"config.{name}={config[name]!r}; expected {', '.join(known)}")
    if wrong := set(config.regions) - set(REGIONS):
        raise InputError(f"config.regions has {min(wrong)!r}; they are {', '.join(REGIONS)}")
    if config.regions_from == "lungs":
        _check_lungs(config)
    for name, low, high in (("threshold", 0, 1), ("fusion", 0, 1), ("most_boxes", 1, 29)):
        if not low <= config[name] <= high:
            raise InputError(f"config.{name}={config[name]}; it must lie in {low}..{high}")
    for name, least, most in (("gamma_neg", 1, 10), ("gamma_pos", 1, 10), ("clip", 0, 0.5)):
        value = config.asl[name]
        if value != 0 and not least <= value <= most:
            raise InputError(f"config.asl.{name}={value}; expected 0, or {least} to {most}")
    if not 0 < config.mil_sharpness <= 10:
        raise InputError(f"config.mil_sharpness={config.mil_sharpness}; above 0, at most 10")
    for part, weight in config.asl_weight.items():
        if part not in LABELS or not 0 < weight < np.inf:
            raise InputError(f"config.asl_weight.{part}={weight}; expected a positive number")


def _check_lungs(config: ml_collections.ConfigDict) -> None:
    """Refuses what regions of lungs cannot do."""
    if OPACITY not in config.classes:
        raise InputError(
            f"config.regions_from='lungs' labels regions with {OPACITY!r}, which config.classes "
            "has not; add it"
        )
    if config.class_mapping:
        raise InputError(
            "config.class_mapping cannot be used with config.regions_from='lungs', whose findings "
            "are config.classes"
        )
