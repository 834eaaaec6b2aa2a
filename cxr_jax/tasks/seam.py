"""Lesions of chest CT from labels of slices: SEAM, NAM and bags of slices (Tang et al. 2021).

Tang et al., MICCAI 2021, 'm_seam_nam'. A network learns from the words "a lesion is in this slice",
or "in one of these eight", where in the slice it is. Six methods share this task:

| method | what |
| --- | --- |
| cam | the class activation map (CAM) of the classifier; the paper's pre-training of the others |
| multiscale_cam | the same, its maps averaged over scales and flips |
| seam | two scales that must agree, maps refined by the pixel correlation module (Sec. 2.1) |
| seam_nam | the neighbourhood affinity module beside it (Sec. 2.2) |
| m_seam_nam | bags of eight slices under one label (Sec. 2.3); so had the CAM it starts from |
| unet | the supervised U-Net, which alone sees masks in training |

An example is a bag: [S, H, W, 3], three consecutive slices as channels; of all methods but
m_seam_nam a bag is one slice unless `config.bag` says more, and its logit the slice's own. Masks
are taken out of the training slices of every method but `unet` before anything reads them. A
training bag is turned head to feet half of the time, which is ours.

Where the paper is silent: a slice whose own probability is below 0.5 counts as free of lesions
(`gate`), for a map that is divided by its maximum always has a brightest point. Table 1 has one
and the same Dice of negative patients, 0.958, for CAM and SEAM, so such a rule may have been at
work. The U-Net has no such gate: its own map says whether there is a lesion.
"""

import dataclasses
import math
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax import figures, losses
from cxr_jax.data.augment import Augment
from cxr_jax.data.bags import Bags, WithNeighbours
from cxr_jax.data.pipeline import Stage, Transforms
from cxr_jax.data.preprocess import Preprocess, resize_map
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source
from cxr_jax.errors import InputError
from cxr_jax.metrics import patients
from cxr_jax.models.resnet38 import ResNet38
from cxr_jax.models.seam import SEAM
from cxr_jax.models.unet import UNet
from cxr_jax.ops import affinity, pcm
from cxr_jax.ops.bags import bag_logit
from cxr_jax.ops.resize import resize_aligned
from cxr_jax.tasks.base import Array, Data, Evaluation, Rows, VolumeTask, evenly

