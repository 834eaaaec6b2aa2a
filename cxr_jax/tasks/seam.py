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
of lesions are taken out of the training slices of every method but `unet` before anything reads
them, and those of lungs unless `config.lungs` asks for them. A training bag is turned head to feet
half of the time, which is ours.

Where the paper is silent: a slice whose own probability is low counts as free of lesions (`gate`),
for a map that is divided by its maximum always has a brightest point. Table 1 has one and the same
Dice of negative patients, 0.958, for CAM and SEAM, so such a rule may have been at work. The U-Net
has no such gate: its own map says whether there is a lesion.

`lungs`, what is known of the lungs, is ours too; the paper has none. Beside every result stands
what finds lesions without learning (`metrics/lesion_baselines.py`).
"""

import dataclasses
import math
from typing import Any, ClassVar

import cv2
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
from cxr_jax.metrics import lesion_baselines, patients
from cxr_jax.models.resnet38 import ResNet38
from cxr_jax.models.seam import SEAM
from cxr_jax.models.unet import UNet
from cxr_jax.ops import affinity, pcm
from cxr_jax.ops.bags import bag_logit, mean_inside
from cxr_jax.ops.resize import resize_aligned
from cxr_jax.tasks import seam_settings as settings
from cxr_jax.tasks.base import Array, Data, Evaluation, VolumeTask
from cxr_jax.tasks.patients import PatientsEvaluation

MASKS = frozenset({"lesion", "lesion_type", "lungs"})
# Standard deviation, of the slice's side, of what is called brightness: half a pixel of 128. With
# two the wall shines into the lungs, and Dice on phantoms falls from 0.6 to 0.47.
BLUR = 1 / 256


class _Shared(VolumeTask):
    """What the weak methods and the U-Net share: the data, the numbers and the pictures."""

    name: ClassVar[str] = "seam"
    bag: int
    preprocess: Preprocess
    augment: Augment
    lungs: settings.Lungs
    threshold: float
    tune: bool

    masks_in_training: ClassVar[bool] = False

    @property
    def gates(self) -> tuple[float, ...]:
        """Probabilities of its own that a slice may need to have a lesion, the one in use first."""
        return (0.0,)

    @property
    def data(self) -> Data:
        """As many negative bags as positive ones: 'to keep the sample balance' [Sec. 3.1]."""
        masks = {"lesion"} if self.masks_in_training else set()
        lungs = {"lungs"} if self.lungs.needed else set()
        return Data(
            fields=frozenset({"image", "slice_label", *masks, *lungs}),
            inputs=frozenset({"image", "slices", *(lungs if self.lungs.use != "none" else ())}),
            completed_first=True,
            only_evaluated=frozenset(() if self.lungs.pooled else lungs),
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
        shown = {"lungs"} if self.lungs.pooled and self.lungs.of_record else set()
        return Bags(source, self.bag, hidden=MASKS - shown)

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        """`image` uint8 [S + 2, H, W]; of a bag its label; of a slice what it is scored by."""
        film = self.preprocess.film
        example = {"image": np.stack([film(part["image"]) for part in record["slices"]])}
        if "bag_label" in record:
            example["bag_label"] = np.float32(record["bag_label"])
            example["instance_valid"] = np.asarray(record["instance_valid"], bool)
            if self.masks_in_training:
                example["lesion"] = self.preprocess.mask(_truth(record["slices"][1]))
            if self.lungs.pooled:
                inside = [self.lungs.of(part) for part in record["slices"][1:-1]]
                example["lungs"] = np.stack([self.preprocess.mask(mask) for mask in inside])
            return example
        if self.lungs.use != "none":
            example["lungs"] = self.preprocess.mask(self.lungs.of(record))[None]
        truth = _truth(record)
        shrunk = record["image"].size / self.preprocess.size**2
        return (
            example
            | self._baselines(record, example["image"][1])
            | {
                "lesion": self.preprocess.mask_or_empty(truth),
                # Of the mask as it is: a lesion of a few pixels may be gone from a smaller one.
                "label": np.float32(
                    record.get("slice_label", np.nan) if truth is None else truth.any()
                ),
                "known": np.bool_(truth is not None),
                "pixel_area": np.float32(record.get("pixel_area", 1.0) * shrunk),
            }
        )

    def _baselines(self, record: Record, film: np.ndarray) -> dict[str, np.ndarray]:
        """What `metrics.lesion_baselines` looks at."""
        if self.lungs.completed and "lungs" not in record:  # a prediction, which is not scored
            record = record | {"lungs": np.zeros_like(record["image"])}
        return {
            "blurred": cv2.GaussianBlur(film, (0, 0), BLUR * self.preprocess.size),
            "found_lungs": self.preprocess.mask(self.lungs.found_in(record)),
            "true_lungs": self.preprocess.mask_or_empty(self.lungs.drawn_in(record)),
        }

    def _finish(self, example, rng):
        if rng is not None:
            example = self.augment(example, rng)
            if rng.random() < 0.5:  # volumes run from the feet or from the head
                for name in {"image", "instance_valid", "lungs"} & example.keys():
                    example[name] = example[name][::-1]
        image = self.preprocess.normalize(example["image"])
        # Slice k with its neighbours as channels: [S + 2, H, W] -> [S, H, W, 3].
        channels = np.stack([image[:-2], image[1:-1], image[2:]], axis=-1)
        return {**example, "image": channels}

    def score(self, outputs, batch):
        """Areas of each slice for `metrics.patients`; masks of lesions are read here only."""
        prob = outputs["slice_prob"]
        where = {name: batch[name] for name in ("lesion", "pixel_area")}
        rows = patients.slice_rows(outputs["lesion_map"], **where, threshold=self.threshold)
        beside = lesion_baselines.slice_rows(
            batch["blurred"].astype(jnp.float32) / 255,
            lungs=batch["found_lungs"],
            true_lungs=batch["true_lungs"],
            **where,
            cells=self.cells(self.preprocess.size),
        )
        return (
            rows
            | beside
            | {
                "slice_prob": prob,
                "gate": jnp.full_like(prob, self.gates[0]),
                "known": batch["known"],
                "label": batch["label"],
            }
        )

    def cells(self, side: int) -> tuple[int, int] | None:
        """Of the map of a slice of `side` pixels; None where it has as many as the slice."""
        del side
        return None

    @property
    def evaluation(self) -> Evaluation:
        return PatientsEvaluation(self.threshold, self.gates, self.tune)

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
        return float(outputs["slice_prob"]) >= self.gates[0]

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        del record  # of the map a share is told
        found = self._found(outputs, outputs["lesion_map"].shape)
        return {
            "slice_prob": round(float(outputs["slice_prob"]), 4),
            "lesion_area_share": round(float(found.mean()), 4),
        }

    def mask(self, record: Record, outputs: dict[str, np.ndarray]) -> np.ndarray:
        return self._found(outputs, record["image"].shape)

    def _found(self, outputs: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        return (self.shown_map(outputs, shape) > self.threshold).astype(np.uint8)

    def slice_prob(self, outputs: dict[str, np.ndarray]) -> float:
        """Of a lesion in the slice."""
        return float(outputs["slice_prob"])


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
      lungs: see `settings.Lungs`.
      small_scale: of the second view, as a share of the first one's sides; 0: there is none.
      losses: weights of Eq. 8.
      affinity: thresholds and radius of NAM; read where the model has it.
      scales: of the images at prediction; their maps are added.
      mirror: of every scale the mirror image takes part too.
      retrained: False: nothing is trained, a trained CAM is looked at again.
      train_norms: False: batch norms in inference mode, as SEAM's code has them. True takes the
        batch's statistics, for networks that start from random numbers.
      freeze_stem: the first convolution, b2 and all norms are not trained [SEAM's code].
      threshold: of the lesion map, 0..1.
      normalize_map: stretch the refined map D, added over the scales, to 0..1 by its minimum and
        maximum, as the authors' code does; False: D is the mean of the scales, as it is.
      gate: 'slice', 'bag' or 'none'; see `settings.gate_levels`.
      tune: threshold and gate are chosen on the validation split.
    """

    model: SEAM
    bag: int
    preprocess: Preprocess
    augment: Augment
    lungs: settings.Lungs
    small_scale: float
    losses: settings.Weights
    affinity: settings.Affinity
    scales: tuple[float, ...]
    mirror: bool
    retrained: bool
    train_norms: bool
    freeze_stem: bool
    threshold: float
    normalize_map: bool
    gate: str
    tune: bool

    @property
    def gates(self) -> tuple[float, ...]:
        """That of `gate`, then the others."""
        levels = settings.gate_levels(self.bag)
        return tuple(dict.fromkeys((levels[self.gate], *levels.values())))

    @property
    def frozen(self) -> dict[str, str]:
        """The first convolution and b2, and the norms [PAPERS, 3]; all of multiscale_cam."""
        if not self.retrained:
            return {".*": ""}
        stem = ("backbone/conv1a/.*", r"backbone/b2(_\d)?/.*", "backbone/(.*/)?bn[^/]*/.*")
        return dict.fromkeys(stem, "config.freeze_stem=False") if self.freeze_stem else {}

    def cells(self, side: int) -> tuple[int, int]:
        """Of the map of a slice of `side` pixels."""
        cells = -(-side // self.model.backbone.strides["conv6"])
        return cells, cells

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1, 0], train=False)

    def loss(self, variables, batch, *, rng, step):
        """Eq. 8: the label of the bag at both scales, agreement of the scales, and affinity."""
        image, valid = batch["image"], batch["instance_valid"]
        bags, count, side = image.shape[:3]
        first = image.reshape(-1, *image.shape[2:])
        inside = batch["lungs"].reshape(first.shape[:3]) if self.lungs.pooled else None
        views, states = [], []
        keys = jax.random.split(rng)
        sides = [side] + ([max(math.floor(self.small_scale * side), 1)] * bool(self.small_scale))
        for size, key in zip(sides, keys):
            seen = first if size == side else resize_aligned(first, (size, size))
            view, state = self._view(variables, seen, inside, rng=key)
            views.append(view)
            states.append(state)
        label = batch["bag_label"]
        terms = {"cls": sum(self._label_loss(v["logits"], label, valid) for v in views)}
        total = terms["cls"]
        if self.model.refine:
            # The maps of a negative bag are cleared; of a positive bag they all stay [PAPERS, 3].
            there = jnp.repeat(jnp.maximum(label, 0.0), count)[:, None]
            for name, values in self._map_losses(*views, there).items():
                terms[name] = mean_inside(values.reshape(bags, count), valid)
                total = total + self.losses.of(name) * terms[name]
        return jnp.mean(total), (states[0], {name: jnp.mean(v) for name, v in terms.items()})

    def _label_loss(self, logits: Array, label: Array, valid: Array) -> Array:
        """[bags]: Eq. 7, or Eq. 1 of every slice of a bag."""
        logits = logits.reshape(valid.shape)
        if self.losses.bag == "noisy_or":
            return losses.soft_margin(bag_logit(logits, valid), label)
        return mean_inside(losses.soft_margin(logits, label[:, None]), valid)

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
            kinds = {
                "cosine": affinity.neighbourhood_affinity,
                "exp_l1": affinity.exp_l1_affinity,
            }
            parts |= kinds[self.affinity.similarity](
                one["lesion"] * there[:, :, None],
                one["features"],
                foreground=self.affinity.foreground,
                background=self.affinity.background,
                radius=self.affinity.radius,
            )
        return parts

    def _view(self, variables, image: Array, inside: Array | None, *, rng: Array):
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
        found["logits"] = pooled_logits(found["cam"], inside)
        if self.model.refine:
            found["revised"] = resize_aligned(out["revised"], size)
            found["lesion"] = out["revised"][..., 1]
        if self.model.neighbourhood:
            found["features"] = out["features"]
        return found, changed

    def predict(self, variables, batch):
        """Of bags of one slice: `lesion_map` [B, H, W] 0..1 and `slice_prob` [B].

        The maps of every scale, of the image and of its mirror image, are added. That of CAM is
        then divided by its maximum; that of SEAM, D, is stretched to 0..1 (`normalize_map`), so
        that a flat one is 0. The probability is that at scale 1.
        """
        image, inside = batch["image"][:, 0], None
        if self.lungs.use != "none":
            inside = batch["lungs"][:, 0]
        total, logits = 0.0, None
        for scale in self.scales if 1.0 in self.scales else (*self.scales, 1.0):
            cam, found = self._summed(variables, image, scale)
            if scale == 1.0:
                logits = pooled_logits(cam, inside if self.lungs.pooled else None)
            if scale in self.scales:
                total = total + found
        if inside is not None:
            total = total * _or_all(inside)[..., None]
        if not self.model.refine:
            lesion_map = pcm.normalize_cam(total)
        elif self.normalize_map:
            lesion_map = pcm.min_max_normalize(total)
        else:
            lesion_map = total / (len(self.scales) * (2 if self.mirror else 1))
        return {"lesion_map": lesion_map[..., 1], "slice_prob": jax.nn.sigmoid(logits)}

    def _summed(self, variables, image: Array, scale: float) -> tuple[Array, Array]:
        """At one scale, [B, H, W, 1 + K] each: the mean raw map of the image and its mirror image,
        and the sum of what is shown of both: CAM's positive part, or D."""
        size = image.shape[1:3]
        seen = resize_aligned(image, tuple(max(round(scale * side), 8) for side in size))
        if self.mirror:
            seen = jnp.concatenate([seen, seen[:, :, ::-1]])
        out = self.model.apply(variables, seen, train=False)
        cam = resize_aligned(out["cam"], size)
        if self.model.refine:
            shown = resize_aligned(out["revised"], size)
        else:
            shown = resize_aligned(jax.nn.relu(out["cam"]), size)
        if not self.mirror:
            return cam, shown
        (cam, cam_2), (shown, shown_2) = (jnp.split(x, 2) for x in (cam, shown))
        return (cam + cam_2[:, :, ::-1]) / 2, shown + shown_2[:, :, ::-1]


