"""The seam task: what it may see, what its losses ignore, and what it shows."""

import dataclasses
import importlib

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import losses, optimizers
from cxr_jax.data import pipeline
from cxr_jax.data.sources.phantom_ct import PhantomCT
from cxr_jax.data.sources.phantom_cxr import PhantomCXR
from cxr_jax.errors import InputError
from cxr_jax.ops.bags import bag_logit
from cxr_jax.tasks import make_task
from cxr_jax.tasks.seam import MASKS, METHODS

WEAK = tuple(method for method in METHODS if method != "unet")


def config_of(variant: str):
    config = importlib.import_module("configs.seam").get_config(variant)
    return config.copy_and_resolve_references()


class Tiny(nn.Module):
    """Three taps of stride 8 out of means of 8x8 pixels: compiles at once."""

    @nn.compact
    def __call__(self, x, *, train, train_norms=False):
        del train, train_norms
        n, height, width, _ = x.shape
        rows, columns = max(height // 8, 1), max(width // 8, 1)
        x = jax.image.resize(x, (n, rows, columns, 3), "linear")
        self.variable("batch_stats", "mean", jnp.zeros, (1,))
        return {name: nn.tanh(nn.Dense(6, name=name)(x)) for name in ("conv4", "conv5", "conv6")}


def tiny_task(method: str, **changes):
    """A weak method over `Tiny`, without dropout."""
    config = config_of(f"smoke,method={method}")
    config.update(changes)
    task = make_task(config)
    model = task.model.clone(backbone=Tiny(), dropout=0.0, width=1 / 16)
    return dataclasses.replace(task, model=model)


@pytest.fixture(scope="module")
def volumes():
    return PhantomCT(split="train", count=2, seed=0, size=64, slices=12, positive=0.5)


def training_batch(task, source, size=2):
    """The first bags: positive and negative in turn."""
    bags = task.adapt(source, None, training=True)
    batches = pipeline.train_batches(
        bags, task.transforms, batch_size=size, seed=0, threads=0, stages=task.stages
    )
    batch = next(batches)
    batches.close()
    return batch


def loss_and_grads(task, variables, batch):
    def loss(params, batch):
        variables_now = {**variables, "params": params}
        return task.loss(variables_now, batch, rng=jax.random.PRNGKey(1), step=jnp.array(0))

    step = jax.jit(jax.value_and_grad(loss, has_aux=True))
    (value, (_, terms)), grads = step(variables["params"], batch)
    return float(value), {k: float(v) for k, v in terms.items()}, grads


@pytest.mark.parametrize("method", WEAK)
def test_every_weak_method_has_the_losses_of_its_equation(method, volumes):
    task = tiny_task(method)
    batch = training_batch(task, volumes)
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": batch["image"]})
    value, terms, grads = loss_and_grads(task, variables, batch)
    expected = {"cls"}
    if "seam" in method:
        expected |= {"er", "ecr"}
    if "nam" in method:
        expected |= {"nfs", "nbs", "nfbd"}
    assert set(terms) == expected
    weights = {"cls": 1.0, "nfbd": 0.5}  # Eq. 8
    total = sum(weights.get(name, 1.0) * term for name, term in terms.items())
    np.testing.assert_allclose(value, total, rtol=1e-5)  # float32 sums
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    assert batch["image"].shape[1] == (3 if method == "m_seam_nam" else 1)


@pytest.mark.parametrize("method", METHODS)
def test_weak_methods_never_read_a_mask_in_training(method, volumes):
    class Watched:
        """Names every field that is asked of a slice."""

        def __init__(self, asked):
            self.asked = asked

        def __getattr__(self, name):
            return getattr(volumes, name)

        def __len__(self):
            return len(volumes)

        def __getitem__(self, index):
            record, asked = volumes[index], self.asked

            class Record(dict):
                def __getitem__(self, field):
                    asked.add(field)
                    return super().__getitem__(field)

                def get(self, field, default=None):
                    asked.add(field)
                    return super().get(field, default)

            return Record(record)

    asked: set[str] = set()
    task = make_task(config_of(f"smoke,method={method}"))
    batch = training_batch(task, Watched(asked))
    seen = MASKS & (asked | set(batch))
    assert seen == ({"lesion"} if method == "unet" else set())
    assert not (MASKS & set(training_batch(task, volumes))) or method == "unet"


def test_batches_hold_as_many_negative_bags_as_positive(volumes):
    batch = training_batch(make_task(config_of("smoke,method=cam")), volumes, size=8)
    assert sorted(batch["bag_label"].tolist()) == [-1.0] * 4 + [1.0] * 4


def test_channels_are_the_slice_between_its_neighbours(volumes):
    task = make_task(config_of("smoke,method=cam"))
    source = task.adapt(volumes, None)
    example = task.transforms.finish(task.transforms.example(source[5]), None)
    assert example["image"].shape == (1, 64, 64, 3)
    for channel, number in enumerate((4, 5, 6)):
        expected = (volumes[number]["image"].astype(np.float32) - 128) / 64
        np.testing.assert_allclose(example["image"][0, ..., channel], expected, rtol=1e-6)


@pytest.mark.parametrize("method", ["seam", "m_seam_nam"])
def test_filling_up_a_bag_changes_nothing(method, volumes):
    task = tiny_task(method)
    batch = training_batch(task, volumes)
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": batch["image"]})
    noise = np.random.default_rng(0).normal(size=batch["image"].shape).astype(np.float32) * 50
    filled = {
        **batch,
        "image": np.concatenate([batch["image"], noise], axis=1),
        "instance_valid": np.concatenate(
            [batch["instance_valid"], np.zeros_like(batch["instance_valid"])], axis=1
        ),
    }
    value, _, grads = loss_and_grads(task, variables, batch)
    value_filled, _, grads_filled = loss_and_grads(task, variables, filled)
    # 1e-5: float32 sums in another order.
    np.testing.assert_allclose(value, value_filled, rtol=1e-5)
    for a, b in zip(jax.tree.leaves(grads), jax.tree.leaves(grads_filled)):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5)


