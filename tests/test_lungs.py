"""Lung segmentation: what teacher and student see, learn from and report."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from configs import lungs as lungs_config
from cxr_jax import evaluate, losses, teacher, train
from cxr_jax.data import phantoms
from cxr_jax.errors import InputError
from cxr_jax.inputs.lungs import Segmenter
from cxr_jax.metrics import segmentation
from cxr_jax.metrics.bootstrap import numbers
from cxr_jax.models import adain
from cxr_jax.tasks import lungs, make_task
from tests import conftest

SIZE, B = 32, 4
TAUGHT = ("semi", "pairs")


def tiny(method, /, **changes):
    """The smoke config at 32 px, its network of one level, which compiles fast."""
    config = lungs_config.get_config(f"smoke,method={method}").copy_and_resolve_references()
    config.preprocess.size = SIZE
    config.model.features = (3,)
    config.update_from_flattened_dict(changes)
    return config


def start(task, seed=0):
    """Fresh variables; jitted, because op by op it is slow."""
    return dict(jax.jit(task.init)(jax.random.PRNGKey(seed), batch_of()))


def batch_of(seed=0):
    """Two films with masks, then two without, as a training batch."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((B, SIZE, SIZE), np.uint8)
    masks[:, 8:24, 4:14], masks[:, 8:24, 18:28] = 1, 2
    clean = rng.normal(size=masks.shape) - (masks > 0)
    seen = clean + 0.3 * rng.normal(size=masks.shape)
    return {
        "image": jnp.asarray(seen, jnp.float32),
        "clean_image": jnp.asarray(clean, jnp.float32),
        "lungs": jnp.asarray(masks),
        "labelled": jnp.asarray([True, True, False, False]),
    }


@pytest.fixture(scope="module", params=TAUGHT)
def taught(request):
    """(task, variables, value_and_grad of the loss at a step), the teacher unlike the student."""
    task = make_task(tiny(request.param, **{"teaching.confidence": 0.5, "teaching.first_step": 5}))
    variables = start(task) | {teacher.COLLECTION: start(task, 1)[teacher.COLLECTION]}

    @jax.jit
    def loss(variables, batch, step):
        def of(variables):
            return task.loss(variables, batch, rng=jax.random.PRNGKey(0), step=step)

        return jax.value_and_grad(of, has_aux=True)(variables)

    return task, variables, loss


def biggest(tree):
    return max(float(jnp.abs(x).max()) for x in jax.tree.leaves(tree))


def test_the_mask_of_a_film_without_labels_is_never_read(taught):
    _, variables, loss = taught
    batch = batch_of()
    other = batch | {"lungs": batch["lungs"].at[2:].set(0)}
    known = batch | {"lungs": batch["lungs"].at[:2].set(0)}
    (value, _), _ = loss(variables, batch, 9)
    assert float(value) == float(loss(variables, other, 9)[0][0])
    assert float(value) != float(loss(variables, known, 9)[0][0])


def test_films_without_labels_count_from_their_step_on(taught):
    """Before it only films with masks have a gradient; then the others have one too."""
    task, variables, loss = taught
    batch = batch_of()
    alone = batch | {"labelled": jnp.zeros(B, bool)}
    (early, (_, terms)), gradient = loss(variables, alone, 4)
    assert float(early) == 0
    assert biggest(gradient) == 0
    assert float(terms["taught"]) == 0
    (late, _), gradient = loss(variables, alone, 5)
    assert float(late) > 0
    assert biggest(gradient["params"]) > 0
    assert biggest(loss(variables, batch, 4)[1]["params"]) > 0
    assert [s.first_step for s in task.data.stages] == [0, 5]
    assert task.data.stages[0].second_share == 0
    assert task.data.stages[1].second_share == 1


def test_the_teacher_has_no_gradient_and_follows_the_student(taught):
    task, variables, loss = taught
    (_, (state, _)), gradient = loss(variables, batch_of(), 9)
    assert biggest(gradient[teacher.COLLECTION]) == 0
    decay = min(task.teaching.decay, 9 / 10)  # a plain mean until the average has filled
    expected = jax.tree.map(
        lambda old, new: decay * old + (1 - decay) * new,
        variables[teacher.COLLECTION]["params"],
        variables["params"],
    )
    for got, want in zip(
        jax.tree.leaves(state[teacher.COLLECTION]["params"]), jax.tree.leaves(expected)
    ):
        np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-7)  # float32 rounding


