"""The seam task: what it may see, what its losses ignore, and what it shows."""

import dataclasses
import importlib
import json
import types
from typing import ClassVar

import flax.linen as nn
import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cxr_jax import losses, migrations, optimizers
from cxr_jax.data import pipeline
from cxr_jax.data.sources.phantom_ct import PhantomCT
from cxr_jax.data.sources.phantom_cxr import PhantomCXR
from cxr_jax.errors import InputError
from cxr_jax.inputs import lungs, splits
from cxr_jax.inputs import volumes as volumes_door
from cxr_jax.metrics import patients
from cxr_jax.models.seam import SEAM
from cxr_jax.ops.bags import bag_logit
from cxr_jax.tasks import make_task
from cxr_jax.tasks.seam import MASKS, pooled_logits
from cxr_jax.tasks.seam_settings import METHODS
from cxr_jax.workdir import flatten

WEAK = tuple(method for method in METHODS if method != "unet")


def config_of(variant: str):
    config = importlib.import_module("configs.seam").get_config(variant)
    return config.copy_and_resolve_references()


class Tiny(nn.Module):
    """Three taps of stride 8 out of means of 8x8 pixels: compiles at once."""

    strides: ClassVar = {"conv6": 8}

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
    model = task.model.clone(backbone=Tiny(), dropout=0.0, width=1 / 16, pcm_width=1 / 16)
    return dataclasses.replace(task, model=model)


@pytest.fixture(scope="module")
def volumes():
    return PhantomCT(split="train", count=2, seed=0, size=64, slices=12, positive=0.5)


