"""Ten findings of a film, the pre-training of the corpus (Park et al. 2021, 'corpus_vit').

Sec. 3.1: DenseNet-121 with PCAM pooling (Ye et al., arXiv:2005.14480) is trained on ten findings of
frontal films; the features before the pooling are the corpus that severity and diagnosis read.
Binary cross-entropy per finding, averaged over the findings that are known of a film.

The network's parts are `backbone` and `heads`, so that `init_from` of a severity run finds the
backbone under its own name. Boxes and lesion masks are never trained on: `score` and `measure`
alone read them.
"""

import dataclasses
import functools
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax import figures, losses
from cxr_jax.data import boxes as film_boxes
from cxr_jax.data.augment import Augment
from cxr_jax.data.lungs import LungMasks
from cxr_jax.data.pipeline import Transforms
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.records import FINDINGS, Record
from cxr_jax.data.sources.base import Source, never_known, only_with
from cxr_jax.errors import InputError
from cxr_jax.explain import gradcam, measured
from cxr_jax.metrics import findings
from cxr_jax.metrics.bootstrap import bootstrap
from cxr_jax.models.densenet import DenseNet
from cxr_jax.models.pcam import PCAMHeads, PCAMNet
from cxr_jax.tasks.base import Data, Evaluation, Task

OPACITY = FINDINGS.index("lung opacity")  # what lesion masks show
POOLS = ("pcam", "avg", "max", "lse", "exp", "linear")
_FIGURE_RESAMPLES = 200  # enough for the bars of a picture; results.json has config.bootstrap


