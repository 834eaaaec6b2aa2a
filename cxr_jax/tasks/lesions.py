"""COVID-19 on CT slices, where its lesions are, and what they look like (Wu et al. 2022, 'FeCNN').

A classifier of slices, FeCNN or a baseline of its Table 3, sees the lungs cut out of a slice
(`data/ct_slices.py`). Its heat maps of the positive class are cut into lesions
(`explain/lesion_maps.py`), which are held to true ones by the boxes around both (Tables 5 and 6):

| map | method | what is a lesion |
| --- | --- | --- |
| lam | Grad-CAM | above Otsu's threshold, more than one cell: the paper's |
| cam | class activation map | above 0.2 of its range (Zhou et al. 2016, released code) |
| norm_grad | NormGrad | above 0.2 of its range, for nobody says otherwise |
| grad_cam_plus_plus | Grad-CAM++ | as lam |
| brightness | the grey level in the lungs, which no network has seen | as lam |

Beside them stands `perfect`: the boxes of the true lesions on as many cells, cut as lam is, the
most that this resolution allows.

`same_cut` has all of them cut as lam is: what of Table 6 is the map's, and what its cut's? A slice
that is not called positive has no lesion (`gate`): the paper looks for them in slices 'predicted
COVID-19 positive'. Lesions that it misses so are missed; brightness and the perfect map are of all
slices. True lesions are those of slices of the positive class: of three classes the third one has
others. A slice without lungs has no lesion that is told.

No lesion mask is ever trained on: `score` alone reads the boxes around them.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import optax

from cxr_jax import figures
from cxr_jax.data import lesions as true_lesions
from cxr_jax.data.augment import Augment
from cxr_jax.data.ct_slices import LungCrop
from cxr_jax.data.pipeline import Transforms
from cxr_jax.data.preprocess import Preprocess
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source, by_lesion, only_with
from cxr_jax.errors import InputError
from cxr_jax.explain import gradcam, lesion_maps
from cxr_jax.metrics import lesion_maps as map_metrics
from cxr_jax.metrics import slices
from cxr_jax.models import fecnn
from cxr_jax.models.backbones import make_backbone
from cxr_jax.models.slices import DenseHead, ProgressiveHead, ScoreMapHead, SliceClassifier
from cxr_jax.tasks.base import Data, Evaluation, Rows, VolumeTask
from cxr_jax.tasks.classes import ClassEvaluation, check_class_names, check_classes, of_classes

HEADS = {
    "levels": fecnn.LevelHead,
    "dense": DenseHead,
    "score_maps": ScoreMapHead,
    "progressive": ProgressiveHead,
}
GATES = ("slice", "none")
MOST_TRUE = 32  # lesions of a slice that have room; smaller ones beyond them are left out


class Cut(NamedTuple):
    """How lesions are cut out of a map: see `lesion_maps.find_lesions`."""

    threshold: float | None
    least: int


_LAM = Cut(None, 2)  # Otsu's threshold, more than one cell [paper, Sec. 3.2.1]
_SHARE = Cut(0.2, 1)
CUTS = {
    "lam": _LAM,
    "cam": _SHARE,
    "norm_grad": _SHARE,
    "grad_cam_plus_plus": _LAM,
    "brightness": _LAM,
}
METHODS = {name: name for name in CUTS if name in gradcam.METHODS} | {"lam": "grad_cam"}


@dataclasses.dataclass(frozen=True)
class Lesions(VolumeTask):
    """See the module.

    Attributes:
      classes: those of the data set that are told apart; of a set of volumes without classes they
        are two: without and with a lesion.
      positive: the class whose lesions are looked for, by its number.
      crop: what of a slice is seen.
      maps: names of `CUTS`, the first one is drawn and told.
      same_cut: all maps are cut as lam is.
      gate: 'slice': a slice that is not called positive has no lesion; or 'none'.
      least_lesion: of true lesions, pixels; smaller ones are left out.
    """

    name: ClassVar[str] = "lesions"
    pictures: ClassVar[bool] = True
    model: SliceClassifier
    preprocess: Preprocess
    augment: Augment
    crop: LungCrop
    classes: tuple[str, ...]
    positive: int
    maps: tuple[str, ...]
    same_cut: bool
    gate: str
    least_lesion: int

    @classmethod
    def from_config(cls, config: ml_collections.ConfigDict) -> "Lesions":
        _check(config)
        return cls(
            model=_make_model(config),
            preprocess=Preprocess(**config.preprocess),
            augment=Augment(**config.augment),
            crop=LungCrop(**config.crop),
            classes=tuple(config.classes),
            positive=tuple(config.classes).index(config.positive),
            maps=tuple(config.maps),
            same_cut=config.same_cut,
            gate=config.gate,
            least_lesion=config.least_lesion,
        )

    @property
    def data(self) -> Data:
        return Data(
            fields=frozenset({"image"}),  # of volumes `adapt` makes the diagnosis
            labels=frozenset({"diagnosis"}),
            transforms=Transforms(example=self._example, finish=self._finish),
            adapt=self._adapt,
        )

    def _adapt(self, source: Source, *, training: bool) -> Source:
        """The slices with a class that are bright enough, numbered as `classes`.

        Raises:
          InputError: there is none, a class that the set does not name, or one of which there is no
            training slice.
        """
        source = of_classes(self.crop.bright(self._with_class(source)), self.classes)
        if training:
            check_classes(source, self.classes)
        return source

    def _with_class(self, source: Source) -> Source:
        if "diagnosis" in source.fields or len(self.classes) != 2:
            return only_with(source, {"diagnosis"})
        without, found = 1 - self.positive, self.positive
        return by_lesion(source, (self.classes[without], self.classes[found]))

    def _labelled(self, source: Source) -> Source:
        return of_classes(self._with_class(source), self.classes)

    def _example(self, record: Record) -> dict[str, np.ndarray]:
        """`image` uint8 [H, W]; `diagnosis`; `lesion_boxes` float32 [T, 4], NaN where there is
        none: true lesions, shares of what is seen (outside of 0..1 what is not)."""
        record = self.crop.with_lungs(record)
        visible = self.crop.visible(record)
        return {
            "image": self.preprocess.film(visible(record)["image"]),
            "diagnosis": np.int32(record.get("diagnosis", 0)),
            "lesion_boxes": self._true_boxes(record, visible.window(record)),
        }

    def _true_boxes(self, record: Record, window: tuple[slice, slice]) -> np.ndarray:
        padded = np.full((MOST_TRUE, 4), np.nan, np.float32)
        mine = int(record.get("diagnosis", self.positive)) == self.positive
        if mine and "lesion" in record:
            rows, columns = window
            found = true_lesions.lesions_of(record, least=self.least_lesion).boxes[:MOST_TRUE]
            corner = np.array([columns.start, rows.start] * 2)
            sides = np.array([columns.stop - columns.start, rows.stop - rows.start] * 2)
            padded[: len(found)] = (found - corner) / sides
        return padded

    def _finish(self, example, rng):
        if rng is not None:
            example = {k: v for k, v in example.items() if k != "lesion_boxes"}
            example = self.augment(example, rng)
        return {**example, "image": self.preprocess.normalize(example["image"])}

    def init(self, rng, batch):
        return self.model.init(rng, batch["image"][:1], train=False)

    def loss(self, variables, batch, *, rng, step):
        """Softmax cross-entropy, Eq. 5 of FeCNN."""
        del step
        out, state = self.model.apply(
            variables,
            batch["image"],
            train=True,
            labels=batch["diagnosis"],
            mutable=["batch_stats"],
            rngs={"dropout": rng},
        )
        labels = batch["diagnosis"]
        entropy = optax.softmax_cross_entropy_with_integer_labels(out["logits"], labels)
        right = jnp.mean(jnp.argmax(out["logits"], axis=-1) == labels, dtype=jnp.float32)
        # A network without batch norm and error rates has no state.
        return jnp.mean(entropy), (state, {"accuracy": right})

    def predict(self, variables, batch):
        """`probs` [B, K], and of every map `NAME_heat` [B, h, w], 0..1, on the last block's
        cells."""
        maps = self.model.apply(variables, batch["image"], train=False, method="maps")

        def classify(cells):
            levels = [*maps[:-1], cells]
            return self.model.apply(variables, levels, train=False, method="classify")["logits"]

        heats = {
            f"{name}_heat": lesion_maps.lesion_heat(
                classify, maps[-1], positive=self.positive, method=gradcam.METHODS[METHODS[name]]
            )
            for name in self.maps
            if name in METHODS
        }
        if "brightness" in self.maps:
            heats["brightness_heat"] = brightness(batch["image"], maps[-1].shape[1:3])
        return {"probs": jax.nn.softmax(classify(maps[-1]))} | heats

    def cells(self, variables, batch):
        """The last block's map, [B, h, w, C]: what the features of lesions are taken from."""
        return self.model.apply(variables, batch["image"], train=False, method="maps")[-1]

    def score(self, outputs, batch):
        """Rows that `LesionsEvaluation.finish_rows` makes those of `metrics.slices` from."""
        heats = {f"{name}_heat": outputs[f"{name}_heat"] for name in self.maps}
        rows = {"probs": outputs["probs"], "label": batch["diagnosis"]}
        return rows | heats | {"lesion_boxes": batch["lesion_boxes"]}

    @property
    def evaluation(self) -> Evaluation:
        return LesionsEvaluation(self.classes, self._labelled, self)

    def found(self, heats: np.ndarray, probs: np.ndarray, name: str) -> lesion_maps.Lesions:
        """The lesions of a map's heats [B, h, w], of slices of these `probs` [B, K]."""
        cut = _LAM if self.same_cut else CUTS[name]
        heats = np.asarray(lesion_maps.scaled(heats))  # the mean of several runs' reaches no 1
        if self.gate == "slice" and name in METHODS:
            called = np.asarray(probs).argmax(axis=1) == self.positive
            heats = heats * called[:, None, None]  # a flat map has no lesion
        return lesion_maps.find_lesions(heats, cut=cut.threshold, least=cut.least)

    def told(
        self, outputs: dict[str, np.ndarray], records: Sequence[Record]
    ) -> lesion_maps.Lesions:
        """The lesions of the first map on these slices; one without lungs has none."""
        name = self.maps[0]
        lungs = [bool(self.crop.with_lungs(record)["lungs"].any()) for record in records]
        heats = outputs[f"{name}_heat"] * np.reshape(lungs, (-1, 1, 1))
        return self.found(heats, outputs["probs"], name)

    def on_slices(
        self, found: lesion_maps.Lesions, records: Sequence[Record]
    ) -> tuple[np.ndarray, np.ndarray]:
        """Boxes [L, 4] and places [L, 2] of lesions in the slices' own pixels."""
        windows = np.zeros((len(records), 4))  # left, top, width, height
        for k in np.unique(found.slice_index):
            record = self.crop.with_lungs(records[k])
            rows, columns = self.crop.visible(record).window(record)
            windows[k] = (
                *(columns.start, rows.start),
                *(columns.stop - columns.start, rows.stop - rows.start),
            )
        corner, sides = np.split(windows[found.slice_index], 2, axis=1)
        boxes = found.boxes * np.tile(sides, 2) + np.tile(corner, 2)
        return boxes.astype(np.float32), (found.points * sides + corner).astype(np.float32)

    def _drawn(self, record: Record, outputs) -> lesion_maps.Lesions:
        """Of one slice the lesions that are told."""
        return self.told({name: values[None] for name, values in outputs.items()}, [record])

    def figure(self, record: Record, outputs: dict[str, np.ndarray]):
        boxes, points = self.on_slices(self._drawn(record, outputs), [record])
        return self.panel(record, outputs, figures.DrawnLesions(boxes, points))

    def panel(self, record: Record, outputs, drawn: figures.DrawnLesions):
        """The picture of a slice with these lesions."""
        found = self._drawn(record, outputs)
        record = self.crop.with_lungs(record)
        lesion_map = outputs[f"{self.maps[0]}_heat"] * found.mask[0]
        return figures.lesions_panel(
            record["image"],
            self.crop.visible(record).on_film(lesion_map, record),
            drawn,
            probs=outputs["probs"],
            names=self.classes,
            label=int(record["diagnosis"]) if "diagnosis" in record else None,
            lesion_true=record.get("lesion"),
            lungs=record["lungs"],
            title=str(record["id"]),
        )

    def mask(self, record: Record, outputs: dict[str, np.ndarray]) -> np.ndarray:
        """The cells of the lesions that are told, enlarged."""
        cells = self._drawn(record, outputs).mask[0].astype(np.float32)
        return (self.crop.on_slice(cells, record) >= 0.5).astype(np.uint8)

    def slice_prob(self, outputs: dict[str, np.ndarray]) -> float:
        """Of the positive class."""
        return float(outputs["probs"][self.positive])

    def describe(self, record: Record, outputs: dict[str, np.ndarray]) -> dict[str, Any]:
        found = self._drawn(record, outputs)
        boxes, points = self.on_slices(found, [record])
        probs = outputs["probs"]
        lungs = self.crop.with_lungs(record)["lungs"].any()
        note = {} if lungs else {"note": "no lungs were found on this slice: do not trust it"}
        return note | {
            "diagnosis": self.classes[int(probs.argmax())],
            "probabilities": {n: round(float(p), 4) for n, p in zip(self.classes, probs)},
            "lesions": [
                {"xyxy_px": _told(box), "place_px": _told(point), "heat": round(float(peak), 4)}
                for box, point, peak in zip(boxes, points, found.peaks)
            ],
        }


