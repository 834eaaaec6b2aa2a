"""Lung segmentation: a supervised U-Net for the right and the left lung.

The first stage of Kim et al. 2021 (Sec. 3: Adam 1e-4, batch 1, 20,000 steps), and the masks every
radiograph task needs where a data set has none.
"""

import dataclasses
import hashlib
import os
import pathlib
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import tqdm

from cxr_jax import figures, losses
from cxr_jax.checkpoints import restore_variables
from cxr_jax.data import sources, zones
from cxr_jax.data.augment import Augment
from cxr_jax.data.pipeline import Transforms
from cxr_jax.data.preprocess import Preprocess, resize_map
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError
from cxr_jax.metrics import regression, segmentation
from cxr_jax.models.unet import UNet
from cxr_jax.tasks.base import Task
from cxr_jax.workdir import read_config

RIGHT, LEFT = 0, 1  # output channels


@dataclasses.dataclass(frozen=True)
class Lungs(Task):
    """See the module. Outputs `lung_probs` [B, H, W, 2]: right, left."""

    name: ClassVar[str] = "lungs"
    model: UNet
    preprocess: Preprocess
    augment: Augment

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Lungs":
        return cls(
            model=UNet(
                features=tuple(config.model.features),
                out_channels=2,
                dtype=jnp.dtype(config.precision),
            ),
            preprocess=Preprocess(**config.preprocess),
            augment=Augment(**config.augment),
        )

    @property
    def fields(self) -> frozenset[str]:
        return frozenset({"image", "lungs"})

    @property
    def transforms(self) -> Transforms:
        return Transforms(example=self._example, finish=self._finish)

    def adapt(self, source: sources.Source, cache_dir: pathlib.Path) -> sources.Source:
        """Leaves out films without a mask."""
        return sources.only_with(source, self.fields)

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        example = {"image": self.preprocess.film(record["image"])}
        if "lungs" in record:
            example["lungs"] = self.preprocess.mask(record["lungs"])
        return example

    def _finish(self, example, rng):
        if rng is not None:
            example = self.augment(example, rng)
        return {**example, "image": self.preprocess.normalize(example["image"])}

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1, ..., None], train=False)

    def loss(self, variables, batch, *, rng, step):
        """Per pixel binary cross-entropy plus soft Dice, per lung; mean over examples."""
        logits, state = self.model.apply(
            variables, batch["image"][..., None], train=True, mutable=["batch_stats"]
        )
        loss = jnp.mean(losses.segmentation_loss(logits, batch["lungs"]))
        return loss, (state, {})

    def predict(self, variables, batch):
        logits = self.model.apply(variables, batch["image"][..., None], train=False)
        return {"lung_probs": jax.nn.sigmoid(logits.astype(jnp.float32))}

    def score(self, outputs, batch):
        """Dice of the thresholded maps, before post-processing (which `raw` in the name says), and
        the label map, from which `finish_rows` takes the Dice after it."""
        probs = outputs["lung_probs"]
        labels = jnp.where(probs[..., LEFT] > probs[..., RIGHT], 2, 1) * (probs.max(-1) >= 0.5)
        rows = segmentation.lung_rows(labels, batch["lungs"])
        return {f"raw_{name}": value for name, value in rows.items()} | {
            "lung_probs_u8": jnp.round(probs * 255).astype(jnp.uint8),
            "lungs": batch["lungs"].astype(jnp.uint8),
        }

    def finish_rows(self, rows):
        """Dice per lung after post-processing (holes filled, one component a lung), which runs on
        the host; the maps themselves are dropped."""
        probs, truth = rows.pop("lung_probs_u8") / np.float32(255), rows.pop("lungs")
        labels = np.stack([zones.lungs_from_probs(p[..., RIGHT], p[..., LEFT]) for p in probs])
        post = segmentation.lung_rows(jnp.asarray(labels), jnp.asarray(truth))
        return rows | {name: np.asarray(value) for name, value in post.items()}

    def report(self, rows):
        return {
            name: regression.mean(rows[name])
            for name in sorted(rows)
            if name.endswith(("lung_dice", "lung_dice_right", "lung_dice_left"))
        }

    def figure(self, record, outputs):
        film = record["image"]
        return figures.lungs_panel(film, self.labels(outputs, film.shape), record.get("lungs"))

    def describe(self, outputs):
        labels = self.labels(outputs, outputs["lung_probs"].shape[:2])
        share = {
            side: round(float(np.mean(labels == i)), 4) for i, side in ((1, "right"), (2, "left"))
        }
        return {"lung_area_share": share}

    @staticmethod
    def labels(outputs: dict[str, np.ndarray], shape: tuple[int, int]) -> np.ndarray:
        """[h, w, 2] probabilities -> uint8 [H, W] lung labels of a film of `shape`."""
        probs = resize_map(np.asarray(outputs["lung_probs"], np.float32), shape)
        return zones.lungs_from_probs(probs[..., RIGHT], probs[..., LEFT])