@dataclasses.dataclass(frozen=True)
class Findings(Task):
    """See the module.

    Attributes:
      positive_weights: () as in the paper, or ten factors on the loss of positive labels, for
        findings that are rare.
      untrained: findings that the training set does not label. Their outputs are noise: they are
        neither trained, scored, drawn nor told.
      lungs: None, or where the masks come from with which the film is multiplied, as severity
        does. Neither paper says what the corpus was trained on; the default is whole films.
    """

    name: ClassVar[str] = "findings"
    model: PCAMNet
    preprocess: Preprocess
    augment: Augment
    positive_weights: tuple[float, ...]
    untrained: tuple[str, ...]
    lungs: LungMasks | None

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Findings":
        _check(config)
        c, dtype = config.model, jnp.dtype(config.precision)
        backbone = DenseNet(
            growth_rate=c.backbone.growth_rate,
            block_sizes=tuple(c.backbone.block_sizes),
            init_features=c.backbone.init_features,
            dtype=dtype,
        )
        heads = PCAMHeads(len(FINDINGS), pool=config.pool, lse_gamma=c.lse_gamma, dtype=dtype)
        return cls(
            model=PCAMNet(backbone=backbone, heads=heads),
            preprocess=Preprocess(**config.preprocess),
            augment=Augment(**config.augment),
            positive_weights=tuple(float(weight) for weight in config.positive_weights),
            untrained=tuple(config.untrained),
            lungs=LungMasks(**config.lungs) if config.mask_lungs else None,
        )

    @property
    def data(self) -> Data:
        inputs = frozenset({"image", "lungs"} if self.lungs else {"image"})
        return Data(
            fields=inputs | {"findings"},
            inputs=inputs,
            labels=frozenset({"findings"}),
            transforms=Transforms(example=self._example, finish=self._finish),
            adapt=_with_findings,
            unlabelled=self._unlabelled,
        )

    def _unlabelled(self, source: Source) -> tuple[str, ...]:
        """Findings that are neither known of any film nor among `untrained`. Films are looked at
        until all are.

        Raises:
          InputError: that is all of them.
        """
        waiting = never_known(source, ("findings",), self._trained)
        if len(source) and (waiting == self._trained).all():
            raise InputError(
                f"data set {source.name!r} (split {source.split!r}): no finding is known of any "
                "film, so there is nothing to learn; fill in the findings"
            )
        return tuple(name for name, unknown in zip(FINDINGS, waiting, strict=True) if unknown)

    @property
    def _trained(self) -> np.ndarray:
        """bool [10]: the outputs that mean something."""
        return np.array([name not in self.untrained for name in FINDINGS])

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        example = {"image": self.preprocess.film(record["image"])}
        if self.lungs:
            example["lungs"] = self.preprocess.mask(record["lungs"])
        unknown = np.full(len(FINDINGS), np.nan)
        known = np.asarray(record.get("findings", unknown), np.float32)
        example["findings"] = np.where(self._trained, known, np.float32(np.nan))
        example["boxes"], example["box_label"] = self._boxes(record)
        return example | {"lesion": self.preprocess.mask_or_empty(record.get("lesion"))}

    def _boxes(self, record: Record) -> tuple[np.ndarray, np.ndarray]:
        """float32 [M, 4] in pixels of the square, and labels int32 [M]; -1 where not trained."""
        drawn = record.get("boxes", np.zeros((0, 4), np.float32))
        # The film is stretched to the square, and its boxes with it.
        drawn = self.preprocess.boxes(drawn, record["image"].shape)
        labels = record.get("box_label", np.zeros(0, np.int32))
        padded, labels = film_boxes.pad(drawn, labels, length=film_boxes.MOST, film=record["id"])
        return padded, np.where(np.isin(labels, np.flatnonzero(self._trained)), labels, -1)

    def _finish(self, example, rng):
        if rng is not None:
            # Not trained on, and `augment` does not move boxes.
            unused = ("boxes", "box_label", "lesion")
            example = {k: v for k, v in example.items() if k not in unused}
            example = self.augment(example, rng)
        return {**example, "image": self.preprocess.normalize(example["image"])}

    def init(self, rng, batch):
        return self.model.init(rng, self._input(batch)[:1], train=False)

    def _input(self, batch):
        """Films [B, H, W], outside the lungs 0 (the mean grey) if masked -> [B, H, W, 3]."""
        image = batch["image"]
        if self.lungs:
            image = image * (batch["lungs"] > 0)
        return jnp.repeat(image[..., None], 3, axis=-1)

    def loss(self, variables, batch, *, rng, step):
        """Binary cross-entropy of each finding, averaged over the known ones of a film."""
        out, state = self.model.apply(
            variables, self._input(batch), train=True, mutable=["batch_stats"]
        )
        weights = jnp.asarray(self.positive_weights) if self.positive_weights else None
        per_film = losses.masked_bce(out["logits"], batch["findings"], positive_weights=weights)
        return jnp.mean(per_film), (state, {})

    def predict(self, variables, batch):
        """`probs` [B, 10] and `heat` [B, h, w, 10], the sigmoid of the logit maps; float32, in the
        order of `records.FINDINGS`. `absent` and `heat_absent` are 1 minus them, without the
        rounding to 0 where the network is sure: by the quotient films and cells keep their order.
        """
        out = self.model.apply(variables, self._input(batch), train=False)
        return {
            "probs": jax.nn.sigmoid(out["logits"]),
            "absent": jax.nn.sigmoid(-out["logits"]),
            "heat": jax.nn.sigmoid(out["logit_maps"]),
            "heat_absent": jax.nn.sigmoid(-out["logit_maps"]),
        }

    def measure(self, variables, batch):
        """How good the maps of `OPACITY` are: `heat`, the network's own logits, and Grad-CAM of its
        last map; beside them `brightness`, the film itself, and a `blind`, flat map."""
        films = self._input(batch)
        out = self.model.apply(variables, films, train=False)
        images, cells = films[..., 0], out["final"]
        heads = {"params": variables["params"]["heads"]}

        def logits(cells):
            return self.model.heads.apply(heads, cells)["logits"]

        def probability(images):
            return self.predict(variables, batch | {"image": images})["probs"][:, OPACITY]

        maps = {
            "heat": out["logit_maps"][..., OPACITY],
            "gradcam": gradcam.grad_cam(logits, cells, jnp.full(len(images), OPACITY)),
            "brightness": measured.resized(images, cells.shape[1:3]),
            "blind": jnp.zeros(cells.shape[:3]),
        }
        return measured.measured(maps, probability, images=images, lesion=batch["lesion"])

    def score(self, outputs, batch):
        """Rows for `metrics.findings`."""
        rows = {"probs": outputs["probs"], "labels": batch["findings"]}
        rows["log_odds"] = _log_odds(outputs["probs"], outputs["absent"])
        shares = batch["boxes"] / self.preprocess.size
        heat = _log_odds(outputs["heat"], outputs["heat_absent"])
        rows |= findings.pointing(heat, shares, batch["box_label"])
        return rows | measured.rows_of(outputs)

    @property
    def evaluation(self) -> Evaluation:
        return FindingsEvaluation()

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        kept = np.flatnonzero(self._trained)
        true, boxes, labels = (record.get(name) for name in ("findings", "boxes", "box_label"))
        if boxes is not None:
            drawn = np.isin(labels, kept)
            boxes, labels = boxes[drawn], np.searchsorted(kept, np.asarray(labels)[drawn])
        return figures.findings_panel(
            record["image"],
            heat=outputs["heat"][..., kept],
            probs=outputs["probs"][kept],
            names=[FINDINGS[k] for k in kept],
            findings_true=None if true is None else true[kept],
            boxes=boxes,
            box_label=labels,
            title=str(record["id"]),
        )

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        del record  # a finding has no place in the answer
        return {
            "findings": {
                name: round(float(p), 4) if trained else None
                for name, p, trained in zip(FINDINGS, outputs["probs"], self._trained, strict=True)
            }
        }


