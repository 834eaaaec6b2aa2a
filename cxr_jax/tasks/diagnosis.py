"""Diagnosis from a corpus of low-level features (Park et al. 2021, 'corpus_vit').

Sec. 3.2: the corpus of the pre-training on findings, a ViT over its cells, and a linear head on the
[class] token: normal, other infection or COVID-19. Softmax cross-entropy. Films of one projection
or of all; the paper has a model for PA and one for AP films.

No lesion mask is ever trained on: `measure` and `score` alone read them.
"""

import dataclasses
import functools
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
from cxr_jax.data.sources.base import VIEWS, Source, by_view, only_with
from cxr_jax.data.visible import Visible
from cxr_jax.errors import InputError
from cxr_jax.explain import gradcam, measured, relevance
from cxr_jax.models import corpus_vit
from cxr_jax.models.diagnosis import DiagnosisNet
from cxr_jax.models.pcam import PCAMHeads
from cxr_jax.tasks.base import Data, Evaluation, Task
from cxr_jax.tasks.classes import ClassEvaluation, check_class_names, check_classes, of_classes

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
        source = self._labelled(source)
        if training:
            check_classes(source, self.classes)
        return source

    def _labelled(self, source: Source) -> Source:
        return of_classes(by_view(only_with(source, {"diagnosis"}), self.view), self.classes)

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        seen = self.visible(record)
        example = {"image": self.preprocess.film(seen["image"])}
        example["diagnosis"] = np.int32(record.get("diagnosis", 0))
        example["lesion"] = self.preprocess.mask_or_empty(seen.get("lesion"))
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
        return ClassEvaluation(self.classes, self._labelled)

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
    check_class_names(config.classes)
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