def test_the_teacher_is_asked_about_the_clean_film(taught):
    """Whatever the student sees, the pseudo-labels stay those of the clean film."""
    _, variables, loss = taught
    batch = batch_of() | {"labelled": jnp.zeros(B, bool)}
    moved = batch | {"clean_image": batch["clean_image"][:, ::-1]}
    assert float(loss(variables, batch, 9)[0][0]) != float(loss(variables, moved, 9)[0][0])


@pytest.mark.parametrize("method", TAUGHT)
def test_the_chosen_weights_predict(method):
    batch = batch_of()
    for chosen, ignored in (("teacher", "params"), ("student", teacher.COLLECTION)):
        task = make_task(tiny(method, **{"teaching.predict_with": chosen}))
        variables = start(task)
        predict = jax.jit(task.predict)
        probs = predict(variables, batch)["lung_probs"]
        assert probs.shape == (B, SIZE, SIZE, 2)
        changed = {**variables, ignored: jax.tree.map(lambda x: x + 1, variables[ignored])}
        np.testing.assert_array_equal(predict(changed, batch)["lung_probs"], probs)
        used = {"teacher": teacher.COLLECTION, "student": "params"}[chosen]
        changed = {**variables, used: jax.tree.map(lambda x: x + 1, variables[used])}
        assert np.abs(predict(changed, batch)["lung_probs"] - probs).max() > 0


def test_pairs_predicts_with_one_code():
    task = make_task(tiny("pairs", **{"teaching.predict_with": "student"}))
    batch = batch_of()
    variables = start(task)
    predict = jax.jit(task.predict)

    def use_the_codes(path, leaf):
        return leaf + 0.1 if "affine" in jax.tree_util.keystr(path) else leaf

    params = jax.tree_util.tree_map_with_path(use_the_codes, variables["params"])

    def probs(codes):
        changed = {**variables, "params": params | {"codes": codes}}
        return np.asarray(predict(changed, batch)["lung_probs"])

    codes = params["codes"]
    reference = probs(codes)
    for job in (adain.SEGMENT, adain.NORMALISE):
        np.testing.assert_array_equal(probs(codes.at[job].add(1.0)), reference)
    assert np.abs(probs(codes.at[adain.DISTIL].add(1.0)) - reference).max() > 0


def test_the_normaliser_learns_from_pairs(taught):
    """Its loss is the distance to the film without opacities: 0 where there are none to remove."""
    task, variables, loss = taught
    if not isinstance(task, lungs.PairsLungs):
        return
    params = variables["params"]
    still = jax.tree.map(jnp.zeros_like, params["picture"])  # no correction
    variables = variables | {"params": params | {"picture": still}}
    batch = batch_of() | {"labelled": jnp.ones(B, bool)}
    for added in (0.0, 0.25):
        films = batch | {"image": batch["clean_image"] + added}
        (_, (_, terms)), _ = loss(variables, films, 9)
        np.testing.assert_allclose(float(terms["normalise"]), added, atol=1e-6)


# The films.


@pytest.fixture(scope="module")
def record():
    return phantoms.phantom(0, 1, 128)


def views(record, seed, **changes):
    config = tiny("semi", **changes)
    config.preprocess.size = 64
    config.preprocess.order = ("resize",)
    transforms = make_task(config).data.transforms
    return transforms.finish(transforms.example(record), np.random.default_rng(seed))


def test_teacher_and_student_see_one_geometry(record):
    quiet = {"opacities.chance": 0.0, "strong.brightness": 0.0, "strong.contrast": 0.0}
    plain = views(record, 3, **quiet)
    np.testing.assert_array_equal(plain["image"], plain["clean_image"])
    strong = views(record, 3, **quiet | {"opacities.chance": 1.0})
    # The opacities are drawn after the warp: teacher and masks are as without.
    np.testing.assert_array_equal(strong["clean_image"], plain["clean_image"])
    np.testing.assert_array_equal(strong["lungs"], plain["lungs"])
    added = strong["image"] - strong["clean_image"]
    assert added.min() >= 0
    assert added.max() > 0
    assert added[strong["lungs"] > 0].mean() > 5 * added[strong["lungs"] == 0].mean()
    assert np.abs(views(record, 4, **quiet)["clean_image"] - plain["clean_image"]).max() > 0


