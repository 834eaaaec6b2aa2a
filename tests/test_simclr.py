"""SimCLR: its loss, its two views, the joined set, and a run that a diagnosis starts from."""

import dataclasses
import functools
import importlib
import itertools
import json

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from cxr_jax import checkpoints, linear_probe, losses, optimizers, probe, train, workdir
from cxr_jax.data import records, sources
from cxr_jax.data.sources.phantom_cxr import PhantomCXR
from cxr_jax.data.two_views import TwoViews
from cxr_jax.errors import InputError
from cxr_jax.inputs import external
from cxr_jax.parallel import Parallel
from cxr_jax.tasks import make_task
from cxr_jax.tasks.simclr import Simclr, SimclrEvaluation
from cxr_jax.trained import make_batch
from tests.data.fake_sets import edit, make_3class, make_prepared, run_prepare

# The loss.


def slow_nt_xent(first, second, temperature):
    """Eq. 1 as it is printed, in loops: l of every view against every other one."""
    views = np.concatenate([first, second]).astype(np.float64)
    count = len(first)

    def cosine(a, b):
        return a @ b / (np.linalg.norm(a) * np.linalg.norm(b))

    def loss(i, j):
        above = np.exp(cosine(views[i], views[j]) / temperature)
        below = sum(
            np.exp(cosine(views[i], views[k]) / temperature) for k in range(2 * count) if k != i
        )
        return -np.log(above / below)

    return np.array([(loss(i, i + count) + loss(i + count, i)) / 2 for i in range(count)])


@pytest.fixture(scope="module")
def pair():
    rng = np.random.default_rng(0)
    first = rng.normal(size=(5, 7)).astype(np.float32)
    return first, (first + rng.normal(size=(5, 7))).astype(np.float32)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0])
def test_nt_xent_is_eq_1(pair, temperature):
    got = losses.nt_xent(*pair, temperature=temperature)
    assert (got.shape, got.dtype) == ((5,), jnp.float32)
    np.testing.assert_allclose(got, slow_nt_xent(*pair, temperature), rtol=1e-5)


def test_nt_xent_knows_no_order_of_views_or_examples(pair):
    first, second = pair
    got = np.asarray(losses.nt_xent(first, second, temperature=0.5))
    np.testing.assert_allclose(losses.nt_xent(second, first, temperature=0.5), got, rtol=1e-5)
    order = np.array([3, 0, 4, 1, 2])
    moved = losses.nt_xent(first[order], second[order], temperature=0.5)
    np.testing.assert_allclose(moved, got[order], rtol=1e-5)
    other = losses.nt_xent(first, second[order], temperature=0.5)  # not a pair any more
    assert float(other.mean()) > got.mean()


def test_nt_xent_is_stable(pair):
    """Zero vectors, cosines of 1 over a temperature of 1/40, and lengths far from 1."""
    first, second = pair
    tell = lambda a, b: losses.nt_xent(a, b, temperature=0.025).sum()  # noqa: E731
    zeros = np.zeros_like(first)
    np.testing.assert_allclose(
        losses.nt_xent(zeros, zeros, temperature=0.5), np.log(9.0), rtol=1e-6
    )
    for one, two in ((zeros, zeros), (first, first), (first, -first), (zeros, second)):
        value, gradients = jax.value_and_grad(tell, argnums=(0, 1))(one, two)
        assert np.isfinite(value)
        assert all(np.isfinite(g).all() for g in gradients)
    far = losses.nt_xent(first * 1e25, second * 1e-8, temperature=0.5)
    np.testing.assert_allclose(far, losses.nt_xent(*pair, temperature=0.5), rtol=1e-4)
    half = losses.nt_xent(first.astype(jnp.bfloat16), second, temperature=0.5)
    assert half.dtype == jnp.float32


def test_nt_xent_needs_a_negative(pair):
    first, second = pair
    for one, two in ((first[:1], second[:1]), (first, second[:4]), (first[0], second[0])):
        with pytest.raises(ValueError, match="B > 1"):
            losses.nt_xent(one, two, temperature=0.5)