def training_batch(task, source, size=2):
    """The first bags: positive and negative in turn."""
    bags = task.data.adapt(source, training=True)
    batches = pipeline.train_batches(
        bags, task.data.transforms, batch_size=size, seed=0, threads=0, stages=task.data.stages
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


class Taps(nn.Module):
    """A backbone whose taps are given, in the collection 'taps'."""

    @nn.compact
    def __call__(self, x, *, train, train_norms=False):
        del x, train, train_norms
        return {n: self.get_variable("taps", n) for n in ("conv4", "conv5", "conv6")}


def padded(weight, shape):
    """A torch kernel (out, in) as (in, out), filled up with zeros: channels that say nothing."""
    kernel = np.zeros(shape, np.float32)
    kernel[: weight.shape[1], : weight.shape[0]] = weight.T
    return {"kernel": kernel}


def seam_on_taps(arrays):
    """SEAM with the reference's weights, and the variables that `Taps` reads."""
    rng = np.random.default_rng(0)
    weights = {name: arrays[f"param_{name}"] for name in ("fc8", "f8_3", "f8_4", "f9")}
    taps = {name: arrays[f"in_{name}"] for name in ("conv4", "conv5", "conv6")}
    inside = {name: tap.shape[-1] for name, tap in taps.items()}
    of_image, first = arrays["in_image"].shape[-1], weights["f8_3"].shape[0]
    second, embedded = (weights[name].shape[0] for name in ("f8_4", "f9"))
    # The least share of the published 64, 128 and 192 channels that has room for the file's.
    share = max(first / 64, second / 128, embedded / 192)
    one, two, three, last, mixed = (max(round(n * share), 1) for n in (64, 128, 192, 256, 448))
    wide = np.zeros((embedded, of_image + one + two), np.float32)
    own = of_image + first  # columns of f9: the image, the first projection, the second
    wide[:, :own] = weights["f9"][:, :own]
    wide[:, of_image + one : of_image + one + second] = weights["f9"][:, own:]
    params = {
        "fc8": padded(weights["fc8"], (inside["conv6"], weights["fc8"].shape[0])),
        "f8_3": padded(weights["f8_3"], (inside["conv4"], one)),
        "f8_4": padded(weights["f8_4"], (inside["conv5"], two)),
        "f9": padded(wide, (of_image + one + two, three)),
        "f8_5": {"kernel": rng.normal(size=(inside["conv6"], last)).astype(np.float32)},
        "f10": {"kernel": rng.normal(size=(one + two + last, mixed)).astype(np.float32)},
    }
    classes = weights["fc8"].shape[0] - 1
    model = SEAM(Taps(), classes=classes, width=share, pcm_width=share, dropout=0.0)
    return model, params, {"backbone": taps}


def test_seam_is_the_reference_from_the_taps_on(golden, assert_golden):
    arrays = golden("pcm")
    model, params, taps = seam_on_taps(arrays)
    out = model.apply({"params": params, "taps": taps}, arrays["in_image"], train=False)
    # 3e-5: the tolerance of the file.
    assert_golden(out["cam"], arrays["out_raw_cam"], rtol=3e-5, what="cam")
    assert_golden(out["revised"], arrays["out_revised_cam"], rtol=3e-5, what="revised")
    projected = [
        np.maximum(arrays[f"in_{tap}"] @ params[name]["kernel"], 0)
        for tap, name in (("conv4", "f8_3"), ("conv5", "f8_4"), ("conv6", "f8_5"))
    ]
    mixed = np.concatenate(projected, axis=-1) @ params["f10"]["kernel"]
    expected = np.where(mixed > 0, mixed, np.expm1(np.minimum(mixed, 0)))
    assert_golden(out["features"], expected, rtol=1e-5, what="features")


@pytest.mark.parametrize("name", ["revised", "features"])
def test_neither_module_sends_a_gradient_below_its_projections(name, golden):
    arrays = golden("pcm")
    model, params, taps = seam_on_taps(arrays)

    def total(params, taps):
        out = model.apply({"params": params, "taps": taps}, arrays["in_image"], train=False)[name]
        weights = np.random.default_rng(1).normal(size=out.shape).astype(np.float32)
        return jnp.sum(out * weights)

    of_params, of_taps = jax.jit(jax.grad(total, argnums=(0, 1)))(params, taps)
    assert not any(np.any(g) for g in jax.tree.leaves(of_taps))
    reached = {layer for layer, grad in of_params.items() if np.any(grad["kernel"])}
    own = {"f9"} if name == "revised" else {"f8_5", "f10"}
    assert reached == {"f8_3", "f8_4"} | own


def resized(x, size):
    """Bilinear with aligned corners: [N, h, w, C] float64 -> [N, size, size, C]."""

    def weights(n):
        at = np.linspace(0, n - 1, size)
        return np.stack([np.interp(at, np.arange(n), one) for one in np.eye(n)], axis=-1)

    return np.einsum("yh,xw,nhwc->nyxc", weights(x.shape[1]), weights(x.shape[2]), x)


def stretched(x):
    x = np.maximum(x, 0)
    low, high = x.min((1, 2), keepdims=True), x.max((1, 2), keepdims=True)
    return np.maximum(x - low - 1e-5, 0) / (high - low + 1e-5)


def affinity_by_hand(prob, features, foreground, background, radius):
    """Eq. 4-6 of one map [h, w], pixel by pixel: nfs, nbs, nfbd."""
    unit = features / np.linalg.norm(features, axis=-1, keepdims=True)
    fore, back = np.argwhere(prob > foreground), np.argwhere(prob < background)

    def mean(of, near, value):
        each = []
        for j in of:
            cosines = [
                unit[tuple(j)] @ unit[tuple(k)]
                for k in near
                if 0 < ((j - k) ** 2).sum() <= radius**2
            ]
            each.append(np.mean([value(c) for c in cosines]) if cosines else 0.0)
        return np.mean(each) if each else 0.0

    unlike, like = (lambda c: 1 - c), (lambda c: c)
    return (
        mean(fore, fore, unlike),
        mean(back, back, unlike),
        mean(fore, back, like) + mean(back, fore, like),
    )


def equations_by_hand(task, variables, batch):
    """Every term of Eq. 8, in float64 from what the network gives for each view."""
    bags, count, side = batch["image"].shape[:3]
    label, valid = np.asarray(batch["bag_label"], np.float64), np.asarray(batch["instance_valid"])
    first = np.asarray(batch["image"], np.float64).reshape(-1, side, side, 3)
    small = int(task.small_scale * side)
    views = []
    for image in (first, resized(first, small)):
        out = task.model.apply(variables, jnp.asarray(image, jnp.float32), train=False)
        out = {name: np.asarray(value, np.float64) for name, value in out.items()}
        for name in ("cam", "revised"):
            out[f"{name}_up"] = resized(out[name], image.shape[1])
        views.append(out)
    terms = dict.fromkeys(("cls", "er", "ecr", "nfs", "nbs", "nfbd"), 0.0)
    for view in views:  # Eq. 1 and 7
        p = view["cam_up"][..., 1].mean((1, 2)).reshape(bags, count)
        nobody = np.where(valid, 1 / (1 + np.exp(p)), 1.0).prod(1)
        logit = np.log((1 - nobody) / nobody)
        terms["cls"] += np.mean(np.log1p(np.exp(-label * logit)))
    there = np.repeat(label > 0, count)
    shown = np.stack([np.ones(len(there)), there], axis=-1)[:, None, None]

    def compared(view, name):
        return resized(stretched(view[f"{name}_up"]), small) * shown

    def target(cam):
        return np.concatenate([1 - cam[..., 1:], cam[..., 1:]], axis=-1)

    (cam_1, cam_2), (revised_1, revised_2) = (
        [compared(view, name) for view in views] for name in ("cam", "revised")
    )
    per_slice = {
        "er": sum(  # Eq. 2
            abs(a - b)[..., 1].mean((1, 2)) for a, b in ((cam_1, cam_2), (revised_1, revised_2))
        ),
        "ecr": sum(  # Eq. 3
            abs(a - b).mean((1, 2, 3))
            for a, b in ((target(cam_2), revised_1), (target(cam_1), revised_2))
        ),
    }
    near = task.affinity
    found = [
        affinity_by_hand(prob, features, near.foreground, near.background, near.radius)
        for prob, features in zip(
            views[0]["revised"][..., 1] * there[:, None, None], views[0]["features"]
        )
    ]
    per_slice |= zip(("nfs", "nbs", "nfbd"), np.transpose(found))
    for name, values in per_slice.items():
        values = values.reshape(bags, count)
        terms[name] = np.mean((values * valid).sum(1) / valid.sum(1))
    return terms


@pytest.mark.parametrize("method", ["seam_nam", "m_seam_nam"])
def test_the_loss_is_eq_8_by_hand(method, volumes):
    task = tiny_task(
        method,
        small_scale=0.3,
        affinity=dict(foreground=0.3, background=0.1, radius=5),
    )
    batch = training_batch(task, volumes)
    if method == "m_seam_nam":
        batch["instance_valid"] = np.array([[True, True, False], [True, True, True]])
    variables = jax.jit(task.init)(jax.random.PRNGKey(3), {"image": batch["image"]})
    value, terms, _ = loss_and_grads(task, variables, batch)
    expected = equations_by_hand(task, variables, batch)
    assert batch["bag_label"].tolist() == [1, -1]
    assert all(term > 1e-3 for term in expected.values())  # none is compared at zero
    for name, term in expected.items():
        # 1e-4: what float32 leaves of a map that is stretched to 0..1.
        np.testing.assert_allclose(terms[name], term, rtol=1e-4, err_msg=name)
    weights = {"nfbd": 0.5}
    total = sum(weights.get(name, 1.0) * term for name, term in expected.items())
    np.testing.assert_allclose(value, total, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_weak_methods_never_see_a_mask_in_training(method, volumes):
    task = make_task(config_of(f"smoke,method={method}"))
    bags = task.data.adapt(volumes, training=True)
    asked = set().union(*(part for index in range(len(bags)) for part in bags[index]["slices"]))
    batch = training_batch(task, volumes)
    assert {"image", "lesion"} <= set(volumes[0])
    if method == "unet":
        assert "lesion" in asked & set(batch)
    else:
        assert not MASKS & (asked | set(batch))


MANY = {"scales": (0.5, 1.0, 1.5), "mirror": True}


@pytest.mark.parametrize(
    ("method", "lungs"), [("multiscale_cam", "none"), ("multiscale_cam", "pool"), ("seam", "map")]
)
def test_a_mirrored_image_has_a_mirrored_map_at_all_scales(method, lungs, volumes):
    task = tiny_task(method, **MANY, lungs=dict(use=lungs, masks="morphology", workdir=""))
    batch, variables = slices_of(task, volumes, start=4)
    mirrored = {name: value[:, :, :, ::-1] for name, value in batch.items()}
    predict = jax.jit(task.predict)
    straight, turned = predict(variables, batch), predict(variables, mirrored)
    assert np.ptp(straight["lesion_map"], axis=(1, 2)).min() > 0.5
    # 1e-3: the smallest scale has maps of 4 x 4, which float32 stretches to 0..1.
    back = turned["lesion_map"][:, :, ::-1]
    np.testing.assert_allclose(back, straight["lesion_map"], atol=1e-3)
    np.testing.assert_allclose(turned["slice_prob"], straight["slice_prob"], atol=1e-5)


def slices_of(task, source, start=0, count=3):
    """The inputs of `predict` of some slices, and fresh variables."""
    source = task.data.adapt(source, training=False)
    transforms = task.data.transforms
    some = [transforms.finish(transforms.example(source[start + i]), None) for i in range(count)]
    names = {"image", "lungs"} & some[0].keys()
    batch = {name: np.stack([e[name] for e in some]) for name in names}
    return batch, jax.jit(task.init)(jax.random.PRNGKey(0), batch)


def test_the_map_is_the_authors_by_hand(volumes):
    """The sum of D over scales and mirror images, stretched by minimum and maximum a slice."""
    task = tiny_task("seam", **MANY)
    batch, variables = slices_of(task, volumes)
    image = batch["image"][:, 0].astype(np.float64)
    total = 0.0
    for side in (32, 64, 96):
        for mirror in (False, True):
            seen = resized(image, side)[:, :, :: -1 if mirror else 1]
            out = task.model.apply(variables, jnp.asarray(seen, jnp.float32), train=False)
            shown = resized(np.asarray(out["revised"], np.float64), 64)[..., 1]
            total = total + shown[:, :, :: -1 if mirror else 1]
    low, high = total.min((1, 2), keepdims=True), total.max((1, 2), keepdims=True)
    expected = np.maximum(total - low - 1e-5, 0) / (high - low + 1e-5)
    found = jax.jit(task.predict)(variables, batch)["lesion_map"]
    np.testing.assert_allclose(found, expected, atol=1e-4)  # float32, stretched to 0..1
    raw = jax.jit(dataclasses.replace(task, normalize_map=False).predict)(variables, batch)
    np.testing.assert_allclose(raw["lesion_map"], total / 6, atol=1e-5)


def test_a_slice_is_what_it_is_whatever_pads_the_batch(volumes):
    task = tiny_task("seam", **MANY, lungs=dict(use="pool", masks="morphology", workdir=""))
    batch, variables = slices_of(task, volumes, start=5)
    filled = {k: np.concatenate([v[:1], np.zeros_like(v), v[2:] * 3]) for k, v in batch.items()}
    predict = jax.jit(task.predict)
    alone, among = predict(variables, batch), predict(variables, filled)
    for name in ("lesion_map", "slice_prob"):
        np.testing.assert_allclose(among[name][0], alone[name][0], atol=1e-5)


def test_a_flat_map_of_seam_is_zero(volumes):
    """Of black slices, in which there is no lung either."""
    task = tiny_task("seam", **MANY, lungs=dict(use="pool", masks="morphology", workdir=""))
    batch, variables = slices_of(task, volumes)
    batch = {name: np.zeros_like(value) for name, value in batch.items()}
    out = jax.jit(task.predict)(variables, batch)
    np.testing.assert_array_equal(out["lesion_map"], 0)
    assert np.isfinite(out["slice_prob"]).all()


def test_lungs_cut_the_map_and_are_what_a_slice_is_pooled_over(volumes):
    outside = tiny_task("cam", lungs=dict(use="none", masks="morphology", workdir=""))
    batch, variables = slices_of(outside, volumes, start=5)
    inside = np.zeros((3, 1, 64, 64), np.uint8)
    inside[:2, :, 20:40, 8:24] = 2  # of the third slice no lung was found
    batch["lungs"] = inside
    where = inside[:, 0] > 0
    plain = outside.predict(variables, {"image": batch["image"]})
    cut, pooled = (
        tiny_task("cam", lungs=dict(use=use, masks="morphology", workdir="")).predict(
            variables, batch
        )
        for use in ("map", "pool")
    )
    for out in (cut, pooled):
        assert not out["lesion_map"][:2][~where[:2]].any()
        assert out["lesion_map"].max(axis=(1, 2)).min() > 0.99  # the brightest point of the lungs
        np.testing.assert_allclose(out["lesion_map"][2], plain["lesion_map"][2], atol=1e-6)
    np.testing.assert_allclose(cut["slice_prob"], plain["slice_prob"], rtol=1e-5)
    assert abs(pooled["slice_prob"] - plain["slice_prob"])[:2].min() > 1e-4
    np.testing.assert_allclose(pooled["slice_prob"][2], plain["slice_prob"][2], rtol=1e-5)


def test_the_logit_over_lungs_is_a_mean_over_them():
    rng = np.random.default_rng(0)
    cam, inside = rng.normal(size=(3, 8, 8, 2)).astype(np.float32), rng.random((3, 8, 8)) < 0.4
    inside[2] = False
    expected = [cam[k, ..., 1][inside[k]].mean() for k in (0, 1)] + [cam[2, ..., 1].mean()]
    np.testing.assert_allclose(pooled_logits(cam, inside), expected, rtol=1e-5)
    speck = np.zeros((3, 64, 64), np.uint8)
    speck[:, 5, 5] = 1  # between the samples of the small view
    np.testing.assert_allclose(pooled_logits(cam, speck), cam[..., 1].mean((1, 2)), rtol=1e-5)


def test_lungs_reach_the_training_where_they_are_pooled_over(volumes):
    for use, masks in (("none", "record"), ("map", "morphology"), ("pool", "morphology")):
        task = tiny_task("m_seam_nam", lungs=dict(use=use, masks=masks, workdir=""))
        batch = training_batch(task, volumes)
        assert ("lungs" in batch) == (use == "pool")
        bag = task.data.adapt(volumes, training=True)[0]["slices"]
        assert not any("lungs" in part for part in bag)  # the true ones
    assert batch["lungs"].shape == (2, 3, 64, 64)
    task = tiny_task("m_seam_nam", lungs=dict(use="pool", masks="record", workdir=""))
    bag = task.data.adapt(volumes, training=True)[0]["slices"]
    assert all("lungs" in part and "lesion" not in part for part in bag)
    batch = training_batch(task, volumes)
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": batch["image"]})
    value, _, _ = loss_and_grads(task, variables, batch)
    everywhere = {**batch, "lungs": np.ones_like(batch["lungs"])}
    assert abs(value - loss_and_grads(task, variables, everywhere)[0]) > 1e-4


def test_lungs_are_read_where_they_are_needed():
    """Field by field: who must bring them, who predicts with them, and whether training does."""

    def of(use, masks):
        data = tiny_task("cam", lungs=dict(use=use, masks=masks, workdir="RUN")).data
        return "lungs" in data.fields, "lungs" in data.inputs, "lungs" in data.only_evaluated

    assert of("none", "record") == of("map", "morphology") == (False, False, False)
    assert of("pool", "record_or_morphology") == (False, False, False)
    assert of("none", "predicted") == (True, False, True)  # what is bright in them stands beside
    assert of("map", "record") == of("map", "predicted") == (True, True, True)
    assert of("pool", "record") == of("pool", "record_or_predicted") == (True, True, False)


def test_true_lungs_are_never_those_that_a_network_found(volumes):
    for masks, drawn in (("morphology", True), ("record", True), ("predicted", False)):
        task = tiny_task("cam", lungs=dict(use="none", masks=masks, workdir="RUN"))
        example = task.data.transforms.example(task.data.adapt(volumes, training=False)[6])
        assert example["true_lungs"].any() == drawn
        same = np.array_equal(example["found_lungs"] > 0, volumes[6]["lungs"] > 0)
        assert same == (masks == "predicted")  # here the record's stands for the network's


def test_one_view_is_enough_for_a_cam(volumes):
    task, both = tiny_task("cam", small_scale=0.0), tiny_task("cam", small_scale=0.5)
    batch = training_batch(task, volumes)
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": batch["image"]})
    logits = task.model.apply(variables, batch["image"][:, 0], train=False)["cam"]
    logits = resized(np.asarray(logits, np.float64), 64)[..., 1].mean((1, 2))
    expected = np.log1p(np.exp(-batch["bag_label"] * logits)).mean()
    np.testing.assert_allclose(loss_and_grads(task, variables, batch)[0], expected, rtol=1e-5)
    assert loss_and_grads(both, variables, batch)[0] > expected


def test_the_released_code_labels_every_slice_of_a_bag(volumes):
    config = config_of("smoke,method=m_seam_nam,reference=released")
    assert (config.affinity.foreground, config.affinity.similarity) == (0.2, "exp_l1")
    task = tiny_task("m_seam_nam", losses=config.losses, affinity=config.affinity, small_scale=0.5)
    batch = training_batch(task, volumes)
    batch["instance_valid"] = np.array([[True, True, False], [True, True, True]])
    variables = jax.jit(task.init)(jax.random.PRNGKey(0), {"image": batch["image"]})
    _, terms, grads = loss_and_grads(task, variables, batch)
    assert set(terms) == {"cls", "er", "ecr", "min_pool", "nfs", "nbs", "nfbd"}
    assert all(np.isfinite(g).all() for g in jax.tree.leaves(grads))
    expected = 0.0
    for side in (64, 32):
        image = resized(batch["image"].astype(np.float64).reshape(6, 64, 64, 3), side)
        cam = task.model.apply(variables, jnp.asarray(image, jnp.float32), train=False)["cam"]
        logits = resized(np.asarray(cam, np.float64), side)[..., 1].mean((1, 2)).reshape(2, 3)
        each = np.log1p(np.exp(-batch["bag_label"][:, None] * logits))
        valid = batch["instance_valid"]
        expected += ((each * valid).sum(1) / valid.sum(1)).mean()
    np.testing.assert_allclose(terms["cls"], expected, rtol=1e-5)


def test_threshold_gate_and_brightness_are_chosen_on_another_split(volumes):
    """A map that is the lesion at 0.2 and elsewhere 0.1; slices are told apart at 0.083 alone."""
    task = dataclasses.replace(tiny_task("m_seam_nam"), bag=8, tune=True)
    evaluation = task.evaluation
    assert evaluation.fits
    assert not dataclasses.replace(task, tune=False).evaluation.fits
    source = task.data.adapt(volumes, training=False)
    batch = next(pipeline.eval_batches(source, task.data.transforms, batch_size=24, threads=0))
    ids = {name: batch[name] for name in ("id", "group")}
    arrays = {k: jnp.asarray(v) for k, v in batch.items() if v.dtype.kind not in "US"}
    ill = (batch["lesion"] > 0).any((1, 2))
    outputs = {
        "lesion_map": jnp.where(arrays["lesion"] > 0, 0.2, 0.1),
        "slice_prob": jnp.where(ill, 0.3, 0.05),
    }
    rows = jax.device_get(task.score(outputs, arrays)) | ids
    before = evaluation.report(evaluation.units(rows))
    assert before["positive_dice"].value == 0  # nothing reaches 0.5
    assert "lungs_dice" in before
    assert not {"brightness_dice", "bound_dice"} & before.keys()  # have no threshold yet
    fitted = evaluation.fit(rows)
    assert fitted["gate"] == pytest.approx(1 - 0.5 ** (1 / 8))
    assert fitted["threshold"] == pytest.approx(0.1, abs=0.06)
    after = evaluation.report(evaluation.units(evaluation.with_fit(rows, fitted)))
    assert after["positive_dice"].value == 1
    assert after["negative_dice"].value == 1
    assert 0 < after["lungs_dice"].value < after["brightness_dice"].value < 1
    assert {"brightness_true_lungs_dice", "bound_dice"} <= after.keys()
    fitted_rows = evaluation.with_fit(rows, fitted)
    beside = evaluation.references(fitted_rows, volumes)
    assert len(beside) == 4
    for name, reference in beside.items():
        told = evaluation.report(evaluation.units(reference))
        key = f"{name.removeprefix('without learning, ')}_dice"
        assert told["positive_dice"].value == after[key].value


def test_the_papers_setting():
    """Numbers of the paper (Sec. 2.3, 3.2, 3.4) and of what was settled for it."""
    expected = {
        "bag": 8, "batch_size": 1, "optimizer.accumulate": 8, "optimizer.name": "sgd",
        "optimizer.lr": 1e-3, "optimizer.momentum": 0.0, "optimizer.weight_decay": 5e-4,
        "optimizer.schedule": "linear", "total_steps": 2 * 8309 * 16, "preprocess.size": 448,
        "small_scale": 0.3, "affinity.foreground": 0.1, "affinity.background": 0.01,
        "affinity.radius": 5, "losses.er": 1.0, "losses.ecr": 1.0, "losses.nfs": 1.0,
        "losses.nbs": 1.0, "losses.nfbd": 0.5, "losses.hardest": 1.0, "losses.min_pool": 0.0,
        "model.width": 1.0, "model.dropout": [0.3, 0.5, 0.5], "train_norms": False,
        "freeze_stem": True, "threshold": 0.5, "scales": [0.5, 1.0, 1.5, 2.0], "mirror": True,
        "normalize_map": True, "model.stride": 8, "model.dilations": [2, 4, 4],
        "model.pcm_width": 1.0, "lungs.use": "none", "losses.bag": "noisy_or",
        "affinity.similarity": "cosine",
    }  # fmt: skip
    config = flatten(config_of("method=m_seam_nam"))
    assert {name: config[name] for name in expected} == expected
    cam = flatten(config_of("method=cam"))
    assert (cam["scales"], cam["mirror"], cam["small_scale"]) == ([1.0], False, 0.3)
    slices = flatten(config_of("method=seam"))
    assert (slices["bag"], slices["batch_size"], slices["optimizer.accumulate"]) == (1, 8, 1)
    assert slices["total_steps"] * 8 == config["total_steps"]  # as many labels
    assert flatten(config_of("method=unet"))["total_steps"] == 2 * 8309 * 100 // 8


def test_multiscale_cam_trains_nothing_and_needs_a_cam():
    task = tiny_task("multiscale_cam")
    shapes = jax.eval_shape(
        task.init, jax.random.PRNGKey(0), {"image": np.zeros((1, 1, 64, 64, 3), np.float32)}
    )
    assert all(jax.tree.leaves(optimizers.match_paths(shapes["params"], task.frozen)))


def test_batches_hold_as_many_negative_bags_as_positive(volumes):
    batch = training_batch(make_task(config_of("smoke,method=cam")), volumes, size=8)
    assert sorted(batch["bag_label"].tolist()) == [-1.0] * 4 + [1.0] * 4


def test_channels_are_the_slice_between_its_neighbours(volumes):
    task = make_task(config_of("smoke,method=cam"))
    source = task.data.adapt(volumes, training=False)
    example = task.data.transforms.finish(task.data.transforms.example(source[5]), None)
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
    source = task.data.adapt(
        PhantomCT(split="test", count=1, seed=0, size=64, slices=8), training=False
    )
    batch = next(pipeline.eval_batches(source, task.data.transforms, batch_size=4, threads=0))
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
    ones = jnp.ones((2, 64, 64))
    batch = {
        "lesion": ones, "pixel_area": jnp.ones(2), "known": there, "label": jnp.ones(2),
        "blurred": ones, "found_lungs": ones, "true_lungs": ones,
    }  # fmt: skip

    def found(task):
        return patients.gated(jax.device_get(task.score(outputs, batch)))["found"].tolist()

    assert found(task) == [0, 64 * 64]
    open_task = dataclasses.replace(task, gate="none")
    assert found(open_task) == [64 * 64, 64 * 64]
    assert found(dataclasses.replace(task, bag=8)) == [64 * 64, 64 * 64]  # 0.083 is enough
    assert found(dataclasses.replace(task, bag=8, gate="slice")) == [0, 64 * 64]
    first = {k: np.asarray(v[0]) for k, v in outputs.items()}
    assert task.describe({}, first)["lesion_area_share"] == 0
    assert open_task.mask({"image": np.zeros((32, 32))}, first).all()


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
    assert not any(name.startswith(("fc8", "f8", "f9", "f10")) for name in frozen)
    # What is left of the backbone, and the new layers at ten times the rate.
    ((pattern, factor),) = config.optimizer.lr_factors
    fast = optimizers.match_paths(shapes, [pattern])
    assert factor == 10
    assert not any(jax.tree.leaves(fast["backbone"]))
    assert all(jax.tree.leaves(fast["f10"]) + jax.tree.leaves(fast["fc8"]))
    assert shapes["f10"]["kernel"].shape == (448, 448)
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
        ("smoke", {"second.name": "phantom_ct"}, "config.second.name='phantom_ct'"),
        ("smoke,method=seam", {"scales": ()}, r"config.scales=\(\)"),
        ("smoke,method=seam", {"small_scale": 0.0}, "config.small_scale=0.0"),
        ("smoke", {"model.stride": 3}, "config.model.stride=3"),
        ("smoke", {"model.dilations": (1, 2)}, "config.model.dilations="),
        ("smoke", {"model.pcm_width": 0.0}, "config.model.pcm_width=0.0"),
        ("smoke", {"lungs.use": "crop"}, "config.lungs.use='crop'"),
        ("smoke", {"lungs.masks": "true"}, "config.lungs.masks='true'"),
        ("smoke", {"lungs.masks": "predicted"}, "needs config.lungs.workdir"),
        ("smoke,method=unet,lungs=pool", {}, "config.lungs.use=pool"),
        ("smoke", {"losses.bag": "mean"}, "config.losses.bag='mean'"),
        ("smoke", {"affinity.similarity": "l2"}, "config.affinity.similarity='l2'"),
        ("smoke,reference=code", {}, "reference='code'"),
        ("smoke,lungs=crop", {}, "lungs='crop'"),
    ],
)
def test_settings_that_cannot_be_meant_are_one_line(variant, changes, words):
    def make():
        config = config_of(variant)
        config.update_from_flattened_dict(changes)
        make_task(config)

    with pytest.raises(InputError, match=words) as error:
        make()
    assert "\n" not in str(error.value)


