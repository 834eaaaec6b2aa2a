"""Diagnosis from a corpus of low-level features (Park et al. 2021, 'corpus_vit').

Sec. 3.2: the corpus of the pre-training on findings, a ViT over its cells, and a linear head on the
[class] token: normal, other infection or COVID-19. Softmax cross-entropy. Films of one projection
or of all; the paper has a model for PA and one for AP films.

No lesion mask is ever trained on: `measure` and `score` alone read them.
"""

import collections
import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from cxr_jax import figures
from cxr_jax.data.augment import Augment
from cxr_jax.data.lungs import LungMasks
from cxr_jax.data.pipeline import Transforms
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.records import FINDINGS, Record
from cxr_jax.data.sources.base import (
    VIEWS,
    Source,
    Subset,
    by_view,
    names_of,
    only_with,
    peek,
)
from cxr_jax.data.visible import Visible
from cxr_jax.errors import InputError
from cxr_jax.explain import gradcam, measured, relevance
from cxr_jax.metrics import diagnosis
from cxr_jax.models import corpus_vit
from cxr_jax.models.diagnosis import DiagnosisNet
from cxr_jax.models.pcam import PCAMHeads
from cxr_jax.tasks.base import Data, Evaluation, Rows, Task

# The maps that are drawn, and their names there.
MAPS = {
    "relevance": "relevance, for {}",
    "rollout": "attention rollout, of any class",
    "attention": "attention, last layer, of any class",
    "gradcam": "Grad-CAM, for {}",
}