def test_negatives_are_the_whole_batch_under_jit_and_the_devices_part_under_pmap():
    first, second = np.random.default_rng(0).normal(size=(2, 8, 5)).astype(np.float32)
    tell = functools.partial(losses.nt_xent, temperature=0.5)
    batch = Parallel.create("jit", 4).shard_batch({"first": first, "second": second})
    assert len(batch["first"].sharding.device_set) == 4
    np.testing.assert_allclose(jax.jit(tell)(**batch), tell(first, second), rtol=1e-5)
    halves = [x.reshape(2, 4, 5) for x in (first, second)]
    apart = jax.pmap(tell, devices=jax.devices()[:2])(*halves)
    for k in range(2):
        np.testing.assert_allclose(apart[k], tell(halves[0][k], halves[1][k]), rtol=1e-5)
    assert apart.mean() < tell(first, second).mean()  # fewer negatives


# The views.


@pytest.fixture(scope="module")
def ramp():
    """Grey rises from left to right."""
    return np.tile(np.linspace(20, 220, 64).astype(np.uint8), (48, 1))


def test_two_views_are_two_films_of_the_same_size_and_the_same_for_the_same_seed(ramp):
    views = TwoViews()
    before = ramp.copy()
    first, second = views(ramp, np.random.default_rng(1))
    for view in (first, second):
        assert (view.shape, view.dtype) == (ramp.shape, np.uint8)
    assert not np.array_equal(first, second)
    for view, again in zip((first, second), views(ramp, np.random.default_rng(1))):
        np.testing.assert_array_equal(view, again)
    np.testing.assert_array_equal(ramp, before)


