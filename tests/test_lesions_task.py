"""The task of CT slices and their lesions: what is read, hits by hand, pictures, a run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lesions as config_file
from cxr_jax.data import sources
from cxr_jax.data.augment import Augment
from cxr_jax.data.records import blank
from cxr_jax.errors import InputError
from cxr_jax.tasks import make_task
from cxr_jax.tasks.lesions import MOST_TRUE, brightness
from cxr_jax.trained import make_batch

SIDE = 64


def make(variant="smoke", **changes):
    config = config_file.get_config(variant).copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    return make_task(config)


@pytest.fixture(scope="module")
def volumes():
    return sources.open_source(
        sources.block("phantom_ct", size=64, slices=8, train=2, val=1, test=4, positive=0.5), "test"
    )


@pytest.fixture(scope="module")
def sick(volumes):
    """A slice with lesions, of the second class."""
    records = (volumes[k] for k in range(len(volumes)))
    return next(r for r in records if r["lesion"].any()) | {"diagnosis": 1}


# What is read.


def test_classes_are_numbered_as_the_config_says_and_masks_are_never_trained_on(volumes):
    task = make(classes=("covid-19", "normal"))
    assert task.positive == 0
    source = task.data.adapt(volumes, training=False)
    labels = [int(source[k]["diagnosis"]) for k in range(len(source))]
    lesion = [bool(source[k]["lesion"].any()) for k in range(len(source))]
    assert [label == 0 for label in labels] == lesion
    example = task.data.transforms.example(source[0])
    trained = task.data.transforms.finish(example, np.random.default_rng(0))
    assert set(trained) == {"image", "diagnosis"}


class Volumes:
    """Slices of volumes without a diagnosis of their own."""

    def __init__(self, source):
        self._source = source
        self.fields = source.fields - {"diagnosis"}
        self.partial = frozenset()

    def __getattr__(self, name):
        return getattr(self._source, name)

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        record = dict(self._source[index])
        del record["diagnosis"]
        return record

    def has(self, index, field):
        return field in self.fields

    def peek(self, index, field):
        return self[index].get(field)


def test_volumes_without_a_class_are_told_by_their_lesions(volumes):
    bare = Volumes(volumes)
    task = make()
    source = task.data.adapt(bare, training=True)
    assert [int(source[k]["diagnosis"]) for k in range(len(source))] == [
        int(volumes[k]["lesion"].any()) for k in range(len(source))
    ]
    turned = make(classes=("covid-19", "normal")).data.adapt(bare, training=True)
    assert [int(turned[k]["diagnosis"]) for k in range(8)] == [
        1 - int(source[k]["diagnosis"]) for k in range(8)
    ]


def test_true_boxes_are_shares_of_what_is_seen():
    """Lungs of rows 20-39, columns 10-29; the crop has a margin of 2%, here none."""
    lungs, lesion = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    lungs[20:40, 10:30] = 1
    lesion[25:30, 15:25] = 1
    lesion[36:44, 28:29] = 1  # out of the lungs' box at its foot
    record = blank({"image"}) | {
        "image": np.full((64, 64), 99, np.uint8),
        "lungs": lungs,
        "lesion": lesion,
    }
    task = make(**{"crop.masks": "record_or_morphology"})
    boxes = task.data.transforms.example(record)["lesion_boxes"]
    assert boxes.shape == (MOST_TRUE, 4)
    expected = [[0.25, 0.25, 0.75, 0.5], [0.9, 0.8, 0.95, 1.2]]
    np.testing.assert_allclose(boxes[:2], expected, rtol=1e-6)
    assert np.isnan(boxes[2:]).all()
    other = record | {"diagnosis": 1 - task.positive}  # its lesions are not those looked for
    assert np.isnan(task.data.transforms.example(other)["lesion_boxes"]).all()
    large = make(**{"crop.masks": "record_or_morphology", "least_lesion": 9})
    assert np.isnan(large.data.transforms.example(record)["lesion_boxes"][1:]).all()


@pytest.mark.parametrize("variant", ["", "quick", "covid_ct", "ct_lesions"])
def test_black_stays_black_in_training(variant):
    """The paper's brightness is a factor: what lies outside of the lungs stays black."""
    config = config_file.get_config(variant)
    augment = dataclasses.replace(Augment(**config.augment), contrast=0.0)
    image = np.zeros((120, 120), np.uint8)
    image[40:80, 40:80] = 70
    grey = [augment({"image": image}, np.random.default_rng(seed))["image"] for seed in range(9)]
    assert all(np.median(one) == 0 for one in grey)
    assert len({int(one.max()) for one in grey}) > 4


