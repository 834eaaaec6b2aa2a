"""Lung segmentation that survives disease: the masks every radiograph task needs.

Four methods, one a class, chosen by `config.method`:

- 'unet': the supervised U-Net, the first stage of Kim et al. 2021 (Sec. 3: Adam 1e-4, batch 1,
  20,000 steps on normal films).
- 'semi': the same network, fine-tuned semi-supervised on abnormal films without masks (their
  Sec. 3, which names no method). A mean teacher labels the film; the student must say the same of
  that film with strong intensity changes and synthetic opacities, in the same geometry.
- 'adain': one generator that segments, takes an abnormal film to a normal-looking one and, by
  distillation of the two, segments an abnormal film in one pass (Park et al. 2021; Oh and Ye,
  arXiv:2104.05892): a StarGAN v2 that learns styles adversarially, of unpaired films.
- 'pairs': ours in its place. The same three jobs, chosen by a code; what is normal is learned from
  pairs, a film with and without synthetic opacities.

All are scored alike, on all films and on the severe ones: Dice of each lung after post-processing,
and how much of the lungs is found (`lung_area_ratio`, `lung_recall`; below 1: under-segmentation).
"""

import dataclasses
from typing import Any, ClassVar

import cv2
import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax import figures, losses, teacher
from cxr_jax.data import lungs as lung_labels
from cxr_jax.data.augment import Augment
from cxr_jax.data.lungs import LEFT, RIGHT
from cxr_jax.data.opacities import Opacities
from cxr_jax.data.pipeline import Stage, Transforms
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source, only_with
from cxr_jax.errors import InputError
from cxr_jax.metrics import regression, segmentation
from cxr_jax.models import adain
from cxr_jax.models.adain import AdaINGenerator
from cxr_jax.models.stargan import StarGAN
from cxr_jax.models.unet import UNet
from cxr_jax.tasks import style_transfer
from cxr_jax.tasks.base import Data, Evaluation, Rows, Task
from cxr_jax.tasks.style_transfer import StyleTransfer

Array = jax.Array

FIELDS = frozenset({"image", "lungs"})
ROWS = (
    "lung_dice",
    "lung_dice_right",
    "lung_dice_left",
    "lung_area_ratio",
    "lung_recall",
    "lesion_recall",
    "raw_lung_dice",
)


