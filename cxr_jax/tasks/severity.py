"""Severity scoring and lesion maps (Kim et al. 2021, 'severity_vit').

Eq. 1: c = F(x), the corpus: a tap of DenseNet on the lung-masked film.
Eqs. 2-7: a ViT over its cells; its last LayerNorm, not in the equations, comes before the head.
Eq. 8: y = MAPHEAD(z) * m, the lesion probability map.
Eq. 9: a = RMP(y, m), the 3x2 severity array, the largest probability of each lung zone; binary
cross-entropy against the zone labels.

No map is ever trained on: lesion masks are read by `score` and `measure` alone.

Progressive self-training (Sec. 2.3, Fig. 2; Table 3): films of a second set without labels join in
stages; at the start of each a frozen copy of the network becomes the teacher, whose answer on the
clean film is the label of the augmented one.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from cxr_jax import figures, losses, teacher
from cxr_jax.data import zones
from cxr_jax.data.augment import Augment
from cxr_jax.data.lungs import LungMasks
from cxr_jax.data.pipeline import Stage, Transforms
from cxr_jax.data.preprocess import Preprocess, resize_map
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source, peek
from cxr_jax.errors import InputError
from cxr_jax.explain import gradcam, measured
from cxr_jax.metrics import lesion_hits, regression, segmentation, severity
from cxr_jax.models import corpus_vit
from cxr_jax.models.map_head import SeverityMapHead
from cxr_jax.ops import pooling
from cxr_jax.tasks.base import Data, Evaluation, Rows, Task

Array = jax.Array

REGIMES = ("labelled", "supervised", "progressive", "one_step")


class SeverityNet(corpus_vit.CorpusViT):
    """Corpus, transformer and map head."""

    head: SeverityMapHead

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalised films times lung masks [B, H, W] -> logits [B, h, w, levels] of the map."""
        return self.read(self.features(x, train=train), train=train)

    def read(self, cells: Array, *, train: bool) -> Array:
        """The corpus [B, h, w, C] -> logits [B, h, w, levels] of the map."""
        if self.vit is not None:
            cells = self.vit(cells, train=train)["map"]
        return self.head(cells, train=self.trains_norms(train))


@dataclasses.dataclass(frozen=True)
class Regime:
    """How a second data set is used (Table 3 of Kim et al. 2021).

    Attributes:
      name: 'labelled': not at all. 'supervised': with its labels, from the start. 'progressive':
        without labels; after every `stage_steps` steps the student becomes the teacher and a
        further 1 / `shares` of the films join. 'one_step': all join after the first `stage_steps`,
        and that teacher stays.
      stage_steps: length of a stage.
      shares: number of parts in which the films join (the paper's sixth stage ends the training).
      pseudo_labels: 'hard' (the teacher's probability >= 0.5) or 'soft' (the probability itself).
      second_fraction: share of the second set in every batch; 0: as the numbers of films are.
      refresh_batches: before each copy, so many batches bring the batch statistics up to the
        weights; 0: the teacher has the running ones.
      teacher_decay: of a moving average of the student, of which the copies are taken; 0: the
        student as it is at that step.
    """

    name: str = "labelled"
    stage_steps: int = 2000
    shares: int = 5
    pseudo_labels: str = "hard"
    second_fraction: float = 0.0
    refresh_batches: int = 0
    teacher_decay: float = 0.0

    def __post_init__(self):
        for name, values in (("name", REGIMES), ("pseudo_labels", ("hard", "soft"))):
            if getattr(self, name) not in values:
                raise InputError(
                    f"config.regime.{name}={getattr(self, name)!r}; expected one of "
                    f"{', '.join(values)}"
                )
        for name in ("stage_steps", "shares"):
            if getattr(self, name) < 1:
                raise InputError(f"config.regime.{name}={getattr(self, name)}; expected at least 1")
        if self.refresh_batches < 0 or not 0 <= self.teacher_decay < 1:
            raise InputError(
                f"config.regime.refresh_batches={self.refresh_batches} and teacher_decay="
                f"{self.teacher_decay}; expected at least 0, and 0..1 (1 excluded)"
            )
        if not 0 <= self.second_fraction < 1:
            raise InputError(
                f"config.regime.second_fraction={self.second_fraction}; expected 0 (as the numbers "
                "of films are) or a share below 1"
            )

    @property
    def teaches(self) -> bool:
        """Whether a teacher labels films."""
        return self.name in ("progressive", "one_step")

    @property
    def stages(self) -> tuple[Stage, ...]:
        """The films that are in, step by step."""
        fraction = self.second_fraction or None
        if self.name == "supervised":
            return (Stage(0, 1.0, fraction),)
        shares = {"labelled": 0, "progressive": self.shares, "one_step": 1}[self.name]
        joining = [
            Stage(k * self.stage_steps, k / shares, fraction, refresh_batches=self.refresh_batches)
            for k in range(1, shares + 1)
        ]
        return (Stage(0, 0.0), *joining)