def test_films_are_refused_by_name():
    task = make_task(config_of("smoke"))
    with pytest.raises(InputError, match="'phantom_cxr' has films and no CT slices"):
        task.data.adapt(PhantomCXR(split="train", count=2, seed=0, size=128), training=True)


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
    bare = task.data.adapt(
        Unmasked(source, lambda record: record["slice_label"] == 1), training=False
    )
    for index in range(len(bare)):
        example = task.data.transforms.example(bare[index])
        assert example["known"]
        np.testing.assert_array_equal(example["lesion"], source[index]["lesion"])
    nobody = task.data.adapt(Unmasked(source, lambda record: False), training=False)
    known = [bool(task.data.transforms.example(nobody[i])["known"]) for i in range(len(nobody))]
    assert known == (source.slice_table().label == 0).tolist()


def test_the_unet_learns_from_drawn_slices_and_from_slices_known_to_be_free():
    source = PhantomCT(
        split="train", count=2, seed=0, size=64, slices=12, positive=0.5, label_every=1
    )
    task = make_task(config_of("smoke,method=unet"))
    half = Unmasked(source, lambda record: record["slice_label"] == 1 and record["slice"] % 2)
    bags = task.data.adapt(half, training=True)
    everything = task.data.adapt(source, training=True)
    drawn = sum(bool(half[i].get("lesion") is not None) for i in range(len(half)))
    assert bags.parts == (drawn, everything.parts[1])
    for index in range(len(bags)):
        example = task.data.transforms.example(bags[index])
        assert example["lesion"].any() == (example["bag_label"] == 1)