def test_the_order_of_the_slices_of_a_bag_does_not_matter(volumes):
    task = tiny_task("m_seam_nam")
    batch = training_batch(task, volumes)
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": batch["image"]})
    turned = {**batch, "image": batch["image"][:, ::-1]}
    value, _, _ = loss_and_grads(task, variables, batch)
    np.testing.assert_allclose(value, loss_and_grads(task, variables, turned)[0], rtol=1e-5)


def test_a_bag_of_one_is_a_slice_with_its_own_label():
    """Eq. 7 of one instance is Eq. 1."""
    logits, labels = jnp.array([[-3.0], [0.5], [40.0]]), jnp.array([1.0, -1.0, -1.0])
    bag = losses.soft_margin(bag_logit(logits, jnp.ones((3, 1), bool)), labels)
    np.testing.assert_allclose(bag, losses.soft_margin(logits[:, 0], labels), rtol=1e-5)


@pytest.mark.parametrize("method", WEAK)
def test_prediction_is_a_probability_and_reads_no_label(method, volumes):
    task = tiny_task(method)
    source = task.adapt(PhantomCT(split="test", count=1, seed=0, size=64, slices=8), None)
    batch = next(pipeline.eval_batches(source, task.transforms, batch_size=4, threads=0))
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": batch["image"]})
    outputs = jax.jit(task.predict)(variables, {"image": batch["image"]})
    assert outputs["lesion_map"].shape == (4, 64, 64)
    assert float(outputs["lesion_map"].min()) >= 0
    assert float(outputs["lesion_map"].max()) <= 1
    rows = task.score(outputs, {k: v for k, v in batch.items() if v.dtype.kind not in "US"})
    true = [(volumes_mask > 0).sum() for volumes_mask in batch["lesion"]]
    np.testing.assert_allclose(rows["true"], true)


def test_the_gate_silences_slices_that_are_called_free(volumes):
    task = tiny_task("cam")
    outputs = {"lesion_map": jnp.ones((2, 64, 64)), "slice_prob": jnp.array([0.4, 0.6])}
    there = jnp.ones(2, bool)
    batch = {
        "lesion": jnp.ones((2, 64, 64)), "pixel_area": jnp.ones(2), "known": there,
        "positive": there,
    }  # fmt: skip
    assert task.score(outputs, batch)["found"].tolist() == [0, 64 * 64]
    open_task = dataclasses.replace(task, gate="none")
    assert open_task.score(outputs, batch)["found"].tolist() == [64 * 64, 64 * 64]
    first = {k: np.asarray(v[0]) for k, v in outputs.items()}
    assert task.describe(first)["lesion_area_share"] == 0
    assert open_task.mask(first, (32, 32)).all()


