"""Boxes of findings from class activation maps: the weakly supervised baselines of ADPD's Table 1.

A classifier (`models/cam_detector.py` has the methods and their sources) has a map of each finding;
the map is made as large as the film, cut, and a component of what is left is the finding's one box
(`ops/map_boxes.py`), whose score is the film's probability of the finding.

| method | learns from |
| --- | --- |
| gap, lse, lse_map, weldon, multimap, gradcam, stl | `findings`: labels of films |
| agxnet | these and `region_findings`: labels of regions, no boxes |

The loss is the binary cross-entropy of the findings that are known, as a mean over films:

- stl: (1 - alpha) of the branch that classifies + alpha of the one that localises; alpha grows in
  training from 0.1 to 0.9 [Hwang and Kim 2016; along a line, as the baselines' code has it].
- agxnet: that of the findings + that of the regions, which are abnormal where they hold any of them
  [Yu et al. 2022].

`balanced` weighs the two labels of a finding by how often the batch has them, as the baselines'
code does. A rare finding then weighs as much as a common one, as far as a batch has any of it.
(ChestX-ray8 counts the labels of all findings of a batch together, AGXNet's code those of a finding
in the whole training set.)

True boxes are never trained on: `score` alone reads them.
"""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax import figures, losses
from cxr_jax.data.pipeline import Transforms, check_fields
from cxr_jax.data.records import REGIONS, Record
from cxr_jax.data.sources.base import Source, only_with
from cxr_jax.errors import InputError
from cxr_jax.explain.gradcam import grad_cam
from cxr_jax.models import cam_detector as models
from cxr_jax.models.backbones import make_backbone
from cxr_jax.ops.map_boxes import COMPONENTS, map_boxes
from cxr_jax.tasks.base import Data, Evaluation, Outputs, mean
from cxr_jax.tasks.detection import (
    DetectionEvaluation,
    Detector,
    check_stride,
    predicted,
    true_boxes,
)

# Method -> the head on the backbone; agxnet is a network of its own.
HEADS: dict[str, Callable[..., nn.Module]] = {
    "gap": models.GapHead,
    "lse": models.LseHead,
    "lse_map": models.LseMapHead,
    "weldon": models.WeldonHead,
    "multimap": models.MultiMapHead,
    "stl": models.TransferHead,
    "gradcam": models.HiddenHead,
}
METHODS = (*HEADS, "agxnet")
OF_REGIONS = ("region_findings", "region_present")
_DRAWN = 0.5  # the score above which a box is drawn