def test_a_split_without_truth_has_predictions_and_no_numbers():
    task = tiny_task("cam")
    rows = {
        "id": np.array(["a"]), "group": np.array(["a"]), "known": np.array([False]),
        "label": np.array([np.nan]), "slice_prob": np.array([0.5]), "found": np.zeros(1),
        "true": np.zeros(1), "both": np.zeros(1), "found_at": np.zeros((1, 23)),
        "both_at": np.zeros((1, 23)), "histogram": np.zeros((1, 50, 2)),
    }  # fmt: skip
    assert len(task.evaluation.units(rows)["group"]) == 0
    assert task.evaluation.figures(rows) == {}


def test_slices_with_lesions_are_drawn_first():
    task = tiny_task("cam")
    source = task.data.adapt(
        PhantomCT(split="val", count=2, seed=0, size=64, slices=12), training=False
    )
    chosen = task.evaluation.figure_indices(source, 8)
    assert len(set(chosen.tolist())) == 8
    assert (source.slice_table().label[chosen] == 1).sum() >= 5
    healthy = PhantomCT(split="val", count=1, seed=0, size=64, slices=12, positive=0.0)
    assert len(task.evaluation.figure_indices(task.data.adapt(healthy, training=False), 8)) == 8
    assert not len(task.evaluation.figure_indices(source, 0))