def test_opacities_are_equalised_as_a_real_one_would_have_been(record):
    config = tiny("semi", **{"opacities.chance": 1.0, "strong.brightness": 0.0})
    config.strong.contrast = 0.0
    config.augment.update(brightness=0.0, contrast=0.0)
    config.preprocess.size = 64
    transforms = make_task(config).data.transforms
    seen = transforms.finish(transforms.example(record), np.random.default_rng(0))
    assert config.preprocess.order[-1] == "equalize"
    grey = np.rint(seen["image"] * config.preprocess.std + config.preprocess.mean)
    # Equalised: the brightest grey is white, although opacities only fill in dark lungs.
    assert grey.max() == 255
    assert grey.min() == 0


def test_examples_have_one_shape_with_and_without_truth(record):
    transforms = make_task(tiny("semi")).data.transforms
    bare = {name: record[name] for name in ("image", "id", "group")}
    full, empty = transforms.example(record), transforms.example(bare)
    assert {k: (v.shape, v.dtype) for k, v in full.items()} == {
        k: (v.shape, v.dtype) for k, v in empty.items()
    }
    assert full["labelled"]
    assert not empty["labelled"]
    assert full["global_severity"] == record["severity"].sum()
    assert np.isnan(empty["global_severity"])
    trained = transforms.finish(empty, np.random.default_rng(0))
    assert trained.keys() == {"image", "clean_image", "lungs", "labelled"}


# The numbers.


def test_pseudo_loss_is_the_supervised_one_where_the_teacher_is_certain():
    labels = batch_of()["lungs"]
    logits = jax.random.normal(jax.random.PRNGKey(0), (B, SIZE, SIZE, 2))
    probs = jnp.stack([labels == 1, labels == 2], axis=-1).astype(jnp.float32)
    np.testing.assert_allclose(
        losses.pseudo_segmentation_loss(logits, probs, 0.9),
        losses.segmentation_loss(logits, labels),
        rtol=1e-6,  # the same sums, weighted by ones
    )


def test_unsure_pixels_have_no_gradient():
    logits = jax.random.normal(jax.random.PRNGKey(0), (1, 4, 4, 2))
    probs = jnp.full((1, 4, 4, 2), 0.5).at[0, 0].set(0.95).at[0, 1].set(0.05)
    gradient = jax.grad(lambda z: losses.pseudo_segmentation_loss(z, probs, 0.8).sum())(logits)
    assert np.all(np.asarray(gradient[0, 2:]) == 0)
    assert np.all(np.asarray(gradient[0, 0]) < 0)  # towards lung
    assert np.all(np.asarray(gradient[0, 1]) > 0)  # away from it
    nothing = losses.pseudo_segmentation_loss(logits, jnp.full_like(probs, 0.5), 0.8)
    np.testing.assert_array_equal(nothing, [0.0])


def test_area_ratio_and_recall():
    true = np.zeros((3, 8, 8), np.uint8)
    true[:2, 2:6, 0:4] = 1  # 16 pixels; the third film has no lung
    pred = np.zeros_like(true)
    pred[0, 2:4, 0:4] = 2  # half of it, under the other lung's label
    pred[1, 2:6, 2:8] = 1  # 24 pixels, 8 of them right
    rows = segmentation.lung_area_rows(pred, true)
    np.testing.assert_array_equal(rows["lung_area_ratio"], [0.5, 1.5, np.nan])
    np.testing.assert_array_equal(rows["lung_recall"], [0.5, 0.5, np.nan])


def test_severe_films_are_reported_apart():
    task = make_task(tiny("unet"))
    values = {name: np.array([0.9, 0.8, 0.5, np.nan]) for name in lungs.ROWS}
    scores = np.array([3.0, np.nan, 11.0, 18.0])
    rows = values | {"global_severity": scores, "id": np.array(list("abcd"))}
    found = task.evaluation.report(rows)
    report, counts = numbers(found), conftest.counts(found)
    assert report["lung_dice"] == pytest.approx(2.2 / 3)
    assert report["severe_lung_dice"] == 0.5  # 11 counts as severe; the NaN is left out
    assert (counts["lung_dice"], counts["severe_lung_dice"]) == (3, 1)
    unscored = rows | {"global_severity": np.full(4, np.nan)}
    severe = task.evaluation.report(unscored)["severe_lung_dice"]
    assert severe.count == 0
    assert np.isnan(severe.value)