@dataclasses.dataclass(frozen=True)
class CamDetection(Detector):
    """See the module.

    Attributes:
      method: one of METHODS.
      balanced: weighs labels by how often the batch has each.
      threshold: a finding whose probability is above has a box.
      map_threshold: of a map, stretched to 0..1; what is above belongs to the finding.
      component: the box is that of 'peak', the component with the highest pixel, or 'largest'.
      alpha: of stl, at the first step and from the last on.
      alpha_steps: how many steps lie between the two.
    """

    name: ClassVar[str] = "cam_detector"
    model: models.CamDetector | models.AGXNet
    method: str
    balanced: bool
    threshold: float
    map_threshold: float
    component: str
    alpha: tuple[float, float]
    alpha_steps: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "CamDetection":
        _check(config)
        return cls(
            model=_make_model(config),
            **cls.shared(config, learns_from="findings"),
            method=config.method,
            balanced=config.balanced,
            threshold=config.threshold,
            map_threshold=config.map_threshold,
            component=config.component,
            alpha=tuple(config.stl.alpha),
            alpha_steps=config.stl.steps,
        )

    @property
    def data(self) -> Data:
        return Data(
            # A set without labels can be predicted and drawn; `_adapt` asks for more to train on.
            fields=frozenset({"image"}),
            labels=frozenset({"findings", *OF_REGIONS}),
            transforms=Transforms(example=self._example, finish=self.unboxed),
            adapt=self._adapt,
            unlabelled=lambda source: self.unlabelled(source, ("findings",)),
        )

    @property
    def _of_regions(self) -> bool:
        return self.method == "agxnet"

    def _adapt(self, source: Source, *, training: bool) -> Source:
        if training:
            needed = {"findings", *(OF_REGIONS if self._of_regions else ())}
            check_fields(source, needed)
            source = only_with(source, needed)
        return self.numbered(source, training=training)

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        example = self.example(record)
        if not self._of_regions:
            return example
        absent = np.zeros(len(REGIONS), bool)
        unknown = np.full((len(REGIONS), len(example["findings"])), np.nan, np.float32)
        return example | {
            "region_present": np.asarray(record.get("region_present", absent)),
            "region_findings": np.asarray(record.get("region_findings", unknown), np.float32),
        }

    def init(self, rng, batch):
        films = batch["image"][:1]
        return self.model.init(rng, films, train=False, **self._guide(films))

    def _guide(self, films, holds=0.0) -> dict[str, jax.Array]:
        """What AGXNet is told in training: `holds`, for every region and finding."""
        if not self._of_regions:
            return {}
        shape = (len(films), len(REGIONS), len(self.classes))
        return {"region_findings": jnp.broadcast_to(holds, shape)}

    def loss(self, variables, batch, *, rng, step):
        """As the module says."""
        films, told = batch["image"], {}
        if self._of_regions:
            told = self._guide(films, self._labels_of_regions(batch))
        out, state = self.model.apply(
            variables, films, train=True, mutable=["batch_stats"], rngs={"dropout": rng}, **told
        )
        labels = jnp.where(self.trained, batch["findings"], jnp.nan)
        terms = {"findings": self._cross_entropy(out["logits"], labels)}
        weights = {"findings": 1.0}
        if self.method == "stl":
            terms["classified"] = self._cross_entropy(out["class_logits"], labels)
            alpha = self._alpha(step)
            weights = {"findings": alpha, "classified": 1.0 - alpha}
        if self._of_regions:
            abnormal = _abnormal(told["region_findings"])
            terms["regions"] = self._cross_entropy(out["region_logits"], abnormal)
            weights["regions"] = 1.0
        total = sum(weights[name] * term for name, term in terms.items())
        return jnp.mean(total), (state, {name: jnp.mean(term) for name, term in terms.items()})

    def _cross_entropy(self, logits, labels):
        """[B, n] twice, NaN where unknown -> [B]."""
        if self.balanced:
            return losses.balanced_bce(logits, labels)
        return losses.masked_bce(logits, labels)

    def _alpha(self, step) -> jax.Array:
        """The weight of STL's localisation at a step."""
        first, last = self.alpha
        return first + (last - first) * jnp.minimum(step / self.alpha_steps, 1.0)

    def _labels_of_regions(self, batch) -> jax.Array:
        """[B, 29, K], 1, 0 or NaN: unknown, as where the region is absent."""
        known = batch["region_present"][..., None] & self.trained
        return jnp.where(known, batch["region_findings"], jnp.nan)

    def predict(self, variables, batch):
        """`probs` [B, K] of the film, and `maps` [B, h, w, K], each stretched to 0..1; of stl those
        of the branch that localises. `combine` adds `boxes` [B, E, 1, 4] (xyxy, shares) and
        `scores` [B, E, 1], NaN where there is none."""
        out = self.model.apply(variables, batch["image"], train=False)
        maps = out["maps"] if self.method != "gradcam" else self._grad_cam(variables, out["cells"])
        return {"probs": jax.nn.sigmoid(out["logits"]), "maps": models.stretched(maps)}

    def _grad_cam(self, variables, cells) -> jax.Array:
        """[B, h, w, C] -> [B, h, w, K]."""
        head = {"params": variables["params"]["head"]}
        every = jnp.broadcast_to(jnp.arange(len(self.classes)), (len(cells), len(self.classes)))
        heat = grad_cam(lambda x: self.model.head.apply(head, x)["logits"], cells, every)
        return jnp.moveaxis(heat, 1, -1)

    def combine(self, outputs: Sequence[Outputs]) -> Outputs:
        """Means of probabilities and maps, and one box of each finding that is found."""
        combined, mapping = mean(predicted(outputs)), self.mapping
        found = mapping.positive(combined["probs"], self.threshold)
        boxes = map_boxes(
            mapping.scores(combined["maps"]),
            size=self.preprocess.size,
            threshold=self.map_threshold,
            component=self.component,
            wanted=found,
        )
        there = ~np.isnan(boxes).any(axis=-1)
        scores = np.where(there, mapping.scores(combined["probs"]), np.nan).astype(np.float32)
        return combined | {"boxes": boxes[:, :, None], "scores": scores[:, :, None]}

    @property
    def evaluation(self) -> Evaluation:
        return CamEvaluation(self.mapping.names)

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        boxes, labels, scores = self.found(record, outputs)
        shown = max(np.count_nonzero(scores > _DRAWN), 1)  # the best at least
        boxes, labels, scores = boxes[:shown], labels[:shown], scores[:shown]
        chosen = None
        if len(labels):
            heat = self.mapping.scores(outputs["maps"])[..., labels[0]]
            chosen = figures.Region(self.mapping.names[labels[0]], boxes[0], heat)
        return figures.boxes_panel(
            record["image"],
            figures.DrawnBoxes(boxes, labels, scores),
            names=self.mapping.names,
            true=true_boxes(record),
            chosen=chosen,
            title=str(record["id"]),
        )