def many(views, image, count=200):
    rng = np.random.default_rng(0)
    return [view for _ in range(count // 2) for view in views(image, rng)]


NOTHING = dict(crop=1.0, flip=False, brightness=0.0, contrast=0.0, blur=0.0)


def test_each_part_of_the_augmentation_does_what_it_says(ramp):
    assert all(np.array_equal(view, ramp) for view in many(TwoViews(**NOTHING), ramp))
    flipped = many(TwoViews(**NOTHING | {"flip": True}), ramp)
    rises = [float(view[:, -1].mean()) > float(view[:, 0].mean()) for view in flipped]
    assert 0.35 < np.mean(rises) < 0.65
    # A quarter of the area, the aspect 3/4 of the film's: 28 of the 64 columns.
    cropped = many(TwoViews(**NOTHING | {"crop": 0.25}), ramp)
    spans = [(int(view[0, -1]) - int(view[0, 0])) / 200 for view in cropped]
    assert 0.41 < min(spans) < 0.5
    assert max(spans) > 0.9
    lighter = [
        view.mean() / ramp.mean() for view in many(TwoViews(**NOTHING | {"brightness": 0.4}), ramp)
    ]
    assert 0.58 < min(lighter) < 0.65 < 1.2 < max(lighter) < 1.41
    assert 0.1 < np.mean(np.isclose(lighter, 1, atol=1e-3)) < 0.35  # left alone: a fifth
    steeper = [
        view.std() / ramp.std() for view in many(TwoViews(**NOTHING | {"contrast": 0.4}), ramp)
    ]
    assert 0.58 < min(steeper) < 0.65
    assert all(
        abs(v.mean() - ramp.mean()) < 1 for v in many(TwoViews(**NOTHING | {"contrast": 0.2}), ramp)
    )
    noise = np.random.default_rng(0).integers(0, 256, (48, 64)).astype(np.uint8)
    blurred = [
        view.std() / noise.std() for view in many(TwoViews(**NOTHING | {"blur": 2.0}), noise)
    ]
    assert 0.3 < np.mean(np.isclose(blurred, 1, atol=1e-3)) < 0.7
    assert min(blurred) < 0.2


def test_windows_are_of_every_area_aspect_and_place():
    """A film whose grey tells the place: column + row."""
    side = 121
    places = np.arange(side)[:, None] + np.arange(side)
    windows = many(TwoViews(**NOTHING | {"crop": 0.25}), places.astype(np.uint8), 2000)
    corners = np.array([[v[0, 0], v[0, -1], v[-1, 0]] for v in windows], float)
    wide, high = (corners[:, 1:] - corners[:, :1]).T / (side - 1)
    area, aspect = wide * high, wide / high
    np.testing.assert_allclose(np.quantile(area, [0, 0.5, 1]), [0.25, 0.625, 1], atol=0.03)
    np.testing.assert_allclose([aspect.min(), aspect.max()], [3 / 4, 4 / 3], rtol=0.03)
    assert abs(np.log(aspect).mean()) < 0.02
    # The first corner's grey is its column and row together: between none and all that is left.
    left = (2 - wide - high) * (side - 1)
    share = corners[:, 0][left > 40] / left[left > 40]
    np.testing.assert_allclose(np.quantile(share, [0, 0.5, 1]), [0, 0.5, 1], atol=0.07)


@pytest.mark.parametrize(
    "field, value",
    [("crop", 0.0), ("crop", 1.1), ("brightness", 1.0), ("contrast", -0.1), ("blur", 0.01)],
)
def test_an_augmentation_that_cannot_be_meant_is_named(field, value):
    with pytest.raises(InputError, match=rf"augment\.{field}={value}"):
        TwoViews(**{field: value})


# The films of several sets.


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """Two prepared sets: film `covid 3`, a test film of one, is a training film of the other."""
    root = tmp_path_factory.mktemp("sets")
    cohen = make_prepared(root / "cohen")
    (cohen / "images" / "f2.png").rename(cohen / "images" / "covid 3.png")
    edit(cohen / "annotations.csv", 4, "image", "covid 3.png")
    if (cohen / "lungs" / "f2.png").exists():
        (cohen / "lungs" / "f2.png").rename(cohen / "lungs" / "covid 3.png")
    run_prepare("brixia_cohen", cohen, root / "data", "--max_side=80")
    run_prepare("cxr_3class", make_3class(root / "three"), root / "data", "--max_side=80")
    return root / "data"


def joined(data_dir, sets, split="train", **options):
    data = sources.block("films", sets=sets, data_dir=str(data_dir), **options)
    return sources.open_source(data, split)


def told(source, field):
    return [source.peek(index, field) for index in range(len(source))]


def test_joined_films_are_each_sets_own_split_without_labels(data_dir):
    films = joined(data_dir, "cxr_3class, brixia_cohen")
    assert films.fields == {"image", "id", "group"}
    records = [films[index] for index in range(len(films))]
    assert all(record.keys() == films.fields for record in records)
    assert [record["id"] for record in records] == told(films, "id")
    assert [record["group"] for record in records] == told(films, "group")
    parts = [name.partition("/")[0] for name in told(films, "group")]
    assert parts == sorted(parts, reverse=True)
    assert set(parts) == {"cxr_3class", "brixia_cohen"}
    test = joined(data_dir, "cxr_3class,brixia_cohen", "test")
    assert not set(told(films, "group")) & set(told(test, "group"))
    assert films.version != joined(data_dir, "brixia_cohen").version
    with pytest.raises(IndexError):
        films[len(films)]


def test_patients_in_two_sets_are_left_out_of_both(data_dir):
    alone = told(joined(data_dir, "brixia_cohen"), "id")
    films = joined(data_dir, "brixia_cohen,cxr_3class")
    assert set(alone) - set(told(films, "id")) == {"brixia_cohen/covid 3", "brixia_cohen/f3"}
    assert any("left out: 2 films of brixia_cohen" in note for note in films.notes)
    shared = {"cxr_3class/c0", "cxr_3class/c2"}
    for split in ("train", "test"):
        assert not shared & set(told(joined(data_dir, "cxr_3class", split), "group"))


def test_a_validation_fold_is_not_trained_on(data_dir, tmp_path, capsys):
    three = "cxr_3class"
    every, part = (set(told(joined(data_dir, three, fold=k), "id")) for k in (-1, 3))
    data = sources.block(three, data_dir=str(data_dir), fold=3)
    fold = {f"{three}/{name}" for name in told(sources.open_source(data, "val"), "id")}
    assert part
    assert fold
    assert part == every - fold
    assert set(told(joined(data_dir, three, "val", fold=3), "id")) == every & fold
    assert config_of("simclr", "cxr3").data.fold == config_of("diagnosis", "cxr3").data.fold
    # A run of before this option trained on all of them, and its later user is told.
    start = {"task": "simclr", "data": {"name": "films", "sets": three, "data_dir": str(data_dir)}}
    (tmp_path / "config.json").write_text(json.dumps(start))
    config = ml_collections.ConfigDict({"init_from": str(tmp_path), "data": data})
    external.check_start(config, split="test")
    assert "films of the validation split" in capsys.readouterr().out
    (tmp_path / "config.json").write_text(json.dumps(start | {"data": start["data"] | {"fold": 3}}))
    external.check_start(config, split="test")
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    "sets, words",
    [
        ("", "data.sets is empty; .*: brixia_cohen, cxr_3class$"),
        ("imagenet", "data.sets='imagenet'; expected one of"),
        ("cxr_3class,nih_cxr14", "cxr_3class and nih_cxr14, which hold the same films"),
        ("nih_cxr8,nih_cxr14", "nih_cxr14 and nih_cxr8, which hold the same films"),
        ("nih_cxr8,cxr_3class", "cxr_3class and nih_cxr8, which hold the same films"),
        ("chexpert", "data set 'chexpert' is not prepared in .*; run: "),
        ("phantom_ct", "'phantom_ct' is of CT"),
        ("cxr_3class,cxr_3class", "has 'cxr_3class' where it cannot be"),
        ("films", "has 'films' where it cannot be"),
    ],
)
def test_sets_that_cannot_be_joined_are_named(data_dir, sets, words):
    with pytest.raises(InputError, match=words):
        joined(data_dir, sets)


def test_a_later_test_on_films_that_were_joined_is_refused(data_dir, tmp_path):
    start = ml_collections.ConfigDict({"task": "simclr"})
    start.data = sources.block("films", sets="cxr_3class", data_dir=str(data_dir))
    (tmp_path / "config.json").write_text(start.to_json())
    config = ml_collections.ConfigDict({"init_from": str(tmp_path)})
    config.data = sources.block("cxr_3class", data_dir=str(data_dir))
    external.check_start(config, split="test")
    config.data.test_fold = 2
    with pytest.raises(InputError, match="was trained on 3 patients and 3 films"):
        external.check_start(config, split="test")


# The task.


def config_of(name, variant):
    return (
        importlib.import_module(f"configs.{name}").get_config(variant).copy_and_resolve_references()
    )


def shapes_of(name, variant):
    config = config_of(name, variant)
    zeros = np.zeros((1, config.preprocess.size, config.preprocess.size), np.float32)
    return jax.eval_shape(make_task(config).init, jax.random.PRNGKey(0), {"image": zeros})


def paths_and_shapes(tree, parts=("backbone", "vit")):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    found = {optimizers.path_of(path): leaf.shape for path, leaf in leaves}
    return {path: shape for path, shape in found.items() if path.split("/")[1] in parts}


@pytest.mark.parametrize("options", ["", "backbone=none", "backbone=resnet50_hybrid"])
@pytest.mark.parametrize("base", ["", "quick", "cxr3"])
def test_a_diagnosis_takes_every_array_of_the_corpus_and_the_transformer(base, options):
    variant = ",".join(filter(None, [base, options]))
    ours, theirs = shapes_of("simclr", variant), shapes_of("diagnosis", variant)
    assert paths_and_shapes(ours) == paths_and_shapes(theirs)
    assert ours["params"].keys() - theirs["params"].keys() == {"projection"}
    has = {path.split("/")[1] for path in paths_and_shapes(ours)}
    assert has == ({"vit"} if options == "backbone=none" else {"backbone", "vit"})


def test_the_loss_and_the_augmentation_are_those_of_the_config():
    config = config_of("simclr", "smoke")
    config.temperature = 0.3
    config.augment.update(crop=0.6, flip=False, brightness=0.1, contrast=0.2, blur=0.5)
    task = make_task(config)
    assert task.temperature == 0.3
    assert task.augment == TwoViews(0.6, False, 0.1, 0.2, 0.5)


@pytest.fixture(scope="module")
def films():
    return [PhantomCXR(split="test", count=4, seed=0, size=128)[i] for i in range(4)]


@pytest.fixture(scope="module")
def started(films):
    task = make_task(config_of("simclr", "smoke"))
    batch = make_batch(task, films)
    return task, jax.jit(task.init)(jax.random.PRNGKey(0), batch), batch


def test_an_evaluation_has_the_same_views_of_a_film_whenever_it_comes(films, started):
    task, _, batch = started
    assert batch.keys() == {"image", "first", "second"}
    again = make_batch(task, films[2:3])
    for name, array in batch.items():
        np.testing.assert_array_equal(again[name][0], array[2])
    views = [batch["image"], batch["first"], batch["second"]]
    assert not any(np.array_equal(a[0], b[0]) for a, b in itertools.combinations(views, 2))
    renamed = make_batch(task, [films[2] | {"id": "another"}])
    np.testing.assert_array_equal(renamed["image"], again["image"])
    assert not np.array_equal(renamed["first"], again["first"])


def test_training_views_depend_on_the_generator_alone(films, started):
    transforms = started[0].data.transforms
    examples = [transforms.example(films[0] | {"id": name}) for name in ("one", "two")]
    same = [transforms.finish(example, np.random.default_rng(5)) for example in examples]
    assert same[0].keys() == {"first", "second"}
    np.testing.assert_array_equal(same[0]["first"], same[1]["first"])
    assert not np.array_equal(same[0]["first"], same[0]["second"])
    other = transforms.finish(examples[0], np.random.default_rng(6))
    assert not np.array_equal(same[0]["first"], other["first"])


def test_the_projection_is_two_layers_with_a_relu_between(started):
    task, variables, _ = started
    params = variables["params"]["projection"]
    shapes = jax.tree.map(np.shape, params)
    assert shapes["fc1"] == {"kernel": (32, 16), "bias": (16,)}  # hidden, size of the config
    assert shapes["fc2"] == {"kernel": (16, 8), "bias": (8,)}
    x = np.random.default_rng(0).normal(size=(3, 32)).astype(np.float32)
    hidden = x @ params["fc1"]["kernel"] + params["fc1"]["bias"]
    assert (hidden < 0).any()
    want = np.maximum(hidden, 0) @ params["fc2"]["kernel"] + params["fc2"]["bias"]
    got = task.model.projection.apply({"params": params}, x)
    np.testing.assert_allclose(got, want, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.5, 0.1])