# What is said.


def test_a_map_is_of_the_positive_class_and_what_is_said_is_a_probability(sick):
    task = make("smoke,network=resnet50", **{"model.dropout": 0.0})
    batch = make_batch(task, [sick])
    variables = jax.jit(task.init)(jax.random.key(0), batch)
    out = jax.jit(task.predict)(variables, batch)
    np.testing.assert_allclose(out["probs"].sum(axis=1), 1, rtol=1e-6)
    assert {name for name in out if name.endswith("_heat")} == {f"{m}_heat" for m in task.maps}
    for heat in (out[f"{name}_heat"] for name in task.maps):
        assert heat.shape == (1, 4, 4)
        assert float(heat.min()) >= 0
        assert float(heat.max()) <= 1
    other = dataclasses.replace(task, positive=0)
    turned = jax.jit(other.predict)(variables, batch)
    assert not np.allclose(turned["lam_heat"], out["lam_heat"])


@pytest.mark.parametrize("network", sorted(config_file.NETWORKS))
def test_every_network_has_a_loss_and_maps(network, sick):
    """Shapes alone, but for FeCNN: what is computed is held in tests/models."""
    task = make(f"smoke,network={network}")
    batch = make_batch(task, [sick, sick])
    variables = jax.eval_shape(task.init, jax.random.key(0), batch)

    def loss(params):
        changed = variables | {"params": params}
        value, (_, terms) = task.loss(changed, batch, rng=jax.random.key(1), step=0)
        return value, terms

    step = jax.value_and_grad(loss, has_aux=True)
    if network == "fecnn":
        variables = jax.jit(task.init)(jax.random.key(0), batch)
        (value, terms), gradient = jax.jit(step)(variables["params"])
        assert np.isfinite(value)
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(gradient))
    else:
        heat = jax.eval_shape(task.predict, variables, batch)["lam_heat"]
        assert heat.shape[0] == 2
        assert min(heat.shape[1:]) >= 2
        terms = jax.eval_shape(
            lambda v: task.loss(v, batch, rng=jax.random.key(1), step=0)[1][1], variables
        )
    assert set(terms) == {"accuracy"}


class Says:
    """A network whose logits are given."""

    def __init__(self, logits):
        self.logits = jnp.asarray(logits, jnp.float32)

    def apply(self, variables, images, *, train, labels=None, mutable=None, rngs=None):
        return {"logits": self.logits + variables["shift"]}, {}


@pytest.mark.parametrize("scale", [1.0, 40.0, 400.0])
def test_the_loss_is_cross_entropy_and_finite(scale):
    task = dataclasses.replace(make(), model=Says([[0.0, scale], [0.0, scale]]))
    batch = {"image": np.zeros((2, SIDE, SIDE)), "diagnosis": np.array([1, 0])}

    def loss(shift):
        return task.loss({"shift": shift}, batch, rng=None, step=0)[0]

    value, gradient = jax.value_and_grad(loss)(jnp.zeros(2))
    expected = (np.logaddexp(0, -scale) + np.logaddexp(0, scale)) / 2
    np.testing.assert_allclose(value, expected, rtol=1e-6)
    assert np.isfinite(gradient).all()


# Lesions and hits.


def rows_of(heat, true, probs=(0.1, 0.9), **changes):
    """Finished rows of one slice with one map."""
    task = make(maps=("lam",), **changes)
    boxes = np.full((1, MOST_TRUE, 4), np.nan, np.float32)
    boxes[0, : len(true)] = np.reshape(true, (-1, 4))
    rows = {
        "probs": np.array([probs]),
        "label": np.array([1]),
        "lam_heat": np.asarray([heat], np.float32),
        "lesion_boxes": boxes,
        "id": np.array(["a"]),
        "group": np.array(["a"]),
    }
    return task, task.evaluation.finish_rows(rows)