def test_a_missed_consolidation_shows_in_its_recall():
    task = make_task(tiny("unet"))
    truth = np.zeros((1, 32, 32), np.uint8)
    truth[:, 4:28, 2:14], truth[:, 4:28, 18:30] = 1, 2
    lesion = np.zeros_like(truth)
    lesion[:, 16:32, 2:14] = 1  # the lower half of the right lung, and below it
    found = truth.copy()
    found[:, 22:, :14] = 0
    probs = np.stack([found == 1, found == 2], axis=-1).astype(np.float32)
    batch = {"lungs": truth, "lesion": lesion, "global_severity": np.array([12.0])}
    rows = task.evaluation.finish_rows(
        {k: np.asarray(v) for k, v in task.score({"lung_probs": probs}, batch).items()}
    )
    np.testing.assert_allclose(rows["lesion_recall"], [0.5])  # 6 of the 12 rows within the lung
    np.testing.assert_allclose(rows["lung_area_ratio"], [1 - 6 / 48])
    assert rows["lung_dice_left"] == 1 > rows["lung_dice_right"]
    assert rows.keys() == {*lungs.ROWS, "global_severity"}


# The settings.


@pytest.mark.parametrize(
    ("method", "changes", "said"),
    [
        ("unet", {"second.name": "phantom_cxr"}, "without masks beside config.method='unet'"),
        ("semi", {"second.name": ""}, "needs films without masks"),
        ("adain", {"second.labels": "given"}, "config.second.labels to hidden"),
        ("unet", {"method": "vnet"}, "expected one of unet, semi, pairs, adain"),
        ("semi", {"teaching.first_step": 0}, "first_step=0"),
        ("semi", {"teaching.decay": 1.0}, "decay=1.0"),
        ("semi", {"teaching.confidence": 0.3}, "confidence=0.3"),
        ("adain", {"adain.r1_weight": -1.0}, "config.adain.r1_weight=-1.0"),
        ("adain", {"adain.diversity_steps": 0}, "config.adain.diversity_steps=0"),
        ("adain", {"teaching.predict_with": "both"}, "expected teacher or student"),
        ("semi", {"opacities.whole": 2.0}, "opacities.whole=2.0"),
    ],
)
def test_settings_that_do_not_fit_are_refused_in_a_line(method, changes, said):
    with pytest.raises(InputError) as error:
        make_task(tiny(method, **changes))
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("variant", ["", "quick", "healthy", "cohen", "cohen_mild", "smoke"])
@pytest.mark.parametrize("method", lungs_config.METHODS)
def test_every_variant_makes_a_task(variant, method):
    config = lungs_config.get_config(f"{variant},method={method}")
    task = make_task(config)
    assert task.data.stages[-1].first_step < config.total_steps
    with pytest.raises(InputError, match="expected one of unet, semi, pairs, adain"):
        lungs_config.get_config(f"{variant},method=vnet")


def test_the_weight_of_films_without_masks_rises():
    config = tiny("semi", **{"teaching.ramp_steps": 3, "teaching.weight": 2.0})
    config.teaching.first_step = 10
    weights = [float(make_task(config).teaching.weight_at(step)) for step in (0, 9, 10, 11, 13, 99)]
    assert weights == [0.0, 0.0, 0.5, 1.0, 2.0, 2.0]


def test_a_generator_trains_and_then_labels_films(tmp_path, record):
    """The whole way, as every command walks it, for the method with most parts."""
    config = tiny("adain")
    config.preprocess.size = 64
    config.devices = 1
    config.batch_size = 2
    assert train.train(config, tmp_path)
    metrics = evaluate.evaluate(config, tmp_path)
    assert {"test/lung_dice", "test/lung_area_ratio", "test/lesion_recall"} <= metrics.keys()
    segmenter = Segmenter.load(tmp_path)
    labels = segmenter.labels([record["image"], record["image"][:100]])
    assert labels.shape == (2, 64, 64)
    assert labels.dtype == np.uint8