def test_the_loss_is_nt_xent_of_the_projections_and_trains_every_part(started, temperature):
    task, variables, batch = started
    task = dataclasses.replace(task, temperature=temperature)

    def loss(params):
        rng = jax.random.PRNGKey(1)
        return task.loss({**variables, "params": params}, batch, rng=rng, step=jnp.array(0))

    (value, (state, terms)), grads = jax.jit(jax.value_and_grad(loss, has_aux=True))(
        variables["params"]
    )
    together = np.concatenate([batch["first"], batch["second"]])
    apply = functools.partial(task.model.apply, train=True, mutable=["batch_stats"])
    vectors, _ = jax.jit(apply)(variables, together)
    want = slow_nt_xent(np.asarray(vectors[:4]), np.asarray(vectors[4:]), temperature).mean()
    np.testing.assert_allclose(value, want, rtol=1e-4)
    assert state.keys() == {"batch_stats"}
    old, new = (jax.tree.leaves(stats["batch_stats"]) for stats in (variables, state))
    assert any(not np.array_equal(a, b) for a, b in zip(old, new))
    assert -1 <= terms["agreement"] <= 1
    assert terms["found_in_batch"] in (0, 0.25, 0.5, 0.75, 1)
    for part, tree in grads.items():
        assert any(np.abs(leaf).max() > 0 for leaf in jax.tree.leaves(tree)), part
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(tree)), part