HEAT = np.zeros((4, 4))
HEAT[1, 1:3] = 1.0, 0.9  # columns 1 and 2 of row 1
HEAT[3, 3] = 0.95  # a single cell is no lesion


def test_hits_by_hand():
    true = [[0.25, 0.25, 0.5, 0.5], [0.75, 0.75, 1.0, 1.0], [0.0, 0.25, 0.5, 0.5]]
    task, rows = rows_of(HEAT, true)
    assert rows["lam_count"].tolist() == [1]
    assert rows["lesion_true"].sum() == 3
    report = task.evaluation.report(rows)
    # The first is covered whole, the third half; the peak lies in both. The second has a cell.
    assert report["lam_hit_rate_50"].value == pytest.approx(2 / 3)
    assert report["lam_hit_rate_60"].value == pytest.approx(1 / 3)
    # Over the union the first has a half, the third a third.
    assert report["lam_hit_rate_50_of_union"].value == pytest.approx(1 / 3)
    assert report["lam_hit_rate_50_of_map"].value == pytest.approx(2 / 3)
    assert report["chance_hit_rate"].value == pytest.approx((1 / 16 + 1 / 16 + 1 / 8) / 3)
    # On 4 x 4 cells the first and the third are one lesion, whose first cell lies in the third
    # alone; the second has one cell.
    assert report["perfect_hit_rate_50"].value == pytest.approx(1 / 3)
    assert report["perfect_lesions"].value == 1


def test_a_slice_that_is_not_called_positive_has_no_lesion():
    _, rows = rows_of(HEAT, [[0.25, 0.25, 0.5, 0.5]], probs=(0.6, 0.4))
    assert rows["lam_count"].tolist() == [0]
    assert not rows["lam_lesion_hit"].any()
    _, rows = rows_of(HEAT, [[0.25, 0.25, 0.5, 0.5]], probs=(0.6, 0.4), gate="none")
    assert rows["lam_count"].tolist() == [1]
    assert rows["lam_lesion_hit"][0, 0].all()


def test_cuts_are_their_own_or_all_the_same():
    heat = np.full((1, 4, 4), 0.25, np.float32)
    heat[0, 0, :2], heat[0, 3, 3] = 1.0, 0.0
    probs = np.array([[0.0, 1.0]])
    own = make(maps=("cam",)).found(heat, probs, "cam")
    assert own.sizes.tolist() == [15]  # all above 0.2
    same = make(maps=("cam",), same_cut=True).found(heat, probs, "cam")
    assert same.sizes.tolist() == [2]


@pytest.mark.parametrize("heat", [np.zeros((4, 4)), np.ones((4, 4)), np.full((4, 4), np.nan)])
def test_nothing_is_found_on_a_flat_map_and_nothing_can_be_said_without_lesions(heat):
    task, rows = rows_of(np.nan_to_num(heat), [])
    report = task.evaluation.report(rows)
    assert np.isnan(report["lam_hit_rate_50"].value)
    assert report["lam_hit_rate_50"].reason == "no slice has a lesion"
    assert report["lam_lesions"].value == 0
    assert np.isnan(report["auc"].value)
    assert report["auc"].reason == "all slices are of one class"
    assert set(task.evaluation.figures(rows)) >= {"hit_rates", "precision_recall"}


def test_precision_recall_and_f1_by_hand():
    from cxr_jax.metrics.slices import positives_report

    probs = np.array([[0.9, 0.1], [0.4, 0.6], [0.2, 0.8], [0.7, 0.3]])
    told = {k: v.value for k, v in positives_report(probs, np.array([0, 0, 1, 1]), 1).items()}
    # Called: the second (wrong) and the third. In order 0.8+, 0.6-, 0.3+, 0.1-.
    assert told["precision"] == told["recall"] == told["f1"] == 0.5
    assert told["average_precision"] == pytest.approx((1 + 2 / 3) / 2)
    assert told["auc"] == pytest.approx(3 / 4)
    none = positives_report(probs[:1], np.array([0]), 1)
    assert all(np.isnan(value.value) and value.reason for value in none.values())