METHODS = ("cam", "multiscale_cam", "seam", "seam_nam", "m_seam_nam", "unet")
MASKS = frozenset({"lesion", "lesion_type", "lungs"})
GATES = ("slice", "none")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the losses: `config.losses`. Eq. 8 has all one but `nfbd`, 0.5.

    Attributes:
      er: of the equivariant regularisation, Eq. 2.
      ecr: of the equivariant cross regularisation, Eq. 3.
      nfs: of the foreground's similarity, Eq. 4.
      nbs: of the background's similarity, Eq. 5.
      nfbd: of the difference between the two, Eq. 6.
      hardest: share of the values that Eq. 3 averages, the largest ones: 1 is the paper's
        equation, 0.2 the published code of SEAM.
      min_pool: of the adaptive min pooling of that code; 0 in the paper.
    """

    er: float
    ecr: float
    nfs: float
    nbs: float
    nfbd: float
    hardest: float
    min_pool: float

    def of(self, term: str) -> float:
        """The weight of a term of the loss, by its name."""
        return dataclasses.asdict(self)[term]


@dataclasses.dataclass(frozen=True)
class Affinity:
    """The neighbourhood affinity module: `config.affinity`.

    Attributes:
      foreground: T_fg; pixels of D above it are foreground.
      background: T_bg; pixels of D below it are background.
      radius: r, in pixels of the map.
    """

    foreground: float
    background: float
    radius: int


class _Shared(VolumeTask):
    """What the weak methods and the U-Net share: the data, the numbers and the pictures."""

    name: ClassVar[str] = "seam"
    bag: int
    preprocess: Preprocess
    augment: Augment
    threshold: float

    masks_in_training: ClassVar[bool] = False

    @property
    def gated(self) -> bool:
        """Whether a slice whose own probability is below 0.5 counts as free of lesions."""
        return False

    @property
    def data(self) -> Data:
        """As many negative bags as positive ones: 'to keep the sample balance' [Sec. 3.1]."""
        masks = {"lesion"} if self.masks_in_training else set()
        return Data(
            fields=frozenset({"image", "slice_label", *masks}),
            inputs=frozenset({"image", "slices"}),
            stages=(Stage(0, second_fraction=0.5),),
            transforms=Transforms(example=self._example, finish=self._finish),
            adapt=self._adapt,
        )

    def _adapt(self, source: Source, *, training: bool) -> Source:
        """Bags of labelled slices to train on, without masks; else every slice."""
        if not hasattr(source, "slice_table"):
            raise InputError(
                f"data set {source.name!r} has films and no CT slices; choose phantom_ct, "
                "ct_lesions, covid19_ct_seg or ct_volume as config.data.name"
            )
        if not training:
            return WithNeighbours(source)
        if self.masks_in_training:
            return Bags(source, self.bag, needed="lesion")
        return Bags(source, self.bag, hidden=MASKS)

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        """`image` uint8 [S + 2, H, W]; of a bag its label; of a slice what it is scored by."""
        film = self.preprocess.film
        example = {"image": np.stack([film(part["image"]) for part in record["slices"]])}
        if "bag_label" in record:
            example["bag_label"] = np.float32(record["bag_label"])
            example["instance_valid"] = np.asarray(record["instance_valid"], bool)
            if self.masks_in_training:
                example["lesion"] = self.preprocess.mask(_truth(record["slices"][1]))
            return example
        truth = _truth(record)
        shrunk = record["image"].size / self.preprocess.size**2
        return example | {
            "lesion": self.preprocess.mask_or_empty(truth),
            # Of the mask as it is: a lesion of a few pixels may be gone from a smaller one.
            "label": np.float32(
                record.get("slice_label", np.nan) if truth is None else truth.any()
            ),
            "known": np.bool_(truth is not None),
            "pixel_area": np.float32(record.get("pixel_area", 1.0) * shrunk),
        }

    def _finish(self, example, rng):
        if rng is not None:
            example = self.augment(example, rng)
            if rng.random() < 0.5:  # volumes run from the feet or from the head
                for name in ("image", "instance_valid"):
                    example[name] = example[name][::-1]
        image = self.preprocess.normalize(example["image"])
        # Slice k with its neighbours as channels: [S + 2, H, W] -> [S, H, W, 3].
        channels = np.stack([image[:-2], image[1:-1], image[2:]], axis=-1)
        return {**example, "image": channels}

    def score(self, outputs, batch):
        """Areas of each slice for `metrics.patients`; the mask is read here only."""
        prob = outputs["slice_prob"]
        shown = prob >= 0.5 if self.gated else jnp.ones_like(prob, bool)
        rows = patients.slice_rows(
            outputs["lesion_map"],
            shown=shown,
            lesion=batch["lesion"],
            pixel_area=batch["pixel_area"],
            threshold=self.threshold,
        )
        return rows | {
            "slice_prob": prob,
            "known": batch["known"],
            "label": batch["label"],
        }

    @property
    def evaluation(self) -> Evaluation:
        return PatientsEvaluation(self.threshold)

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        return figures.slice_panel(
            record["image"],
            self.shown_map(outputs, record["image"].shape),
            slice_prob=float(outputs["slice_prob"]),
            shown=self.shows(outputs),
            lesion_true=record.get("lesion"),
            threshold=self.threshold,
            title=str(record["id"]),
        )

    def shown_map(self, outputs: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        """The lesion map of a slice at `shape`; zeros where the slice is called free of lesions."""
        heat = resize_map(np.asarray(outputs["lesion_map"], np.float32), shape)
        return heat if self.shows(outputs) else np.zeros_like(heat)

    def shows(self, outputs: dict[str, np.ndarray]) -> bool:
        """False where the slice counts as free of lesions by its own probability."""
        return not self.gated or float(outputs["slice_prob"]) >= 0.5

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        del record  # of the map a share is told
        found = self.mask(outputs, outputs["lesion_map"].shape)
        return {
            "slice_prob": round(float(outputs["slice_prob"]), 4),
            "lesion_area_share": round(float(found.mean()), 4),
        }

    def mask(self, outputs: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        return (self.shown_map(outputs, shape) > self.threshold).astype(np.uint8)

    def describe_volume(
        self,
        probs: list[float],
        mask: np.ndarray,
        *,
        numbers: np.ndarray,
        spacing_mm: tuple[float, float, float],
    ) -> dict[str, Any]:
        slices = mask.sum((1, 2), dtype=np.int64)
        return {
            "slices": len(mask),
            "slices_with_lesion": sorted(np.asarray(numbers)[slices > 0].tolist()),
            "slice_probs": {str(n): round(p, 4) for n, p in sorted(zip(numbers.tolist(), probs))},
            "lesion_ml": round(float(slices.sum() * np.prod(spacing_mm) / 1000), 3),
        }


def _truth(record: Record) -> np.ndarray | None:
    """The lesions of a slice, uint8 0/1; blank where it is known to have none, None if unknown."""
    if "lesion" in record:
        return (record["lesion"] > 0).astype(np.uint8)
    if record.get("slice_label") == 0:  # of patients without a lesion nobody draws masks
        return np.zeros(record["image"].shape, np.uint8)
    return None


@dataclasses.dataclass(frozen=True)
class WeakSegmentation(_Shared):
    """CAM, SEAM and NAM. See the module.

    Attributes:
      model: the network; whether it has PCM and NAM decides which losses there are.
      bag: slices of a training bag.
      small_scale: of the second view, as a share of the first one's sides.
      losses: weights of Eq. 8.
      affinity: thresholds and radius of NAM; read where the model has it.
      scales: of the images at prediction; their maps are averaged. With more than one the mirrored
        image takes part too.
      train_norms: False: batch norms in inference mode, as SEAM's code has them. True takes the
        batch's statistics, for networks that start from random numbers.
      freeze_stem: the first convolution, b2 and all norms are not trained [SEAM's code].
      threshold: of the lesion map, 0..1.
      normalize_map: divide the refined map D by its maximum. (SEAM's code sums the maps of four
        scales and their mirror images before that; here there is one scale.) Without it D, a
        weighted mean of the activation map, may stay low on a small lesion.
      gate: 'slice' or 'none'; see the module.
    """

    model: SEAM
    bag: int
    preprocess: Preprocess
    augment: Augment
    small_scale: float
    losses: Weights
    affinity: Affinity
    scales: tuple[float, ...]
    train_norms: bool
    freeze_stem: bool
    threshold: float
    normalize_map: bool
    gate: str

    @property
    def gated(self) -> bool:
        """`gate` says so."""
        return self.gate == "slice"

    @property
    def frozen(self) -> dict[str, str]:
        """The first convolution and b2, and the norms [PAPERS, 3]; all of multiscale_cam."""
        if len(self.scales) > 1:  # looks again at a trained CAM
            return {".*": ""}
        stem = ("backbone/conv1a/.*", r"backbone/b2(_\d)?/.*", "backbone/(.*/)?bn[^/]*/.*")
        return dict.fromkeys(stem, "config.freeze_stem=False") if self.freeze_stem else {}

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1, 0], train=False)

    def loss(self, variables, batch, *, rng, step):
        """Eq. 8: the label of the bag at both scales, agreement of the scales, and affinity."""
        image, valid = batch["image"], batch["instance_valid"]
        bags, count, side = image.shape[:3]
        label = batch["bag_label"]
        first = image.reshape(-1, *image.shape[2:])
        small = max(math.floor(self.small_scale * side), 1)
        second = resize_aligned(first, (small, small))
        keys = jax.random.split(rng)
        one, state = self._view(variables, first, keys[0])
        two, _ = self._view(variables, second, keys[1])

        def soft_margin(logits: Array) -> Array:
            logit = bag_logit(logits.reshape(bags, count), valid)
            return losses.soft_margin(logit, label)

        terms = {"cls": soft_margin(one["logits"]) + soft_margin(two["logits"])}
        total = terms["cls"]
        if self.model.refine:
            # The maps of a negative bag are cleared; of a positive bag they all stay [PAPERS, 3].
            there = jnp.repeat(jnp.maximum(label, 0.0), count)[:, None]
            for name, values in self._map_losses(one, two, there).items():
                values = values.reshape(bags, count)
                mean = jnp.sum(jnp.where(valid, values, 0.0), 1) / jnp.maximum(valid.sum(1), 1)
                terms[name] = mean
                total = total + self.losses.of(name) * mean
        return jnp.mean(total), (state, {name: jnp.mean(v) for name, v in terms.items()})

    def _map_losses(self, one, two, there: Array) -> dict[str, Array]:
        """[n] each: what the maps of the two views are trained by, where there is a lesion."""
        large, small = ((view["cam"], view["revised"]) for view in (one, two))
        found = losses.equivariance_losses(large, small, there, hardest=self.losses.hardest)
        parts = {
            "er": found["er_cam"] + found["er_revised"],
            "ecr": found["ecr_large"] + found["ecr_small"],
        }
        if self.losses.min_pool:
            pooled = [losses.adaptive_min_pooling(v["revised"], there) for v in (one, two)]
            parts["min_pool"] = sum(pooled) / 2  # as the released code averages its two views
        if self.model.neighbourhood:
            parts |= affinity.neighbourhood_affinity(
                one["lesion"] * there[:, :, None],
                one["features"],
                foreground=self.affinity.foreground,
                background=self.affinity.background,
                radius=self.affinity.radius,
            )
        return parts

    def _view(self, variables, image: Array, rng: Array):
        """One scale of n slices [n, h, w, 3] in training: `logits` [n], the maps at the image's
        size as the published code has them, and NAM's inputs at the network's own."""
        out, changed = self.model.apply(
            variables,
            image,
            train=True,
            train_norms=self.train_norms,
            rngs={"dropout": rng},
            mutable=["batch_stats"],
        )
        size = image.shape[1:3]
        found = {"cam": resize_aligned(out["cam"], size)}
        # p is the global average of the activation map [Eq. 1].
        found["logits"] = jnp.mean(found["cam"][..., 1], axis=(1, 2))
        if self.model.refine:
            found["revised"] = resize_aligned(out["revised"], size)
            found["lesion"] = out["revised"][..., 1]
        if self.model.neighbourhood:
            found["features"] = out["features"]
        return found, changed

    def predict(self, variables, batch):
        """Of bags of one slice: `lesion_map` [B, H, W] 0..1 and `slice_prob` [B].

        The map of CAM is divided by its maximum; that of SEAM is D as it is [PAPERS, 3], unless
        `normalize_map`: one threshold does not mean the same to both.
        """
        image = batch["image"][:, 0]
        size = image.shape[1:3]
        out = self.model.apply(variables, image, train=False)
        prob = jax.nn.sigmoid(jnp.mean(resize_aligned(out["cam"], size)[..., 1], axis=(1, 2)))
        if self.model.refine:
            revised = resize_aligned(out["revised"], size)
            lesion_map = (pcm.normalize_cam(revised) if self.normalize_map else revised)[..., 1]
        else:
            maps = [out["cam"]] if self.scales == (1.0,) else self._scaled_maps(variables, image)
            raw = sum(resize_aligned(jax.nn.relu(cam), size) for cam in maps) / len(maps)
            lesion_map = pcm.normalize_cam(raw)[..., 1]
        return {"lesion_map": lesion_map, "slice_prob": prob}

    def _scaled_maps(self, variables, image: Array) -> list[Array]:
        """Raw maps of every scale, of the image and of its mirror image (mirrored back)."""
        maps = []
        for scale in self.scales:
            size = tuple(max(round(scale * side), 8) for side in image.shape[1:3])
            scaled = resize_aligned(image, size)
            for flip in (False, True):
                seen = scaled[:, :, ::-1] if flip else scaled
                cam = self.model.apply(variables, seen, train=False)["cam"]
                maps.append(cam[:, :, ::-1] if flip else cam)
        return maps


@dataclasses.dataclass(frozen=True)
class SupervisedSegmentation(_Shared):
    """The U-Net of Table 1, trained on the masks of labelled slices. See the module.

    The paper gives neither its loss nor its optimizer: here pixel cross-entropy and soft Dice, with
    the optimizer of the other methods.
    """

    model: UNet
    bag: int
    preprocess: Preprocess
    augment: Augment
    threshold: float

    masks_in_training: ClassVar[bool] = True

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1, 0], train=False)

    def loss(self, variables, batch, *, rng, step):
        """Pixel cross-entropy and soft Dice of the lesion."""
        del rng, step
        logits, state = self.model.apply(
            variables, batch["image"][:, 0], train=True, mutable=["batch_stats"]
        )
        target = (batch["lesion"] > 0)[..., None]
        return jnp.mean(losses.mask_loss(logits, target)), (state, {})

    def predict(self, variables, batch):
        """`lesion_map` [B, H, W], and `slice_prob` [B], its highest value."""
        logits = self.model.apply(variables, batch["image"][:, 0], train=False)
        lesion_map = jax.nn.sigmoid(logits[..., 0])
        return {"lesion_map": lesion_map, "slice_prob": jnp.max(lesion_map, axis=(1, 2))}


@dataclasses.dataclass(frozen=True)
class PatientsEvaluation(Evaluation):
    """Numbers per patient, of whose slices the rows are.

    Attributes:
      threshold: of the lesion map, as evaluated.
    """

    threshold: float
    free_settings = ("threshold", "gate", "normalize_map")

    def units(self, rows):
        """One row a patient."""
        return patients.per_patient(rows)

    def report(self, units):
        return patients.patients_report(units)

    def paired_values(self, units):
        of = patients.parts(units)
        return {name: units["dice"][of[name]] for name in ("positive", "all")}

    def fit(self, validation: Rows) -> dict[str, float]:
        return {"threshold": float(patients.THRESHOLDS[patients.best_threshold(validation)])}

    def with_fit(self, rows: Rows, fitted: dict[str, float]) -> Rows:
        index = int(np.searchsorted(patients.THRESHOLDS, fitted["threshold"]))
        return patients.at_threshold(rows, index)

    def figures(self, rows):
        """The histogram of the maps, and Dice against the threshold."""
        units = patients.per_patient(rows)
        of = patients.parts(units)
        if not of["all"].any():
            return {}
        names = {"positive": "patients with lesions", "negative": "patients without", "all": "all"}
        dice = {
            f"{name} ({of[part].sum()})": units["dice_at"][of[part]].mean(0)
            if of[part].any()
            else np.full(len(patients.THRESHOLDS), np.nan)
            for part, name in names.items()
        }
        histogram = np.asarray(rows["histogram"])[np.asarray(rows["known"], bool)].sum(0)
        return {
            "thresholds": figures.threshold_chart(
                patients.THRESHOLDS, dice, histogram=histogram, chosen=self.threshold
            )
        }

    def figure_indices(self, source: Source, count: int) -> np.ndarray:
        """Three quarters of them slices with a lesion, where these are known."""
        sick = source.slice_table().label == 1
        lesions = evenly(np.flatnonzero(sick), count - count // 4)
        others = evenly(np.flatnonzero(~sick), count - len(lesions))
        return np.sort(np.concatenate([lesions, others]))


def from_config(config: ml_collections.ConfigDict) -> VolumeTask:
    """The task of `config.method`.

    Raises:
      InputError: an unknown method or gate, a setting that cannot be meant.
    """
    _check(config)
    dtype = jnp.dtype(config.precision)
    shared = dict(
        bag=config.bag,
        preprocess=Preprocess(**config.preprocess),
        augment=Augment(**config.augment),
        threshold=config.threshold,
    )
    if config.method == "unet":
        if config.bag != 1:
            raise InputError(f"config.bag={config.bag}: the U-Net learns from slices; set it to 1")
        model = UNet(tuple(config.unet.features), out_channels=1, dtype=dtype)
        return SupervisedSegmentation(model=model, **shared)
    _check_weak(config)
    width = config.model.width
    return WeakSegmentation(
        model=SEAM(
            backbone=ResNet38(width=width, dropout=tuple(config.model.dropout[:2]), dtype=dtype),
            refine=config.method in ("seam", "seam_nam", "m_seam_nam"),
            neighbourhood=config.method in ("seam_nam", "m_seam_nam"),
            width=width,
            dropout=config.model.dropout[2],
            dtype=dtype,
        ),
        small_scale=config.small_scale,
        losses=Weights(**config.losses),
        affinity=Affinity(**config.affinity),
        scales=_scales(config) if config.method == "multiscale_cam" else (1.0,),
        train_norms=config.train_norms,
        freeze_stem=config.freeze_stem,
        normalize_map=config.normalize_map,
        gate=config.gate,
        **shared,
    )


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses what no method can mean."""
    if config.method not in METHODS:
        raise InputError(f"config.method={config.method!r}; expected one of {', '.join(METHODS)}")
    if config.gate not in GATES:
        raise InputError(f"config.gate={config.gate!r}; expected one of {', '.join(GATES)}")
    if not 0 <= config.threshold < 1:
        raise InputError(f"config.threshold={config.threshold}; it must lie in 0..1")
    if config.second.name:
        raise InputError(
            f"config.second.name={config.second.name!r}: this task trains on one data set; leave "
            "it empty"
        )


def _check_weak(config: ml_collections.ConfigDict) -> None:
    """Refuses settings of the weak methods that cannot be meant."""
    if not 0 < config.losses.hardest <= 1:
        raise InputError(
            f"config.losses.hardest={config.losses.hardest}; a share above 0, at most 1"
        )
    if len(config.model.dropout) != 3 or not all(0 <= p < 1 for p in config.model.dropout):
        raise InputError(
            f"config.model.dropout={tuple(config.model.dropout)}; expected three shares below 1: "
            "of b6, of b7 and before the classifier"
        )
    if not 0 < config.small_scale < 1:
        raise InputError(f"config.small_scale={config.small_scale}; it must lie between 0 and 1")
    if config.affinity.radius < 1:
        raise InputError(f"config.affinity.radius={config.affinity.radius}; it must be at least 1")
    if not config.affinity.background < config.affinity.foreground:
        raise InputError(
            f"config.affinity.background={config.affinity.background} and foreground="
            f"{config.affinity.foreground}; the first must be the smaller"
        )
    scales = _scales(config)
    if not scales or min(scales) <= 0:
        raise InputError(f"config.scales={scales}; expected positive numbers")
    width = config.model.width
    if width <= 0 or width * 64 % 1:
        raise InputError(f"config.model.width={width}; expected a positive multiple of 1/64")


def _scales(config: ml_collections.ConfigDict) -> tuple[float, ...]:
    try:
        return tuple(float(scale) for scale in config.scales)
    except (TypeError, ValueError) as error:
        raise InputError(f"config.scales={config.scales}; expected positive numbers") from error