class CamEvaluation(DetectionEvaluation):
    """Table 1 of ADPD, and AUC of films."""

    free_settings = ("threshold", "map_threshold", "component", "class_mapping")


def _abnormal(labels: jax.Array) -> jax.Array:
    """Labels of regions [B, A, K] -> [B, A]: 1 where a region holds a finding, 0 where it holds
    none of those that are known, NaN where none is."""
    known = ~jnp.isnan(labels)
    holds = jnp.any(known & (labels > 0), axis=-1).astype(jnp.float32)
    return jnp.where(known.any(axis=-1), holds, jnp.nan)


def _make_model(config: ml_collections.ConfigDict) -> models.CamDetector | models.AGXNet:
    """The network of `config.model`."""
    dtype, count = jnp.dtype(config.precision), len(config.classes)
    backbone = make_backbone(config, dtype)
    _check_cells(config, backbone.strides[backbone.stop_at])
    sizes: dict[str, Any] = dict(num_findings=count, dtype=dtype, **config.model.head)
    if config.method == "agxnet":
        return models.AGXNet(backbone, make_backbone(config, dtype), **sizes)
    return models.CamDetector(backbone, HEADS[config.method](**sizes))


# Field of `config.model.head` -> least and most.
_LIMITS = {
    "sharpness": (1e-3, 100.0),
    "transition": (0, 4096),
    "top_cells": (1, np.inf),
    "maps_each": (1, 256),
    "alpha": (0.0, 1.0),
    "hidden": (1, 8192),
    "beta": (0.0, 100.0),
    "drop_channels": (0.0, 0.9),
}


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant."""
    for name, known in (("method", METHODS), ("component", COMPONENTS)):
        if config[name] not in known:
            raise InputError(f"config.{name}={config[name]!r}; expected {', '.join(known)}")
    for name, high in (("threshold", 1.0), ("map_threshold", 0.99)):
        if not 0 <= config[name] <= high:
            raise InputError(f"config.{name}={config[name]}; it must lie in 0..{high}")
    for name, value in config.model.head.items():
        low, high = _LIMITS.get(name, (-np.inf, np.inf))
        if not low <= value <= high:
            raise InputError(f"config.model.head.{name}={value}; it must lie in {low}..{high}")
    alpha = tuple(config.stl.alpha)
    if len(alpha) != 2 or not all(0 <= value <= 1 for value in alpha) or config.stl.steps < 1:
        raise InputError(
            f"config.stl has alpha={alpha}, steps={config.stl.steps}; expected two numbers of 0..1 "
            "and at least one step"
        )
    if config.most_boxes != 1:
        raise InputError(f"config.most_boxes={config.most_boxes}; a map gives one box")


def _check_cells(config: ml_collections.ConfigDict, stride: int) -> None:
    """Refuses a map whose cells do not fit the film, or are too few to choose from."""
    size = config.preprocess.size
    check_stride(size, stride)
    cells = (size // stride) ** 2
    if config.model.head.get("top_cells", 1) > cells:
        raise InputError(
            f"config.model.head.top_cells={config.model.head.top_cells}: the map has {cells} cells"
        )