@dataclasses.dataclass(frozen=True)
class LesionsEvaluation(ClassEvaluation):
    """Tables 3 to 6 of Wu et al. 2022, and calibration."""

    task: Lesions
    free_settings = ("maps", "same_cut", "gate", "least_lesion")
    columns = (
        *("accuracy", "f1", "auc", "average_precision"),
        *("lam_hit_rate_50", "cam_hit_rate_50", "norm_grad_hit_rate_50"),
        *("brightness_hit_rate_50", "chance_hit_rate", "perfect_hit_rate_50"),
    )

    def finish_rows(self, rows: Rows) -> Rows:
        """The hits of each map in place of the maps."""
        true = rows.pop("lesion_boxes")
        rows["lesion_true"] = ~np.isnan(true).any(axis=-1)
        rows["lesion_chance"] = map_metrics.chance_hits(true)
        shape = rows[f"{self.task.maps[0]}_heat"].shape[1:]
        heat = map_metrics.perfect_heat(true, shape)
        perfect = lesion_maps.find_lesions(heat, least=_LAM.least)
        _add_hits(rows, "perfect", found=perfect, true=true)
        for name in self.task.maps:
            found = self.task.found(rows.pop(f"{name}_heat"), rows["probs"], name)
            _add_hits(rows, name, found=found, true=true)
        return rows

    def report(self, units):
        told = super().report(units)
        if "lesion_true" not in units:  # of a predictor without maps
            return told
        probs, labels = np.asarray(units["probs"]), np.asarray(units["label"], int)
        told |= slices.positives_report(probs, labels, self.task.positive)
        return told | slices.maps_report(units, (*self.task.maps, "perfect"))

    def figures(self, rows):
        probs, labels = np.asarray(rows["probs"]), np.asarray(rows["label"], int)
        rates = {
            name: [value.value for value in self._rates(rows, name).values()]
            for name in (*self.task.maps, "perfect")
        }
        return super().figures(rows) | {
            "precision_recall": figures.precision_recall_chart(probs, labels, self.classes),
            "hit_rates": figures.hit_rate_chart(map_metrics.OVERLAPS, rates),
        }

    def _rates(self, rows: Rows, name: str):
        return map_metrics.hit_rates(
            {"lesion_hit": rows[f"{name}_lesion_hit"], "lesion_true": rows["lesion_true"]}
        )