def test_lungs_of_another_run_join_the_slices_before_bags_are_made(tmp_path, monkeypatch):
    """The masks of a network that calls the left half lung: in bags, in evaluations, not where
    nobody reads them; and the volume's door asks the same network."""

    class Half:
        batch_size, side = 8, 16
        run = types.SimpleNamespace(version="1")

        def labels(self, films):
            return np.stack([np.where(np.arange(16) < 8, 1, 0) * np.ones((16, 1))] * len(films))

    loaded = []
    monkeypatch.setattr(lungs.Segmenter, "load", lambda folder: (loaded.append(folder), Half())[1])
    half = np.arange(64) < 32
    for use, training, there in (("map", True, False), ("map", False, True), ("pool", True, True)):
        config = config_of(f"smoke,method=m_seam_nam,lungs={use}")
        config.lungs.update(masks="predicted", workdir="RUN")
        task = make_task(config)
        source = splits.open_split(
            task, config, "train", workdir=tmp_path / use / str(training), training=training
        )
        example = task.data.transforms.example(source[0])
        assert ("lungs" in example) == there
        if there:
            np.testing.assert_array_equal(example["lungs"][0] > 0, np.tile(half, (64, 1)))
    assert set(loaded) == {"RUN"}

    run = types.SimpleNamespace(task=task, config=config, workdir="W")
    door = volumes_door.Volumes(run)
    np.testing.assert_array_equal(
        door.lungs(np.zeros((3, 64, 64), np.uint8))[2] > 0, np.tile(half, (64, 1))
    )
    config.lungs.update(masks="record", workdir="")
    run.task = make_task(config)
    with pytest.raises(InputError, match="this model needs lung masks, which a volume has not"):
        volumes_door.Volumes(run)