# Pictures and words.


@pytest.mark.parametrize("image", ["lungs", "black", "no lungs"])
def test_a_slice_is_drawn_and_told_whatever_it_is(image, sick):
    task = make()
    record = sick if image == "lungs" else blank({"image"})
    if image != "lungs":
        grey = 0 if image == "black" else 200
        record |= {"image": np.full((70, 50), grey, np.uint8), "id": "a", "group": "a"}
    heat = np.zeros((4, 4), np.float32)
    heat[1, 1:3] = 1.0
    outputs = {"probs": np.array([0.2, 0.8]), "lam_heat": heat}
    told = json.loads(json.dumps(task.describe(record, outputs)))
    assert told["diagnosis"] == "covid-19"
    assert len(told["lesions"]) == (image == "lungs")
    assert ("no lungs" in told.get("note", "")) == (image != "lungs")
    assert task.figure(record, outputs).axes


def test_brightness_is_of_the_lungs_alone():
    """A bright cell among grey ones; outside of the lungs as dark as the darkest of them."""
    images = np.full((3, 32, 32), -1.0, np.float32)
    images[0, 8:24, 8:24] = 0.2
    images[0, 8:16, 8:16] = 0.6
    images[1] = 0.5  # nothing is outside
    heat = np.asarray(brightness(jnp.asarray(images), (4, 4)))
    assert np.unravel_index(heat[0].argmax(), (4, 4)) == (1, 1)
    assert heat[0, 1, 1] == 1
    outside = np.ones((4, 4), bool)
    outside[1:3, 1:3] = False
    assert (heat[0][outside] == 0).all()
    assert (heat[1:] == 0).all()  # flat and black ones have no lesion


def test_the_mean_of_runs_is_cut_as_one_maps_are():
    """Of maps with different peaks the mean reaches no 1; CAM is cut at 0.2 of its range."""
    heat = np.full((1, 4, 4), 0.0, np.float32)
    heat[0, 0, :3] = 0.5, 0.11, 0.09
    found = make(maps=("cam",)).found(heat, np.array([[0.0, 1.0]]), "cam")
    assert found.sizes.tolist() == [2]
    assert found.peaks.tolist() == [1.0]


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"classes": ("a",)}, "at least two different names"),
        ({"positive": "flu"}, "config.positive='flu'; expected one of normal, covid-19"),
        ({"maps": ()}, "expected some of lam, cam"),
        ({"maps": ("lam", "lam")}, "each once"),
        ({"maps": ("heat",)}, "expected some of lam, cam"),
        ({"gate": "film"}, "config.gate='film'; expected one of slice, none"),
        ({"least_lesion": 0}, "config.least_lesion=0 px"),
        ({"model.head": "tail"}, "config.model.head='tail'; one of levels, dense"),
        ({"crop.masks": "drawn"}, "config.crop.masks='drawn'"),
    ],
)
def test_settings_that_cannot_be_meant_are_refused(changes, words):
    with pytest.raises(InputError, match=words):
        make(**changes)


def test_options_that_exclude_each_other():
    with pytest.raises(InputError, match="pyramid=0 and fusion=0 are of network=fecnn"):
        config_file.get_config("quick,network=vgg16,fusion=0")
    with pytest.raises(InputError, match="network='vgg19'; expected one of fecnn"):
        config_file.get_config("quick,network=vgg19")


def test_a_class_that_the_set_lacks_and_one_without_slices(volumes):
    with pytest.raises(InputError, match=r"config\.classes has 'flu'"):
        make(classes=("flu", "covid-19")).data.adapt(volumes, training=True)
    healthy = sources.open_source(
        sources.block("phantom_ct", size=64, slices=8, train=2, positive=0.0, label_every=1),
        "train",
    )
    with pytest.raises(InputError, match="no training film is of class covid-19"):
        make().data.adapt(healthy, training=True)