def _add_hits(
    rows: dict[str, np.ndarray], name: str, *, found: lesion_maps.Lesions, true: np.ndarray
) -> None:
    """Rows of a map: which true lesions `found` hits, and how many it has a slice."""
    most = max(int(found.mask[0].size), 1) if len(found.mask) else 1
    told = lesion_maps.lesion_rows(found, most=most)
    rows[f"{name}_count"] = told["lesion_count"]
    for share in map_metrics.SHARES:
        hits = map_metrics.hit_rows(told["lesion_boxes"], told["lesion_points"], true, share=share)
        rows[f"{name}_{share}_hit"] = hits["lesion_hit"]


def brightness(images: jax.Array, shape: tuple[int, int]) -> jax.Array:
    """The mean grey level of the lungs in each of so many cells, 0..1: [B, H, W] -> [B, h, w].

    What is black is outside; a cell half of which is outside is as dark as the darkest one.
    """
    inside = images > jnp.min(images, axis=(1, 2), keepdims=True)

    def mean(values):
        return jax.image.resize(values, (len(images), *shape), "linear", antialias=True)

    share = mean(inside.astype(jnp.float32))
    level = mean(jnp.where(inside, images, 0.0)) / jnp.maximum(share, 0.5)
    within = share >= 0.5
    darkest = jnp.min(jnp.where(within, level, jnp.inf), axis=(1, 2), keepdims=True)
    level = jnp.where(within, level, darkest)
    return lesion_maps.scaled(level)