def enlarge(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w] lung labels -> uint8 [H, W] of `shape`, with smooth borders."""
    right, left = (resize_map((labels == i).astype(np.float32), shape) for i in (1, 2))
    return np.where(right >= 0.5, 1, np.where(left > 0.5, 2, 0)).astype(np.uint8)


@dataclasses.dataclass(frozen=True)
class Segmenter:
    """A trained `lungs` work directory, ready to label films."""

    task: Lungs
    variables: Any
    apply: Any  # (variables, batch) -> outputs, jitted
    version: str  # digest of config and weights, for the cache
    batch_size: int = 8

    @classmethod
    def load(cls, workdir: str | pathlib.Path) -> "Segmenter":
        """Raises InputError where the folder holds no trained `lungs` run."""
        workdir = pathlib.Path(workdir)
        config = read_config(workdir)
        if config.task != Lungs.name:
            raise InputError(
                f"{workdir} is a run of task {config.task!r}; lung masks need one of 'lungs' "
                "(python -m cxr_jax.main --config=configs/lungs.py)"
            )
        task = Lungs.from_config(config)
        size = config.preprocess.size
        shapes = jax.eval_shape(
            task.init, jax.random.PRNGKey(0), {"image": jnp.zeros((1, size, size))}
        )
        device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
        _, (variables,) = restore_variables(workdir, dict(shapes), device)
        digest = hashlib.sha256(config.to_json().encode())
        for array in jax.tree.leaves(variables):
            digest.update(np.asarray(array).tobytes())
        return cls(task, variables, jax.jit(task.predict), digest.hexdigest())

    def labels(self, films: list[np.ndarray]) -> np.ndarray:
        """At most `batch_size` films, uint8 [H, W] of any sizes -> uint8 [n, S, S] lung labels."""
        prepare = self.task.preprocess
        images = [prepare.normalize(prepare.film(film)) for film in films]
        images += [images[0]] * (self.batch_size - len(films))  # one shape, one compilation
        outputs = self.apply(self.variables, {"image": np.stack(images)})
        probs = np.asarray(outputs["lung_probs"])[: len(films)]
        return np.stack([zones.lungs_from_probs(p[..., RIGHT], p[..., LEFT]) for p in probs])


class WithLungs:
    """A source whose records have `lungs` from a trained model where they have none of their own,
    or always.

    The masks are made once, at the segmenter's size, and kept in one memory-mapped file of the
    work directory: 64 kB a film at 256 pixels, whatever the size of the data set.
    """

    def __init__(
        self,
        source: sources.Source,
        segmenter: Segmenter,
        cache_dir: pathlib.Path,
        *,
        replace: bool,
    ):
        self._source, self._replace = source, replace
        self.name, self.version, self.split = source.name, source.version, source.split
        self.fields = source.fields | {"lungs"}
        self.partial = source.partial - {"lungs"}
        size = segmenter.task.preprocess.size
        key = f"{segmenter.version}|{source.name}|{source.version}|{source.split}|{len(source)}"
        digest = hashlib.sha256(key.encode()).hexdigest()[:16]
        self._path = cache_dir / f"lungs-{source.split}-{digest}.npy"
        if not self._path.exists():
            cache_dir.mkdir(parents=True, exist_ok=True)
            part = self._path.with_suffix(f".{os.getpid()}.part")
            masks = np.lib.format.open_memmap(
                part, mode="w+", dtype=np.uint8, shape=(len(source), size, size)
            )
            n = segmenter.batch_size
            for start in tqdm.trange(
                0, len(source), n, desc=f"lung masks of {source.split}", disable=None
            ):
                films = [source[i]["image"] for i in range(start, min(start + n, len(source)))]
                masks[start : start + len(films)] = segmenter.labels(films)
            masks.flush()
            os.replace(part, self._path)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        record = self._source[index]
        if "lungs" in record and not self._replace:
            return record
        mask = np.load(self._path, mmap_mode="r")[index]
        return {**record, "lungs": enlarge(np.asarray(mask), record["image"].shape)}
