"""A sixth task, as an exercise: a diagnosis from the [class] token, the heart's box, attention."""

import dataclasses
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from cxr_jax.data.augment import Augment
from cxr_jax.data.pipeline import Transforms
from cxr_jax.data.preprocess import Preprocess, resize_map
from cxr_jax.data.records import DIAGNOSES, REGIONS
from cxr_jax.figures import PREDICTION, overlays
from cxr_jax.metrics import classification, regression
from cxr_jax.metrics.bootstrap import Value
from cxr_jax.models.vit import ViT
from cxr_jax.tasks.base import Data, Evaluation, Task

HEART = REGIONS.index("cardiac silhouette")


class HeartNet(nn.Module):
    """Patches -> ViT -> [class] -> logits [B, 3] and a box [B, 4], xyxy as shares of the film."""

    @nn.compact
    def __call__(self, image, *, train):
        vit = ViT(num_layers=2, num_heads=2, width=16, mlp_dim=32, patch_size=8, name="vit")
        out = vit(image[..., None], train=train, return_attention=True)
        box = jax.nn.sigmoid(nn.Dense(4, name="box")(out["cls"]))
        return nn.Dense(len(DIAGNOSES), name="classes")(out["cls"]), box, out["attention"]


@dataclasses.dataclass(frozen=True)
class HeartTask(Task):
    name: ClassVar[str] = "heart"
    preprocess: Preprocess
    augment: Augment
    model: ClassVar[HeartNet] = HeartNet()

    @classmethod
    def from_config(cls, config):
        return cls(Preprocess(**config.preprocess), Augment(**config.augment))

    @property
    def data(self):
        return Data(
            fields=frozenset({"image", "diagnosis", "regions", "region_present"}),
            labels=frozenset({"diagnosis", "regions", "region_present"}),
            transforms=Transforms(example=self._example, finish=self._finish),
        )

    def _example(self, record):
        regions = record.get("regions", np.full((len(REGIONS), 4), np.nan, np.float32))
        return {
            "image": self.preprocess.film(record["image"]),
            "regions": self.preprocess.boxes(regions, record["image"].shape),
            "diagnosis": np.int32(record.get("diagnosis", -1)),
        }

    def _finish(self, example, rng):
        example = dict(example) if rng is None else self.augment(example, rng)
        return example | {"image": self.preprocess.normalize(example["image"])}

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1], train=False)

    def loss(self, variables, batch, *, rng, step):
        logits, box, _ = self.model.apply(variables, batch["image"], train=True)
        true = batch["regions"][:, HEART] / self.preprocess.size
        off = jnp.abs(jnp.where(jnp.isnan(true), box, true) - box).sum(-1)
        entropy = optax.softmax_cross_entropy_with_integer_labels(logits, batch["diagnosis"])
        return jnp.mean(off + entropy), ({}, {"box": off.mean(), "class": entropy.mean()})

    def predict(self, variables, batch):
        logits, box, _ = self.model.apply(variables, batch["image"], train=False)
        return {"probs": jax.nn.softmax(logits), "box": box}

    def explain(self, variables, batch):
        """`attention` [B, h, w]: what the [class] token looks at in the last layer."""
        *_, attention = self.model.apply(variables, batch["image"], train=False)
        to_cells = attention[-1].mean(1)[:, 0, 1:]
        return {"attention": to_cells.reshape(len(to_cells), self.preprocess.size // 8, -1)}

    def combine(self, outputs):  # boxes have no mean: that of the surest member
        surest = np.argmax([np.asarray(out["probs"]).max(-1) for out in outputs], axis=0)
        pick = lambda *arrays: np.stack(arrays)[surest, np.arange(len(surest))]  # noqa: E731
        return jax.tree.map(pick, *outputs)

    def score(self, outputs, batch):
        off = jnp.abs(outputs["box"] * self.preprocess.size - batch["regions"][:, HEART])
        return {"probs": outputs["probs"], "label": batch["diagnosis"], "px": off.mean(-1)}

    @property
    def evaluation(self):
        return HeartEvaluation()

    def figure(self, record, outputs):
        fig, bare, ax = overlays.film_pair(record["image"], title=str(record["id"]))
        heat = outputs["attention"] / outputs["attention"].max()
        overlays.draw_heat(ax, resize_map(heat, record["image"].shape))
        boxes = np.array([self.describe(record, outputs)["heart_xyxy_px"]])
        overlays.draw_boxes(bare, boxes, edgecolor=PREDICTION)
        return fig

    def describe(self, record, outputs):
        sides = np.tile(record["image"].shape[::-1], 2)
        found = {"heart_xyxy_px": (outputs["box"] * sides).round(1).tolist()}
        return found | {"diagnosis": DIAGNOSES[int(outputs["probs"].argmax())]}


class HeartEvaluation(Evaluation):
    columns, mean_over_runs = ("auc_covid", "box_px"), ("probs", "px")

    def report(self, units):
        auc = classification.auroc(units["probs"][:, 2], units["label"] == 2)
        px = regression.mean_of_known(units["px"])
        return {"auc_covid": Value(auc, len(units["label"])), "box_px": px}