def test_what_is_told_of_a_film(films, started):
    task, variables, batch = started
    outputs = jax.device_get(jax.jit(task.predict)(variables, batch))
    assert outputs["embedding"].shape == (4, 32)
    encode = jax.jit(functools.partial(task.model.apply, train=False, method="encode"))
    np.testing.assert_allclose(
        outputs["embedding"], encode(variables, batch["image"])["cls"], atol=1e-5
    )
    project = jax.jit(functools.partial(task.model.apply, train=False))
    vectors = [project(variables, batch[name]) for name in ("first", "second")]
    first, second = (v / np.linalg.norm(v, axis=1, keepdims=True) for v in vectors)
    np.testing.assert_allclose(outputs["agreement"], (first * second).sum(axis=1), atol=1e-5)
    told = task.describe(films[0], {name: array[0] for name, array in outputs.items()})
    assert json.loads(json.dumps(told)).keys() == {"agreement", "embedding"}
    assert len(told["embedding"]) == 32


def test_views_are_found_among_all_films_of_a_split():
    first = np.eye(4, dtype=np.float32)
    second = first[[0, 1, 3, 2]]  # two films have exchanged theirs
    units = SimclrEvaluation().units({"first": first, "second": second})
    report = SimclrEvaluation().report(units)
    assert {name: value.value for name, value in report.items()} == {
        "retrieval": 0.5,
        "retrieval_chance": 0.25,
        "agreement": 0.5,
        "other_agreement": pytest.approx(2 / 12),
    }
    assert {value.count for value in report.values()} == {4}
    same = np.ones((3, 1), np.float32)  # a network that has collapsed finds nothing
    assert SimclrEvaluation().units({"first": same, "second": same})["found"].tolist() == [0, 0, 0]
    alone = SimclrEvaluation().units({"first": first[:1], "second": first[:1]})
    value = SimclrEvaluation().report(alone)["retrieval"]
    assert np.isnan(value.value)
    assert value.reason