@dataclasses.dataclass(frozen=True)
class Severity(Task):
    """See the module.

    Attributes:
      pool: 'max' (Eq. 9) or 'mean' (the ablation).
      levels: 1: a zone is negative or positive, as in the paper. 3: one map for each of
        score >= 1, >= 2, >= 3 (cumulative levels, each with its own loss); the first is the
        paper's map and gives every binary metric, the sum of the three is the expected 0..3 score.
      lungs: where the lung masks come from.
    """

    name: ClassVar[str] = "severity"
    model: SeverityNet
    preprocess: Preprocess
    augment: Augment
    pool: str
    levels: int
    lungs: LungMasks
    regime: Regime

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Severity":
        lungs = LungMasks(**config.lungs)
        if config.pool not in ("max", "mean"):
            raise InputError(f"config.pool={config.pool!r}; expected max or mean")
        model = _make_model(config)
        regime = Regime(**config.regime)
        _check_second(regime, config.second)
        if config.levels not in (1, 3):
            raise InputError(f"config.levels={config.levels}; expected 1 or 3")
        return cls(
            model=model,
            preprocess=Preprocess(**config.preprocess),
            augment=Augment(**config.augment),
            pool=config.pool,
            levels=config.levels,
            lungs=lungs,
            regime=regime,
        )

    @property
    def data(self) -> Data:
        return Data(
            fields=frozenset({"image", "lungs", "severity"}),
            inputs=frozenset({"image", "lungs"}),
            labels=frozenset({"severity", "severity_valid", "severity_second"}),
            stages=self.regime.stages,
            transforms=Transforms(example=self._example, finish=self._finish),
            adapt=_with_scores,
        )

    @property
    def frozen(self) -> dict[str, str]:
        trained = self.model.train_backbone or self.model.backbone is None
        return {} if trained else {"backbone/.*": "config.model.train_backbone=True"}

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        example = {"image": self.preprocess.film(record["image"]), **self._masks(record)}
        labelled = "severity" in record
        score = np.asarray(record["severity"] if labelled else np.zeros((3, 2)), np.int8)
        valid = record.get("severity_valid", np.full((3, 2), labelled))
        example |= {
            "labelled": np.array(labelled),
            "severity": score,
            "severity_valid": np.asarray(valid, bool),
        }
        if "severity_second" in record:
            example["severity_second"] = np.asarray(record["severity_second"], np.int8)
        # Some films of a data set may have a lesion mask and others not; a batch has one shape.
        example["has_lesion"] = np.array("lesion" in record)
        example["lesion"] = self.preprocess.mask_or_empty(record.get("lesion"))
        return example

    def _masks(self, record: Record) -> dict[str, np.ndarray]:
        """The lungs and their zones."""
        lungs = self.preprocess.mask(record["lungs"])
        zone_map, _ = zones.zone_map(lungs)
        if self.lungs.masks == "record" and not zone_map.any():
            # A predicted mask may be empty: its film then has no valid zone and takes no part.
            raise InputError(
                f"film {record['id']!r} has an empty lung mask; mend it, or leave the film out"
            )
        return {"lungs": lungs, "zones": zone_map}

    def _finish(self, example, rng):
        if rng is not None:
            unused = ("lesion", "has_lesion", "severity_second")  # in training
            clean = {k: v for k, v in example.items() if k not in unused}
            example = self.augment(clean | {"zone_order": ZONE_ORDER}, rng)
            if self.regime.teaches:  # the teacher looks at the clean film
                example |= {f"clean_{name}": clean[name] for name in ("image", "lungs", "zones")}
                example["clean_image"] = self.preprocess.normalize(example["clean_image"])
        return {**example, "image": self.preprocess.normalize(example["image"])}

    def init(self, rng, batch):
        variables = self.model.init(rng, batch["image"][:1], train=False)
        if not self.regime.teaches:
            return variables
        return teacher.init(variables, average=self.regime.teacher_decay > 0)

    def _logits(self, variables, batch, *, train: bool, rng=None):
        """Logits [B, h, w, levels], the zone map at that size, new model state."""
        x = batch["image"] * (batch["lungs"] > 0)  # x * m of Eq. 1: 0 is the mean grey
        logits, state = self.model.apply(
            variables,
            x,
            train=train,
            mutable=["batch_stats"] if train else [],
            rngs=None if rng is None else {"dropout": rng},
        )
        return logits, _at_size(batch["zones"], logits.shape[1]), state

    def loss(self, variables, batch, *, rng, step):
        """Binary cross-entropy of each zone's pooled probability, per level, in the log domain."""
        logits, zone_map, state = self._logits(variables, batch, train=True, rng=rng)
        valid = batch["severity_valid"]
        labels = (batch["severity"][..., None] > jnp.arange(self.levels)).astype(jnp.float32)
        terms = {}
        if self.regime.teaches:
            copy = teacher.copy_at([s.first_step for s in self.regime.stages[1:]], variables, step)
            taught, there = self._pseudo_labels(copy, batch, step)
            known = batch["labelled"][:, None, None]
            valid = jnp.where(known, valid, there)
            labels = jnp.where(known[..., None], labels, taught)
            state = {**state, teacher.COLLECTION: copy, **self._average(variables, step)}
            terms["pseudo_labelled"] = 1 - jnp.mean(batch["labelled"], dtype=jnp.float32)
        valid &= pooling.zone_valid(zone_map)
        per_level = []
        for level in range(self.levels):
            log_p, log_1mp = pooling.zone_log_probs(logits[..., level], zone_map, mode=self.pool)
            bce = losses.binary_cross_entropy_from_log_probs(
                log_p, log_1mp, labels=labels[..., level], valid=valid
            )
            per_level.append(jnp.mean(bce))
        terms |= {f"bce_{i + 1}": value for i, value in enumerate(per_level) if self.levels > 1}
        return sum(per_level) / self.levels, (state, terms)

    def _average(self, variables, step):
        """The average of which copies are taken, for the next step; {} where there is none."""
        if teacher.AVERAGE not in variables:
            return {}
        decay, name = self.regime.teacher_decay, teacher.AVERAGE
        return {name: teacher.ema(decay, variables, step, collection=name)}

    def _pseudo_labels(self, copy, batch, step):
        """The teacher's labels [B, 3, 2, levels] of the clean films, in the order of the augmented
        film's zones, and the zones [B, 3, 2] it saw."""

        def ask(copy):
            clean = {name: batch[f"clean_{name}"] for name in ("image", "lungs", "zones")}
            logits, zone_map, _ = self._logits(copy, clean, train=False)
            probs = jax.nn.sigmoid(logits)
            levels = [
                pooling.zone_pool(probs[..., i], zone_map, mode=self.pool)
                for i in range(self.levels)
            ]
            return jnp.stack(levels, axis=-1), pooling.zone_valid(zone_map)

        def silent(copy):  # in the first stage every film has its label
            answer = jax.eval_shape(ask, copy)
            return jax.tree.map(lambda x: jnp.zeros(x.shape, x.dtype), answer)

        probs, there = jax.lax.cond(step >= self.regime.stages[1].first_step, ask, silent, copy)
        labels = (
            (probs >= 0.5).astype(jnp.float32) if self.regime.pseudo_labels == "hard" else probs
        )
        order = batch["zone_order"].reshape(-1, 6)
        pick = jax.vmap(lambda x, i: x.reshape(6, -1)[i].reshape(x.shape))
        return pick(labels, order), pick(there, order)

    def predict(self, variables, batch):
        """`map` [B, h, w]: y of Eq. 8; `probs` [B, 3, 2]: a of Eq. 9; `zone_valid` [B, 3, 2] as
        0/1; `lung_share` [B] of the picture; with three levels `score` [B, 3, 2], the expected
        0..3 score.

        Over an ensemble each is averaged by itself: a zone's mean probability may then exceed
        every pixel of the mean map, whose members have their maxima in different places.
        """
        logits, zone_map, _ = self._logits(variables, batch, train=False)
        maps = jax.nn.sigmoid(logits) * (zone_map > 0)[..., None]
        levels = [
            pooling.zone_pool(maps[..., i], zone_map, mode=self.pool) for i in range(self.levels)
        ]
        outputs = {
            "map": maps[..., 0],
            "probs": levels[0],
            "zone_valid": pooling.zone_valid(zone_map).astype(jnp.float32),
            "lung_share": jnp.mean(zone_map > 0, axis=(1, 2), dtype=jnp.float32),
        }
        return outputs | ({"score": sum(levels)} if self.levels > 1 else {})

    def measure(self, variables, batch):
        """How good the maps are: `map`, the network's own, y of Eq. 8, and Grad-CAM of the corpus,
        for the log-odds of the zones together; beside them `brightness`, the film in the lungs, and
        `lungs`, which are blind to what is in them. The probability that is deleted is the zones'
        mean."""
        images = batch["image"] * (batch["lungs"] > 0)

        def predicted(images):
            return self.predict(variables, batch | {"image": images})

        def probability(images):
            out = predicted(images)
            count = jnp.maximum(jnp.sum(out["zone_valid"], axis=(1, 2)), 1)
            return jnp.sum(out["probs"] * out["zone_valid"], axis=(1, 2)) / count

        def log_odds(cells):
            logits = self.model.apply(variables, cells, train=False, method="read")[..., 0]
            zone_map = _at_size(batch["zones"], logits.shape[1])
            log_p, log_1mp = pooling.zone_log_probs(logits, zone_map, mode=self.pool)
            return jnp.sum(log_p - log_1mp, axis=(1, 2))[:, None]

        cells = self.model.apply(variables, images, train=False, method="features")
        own = predicted(images)["map"]
        lungs = _at_size(batch["zones"], own.shape[1]) > 0
        bright = measured.resized(images, own.shape[1:])
        maps = {
            "map": own,
            "brightness": jnp.where(lungs, bright - jnp.min(bright, axis=(1, 2), keepdims=True), 0),
            "lungs": lungs.astype(jnp.float32),
        }
        if self.model.backbone is not None:
            zeros = jnp.zeros(len(images), int)
            maps["gradcam"] = gradcam.grad_cam(log_odds, cells, zeros)
        return measured.measured(maps, probability, images=images, lesion=batch["lesion"])

    def score(self, outputs, batch):
        """Rows for `metrics.severity`. Lesion masks are read here and in `measure` only."""
        rows = {
            "probs": outputs["probs"],
            "labels": (batch["severity"] > 0).astype(jnp.float32),
            "scores": batch["severity"].astype(jnp.float32),
            "valid": batch["severity_valid"] & (outputs["zone_valid"] > 0.5),
            "labelled": batch["severity_valid"],
        }
        if "score" in outputs:
            rows["score_pred"] = outputs["score"]
        if "severity_second" in batch:
            rows["scores_second"] = batch["severity_second"].astype(jnp.float32)
        size = outputs["map"].shape[1]
        lesion, there = _at_size(batch["lesion"], size), batch["has_lesion"]
        overlap = segmentation.overlap_rows(outputs["map"] >= 0.5, lesion)
        nonempty = overlap.pop("nonempty") & there
        rows |= {f"lesion_{k}": jnp.where(there, v, jnp.nan) for k, v in overlap.items()}
        positive = batch["severity"] * batch["severity_valid"] * there[:, None, None]
        rows |= lesion_hits.pointing(
            outputs["map"],
            zones=_at_size(batch["zones"], size),
            lesion=lesion,
            severity=positive,
        )
        rows["lesion_nonempty"] = nonempty
        return rows | measured.rows_of(outputs)

    @property
    def evaluation(self) -> Evaluation:
        return SeverityEvaluation()

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        film = record["image"]
        zone_map, _ = zones.zone_map(record["lungs"])
        true = record.get("severity")
        if true is not None:
            true = np.where(record.get("severity_valid", True), true, -1)
        return figures.severity_panel(
            film,
            lungs=record["lungs"],
            zones=zone_map,
            prob_map=resize_map(outputs["map"], film.shape),
            severity_probs=outputs["probs"],
            severity_scores=outputs.get("score"),
            severity_true=true,
            lesion_true=record.get("lesion"),
            title=str(record["id"]),
        )

    def layers(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """The lesion map."""
        probs = resize_map(outputs["map"], record["image"].shape)
        return {"map": np.rint(255 * np.clip(probs, 0, 1)).astype(np.uint8)}

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        del record  # all is told of the zones
        probs, valid = outputs["probs"], outputs["zone_valid"] > 0.5
        description = {
            "severity": _table(probs, valid),
            "zones_seen": int(valid.sum()),
            "severity_hard": _table((probs >= 0.5).astype(int), valid),
            "global_soft": round(float(probs[valid].sum()), 4),
            "global_hard": int((probs[valid] >= 0.5).sum()),
            "lesion_share_of_lungs": round(
                float(np.mean(outputs["map"] >= 0.5) / max(float(outputs["lung_share"]), 1e-6)), 4
            ),
        }
        if "score" in outputs:
            description["score_0_to_3"] = _table(outputs["score"], valid)
            total = round(float(outputs["score"][valid].sum()), 4)
            description["global_0_to_18"] = total if valid.all() else None
        return description


class SeverityEvaluation(Evaluation):
    """Tables 2 and 3; beside them the second reader and the training mean."""

    columns = (
        *("mse", "mae", "cc", "r2", "hard_mse", "hard_mae", "mean_auc", "zone_accuracy"),
        *("region_mae", "global_mae_18", "global_cc_18"),
    )
    mean_over_runs = ("probs", "score_pred")
    compared_with_references = ("mse", "mae")

    def report(self, units):
        return severity.severity_report(units)

    def case_errors(self, rows):
        """|error| of the global score, 0..6."""
        valid = np.asarray(rows["valid"], bool)
        wrong = np.where(valid, np.asarray(rows["probs"], np.float64) - rows["labels"], 0.0)
        scored = valid.any(axis=(1, 2))
        return np.where(scored, np.abs(wrong.sum(axis=(1, 2))), np.nan)

    def references(self, rows: Rows, training: Source) -> dict[str, Rows]:
        """The second reader, where the data set has one, and the mean of the training films, zone
        by zone."""
        keep = {name: rows[name] for name in ("labels", "scores", "valid", "group", "id")}
        found = {}
        if "scores_second" in rows:
            second = rows["scores_second"]
            found["second reader"] = keep | {
                "probs": (second > 0).astype(np.float32),
                "score_pred": second,
            }
        scores, valid = _training_scores(training)
        count = np.maximum(valid.sum(axis=0), 1)
        shape = rows["labels"].shape
        found["constant, training mean"] = keep | {
            "probs": np.broadcast_to(((scores > 0) * valid).sum(axis=0) / count, shape),
            "score_pred": np.broadcast_to((scores * valid).sum(axis=0) / count, shape),
        }
        return found

    def figures(self, rows):
        valid = rows["valid"].astype(bool)
        scored = valid.any(axis=(1, 2))
        predicted = np.where(valid, rows["probs"], 0).sum(axis=(1, 2))[scored]
        true = np.where(valid, rows["labels"], 0).sum(axis=(1, 2))[scored]
        told = {
            metric.__name__: metric(predicted, true)
            for metric in (regression.mse, regression.mae, regression.cc)
        }
        return {"scatter": figures.scatter_scores(predicted, true, told)}


def _training_scores(training: Source) -> tuple[np.ndarray, np.ndarray]:
    """Zone scores 0..3 [N, 3, 2] of the training films, and which zones were scored."""
    scores, valid = [], []
    for i in tqdm.tqdm(range(len(training)), "training films", unit="film", disable=None):
        record = training[i]
        scores.append(np.asarray(record["severity"], np.float64))
        valid.append(np.asarray(record.get("severity_valid", np.ones((3, 2))), bool))
    return np.stack(scores), np.stack(valid)


def _with_scores(source: Source, *, training: bool) -> Source:
    """The source itself. Films are looked at until one has a scored zone.

    Raises:
      InputError: no training film has one.
    """
    if not training or not source.fields >= {"severity", "severity_valid"}:
        return source
    looked_at = (peek(source, index, "severity_valid") for index in range(len(source)))
    if not any(valid is None or np.any(valid) for valid in looked_at):
        raise InputError(
            f"data set {source.name!r} (split {source.split!r}): no film has a scored zone, so "
            "there is nothing to learn; fill in the scores"
        )
    return source


def _make_model(config: ml_collections.ConfigDict) -> SeverityNet:
    """The network of `config.model`, whose parts must fit the size of the films."""
    c, dtype = config.model, jnp.dtype(config.precision)
    backbone, vit = corpus_vit.make_parts(config, dtype)
    side = config.preprocess.size
    cells, cell = corpus_vit.cells_of(side, backbone, vit)
    if side % (cells * 2**c.head_blocks):
        raise InputError(
            f"config.preprocess.size={side} with cells of {cell} px and head_blocks="
            f"{c.head_blocks}: the map's side (size / stride * 2^head_blocks) must divide the size"
        )
    return SeverityNet(
        backbone=backbone,
        vit=vit,
        head=SeverityMapHead(blocks=c.head_blocks, out_channels=config.levels, dtype=dtype),
        train_backbone=c.train_backbone,
        freeze_norms=c.freeze_norms,
    )


def _check_second(regime: Regime, second: ml_collections.ConfigDict) -> None:
    """Refuses a regime without its second data set, or the other way round."""
    if regime.name == "labelled" and second.name:
        raise InputError(
            f"config.second.name={second.name!r} beside config.regime.name='labelled', which uses "
            f"no second data set; choose one of {', '.join(REGIMES[1:])}"
        )
    if regime.name != "labelled" and not second.name:
        raise InputError(
            f"config.regime.name={regime.name!r} needs a second data set: set config.second.name"
        )
    wanted = "hidden" if regime.teaches else "given"
    if second.name and second.labels != wanted:
        raise InputError(
            f"config.second.labels={second.labels!r} beside config.regime.name={regime.name!r}, "
            f"which needs {wanted!r}"
        )


# The zones by number, so that a mirrored film says which of the clean film's zones lies where.
ZONE_ORDER = np.arange(6, dtype=np.int8).reshape(3, 2)


def _at_size(masks: Array, size: int) -> Array:
    """Integer masks [B, H, W] -> [B, size, size] by taking every n-th pixel, centred."""
    step = masks.shape[1] // size
    return masks[:, step // 2 :: step, step // 2 :: step]


def _table(values: np.ndarray, valid: np.ndarray) -> list[list[float | int | None]]:
    """[3, 2] as JSON: rows upper, middle, lower; right lung, left lung; null where no zone is."""
    return [
        [(round(v.item(), 4) if ok else None) for v, ok in zip(row, oks)]
        for row, oks in zip(np.asarray(values), valid)
    ]