def pooled_logits(cam: Array, inside: Array | None) -> Array:
    """p of Eq. 1, the mean of the raw map over the slice, or over the lungs in it.

    Args:
      cam: [n, h, w, 1 + K]; channel 1 is the lesion.
      inside: [n, H, W] of any size, above 0 in the lungs; None, or a slice without: all of it.

    Returns:
      [n] float32.
    """
    lesion = cam[..., 1]
    if inside is None:
        return jnp.mean(lesion, axis=(1, 2))
    share = resize_aligned(_or_all(inside)[..., None], cam.shape[1:3])[..., 0]
    # A thin lung may fall between the samples of a small view.
    share = jnp.where(jnp.any(share > 0, axis=(1, 2), keepdims=True), share, 1.0)
    return jnp.sum(lesion * share, axis=(1, 2)) / jnp.sum(share, axis=(1, 2))


def _or_all(inside: Array) -> Array:
    """Masks [n, H, W] as float32 0/1; 1 throughout where one is empty."""
    inside = inside > 0
    return (inside | ~jnp.any(inside, axis=(1, 2), keepdims=True)).astype(jnp.float32)


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
    lungs: settings.Lungs
    threshold: float
    tune: bool

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
        if self.lungs.use != "none":
            lesion_map = lesion_map * _or_all(batch["lungs"][:, 0])
        return {"lesion_map": lesion_map, "slice_prob": jnp.max(lesion_map, axis=(1, 2))}