@pytest.mark.parametrize(
    "change, words",
    [
        ({"temperature": 0.0}, r"config\.temperature=0\.0"),
        ({"batch_size": 1}, r"config\.batch_size=1: a film alone has no negatives"),
        ({"model.projection.size": 0}, r"config\.model\.projection\.size=0"),
        ({"visible.crop": "lungs"}, r"config\.visible needs lung masks"),
        ({"augment.crop": 0.0}, r"augment\.crop=0\.0"),
    ],
    ids=str,
)
def test_settings_that_cannot_be_meant_are_named(change, words):
    config = config_of("simclr", "smoke")
    config.update_from_flattened_dict(change)
    with pytest.raises(InputError, match=words):
        make_task(config)


def test_one_film_a_device_is_refused(tmp_path):
    config = config_of("simclr", "smoke")
    config.parallel, config.devices = "pmap", 2  # two films on two devices
    with pytest.raises(InputError, match="a device has one film of the batch"):
        train.train(config, tmp_path)


# What is made of a run.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A pre-training of two steps, with some films of every class."""
    config = config_of("simclr", "smoke")
    config.devices = 1
    config.data.update(train=32, test=12)
    folder = tmp_path_factory.mktemp("simclr")
    assert train.train(config, folder)
    return folder


@pytest.fixture(scope="module")
def diagnosis_run(run, tmp_path_factory):
    """A diagnosis that starts from it, and learns nothing in its only step."""
    config = config_of("diagnosis", "smoke")
    config.devices, config.init_from = 1, str(run)
    config.update_from_flattened_dict({"total_steps": 1, "eval_steps": (1,), "optimizer.lr": 0.0})
    folder = tmp_path_factory.mktemp("diagnosis")
    assert train.train(config, folder)
    return folder


def test_a_diagnosis_starts_from_it(run, diagnosis_run):
    ours, theirs = (checkpoints.read_state(d)["params"] for d in (run, diagnosis_run))
    for part in ("backbone", "vit"):
        jax.tree.map(np.testing.assert_array_equal, ours[part], theirs[part])
    assert theirs.keys() == {"backbone", "vit", "head"}


