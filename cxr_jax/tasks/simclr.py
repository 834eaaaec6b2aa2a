"""Contrastive pre-training without labels (Chen et al. 2020, SimCLR), as in Park et al. 2021,
Sec. 5.5.5: two views of each film, and NT-Xent over the batch.

What it learns is in `backbone` and `vit`, from which a run of the other tasks with these parts
starts (`config.init_from`). Under `config.parallel=jit` the negatives of a view are the other films
of the whole batch, under pmap those of its device; accumulated steps do not share theirs.
"""

import dataclasses
import zlib
from typing import Any, ClassVar

import jax.numpy as jnp
import ml_collections
import numpy as np

from cxr_jax import figures, losses
from cxr_jax.data.pipeline import Transforms
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.records import Record
from cxr_jax.data.two_views import TwoViews
from cxr_jax.data.visible import Visible
from cxr_jax.errors import InputError
from cxr_jax.metrics import simclr
from cxr_jax.models import corpus_vit
from cxr_jax.models.simclr import Projection, SimclrNet
from cxr_jax.tasks.base import Data, Evaluation, Task


@dataclasses.dataclass(frozen=True)
class Simclr(Task):
    """See the module.

    Attributes:
      temperature: of the loss.
      visible: what of a film is seen; nothing that needs lung masks.
    """

    name: ClassVar[str] = "simclr"
    model: SimclrNet
    preprocess: Preprocess
    augment: TwoViews
    temperature: float
    visible: Visible

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Simclr":
        visible = Visible(**config.visible)
        _check(config, visible)
        return cls(
            model=_make_model(config),
            preprocess=Preprocess(**config.preprocess),
            augment=TwoViews(**config.augment),
            temperature=config.temperature,
            visible=visible,
        )

    @property
    def data(self) -> Data:
        return Data(
            fields=frozenset({"image"}),
            transforms=Transforms(example=self._example, finish=self._finish),
        )

    @property
    def frozen(self) -> dict[str, str]:
        trained = self.model.train_backbone or self.model.backbone is None
        return {} if trained else {"backbone/.*": "config.model.train_backbone=True"}

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        # In an evaluation a film has the same two views whenever, and beside whatever, it comes.
        seed = zlib.crc32(str(record["id"]).encode("utf-8", "replace"))
        film = self.preprocess.film(self.visible(record)["image"])
        return {"image": film, "seed": np.uint32(seed)}

    def _finish(self, example, rng):
        """`first` and `second`, the views; in an evaluation also `image`, the film as it is."""
        film = example["image"]
        views = self._views(example) if rng is None else self.augment(film, rng)
        found = dict(zip(("first", "second"), views)) | ({"image": film} if rng is None else {})
        return {name: self.preprocess.normalize(view) for name, view in found.items()}

    def _views(self, example) -> tuple[np.ndarray, np.ndarray]:
        return self.augment(example["image"], np.random.default_rng(int(example["seed"])))

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1], train=False)

    def loss(self, variables, batch, *, rng, step):
        """NT-Xent; all views go through the network together, as one batch of its norms."""
        count = len(batch["first"])
        if count < 2:
            raise InputError(
                "a device has one film of the batch, and so no negative; raise config.batch_size, "
                "or set config.parallel=jit"
            )
        vectors, state = self.model.apply(
            variables,
            jnp.concatenate([batch["first"], batch["second"]]),
            train=True,
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        first, second = vectors[:count], vectors[count:]
        loss = losses.nt_xent(first, second, temperature=self.temperature)
        cosines = losses.unit_vectors(first) @ losses.unit_vectors(second).T
        found = jnp.mean(jnp.argmax(cosines, axis=1) == jnp.arange(count), dtype=jnp.float32)
        terms = {"found_in_batch": found, "agreement": jnp.mean(jnp.diagonal(cosines))}
        return jnp.mean(loss), (state, terms)

    def predict(self, variables, batch):
        """`embedding` [B, C] of the film as it is, h of Chen et al.; `first` and `second` [B, D],
        z of its two views, of length 1; `agreement` [B], their cosine."""
        embedding = self.model.apply(variables, batch["image"], train=False, method="embed")
        views = {
            name: losses.unit_vectors(self.model.apply(variables, batch[name], train=False))
            for name in ("first", "second")
        }
        agreement = jnp.sum(views["first"] * views["second"], axis=1)
        return {"embedding": embedding, "agreement": agreement, **views}

    def score(self, outputs, batch):
        """Rows for `metrics.simclr`."""
        del batch
        return {name: outputs[name] for name in ("first", "second")}

    @property
    def evaluation(self) -> Evaluation:
        return SimclrEvaluation()

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        return figures.views_panel(
            record["image"],
            self._views(self._example(record)),
            agreement=float(outputs["agreement"]),
            title=str(record["id"]),
        )

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        del record  # an embedding has no place in the film
        return {
            "agreement": round(float(outputs["agreement"]), 4),
            "embedding": [round(float(x), 5) for x in outputs["embedding"]],
        }


@dataclasses.dataclass(frozen=True)
class SimclrEvaluation(Evaluation):
    """Whether the views of a film find one another among those of the whole split.

    Two runs' projections share no space, so rows of several runs cannot be pooled.
    """

    columns = ("retrieval", "retrieval_chance", "agreement", "other_agreement")

    def units(self, rows):
        """A film each, compared with all others of the split."""
        return {**rows, **simclr.retrieval(rows["first"], rows["second"])}

    def report(self, units):
        return simclr.retrieval_report(units)


def _make_model(config: ml_collections.ConfigDict) -> SimclrNet:
    """The network of `config.model`, whose parts must fit the size of the films."""
    c, dtype = config.model, jnp.dtype(config.precision)
    backbone, vit = corpus_vit.make_parts(config, dtype)
    corpus_vit.cells_of(config.preprocess.size, backbone, vit)
    return SimclrNet(
        backbone=backbone,
        vit=vit,
        train_backbone=c.train_backbone,
        freeze_norms=c.freeze_norms,
        projection=Projection(**c.projection),
    )


def _check(config: ml_collections.ConfigDict, visible: Visible) -> None:
    """Refuses settings that cannot be meant."""
    if not 0 < config.temperature < float("inf"):
        raise InputError(f"config.temperature={config.temperature}; it must be above 0")
    if config.batch_size < 2:
        raise InputError(
            f"config.batch_size={config.batch_size}: a film alone has no negatives; set it to at "
            "least 2"
        )
    for name, size in config.model.projection.items():
        if size < 1:
            raise InputError(f"config.model.projection.{name}={size}; it must be at least 1")
    if visible.needs_lungs:
        raise InputError(
            "config.visible needs lung masks, which this task does not read; set crop to nothing "
            "or square, and hide to nothing"
        )