def _told(values: np.ndarray) -> list[float]:
    return [round(float(x), 1) for x in values]


def _make_model(config: ml_collections.ConfigDict) -> SliceClassifier:
    """The network of `config.model`."""
    c, dtype = config.model, jnp.dtype(config.precision)
    head = {"num_classes": len(config.classes), "dtype": dtype}
    if c.head in ("levels", "dense", "progressive"):
        head["dropout"] = c.dropout
    if c.head == "levels":
        head |= {"pyramid": c.pyramid, "fusion": c.fusion, "width": c.width}
        head["momentum"] = c.momentum
    if c.head == "dense":
        head["hidden"] = tuple(c.hidden)
    return SliceClassifier(make_backbone(config, dtype), HEADS[c.head](**head))


def _check(config: ml_collections.ConfigDict) -> None:
    """Refuses settings that cannot be meant."""
    check_class_names(config.classes)
    if config.positive not in tuple(config.classes):
        raise InputError(
            f"config.positive={config.positive!r}; expected one of {', '.join(config.classes)}"
        )
    if config.model.head not in HEADS:
        raise InputError(f"config.model.head={config.model.head!r}; one of {', '.join(HEADS)}")
    maps = tuple(config.maps)
    if not maps or len(set(maps)) < len(maps) or set(maps) - set(CUTS):
        raise InputError(f"config.maps={maps}; expected some of {', '.join(CUTS)}, each once")
    if config.gate not in GATES:
        raise InputError(f"config.gate={config.gate!r}; expected one of {', '.join(GATES)}")
    if config.least_lesion < 1:
        raise InputError(f"config.least_lesion={config.least_lesion} px; expected at least 1")
    if config.second.name and config.second.labels != "given":
        raise InputError(
            f"config.second.labels={config.second.labels!r}: nothing can be learned from slices "
            "without a class; set it to given, or config.second.name to nothing"
        )