def data_of(run):
    return workdir.read_config(run).data


def test_the_command_probes_beside_random_weights_and_a_constant(run, capsys):
    probe.main([f"--workdir={run}"])
    lines = capsys.readouterr().out.strip().splitlines()
    assert lines[-5] == "| | accuracy | balanced_accuracy | mean_auc |"
    names = ["trained", "random weights", "constant, training shares"]
    assert [line.split(" | ")[0].strip("| ") for line in lines[-3:]] == names
    told = json.loads((run / "probe.json").read_text())
    assert list(told["probes"]) == names
    assert (told["films"], told["steps"]) == ({"train": 32, "test": 12}, [2])
    aucs = {name: told["probes"][name]["mean_auc"]["value"] for name in names}
    assert f"{aucs['trained']:.3f} [" in lines[-3]
    assert len(set(aucs.values())) == 3
    assert aucs["constant, training shares"] == 0.5
    for metrics in told["probes"].values():
        assert metrics.keys() == set(linear_probe.METRICS)
        assert {metric["n"] for metric in metrics.values()} == {12}


def test_a_probe_finds_what_is_in_the_features(run, monkeypatch):
    """An embedding that is the film's own grey, which says the class; and one that says nothing."""
    shown = lambda self, r: {  # noqa: E731
        "image": np.full((64, 64), 60 * int(r["diagnosis"]), np.uint8),
        "seed": np.uint32(0),
    }
    seen = lambda self, v, b: {"embedding": b["image"].mean(axis=(1, 2))[:, None]}  # noqa: E731
    monkeypatch.setattr(Simclr, "_example", shown)
    monkeypatch.setattr(Simclr, "predict", seen)
    blank = records.blank
    monkeypatch.setattr(records, "blank", lambda fields: blank(fields) | {"diagnosis": 0})
    found = linear_probe.probe(run, data_of(run), resamples=0)
    assert found["trained"]["accuracy"].value == 1
    monkeypatch.setattr(Simclr, "predict", lambda *_: {"embedding": jnp.zeros((2, 1))})
    found = linear_probe.probe(run, data_of(run), resamples=0)
    assert found["trained"]["mean_auc"].value == 0.5


def test_a_probe_that_cannot_be_is_one_line(run, diagnosis_run, data_dir):
    with pytest.raises(InputError, match="task 'diagnosis' have no embedding to probe"):
        linear_probe.probe(diagnosis_run, data_of(diagnosis_run))
    with pytest.raises(InputError, match="has no field 'diagnosis'"):
        linear_probe.probe(run, sources.block("brixia_cohen", data_dir=str(data_dir)))
    few = data_of(run).copy_and_resolve_references()
    few.train = 1
    with pytest.raises(InputError, match="a probe needs two classes or more"):
        linear_probe.probe(run, few)
    with pytest.raises(InputError, match="'phantom_cxr' has no option 'fold'"):
        probe.main([f"--workdir={run}", "--fold=1"])


def test_a_probe_names_the_classes_that_are_there():
    """They are numbered anew: normal and covid-19 are 0 and 1."""
    labels, groups = np.array([0, 0, 1, 1]), np.array(["a", "b", "c", "c"])
    films = linear_probe.Films(None, labels, groups)
    with pytest.raises(InputError, match="of each class: normal 2, covid-19 1;"):
        linear_probe._folds(films, ("normal", "covid-19"), seed=0)


def test_a_probe_of_other_data_looks_for_films_that_were_trained_on(run, monkeypatch):
    def check(config, folder, *, split, allowed):
        assert (config.data.seed, folder, split, allowed) == (1, run, "test", False)
        raise InputError("were trained on")

    monkeypatch.setattr(external, "check_unseen", check)
    other = data_of(run).copy_and_resolve_references()
    other.seed = 1
    with pytest.raises(InputError, match="were trained on"):
        linear_probe.probe(run, other)