def _mean_known(values: np.ndarray) -> np.ndarray:
    """[N, K] -> [N], the mean of what is not NaN; NaN where nothing is."""
    known = ~np.isnan(values)
    total = np.where(known, values, 0).sum(axis=1)
    return np.where(known.any(axis=1), total / np.maximum(known.sum(axis=1), 1), np.nan)


def _log_odds(present: jax.Array, absent: jax.Array) -> jax.Array:
    """log(present / absent) of probabilities that sum to one, finite."""
    least = jnp.finfo(jnp.float32).tiny
    return jnp.log(jnp.maximum(present, least)) - jnp.log(jnp.maximum(absent, least))


class FindingsEvaluation(Evaluation):
    """Discrimination of each finding, and whether its map points at it."""

    columns = ("mean_auc", "mean_pointing", "mean_pointing_chance")

    def report(self, units):
        return findings.findings_report(units)

    def case_errors(self, rows):
        """The mean of |probability - label| over the known findings."""
        return _mean_known(np.abs(np.asarray(rows["probs"], np.float64) - rows["labels"]))

    def report_of(self, units):
        """With means over the findings that `units` can measure."""
        return functools.partial(findings.findings_report, over=findings.measured(units))

    def figures(self, rows):
        """The AUC of each finding with its interval."""
        found = bootstrap(
            findings.finding_aucs,
            {n: rows[n] for n in ("probs", "log_odds", "labels") if n in rows},
            rows["group"],
            resamples=_FIGURE_RESAMPLES,
        )
        positives = np.nansum(rows["labels"], axis=0).astype(int)
        known = (~np.isnan(rows["labels"])).sum(axis=0)
        return {
            "auc": figures.auc_chart(
                FINDINGS,
                [(auc.value, auc.low, auc.high) for auc in found.values()],
                [f"{p} of {n}" for p, n in zip(positives, known)],
            )
        }


def _with_findings(source: Source, *, training: bool) -> Source:
    """Leaves out films of which no finding is known."""
    del training
    if (names := getattr(source, "findings", FINDINGS)) != FINDINGS:
        raise InputError(
            f"data set {source.name!r} has other findings ({', '.join(names[:3])}, ...) than this "
            f"task learns ({', '.join(FINDINGS[:3])}, ...); choose another data set"
        )
    return only_with(source, {"findings"})


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant."""
    if config.pool not in POOLS:
        raise InputError(f"config.pool={config.pool!r}; expected one of {', '.join(POOLS)}")
    if config.second.name and config.second.labels != "given":
        raise InputError(
            f"config.second.labels={config.second.labels!r}: nothing can be learned from films "
            "without findings; set it to given, or config.second.name to nothing"
        )
    weights = tuple(float(weight) for weight in config.positive_weights)
    if len(weights) not in (0, len(FINDINGS)) or not all(0 < w < np.inf for w in weights):
        raise InputError(
            f"config.positive_weights={weights}; expected () or {len(FINDINGS)} positive "
            "numbers, in the order of records.FINDINGS"
        )
    if wrong := set(config.untrained) - set(FINDINGS):
        raise InputError(
            f"config.untrained has {min(wrong)!r}; the findings are {', '.join(FINDINGS)}"
        )
    stride = 2 ** (len(config.model.backbone.block_sizes) + 1)
    if config.preprocess.size % stride:
        raise InputError(
            f"config.preprocess.size={config.preprocess.size}: the backbone's stride {stride} "
            "must divide it"
        )