@dataclasses.dataclass(frozen=True)
class Diagnosis(Task):
    """See the module.

    Attributes:
      classes: those of the data set that are told apart; films of its other classes are left out.
      view: 'PA' or 'AP': films of another projection, or of none that is known, are left out. '':
        all films.
      visible: what of a film is seen.
      lungs: where the lung masks come from, if `visible` needs them.
    """

    name: ClassVar[str] = "diagnosis"
    model: DiagnosisNet
    preprocess: Preprocess
    augment: Augment
    classes: tuple[str, ...]
    view: str
    visible: Visible
    lungs: LungMasks | None

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Diagnosis":
        _check(config)
        visible = Visible(**config.visible)
        return cls(
            model=_make_model(config),
            preprocess=Preprocess(**config.preprocess),
            augment=Augment(**config.augment),
            classes=tuple(config.classes),
            view=config.view,
            visible=visible,
            lungs=LungMasks(**config.lungs) if visible.needs_lungs else None,
        )

    @property
    def data(self) -> Data:
        inputs = frozenset({"image", "lungs"} if self.visible.needs_lungs else {"image"})
        return Data(
            fields=inputs | {"diagnosis"} | ({"view"} if self.view else set()),
            inputs=inputs,
            labels=frozenset({"diagnosis"}),
            transforms=Transforms(example=self._example, finish=self._finish),
            adapt=self._adapt,
        )

    @property
    def frozen(self) -> dict[str, str]:
        if self.model.train_backbone or self.model.backbone is None:
            return {}
        weighing = ["heads/.*"] if self.model.heads else []
        return dict.fromkeys(["backbone/.*", *weighing], "config.model.train_backbone=True")

    def _adapt(self, source: Source, *, training: bool) -> Source:
        """The films with a diagnosis, of the view and the classes, numbered as `classes`.

        Raises:
          InputError: there is none, a class that the set does not name, or one of which there is no
            training film.
        """
        source = by_view(only_with(source, {"diagnosis"}), self.view)
        names = names_of(source, "diagnoses")
        if unknown := [name for name in self.classes if name not in names]:
            raise InputError(
                f"config.classes has {unknown[0]!r}; data set {source.name!r} has the classes "
                f"{', '.join(names)}"
            )
        if self.classes != names:
            source = _of_classes(source, names, self.classes)
        if training:
            _check_classes(source, self.classes)
        return source

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        seen = self.visible(record)
        example = {"image": self.preprocess.film(seen["image"])}
        example["diagnosis"] = np.int32(record.get("diagnosis", 0))
        lesion = seen.get("lesion", np.zeros(seen["image"].shape, np.uint8))
        example["lesion"] = self.preprocess.mask(lesion)
        return example

    def _finish(self, example, rng):
        if rng is not None:
            example = self.augment({k: v for k, v in example.items() if k != "lesion"}, rng)
        return {**example, "image": self.preprocess.normalize(example["image"])}

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1], train=False)

    def loss(self, variables, batch, *, rng, step):
        """Softmax cross-entropy."""
        logits, state = self.model.apply(
            variables,
            batch["image"],
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        labels = batch["diagnosis"]
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
        right = jnp.mean(jnp.argmax(logits, axis=-1) == labels, dtype=jnp.float32)
        return jnp.mean(entropy), (state, {"accuracy": right})

    def predict(self, variables, batch):
        """`probs` [B, K], float32, in the order of `classes`."""
        logits = self.model.apply(variables, batch["image"], train=False)
        return {"probs": jax.nn.softmax(logits)}

    def explain(self, variables, batch):
        """The maps that the network has, see `_maps`, of every class: [B, K, h, w], each over its
        maximum, so that the members of an ensemble weigh the same. Which class is called is known
        when they are combined."""
        count = len(batch["image"])
        classes = jnp.tile(jnp.arange(len(self.classes)), (count, 1))
        maps = self._maps(variables, self._cells(variables, batch), classes)
        return {name: _over_maximum(heat) for name, heat in maps.items()}

    def measure(self, variables, batch):
        """How good the maps of the TRUE class are, each as rows of `metrics.diagnosis`, which an
        ensemble averages; beside them what nobody had to learn: `brightness`, the film itself, and
        a `blind`, flat map."""
        labels = batch["diagnosis"]
        maps = self._maps(variables, self._cells(variables, batch), labels)
        side = next(iter(maps.values())).shape[1:]
        maps["brightness"] = measured.resized(batch["image"], side)
        maps["blind"] = jnp.zeros_like(maps["brightness"])

        def probability(images):
            logits = self.model.apply(variables, images, train=False)
            return jnp.take_along_axis(jax.nn.softmax(logits), labels[:, None], axis=1)[:, 0]

        images, lesion = batch["image"], batch["lesion"]
        return measured.measured(maps, probability, images=images, lesion=lesion)

    def _cells(self, variables, batch):
        return self.model.apply(variables, batch["image"], train=False, method="corpus")

    def _logits(self, variables, cells):
        return self.model.apply(variables, cells, train=False, method="classify")

    def _maps(self, variables, cells, classes):
        """Of the classes [B] or [B, n]: with a ViT `relevance`, `rollout` and `attention` (the last
        two are of no class); with a backbone `gradcam`, of the map that the transformer, or the
        head, reads."""
        maps = {}
        if self.model.vit is not None:
            params = variables["params"]
            found = relevance.relevance_maps(
                self.model.vit, params["vit"], cells, head=params["head"], classes=classes
            )
            maps |= {name: found[name] for name in ("relevance", "rollout", "attention")}
        if self.model.backbone is not None:
            score = functools.partial(self._logits, variables)
            maps["gradcam"] = gradcam.grad_cam(score, cells, classes)
        return maps

    def score(self, outputs, batch):
        """Rows for `metrics.diagnosis`."""
        rows = {"probs": outputs["probs"], "label": batch["diagnosis"]}
        return rows | measured.rows_of(outputs)

    @property
    def evaluation(self) -> Evaluation:
        return DiagnosisEvaluation(self.classes, self.view)

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        called = int(outputs["probs"].argmax())
        maps = {}
        for name, title in MAPS.items():
            if (heat := outputs.get(name)) is not None:
                heat = heat if heat.ndim == 2 else heat[called]
                maps[title.format(self.classes[called])] = self.visible.on_film(heat, record)
        return figures.diagnosis_panel(
            record["image"],
            probs=outputs["probs"],
            names=self.classes,
            maps=maps,
            label=self._label_of(record),
            lesion_true=record.get("lesion"),
            title=str(record["id"]),
        )

    def _label_of(self, record: Record) -> int | None:
        return int(record["diagnosis"]) if "diagnosis" in record else None

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        del record  # a diagnosis has no place in the film
        probs = outputs["probs"]
        return {
            "diagnosis": self.classes[int(probs.argmax())],
            "probabilities": {n: round(float(p), 4) for n, p in zip(self.classes, probs)},
        }


@dataclasses.dataclass(frozen=True)
class DiagnosisEvaluation(Evaluation):
    """Tables 4, 7 and 9, and calibration; beside them the shares of the training films."""

    classes: tuple[str, ...]
    view: str
    fits = True
    columns = (
        *("accuracy", "balanced_accuracy", "mean_auc", "mean_sensitivity", "mean_specificity"),
        *("ece", "scaled_ece"),
    )
    mean_over_runs = ("probs",)
    fitted_rows = ("threshold", "temperature")
    compared_with_references = ("accuracy", "mean_auc")

    def report(self, units):
        return diagnosis.DiagnosisReport(self.classes)(units)

    def fit(self, validation):
        return diagnosis.choose(validation["probs"], validation["label"], self.classes)

    def with_fit(self, rows, fitted):
        return diagnosis.with_choice(rows, fitted, self.classes)

    def references(self, rows: Rows, training: Source) -> dict[str, Rows]:
        """The classes' shares among the training films of the view, the same for every film."""
        training = by_view(only_with(training, {"diagnosis"}), self.view)
        names = names_of(training, "diagnoses")
        labels = collections.Counter(
            names[peek(training, index, "diagnosis")] for index in range(len(training))
        )
        shares = np.array([labels[name] for name in self.classes], np.float64)
        probs = np.tile(shares / shares.sum(), (len(rows["label"]), 1))
        kept = {name: rows[name] for name in ("label", "group", "id")}
        return {"constant, training shares": kept | {"probs": probs}}

    def figures(self, rows):
        probs, labels = np.asarray(rows["probs"]), np.asarray(rows["label"], int)
        temperature = rows.get("temperature", np.array([np.nan]))[:1]
        return {
            "roc": figures.roc_chart(probs, labels, self.classes),
            "confusion": figures.confusion_chart(probs.argmax(axis=1), labels, self.classes),
            "reliability": figures.reliability_chart(probs, labels, float(temperature[0])),
        }


class _Relabelled(Subset):
    """Some films of a set, their classes numbered as the task does."""

    def __init__(self, source: Source, indices: list[int], numbers: dict[int, int]):
        super().__init__(source, indices, partial=source.partial)
        self._numbers = numbers
        self.version += f",classes{'.'.join(map(str, numbers))}"

    def __getitem__(self, index: int) -> Record:
        record = super().__getitem__(index)
        return record | {"diagnosis": self._numbers[int(record["diagnosis"])]}

    def peek(self, index: int, field: str) -> Any:
        value = super().peek(index, field)
        return self._numbers[int(value)] if field == "diagnosis" else value


def _of_classes(source: Source, names: Sequence[str], classes: tuple[str, ...]) -> Source:
    """The films of some of the classes that a set names, numbered in their order here."""
    numbers = {names.index(name): k for k, name in enumerate(classes)}
    indices = [i for i in range(len(source)) if int(peek(source, i, "diagnosis")) in numbers]
    if not indices:
        raise InputError(
            f"data set {source.name!r} (split {source.split!r}) has no film of the classes "
            f"{', '.join(classes)}; change config.classes"
        )
    chosen = _Relabelled(source, indices, numbers)
    if left := len(source) - len(indices):
        chosen.notes += (f"left out: {left} of {len(source)} films, of other classes",)
    chosen.diagnoses = classes
    return chosen


def _check_classes(source: Source, classes: tuple[str, ...]) -> None:
    """Looks at labels until every class has been seen."""
    missing = set(range(len(classes)))
    for index in range(len(source)):
        missing.discard(int(peek(source, index, "diagnosis")))
        if not missing:
            return
    names = ", ".join(classes[k] for k in sorted(missing))
    raise InputError(
        f"data set {source.name!r}: no training film is of class {names}; name the classes there "
        "are with --config.classes, or choose other data"
    )


def _over_maximum(heat):
    """A map [..., h, w] without what is below 0, from 0 to 1; all 0 where nothing is above."""
    heat = jnp.maximum(heat, 0)
    top = jnp.max(heat, axis=(-2, -1), keepdims=True)
    return heat / jnp.where(top > 0, top, 1.0)


def _make_model(config: ml_collections.ConfigDict) -> DiagnosisNet:
    """The network of `config.model`, whose parts must fit the size of the films."""
    c, dtype = config.model, jnp.dtype(config.precision)
    backbone, vit = corpus_vit.make_parts(config, dtype)
    corpus_vit.cells_of(config.preprocess.size, backbone, vit)
    return DiagnosisNet(
        backbone=backbone,
        vit=vit,
        train_backbone=c.train_backbone,
        freeze_norms=c.freeze_norms,
        head=nn.Dense(len(config.classes), dtype=jnp.float32),
        heads=PCAMHeads(len(FINDINGS), dtype=dtype) if c.weighing else None,
        weighing=tuple(FINDINGS.index(name) for name in c.weighing),
    )


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant."""
    classes = tuple(config.classes)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise InputError(f"config.classes={classes}; expected at least two different names")
    if config.view not in ("", *VIEWS):
        raise InputError(f"config.view={config.view!r}; expected PA, AP, or nothing: all films")
    if wrong := [name for name in config.model.weighing if name not in FINDINGS]:
        raise InputError(
            f"config.model.weighing has {wrong[0]!r}; the findings are {', '.join(FINDINGS)}"
        )
    if config.model.weighing and config.model.backbone.name == "none":
        raise InputError("config.model.weighing needs a backbone, whose map the findings weigh")
    if config.second.name and config.second.labels != "given":
        raise InputError(
            f"config.second.labels={config.second.labels!r}: nothing can be learned from films "
            "without a diagnosis; set it to given, or config.second.name to nothing"
        )