def test_a_cam_starts_from_what_simclr_learned_of_slices():
    """Every parameter of the backbone is there under its name, in its shape."""
    config = (
        importlib.import_module("configs.simclr").get_config("ct").copy_and_resolve_references()
    )
    task, cam = make_task(config), make_task(config_of("quick,method=cam"))
    film = {"image": np.zeros((1, 128, 128), np.float32)}
    theirs = flatten_shapes(task, film)
    ours = flatten_shapes(cam, {"image": np.zeros((1, 1, 128, 128, 3), np.float32)})
    backbone = {name: shape for name, shape in ours.items() if "/backbone/" in name}
    assert backbone
    assert backbone.items() <= theirs.items()
    assert config.data.train == config_of("quick,method=cam").data.train  # the same slices


def flatten_shapes(task, example):
    shapes = jax.eval_shape(task.init, jax.random.PRNGKey(0), example)
    leaves = jax.tree_util.tree_leaves_with_path(shapes)
    return {optimizers.path_of(path): leaf.shape for path, leaf in leaves}


def test_an_older_run_predicts_as_it_did():
    """Then scales were of multiscale_cam alone, and PCM as wide as the rest."""
    old = json.loads(config_of("quick,method=seam").to_json())
    for block, names in {"model": ("stride", "dilations", "pcm_width"), "losses": ("bag",)}.items():
        for name in names:
            del old[block][name]
    for name in ("lungs", "mirror", "tune"):
        del old[name]
    del old["affinity"]["similarity"]
    found = migrations.migrate(old | {"scales": [0.5, 1.0, 1.5, 2.0]})
    assert (found["scales"], found["mirror"], found["tune"]) == ([1.0], False, False)
    assert (found["model"]["pcm_width"], found["model"]["stride"]) == (1 / 16, 8)
    found = migrations.migrate(old | {"method": "multiscale_cam", "scales": [0.5, 2.0]})
    assert (found["scales"], found["mirror"]) == ([0.5, 2.0], True)
    make_task(ml_collections.ConfigDict(found))
