"""A detector trained on boxed films: the supervised row of Table 1 of ADPD (Müller et al. 2023).

The paper has a Faster R-CNN (Ren et al., NIPS 2015) on some 500 boxed films. No Faster R-CNN in JAX
or Flax is kept up, so this is a RetinaNet (Lin et al., ICCV 2017, `models/retina.py`) on the same
DenseNet: one stage in place of two. Loss, as a mean over films of a sum over their anchors, divided
by the number of anchors that have a box:

    focal loss of the findings + smooth L1 of the boxes

Unlike the paper's other methods it learns from the boxes of findings, which the augmentation moves.
A finding that is there without a box counts as not there, as it does where films are scored; films
on which nobody drew are left out of the training, those without a finding are in.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax import losses
from cxr_jax.data.pipeline import Transforms, check_fields
from cxr_jax.data.sources.base import Source, only_with, peek
from cxr_jax.errors import InputError
from cxr_jax.models.backbones import make_backbone
from cxr_jax.models.retina import RetinaNet
from cxr_jax.ops import anchors
from cxr_jax.ops.nms import best_boxes
from cxr_jax.tasks.base import Data, Outputs, mean
from cxr_jax.tasks.detection import FOUND, Detector, check_stride, predicted

CANDIDATES = 1000  # anchors of a finding that are looked at [Lin et al., Sec. 4.1: of each level]
OVERLAP = 0.5  # IoU with a better box of the finding above which one is dropped [Lin et al.]


@dataclasses.dataclass(frozen=True)
class BoxDetector(Detector):
    """See the module.

    Attributes:
      anchor_scale: side of a level's smallest anchor, in units of its stride.
      threshold: an anchor whose probability of a finding is below is no box of it.
    """

    name: ClassVar[str] = "box_detector"
    model: RetinaNet
    anchor_scale: float
    threshold: float

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "BoxDetector":
        _check(config)
        return cls(
            model=_make_model(config),
            **cls.shared(config, learns_from="boxes"),
            anchor_scale=config.anchor_scale,
            threshold=config.threshold,
        )

    @functools.cached_property
    def anchors(self) -> np.ndarray:
        """float32 [A, 4], shares of the film."""
        return anchors.make_anchors(
            self.preprocess.size, self.model.strides, scale=self.anchor_scale
        )

    @property
    def data(self) -> Data:
        return Data(
            # A set without boxes can be evaluated too; `_adapt` asks for them in a training set.
            fields=frozenset({"image"}),
            labels=frozenset({"boxes", "box_label", "findings"}),
            transforms=Transforms(example=self.example, finish=self._finish),
            adapt=self._adapt,
            unlabelled=self._unlabelled,
        )

    def _adapt(self, source: Source, *, training: bool) -> Source:
        if training:
            check_fields(source, {"boxes", "box_label"})
            source = only_with(source, {"boxes"})
        return self.numbered(source, training=training)

    def _unlabelled(self, source: Source) -> tuple[str, ...]:
        labels = (peek(source, index, "box_label") for index in range(len(source)))
        if len(source) and not any((np.asarray(label) >= 0).any() for label in labels):
            raise InputError(
                f"data set {source.name!r} (split {source.split!r}): no film has a box of "
                f"config.classes ({', '.join(self.classes)}), so there is nothing to learn; choose "
                "other data"
            )
        return self.unlabelled(source, ("findings",))

    def _finish(self, example, rng):
        if rng is not None:
            example = self.augment(example, rng)
        return {**example, "image": self.preprocess.normalize(example["image"])}

    def loss(self, variables, batch, *, rng, step):
        """`focal` and `box`, as the module says; they count alike."""
        out, state = self.model.apply(
            variables, batch["image"], train=True, mutable=["batch_stats"]
        )
        match = functools.partial(anchors.match, self.anchors, findings=len(self.classes))
        shares = batch["boxes"] / self.preprocess.size
        targets = jax.vmap(match)(shares, batch["box_label"])
        known = (batch["boxes_known"] & self.trained)[:, None]
        labels = jnp.where(known, targets.labels, jnp.nan)
        moves = anchors.encode(targets.boxes, self.anchors)
        terms = {
            "focal": losses.focal_loss(out["logits"], labels, targets.positive),
            "box": losses.anchor_box_loss(out["deltas"], moves, targets.positive),
        }
        terms = {name: jnp.mean(term) for name, term in terms.items()}
        return sum(terms.values()), (state, terms)

    def predict(self, variables, batch):
        """`anchor_probs` [B, A, K] and `deltas` [B, A, 4] of the anchors, and `probs` [B, K] of the
        film, the highest of its anchors. `combine` adds `boxes` [B, K, M, 4] (xyxy, shares) and
        `scores` [B, K, M] of the findings, the best first, NaN where there is none."""
        out = self.model.apply(variables, batch["image"], train=False)
        probs = jax.nn.sigmoid(out["logits"])
        return {
            "anchor_probs": probs,
            "deltas": out["deltas"],
            "probs": jnp.max(probs, axis=1),
        }

    def combine(self, outputs: Sequence[Outputs]) -> Outputs:
        """Means over the members, anchor by anchor; then the boxes of all together: one member
        gives exactly itself."""
        combined = mean(predicted(outputs))
        found = best_boxes(
            self.mapping.scores(combined["anchor_probs"]),
            combined["deltas"],
            self.anchors,
            most=self.most_boxes,
            candidates=CANDIDATES,
            least=self.threshold,
            threshold=OVERLAP,
        )
        return combined | dict(zip(FOUND, map(np.asarray, found)))


def _make_model(config: ml_collections.ConfigDict) -> RetinaNet:
    """The network of `config.model`, whose pyramid must fit the film."""
    c, dtype = config.model, jnp.dtype(config.precision)
    model = RetinaNet(
        backbone=make_backbone(config, dtype),
        num_findings=len(config.classes),
        anchors=anchors.PER_CELL,
        width=c.width,
        depth=c.depth,
        freeze_norms=c.freeze_norms,
        dtype=dtype,
    )
    check_stride(config.preprocess.size, max(model.taps))
    return model


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant."""
    for name, low, high in (("threshold", 0, 1), ("most_boxes", 1, CANDIDATES)):
        if not low <= config[name] <= high:
            raise InputError(f"config.{name}={config[name]}; it must lie in {low}..{high}")
    if not 0 < config.anchor_scale < np.inf:
        raise InputError(f"config.anchor_scale={config.anchor_scale}; expected a positive number")
    for name in ("width", "depth"):
        if config.model[name] < 1:
            raise InputError(f"config.model.{name}={config.model[name]}; expected at least 1")