@dataclasses.dataclass(frozen=True)
class Teaching:
    """How films without masks are learned from.

    Attributes:
      first_step: they join here; before, the labelled films are trained on alone. Of adain, whose
        films without masks are there from the start: distillation begins here.
      second_fraction: their share of every batch from then on; 0: as the numbers of films are.
      decay: of the teacher, a moving average of the student.
      weight: of a film without mask beside one with a mask.
      ramp_steps: that weight rises from 0 in so many steps.
      confidence: of semi and pairs: the teacher's lung is learned where p >= confidence, its
        background where p <= 1 - confidence; the pixels in between are left out.
      predict_with: 'teacher' or 'student', whose weights predict.
    """

    first_step: int
    second_fraction: float
    decay: float
    weight: float
    ramp_steps: int
    confidence: float
    predict_with: str

    def __post_init__(self):
        if self.first_step < 1 or self.ramp_steps < 0:
            raise InputError(
                f"config.teaching.first_step={self.first_step} and ramp_steps={self.ramp_steps}; "
                "expected at least 1 and at least 0"
            )
        if not 0 <= self.second_fraction < 1 or not 0 <= self.decay < 1 or self.weight < 0:
            raise InputError(
                f"config.teaching: second_fraction={self.second_fraction} and decay={self.decay} "
                f"must lie in 0..1 (1 excluded) and weight={self.weight} be at least 0"
            )
        if not 0.5 <= self.confidence < 1:
            raise InputError(f"config.teaching.confidence={self.confidence}; expected 0.5 .. 1")
        if self.predict_with not in ("teacher", "student"):
            raise InputError(
                f"config.teaching.predict_with={self.predict_with!r}; expected teacher or student"
            )

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Labelled films alone, then both sets."""
        return Stage(0, 0.0), Stage(self.first_step, 1.0, self.second_fraction or None)

    def weight_at(self, step: Array) -> Array:
        """The weight of a film without mask at this step: 0, then rising, then `weight`."""
        since = (step - self.first_step + 1) / (self.ramp_steps + 1)
        return self.weight * jnp.clip(since, 0.0, 1.0)


@dataclasses.dataclass(frozen=True)
class Lungs(Task):
    """The supervised U-Net, and what all methods share. Outputs `lung_probs` [B, H, W, 2]: right,
    left.

    Attributes:
      augment: geometry and exposure of a training film.
      strong: further exposure, of what the network that is trained sees.
      opacities: synthetic ones, likewise.
      severe_from: least global severity score (0..18) of a severe film, whose metrics are reported
        apart where the data set has scores.
    """

    name: ClassVar[str] = "lungs"
    model: nn.Module
    preprocess: Preprocess
    augment: Augment
    strong: Augment
    opacities: Opacities
    severe_from: float

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Lungs":
        """The task of `config.method`."""
        methods = {
            "unet": Lungs,
            "semi": SemiLungs,
            "pairs": PairsLungs,
            "adain": AdversarialLungs,
        }
        if config.method not in methods:
            raise InputError(
                f"config.method={config.method!r}; expected one of {', '.join(methods)}"
            )
        _check_second(config)
        return methods[config.method](
            preprocess=Preprocess(**config.preprocess),
            augment=Augment(**config.augment),
            strong=Augment(**config.strong),
            opacities=Opacities(**config.opacities),
            severe_from=config.severe_from,
            **methods[config.method].settings(config),
        )

    @classmethod
    def settings(cls, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """The fields of this method alone: the network, and more where a method has more."""
        dtype = jnp.dtype(config.precision)
        return {"model": UNet(tuple(config.model.features), out_channels=2, dtype=dtype)}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """When films without masks join."""
        return (Stage(0),)

    @property
    def data(self) -> Data:
        return Data(
            fields=FIELDS,
            labels=frozenset({"lungs"}),
            stages=self.stages,
            transforms=Transforms(example=self._example, finish=self._finish),
            adapt=_with_masks,
        )

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        """`image`, `lungs` and whether they are known (`labelled`); for scoring the lesions, where
        there are any, and the global severity score, NaN where there is none."""
        image = self.preprocess.film(record["image"])

        def mask(name: str) -> np.ndarray:
            return self.preprocess.mask(record[name]) if name in record else np.zeros_like(image)

        scores = np.asarray(record.get("severity", np.nan), np.float32)
        scores = scores * record.get("severity_valid", True)
        return {
            "image": image,
            "lungs": mask("lungs"),
            "labelled": np.array("lungs" in record),
            "lesion": mask("lesion"),
            "global_severity": np.sum(scores, dtype=np.float32),
        }

    def _finish(self, example, rng):
        normalize = self.preprocess.normalize
        if rng is None:
            return {**example, "image": normalize(example["image"])}
        example = {name: example[name] for name in ("image", "lungs", "labelled")}
        example = self.augment(example, rng)
        seen = self._student_view(example["image"], example["lungs"], rng)
        return {**example, "image": normalize(seen), **self._teacher_view(example["image"])}

    def _student_view(self, film: np.ndarray, lungs: np.ndarray, rng) -> np.ndarray:
        """The augmented film with opacities and strong exposure; no pixel moves."""
        seen = self.opacities(film, lungs, rng)
        if seen is not film and "equalize" in self.preprocess.order:
            seen = cv2.equalizeHist(seen)  # as the film would have been, had the opacity been real
        return self.strong({"image": seen}, rng)["image"]

    def _teacher_view(self, film: np.ndarray) -> dict[str, np.ndarray]:
        """What a batch holds for the teacher."""
        return {}

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1, ..., None], train=False)

    def loss(self, variables, batch, *, rng, step):
        """Per pixel binary cross-entropy plus soft Dice, per lung; mean over examples."""
        logits, state = self._train_logits(variables, batch)
        loss = jnp.mean(losses.segmentation_loss(logits, batch["lungs"]))
        return loss, (state, {})

    def _train_logits(self, variables, batch):
        """Logits [B, H, W, 2] of the student's view, new model state."""
        return self.model.apply(
            _student(variables), batch["image"][..., None], train=True, mutable=["batch_stats"]
        )

    def _logits(self, variables, image: Array) -> Array:
        """Logits [B, H, W, 2] of films [B, H, W], as in prediction."""
        return self.model.apply(variables, image[..., None], train=False)

    def predict(self, variables, batch):
        logits = self._logits(variables, batch["image"])
        return {"lung_probs": jax.nn.sigmoid(logits.astype(jnp.float32))}

    def score(self, outputs, batch):
        """Dice of the thresholded maps, before post-processing (which `raw` in the name says), and
        the maps, from which `finish_rows` takes the metrics after it."""
        probs = outputs["lung_probs"]
        labels = jnp.where(probs[..., LEFT] > probs[..., RIGHT], 2, 1) * (probs.max(-1) >= 0.5)
        return {
            "raw_lung_dice": segmentation.lung_rows(labels, batch["lungs"])["lung_dice"],
            "lung_probs_u8": jnp.round(probs * 255).astype(jnp.uint8),
            "lungs": batch["lungs"].astype(jnp.uint8),
            "lesion": batch["lesion"].astype(jnp.uint8),
            "global_severity": batch["global_severity"],
        }

    @property
    def evaluation(self) -> Evaluation:
        return LungsEvaluation(self.severe_from)

    def figure(self, record, outputs):
        film = record["image"]
        labels = lung_labels.label_map(outputs["lung_probs"], film.shape)
        return figures.lungs_panel(film, labels, record.get("lungs"))

    def layers(self, record, outputs):
        """Both lungs."""
        labels = lung_labels.label_map(outputs["lung_probs"], record["image"].shape)
        return {"lungs": np.where(labels > 0, 255, 0).astype(np.uint8)}

    def describe(self, record, outputs):
        del record  # shares are told, not places
        labels = lung_labels.label_map(outputs["lung_probs"], outputs["lung_probs"].shape[:2])
        share = {
            side: round(float(np.mean(labels == i)), 4) for i, side in ((1, "right"), (2, "left"))
        }
        return {"lung_area_share": share}