def test_the_papers_network_freezes_the_stem_and_the_norms():
    config = config_of("method=seam_nam")
    task = make_task(config)
    example = {"image": np.zeros((1, 1, 64, 64, 3), np.float32)}
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), example)["params"]
    mask = optimizers.match_paths(shapes, task.frozen)
    frozen = {
        optimizers.path_of(path)
        for path, still in jax.tree_util.tree_leaves_with_path(mask)
        if still
    }
    assert "backbone/conv1a/kernel" in frozen
    assert "backbone/b2_2/conv_branch2a/kernel" in frozen
    assert "backbone/b6/bn_branch2b2/scale" in frozen
    assert "backbone/bn7/bias" in frozen
    assert "backbone/b3/conv_branch2a/kernel" not in frozen
    assert not any(name.startswith(("fc8", "f8", "f9", "nam")) for name in frozen)
    # What is left of the backbone, and the new layers at ten times the rate.
    ((pattern, factor),) = config.optimizer.lr_factors
    fast = optimizers.match_paths(shapes, [pattern])
    assert factor == 10
    assert not any(jax.tree.leaves(fast["backbone"]))
    assert all(jax.tree.leaves(fast["nam_mix"]) + jax.tree.leaves(fast["fc8"]))
    assert shapes["nam_mix"]["kernel"].shape == (448, 448)
    assert shapes["f9"]["kernel"].shape == (195, 192)
    assert shapes["fc8"]["kernel"].shape == (4096, 2)


def test_seam_starts_from_cam():
    """Every parameter of the CAM network is one of SEAM's, under the same name."""

    def paths(method):
        task = make_task(config_of(f"smoke,method={method}"))
        example = {"image": np.zeros((1, 1, 64, 64, 3), np.float32)}
        shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), example)["params"]
        leaves = jax.tree_util.tree_leaves_with_path(shapes)
        return {optimizers.path_of(path): leaf.shape for path, leaf in leaves}

    cam, seam = paths("cam"), paths("m_seam_nam")
    assert cam.items() <= seam.items()


@pytest.mark.parametrize(
    ("variant", "changes", "words"),
    [
        ("smoke,method=crf", {}, "config.method='crf'"),
        ("smoke", {"gate": "patient"}, "config.gate='patient'"),
        ("smoke", {"threshold": 1.5}, "config.threshold=1.5"),
        ("smoke", {"small_scale": 1.0}, "config.small_scale=1.0"),
        ("smoke,method=unet", {"bag": 8}, "config.bag=8"),
        ("smoke", {"model.width": 0.3}, "config.model.width=0.3"),
        ("smoke", {"affinity.background": 0.5}, "config.affinity.background=0.5"),
        ("smoke", {"affinity.radius": 0}, "config.affinity.radius=0"),
        ("smoke", {"losses.hardest": 0.0}, "config.losses.hardest=0.0"),
        ("smoke", {"model.dropout": (0.5,)}, "config.model.dropout="),
        ("smoke,method=multiscale_cam", {"scales": (0.5, -1.0)}, "config.scales"),
        ("smoke", {"extra.name": "phantom_ct"}, "config.extra.name='phantom_ct'"),
    ],
)
def test_settings_that_cannot_be_meant_are_one_line(variant, changes, words):
    config = config_of(variant)
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words) as error:
        make_task(config)
    assert "\n" not in str(error.value)


def test_films_are_refused_by_name():
    task = make_task(config_of("smoke"))
    with pytest.raises(InputError, match="'phantom_cxr' has films and no CT slices"):
        task.adapt(PhantomCXR(split="train", count=2, seed=0, size=128), None, training=True)