def from_config(config: ml_collections.ConfigDict) -> VolumeTask:
    """The task of `config.method`.

    Raises:
      InputError: an unknown method or gate, a setting that cannot be meant.
    """
    settings.check(config)
    dtype = jnp.dtype(config.precision)
    shared = dict(
        bag=config.bag,
        preprocess=Preprocess(**config.preprocess),
        augment=Augment(**config.augment),
        lungs=settings.Lungs(**config.lungs),
        threshold=config.threshold,
        tune=config.tune,
    )
    if config.method == "unet":
        return _supervised(config, shared, dtype)
    settings.check_weak(config)
    c = config.model
    return WeakSegmentation(
        model=SEAM(
            backbone=ResNet38(
                width=c.width,
                dropout=tuple(c.dropout[:2]),
                dtype=dtype,
                stride=c.stride,
                dilations=tuple(c.dilations),
            ),
            refine=config.method in settings.REFINED,
            neighbourhood=config.method in ("seam_nam", "m_seam_nam"),
            width=c.width,
            pcm_width=c.pcm_width,
            dropout=c.dropout[2],
            dtype=dtype,
        ),
        small_scale=config.small_scale,
        losses=settings.Weights(**config.losses),
        affinity=settings.Affinity(**config.affinity),
        scales=settings.scales_of(config),
        mirror=config.mirror,
        retrained=config.method != "multiscale_cam",
        train_norms=config.train_norms,
        freeze_stem=config.freeze_stem,
        normalize_map=config.normalize_map,
        gate=config.gate,
        **shared,
    )


def _supervised(
    config: ml_collections.ConfigDict, shared: dict[str, Any], dtype: Any
) -> SupervisedSegmentation:
    if config.bag != 1:
        raise InputError(f"config.bag={config.bag}: the U-Net learns from slices; set it to 1")
    if config.lungs.use == "pool":
        raise InputError("config.lungs.use=pool: the U-Net pools nothing; set it to map or none")
    model = UNet(tuple(config.unet.features), out_channels=1, dtype=dtype)
    return SupervisedSegmentation(model=model, **shared)