@dataclasses.dataclass(frozen=True)
class SemiLungs(Lungs):
    """The U-Net with a mean teacher (Tarvainen and Valpola, arXiv:1703.01780).

    Of a film with a mask the student learns the mask; of one without, the teacher's confident
    pixels. The teacher sees the augmented film, the student that film with opacities and strong
    exposure: both in one geometry, so that their pixels correspond.
    """

    teaching: Teaching

    @classmethod
    def settings(cls, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """The U-Net, and how it is taught."""
        return super().settings(config) | {"teaching": Teaching(**config.teaching)}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Films with masks first, then both kinds."""
        return self.teaching.stages

    def _teacher_view(self, film: np.ndarray) -> dict[str, np.ndarray]:
        return {"clean_image": self.preprocess.normalize(film)}

    def init(self, rng, batch):
        return teacher.init(super().init(rng, batch))

    def loss(self, variables, batch, *, rng, step):
        """Supervised loss of the films with masks, `weight` times the teacher's of the others."""
        logits, state = self._train_logits(variables, batch)
        supervised = losses.segmentation_loss(logits, batch["lungs"])
        loss, terms = self._with_taught(
            supervised, logits, variables=variables, batch=batch, step=step
        )
        return loss, ({**state, **self._next_teacher(variables, step)}, terms)

    def predict(self, variables, batch):
        chosen = variables
        if self.teaching.predict_with == "teacher":
            chosen = variables[teacher.COLLECTION]
        return super().predict(chosen, batch)

    def _with_taught(self, supervised: Array, logits: Array, *, variables, batch, step):
        """Scalar loss and terms: `supervised` [B] where there is a mask, else the loss of `logits`
        against the teacher's answer, which is asked for once films without masks are in."""

        def taught(logits, variables, image):
            probs = jax.lax.stop_gradient(self._teacher_probs(variables, image))
            return losses.pseudo_segmentation_loss(logits, probs, self.teaching.confidence)

        def silent(logits, variables, image):
            return jnp.zeros(len(logits))

        known = batch["labelled"]
        loss = jax.lax.cond(
            step >= self.teaching.first_step, taught, silent,
            logits, variables[teacher.COLLECTION], batch["clean_image"],
        )  # fmt: skip
        loss = jnp.where(known, 0.0, loss)
        supervised = jnp.where(known, supervised, 0.0)
        total = jnp.mean(supervised + self.teaching.weight_at(step) * loss)
        return total, {"supervised": jnp.mean(supervised), "taught": jnp.mean(loss)}

    def _teacher_probs(self, variables, image: Array) -> Array:
        """The teacher's lungs [B, H, W, 2] of augmented films [B, H, W] without opacities."""
        return jax.nn.sigmoid(self._logits(variables, image))

    def _next_teacher(self, variables, step) -> dict[str, Any]:
        return {teacher.COLLECTION: teacher.ema(self.teaching.decay, variables, step)}


@dataclasses.dataclass(frozen=True)
class PairsLungs(SemiLungs):
    """One generator, three codes (`models/adain.py`), after Oh and Ye, arXiv:2104.05892.

    'segment': the mask of a normal film (supervised). 'normalise': an abnormal film to a
    normal-looking one. 'distil': the mask of an abnormal film in one pass; its teacher normalises
    the film and then segments it. Prediction uses the code 'distil' alone.

    Differs from Oh and Ye, whose method is `AdversarialLungs`: 'normalise' is trained on pairs, a
    film with and without synthetic opacities, by the mean absolute difference, and not
    adversarially on two unpaired sets: it is stable, and the lungs stay where they are. The
    teacher is a moving average of the generator. Where there is a mask, 'distil' learns the mask of
    the film with opacities and not the teacher's; where there is none, the teacher's confident
    pixels by the loss of 'semi' and not by the L1 distance.

    Attributes:
      normalise_weight, distil_weight: of the two jobs beside 'segment', on films with masks.
    """

    normalise_weight: float
    distil_weight: float

    @classmethod
    def settings(cls, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """The generator, how it is taught, and the weights of its jobs."""
        model = AdaINGenerator(
            features=tuple(config.model.features),
            out_channels=2,
            code_size=config.pairs.code_size,
            dtype=jnp.dtype(config.precision),
        )
        return super().settings(config) | {
            "model": model,
            "normalise_weight": config.pairs.normalise_weight,
            "distil_weight": config.pairs.distil_weight,
        }

    def init(self, rng, batch):
        return teacher.init(self.model.init(rng, batch["image"][:1, ..., None], jnp.zeros(1, int)))

    def loss(self, variables, batch, *, rng, step):
        """Three jobs of every film; of one without a mask only 'distil' is learned."""
        clean, seen, lungs = batch["clean_image"], batch["image"], batch["lungs"]
        count = len(seen)
        jobs = jnp.repeat(jnp.asarray([adain.SEGMENT, adain.NORMALISE, adain.DISTIL]), count)
        out = self._generate(_student(variables), jnp.concatenate([clean, seen, seen]), jobs)
        segment, _, distil = jnp.split(out["logits"], 3)
        normal = jnp.split(out["image"], 3)[1]
        terms = {
            "segment": losses.segmentation_loss(segment, lungs),
            "normalise": jnp.mean(jnp.abs(normal - clean), axis=(1, 2)),
            "distil": losses.segmentation_loss(distil, lungs),
        }
        supervised = (
            terms["segment"]
            + self.normalise_weight * terms["normalise"]
            + self.distil_weight * terms["distil"]
        )
        loss, shown = self._with_taught(
            supervised, distil, variables=variables, batch=batch, step=step
        )
        shown |= {k: jnp.mean(jnp.where(batch["labelled"], v, 0.0)) for k, v in terms.items()}
        return loss, (self._next_teacher(variables, step), shown)

    def _generate(self, variables, image: Array, jobs: Array) -> dict[str, Array]:
        """Films [n, H, W] and job numbers [n] -> `logits` [n, H, W, 2], `image` [n, H, W]."""
        out = self.model.apply(variables, image[..., None], jobs)
        return {"logits": out["logits"], "image": out["image"][..., 0]}

    def _job(self, variables, image: Array, job: int) -> dict[str, Array]:
        return self._generate(_student(variables), image, jnp.full(len(image), job))

    def _logits(self, variables, image):
        return self._job(variables, image, adain.DISTIL)["logits"]

    def _teacher_probs(self, variables, image):
        normal = self._job(variables, image, adain.NORMALISE)["image"]
        return jax.nn.sigmoid(self._job(variables, normal, adain.SEGMENT)["logits"])


@dataclasses.dataclass(frozen=True)
class AdversarialLungs(SemiLungs):
    """A StarGAN v2 whose generator segments (`models/stargan.py`); Oh and Ye, arXiv:2104.05892.

    Films with masks are the normal ones, films without the abnormal ones, from the first step on;
    distillation begins with `teaching.first_step`. Prediction is the masks at once.

    Differs from Oh and Ye: the loss of masks is that of the other methods; distillation compares
    probabilities, not logits; its teacher is the moving average, not the generator itself, and
    makes films normal in the style of a normal film of the batch, not of one chosen film.
    """

    transfer: StyleTransfer

    @classmethod
    def settings(cls, config: ml_collections.ConfigDict) -> dict[str, Any]:
        """The networks, how they learn styles, and how masks are taught."""
        c = config.adain.to_dict()
        model = StarGAN(
            features=tuple(config.model.features),
            trunk=tuple(c.pop("trunk")),
            code_size=c.pop("code_size"),
            hidden=c.pop("hidden"),
            dtype=jnp.dtype(config.precision),
        )
        return super().settings(config) | {"model": model, "transfer": StyleTransfer(**c)}

    @property
    def stages(self) -> tuple[Stage, ...]:
        """Both kinds of film from the start."""
        return (Stage(0, 1.0, self.teaching.second_fraction or None),)

    def init(self, rng, batch):
        noise, domain = jnp.zeros((1, self.transfer.latent_size)), jnp.zeros(1, int)
        return teacher.init(self.model.init(rng, batch["image"][:1], noise=noise, domain=domain))

    def loss(self, variables, batch, *, rng, step):
        """Masks of normal films, styles of all, the discriminator's own, and distillation."""
        model, params, known = self.model, variables["params"], batch["labelled"]
        films = batch["clean_image"], known.astype(int)  # normal is 1
        for_styles, for_teacher = jax.random.split(rng)
        size = self.transfer.latent_size
        terms, made = style_transfer.generator_terms(
            model, params, films, rng=for_styles, step=step, latent_size=size
        )
        terms |= style_transfer.discriminator_terms(model, params, films, made=made)
        logits = model.apply({"params": params}, films[0], method="segment")
        segment = losses.segmentation_loss(logits, batch["lungs"])
        terms["segment"] = jnp.where(known, segment, 0.0)
        terms["distil"] = jax.lax.cond(
            step >= self.teaching.first_step,
            lambda: style_transfer.distil_terms(
                model, params, batch["image"], teacher=variables[teacher.COLLECTION]["params"],
                batch=films, rng=for_teacher, latent_size=size,
            ),
            lambda: jnp.zeros(len(known)),
        )  # fmt: skip
        weight = self.teaching.weight_at(step) * self.transfer.distillation(known)
        loss = self.transfer.loss(terms, step) + weight * terms["distil"]
        loss = jnp.mean(loss + self.transfer.segment_weight * terms["segment"])
        shown = {name: jnp.mean(value) for name, value in terms.items()}
        return loss, (self._next_teacher(variables, step), shown)

    def _logits(self, variables, image):
        params = {"params": variables["params"]}
        return self.model.apply(params, image, distilled=True, method="segment")


def _student(variables):
    """The network's own variables: flax would hand back a teacher beside them unchanged."""
    return {name: tree for name, tree in variables.items() if name != teacher.COLLECTION}


def _check_second(config: ml_collections.ConfigDict) -> None:
    """Refuses a method without its second data set, or the other way round."""
    name, labels = config.second.name, config.second.labels
    if config.method == "unet" and name and labels == "hidden":
        raise InputError(
            f"config.second.name={name!r} without masks beside config.method='unet', which learns "
            "from masks alone; set config.method to semi, pairs or adain, or "
            "config.second.labels=given"
        )
    if config.method != "unet" and (not name or labels != "hidden"):
        raise InputError(
            f"config.method={config.method!r} needs films without masks; set config.second.name "
            f"to a data set (it is {name!r}) and config.second.labels to hidden (it is {labels!r})"
        )


@dataclasses.dataclass(frozen=True)
class LungsEvaluation(Evaluation):
    """Of all films, and of the severe ones; see the module.

    Attributes:
      severe_from: least global severity score (0..18) of a severe film.
    """

    severe_from: float

    def finish_rows(self, rows: Rows) -> Rows:
        """Dice per lung, area and recall after post-processing (holes filled, one component a
        lung), which runs on the host; the maps themselves are dropped.

        `lesion_recall` is the share of the true lesions within the true lungs that the predicted
        lungs hold; NaN where there is none.
        """
        probs = rows.pop("lung_probs_u8") / np.float32(255)
        truth, lesion = jnp.asarray(rows.pop("lungs")), jnp.asarray(rows.pop("lesion"))
        labels = jnp.asarray([lung_labels.labels_from_probs(p) for p in probs])
        post = segmentation.lung_rows(labels, truth) | segmentation.lung_area_rows(labels, truth)
        sick = segmentation.overlap_rows(labels > 0, (lesion > 0) & (truth > 0))
        post["lesion_recall"] = sick["recall"]
        return rows | {name: np.asarray(value) for name, value in post.items()}

    def case_errors(self, rows):
        """1 minus the Dice of both lungs."""
        return 1 - np.asarray(rows["lung_dice"], np.float64)

    def report(self, units):
        severe = np.asarray(units["global_severity"]) >= self.severe_from  # False for NaN
        everything = {name: np.asarray(units[name], np.float64) for name in ROWS}
        subsets = everything | {f"severe_{name}": v[severe] for name, v in everything.items()}
        return {name: regression.mean_of_known(values) for name, values in subsets.items()}


def _with_masks(source: Source, *, training: bool) -> Source:
    """Leaves out films without a mask, but where all masks are hidden."""
    del training
    return only_with(source, FIELDS)