class Unmasked:
    """Slices of which only some have a mask, as where nobody draws on patients without lesions."""

    def __init__(self, source, masked):
        self._source, self._masked = source, masked
        self.name, self.version, self.split = source.name, source.version, source.split
        self.fields, self.partial = source.fields, frozenset({"lesion"})
        self.slice_table = source.slice_table

    def __len__(self):
        return len(self._source)

    def __getitem__(self, index):
        record = self._source[index]
        return (
            record if self._masked(record) else {k: v for k, v in record.items() if k not in MASKS}
        )


def test_patients_without_lesions_count_though_nobody_drew_on_them():
    source = PhantomCT(split="test", count=2, seed=0, size=64, slices=8, positive=0.5)
    task = make_task(config_of("smoke,method=cam"))
    bare = task.adapt(Unmasked(source, lambda record: record["slice_label"] == 1), None)
    for index in range(len(bare)):
        example = task.transforms.example(bare[index])
        assert example["known"]
        np.testing.assert_array_equal(example["lesion"], source[index]["lesion"])
    nobody = task.adapt(Unmasked(source, lambda record: False), None)
    known = [bool(task.transforms.example(nobody[i])["known"]) for i in range(len(nobody))]
    assert known == (source.slice_table().label == 0).tolist()


def test_the_unet_learns_from_drawn_slices_and_from_slices_known_to_be_free():
    source = PhantomCT(
        split="train", count=2, seed=0, size=64, slices=12, positive=0.5, label_every=1
    )
    task = make_task(config_of("smoke,method=unet"))
    half = Unmasked(source, lambda record: record["slice_label"] == 1 and record["slice"] % 2)
    bags = task.adapt(half, None, training=True)
    everything = task.adapt(source, None, training=True)
    drawn = sum(bool(half[i].get("lesion") is not None) for i in range(len(half)))
    assert bags.parts == (drawn, everything.parts[1])
    for index in range(len(bags)):
        example = task.transforms.example(bags[index])
        assert example["lesion"].any() == (example["bag_label"] == 1)


def test_a_split_without_truth_has_predictions_and_no_numbers():
    task = tiny_task("cam")
    rows = {
        "id": np.array(["a"]), "group": np.array(["a"]), "known": np.array([False]),
        "positive": np.array([False]), "slice_prob": np.array([0.5]), "found": np.zeros(1),
        "true": np.zeros(1), "both": np.zeros(1), "found_at": np.zeros((1, 19)),
        "both_at": np.zeros((1, 19)), "histogram": np.zeros((1, 50, 2)),
    }  # fmt: skip
    assert len(task.units(rows)["group"]) == 0
    assert task.summary_figures(rows) == {}


def test_nam_as_the_released_code_wires_it_reaches_no_backbone(volumes):
    task = tiny_task("seam_nam")
    shared = dataclasses.replace(task, model=task.model.clone(shared=True))
    batch = training_batch(task, volumes)

    def affinity_gradient(task):
        variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": batch["image"]})
        weights = dataclasses.replace(task.losses, er=0.0, ecr=0.0)

        def loss(params):
            one = dataclasses.replace(task, losses=weights)
            total, (_, terms) = one.loss(
                {**variables, "params": params}, batch, rng=jax.random.PRNGKey(1), step=0
            )
            return total - terms["cls"]

        return jax.jit(jax.grad(loss))(variables["params"])

    ours, theirs = affinity_gradient(task), affinity_gradient(shared)
    assert max(float(jnp.abs(g).max()) for g in jax.tree.leaves(ours["backbone"])) > 0
    assert all(not np.any(g) for g in jax.tree.leaves(theirs["backbone"]))
    assert np.any(theirs["f8_3"]["kernel"])
    assert not np.any(ours["f8_3"]["kernel"])


def test_slices_with_lesions_are_drawn_first():
    task = tiny_task("cam")
    source = task.adapt(PhantomCT(split="val", count=2, seed=0, size=64, slices=12), None)
    chosen = task.drawn(source, 8)
    assert len(set(chosen.tolist())) == 8
    assert (source.slice_table().label[chosen] == 1).sum() >= 5
    healthy = PhantomCT(split="val", count=1, seed=0, size=64, slices=12, positive=0.0)
    assert len(task.drawn(task.adapt(healthy, None), 8)) == 8
    assert not len(task.drawn(source, 0))
