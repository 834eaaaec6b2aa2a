"""The diagnosis task: its network, which films it takes, and what is chosen on validation films."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import evaluate, figures, optimizers, report, train
from cxr_jax.data import sources
from cxr_jax.data.audit import stored
from cxr_jax.data.records import FINDINGS
from cxr_jax.data.sources.phantom_cxr import PhantomCXR
from cxr_jax.errors import InputError
from cxr_jax.tasks import make_task
from cxr_jax.trained import make_batch
from tests.data import fake_sets


def config_of(name: str, variant: str):
    config = importlib.import_module(f"configs.{name}").get_config(variant)
    return config.copy_and_resolve_references()


def shapes_of(variant: str):
    config = config_of("diagnosis", variant)
    side = config.preprocess.size
    example = {"image": np.zeros((1, side, side), np.float32)}
    return jax.eval_shape(make_task(config).init, jax.random.PRNGKey(0), example)


def paths_and_shapes(tree):
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    return {optimizers.path_of(path): leaf.shape for path, leaf in leaves}


def millions(tree) -> float:
    return sum(np.prod(x.shape) for x in jax.tree.leaves(tree)) / 1e6


# The network.


def test_the_papers_network():
    params = shapes_of("")["params"]
    # torchvision's DenseNet-121 without its classifier, ViT-B's blocks, the projection of 1024.
    assert millions(params["backbone"]) == pytest.approx(6.953856)
    assert params["vit"]["position"].shape == (1, 1 + 16 * 16, 768)
    assert params["vit"]["embedding"]["kernel"].shape[-2:] == (1024, 768)
    assert len([name for name in params["vit"] if name.startswith("block")]) == 12
    assert params["head"]["kernel"].shape == (768, 3)
    assert params.keys() == {"backbone", "vit", "head"}


@pytest.mark.parametrize("variant, channels", [("corpus=1", 1), ("corpus=3", 3), ("corpus=10", 10)])
def test_a_weighed_corpus_is_so_many_maps(variant, channels):
    params = shapes_of(variant)["params"]
    assert params["vit"]["embedding"]["kernel"].shape[-2] == channels * 1024
    assert params["heads"]["fc"]["kernel"].shape[-1] == len(FINDINGS)


@pytest.mark.parametrize("pixels", [1, 2])
def test_twice_the_pixels_are_as_many_cells(pixels):
    for variant in (f"pixels={pixels}", f"quick,pixels={pixels}"):
        assert shapes_of(variant)["params"]["vit"]["position"].shape[1] == 1 + 16 * 16


@pytest.mark.parametrize("options", ["", ",corpus=10"])
@pytest.mark.parametrize(
    "theirs, ours", [("quick", "quick"), ("cxr3,side=224", "cxr3"), ("quick,side=224", "cxr3")]
)
def test_it_starts_from_the_findings(theirs, ours, options):
    """Every array of the corpus, and of what weighs it, is there under its name and shape."""
    config = config_of("findings", theirs)
    side = config.preprocess.size
    zeros = np.zeros((1, side, side), np.float32)
    example = {"image": zeros, "lungs": zeros}
    trained = jax.eval_shape(make_task(config).init, jax.random.PRNGKey(0), example)
    found = shapes_of(ours + options)
    wanted = {
        name: shape
        for name, shape in paths_and_shapes(found).items()
        if name.split("/")[1] in ("backbone", "heads")
    }
    assert any("heads" in name for name in wanted) == bool(options)
    assert wanted.items() <= paths_and_shapes(trained).items()


@pytest.fixture(scope="module")
def films():
    return [PhantomCXR(split="test", count=6, seed=0, size=128)[i] for i in range(6)]


def task_and_variables(films, variant="smoke", **changes):
    config = config_of("diagnosis", variant)
    config.update_from_flattened_dict(changes)
    task = make_task(config)
    batch = make_batch(task, films)
    return task, jax.jit(task.init)(jax.random.PRNGKey(0), batch), batch


def test_weighing_is_map_times_probability(films):
    task, variables, batch = task_and_variables(films, "smoke,corpus=3")
    apply = task.model.apply
    cells = np.asarray(apply(variables, batch["image"], train=False, method="features"))
    weighed = apply(variables, batch["image"], train=False, method="corpus")
    kernel = np.asarray(variables["params"]["heads"]["fc"]["kernel"]).reshape(cells.shape[-1], -1)
    logits = cells @ kernel + np.asarray(variables["params"]["heads"]["fc"]["bias"])
    parts = []
    for name in ("lung opacity", "consolidation", "pneumonia"):
        probability = 1 / (1 + np.exp(-logits[..., [FINDINGS.index(name)]]))
        parts.append(cells * probability)
    np.testing.assert_allclose(weighed, np.concatenate(parts, axis=-1), rtol=1e-4, atol=1e-6)


def gradients(task, variables, batch):
    def loss(params):
        rng = jax.random.PRNGKey(1)
        return task.loss({**variables, "params": params}, batch, rng=rng, step=jnp.array(0))[0]

    return jax.jit(jax.grad(loss))(variables["params"])


def test_the_loss_is_finite_at_logits_of_40(films):
    task, variables, batch = task_and_variables(films)
    params = jax.tree.map(jnp.array, variables["params"])
    params["head"]["bias"] = jnp.array([40.0, -40.0, 0.0])
    variables = {**variables, "params": params}
    loss, (_, terms) = task.loss(variables, batch, rng=jax.random.PRNGKey(0), step=jnp.array(0))
    assert 10 < float(loss) < 100
    assert 0 <= terms["accuracy"] <= 1
    for leaf in jax.tree.leaves(gradients(task, variables, batch)):
        assert np.isfinite(leaf).all()
    probs = task.predict(variables, batch)["probs"]
    np.testing.assert_allclose(probs.sum(axis=1), 1, rtol=1e-5)


def test_a_film_alone_and_in_a_batch_is_the_same(films):
    task, variables, batch = task_and_variables(films)
    together = task.predict(variables, batch)["probs"]
    alone = task.predict(variables, make_batch(task, films[2:3]))["probs"]
    np.testing.assert_allclose(alone[0], together[2], atol=1e-5)


def test_no_label_and_no_mask_is_read_where_it_may_not_be(films):
    task, variables, batch = task_and_variables(films)
    bare = {"image": batch["image"]}
    np.testing.assert_array_equal(
        task.predict(variables, bare)["probs"], task.predict(variables, batch)["probs"]
    )
    trained = task.data.transforms.finish(
        task.data.transforms.example(films[0]), np.random.default_rng(0)
    )
    assert "lesion" not in trained


# Explanations.


@pytest.mark.parametrize(
    "variant, names",
    [
        ("smoke", {"relevance", "rollout", "attention", "gradcam"}),
        ("smoke,corpus=3", {"relevance", "rollout", "attention", "gradcam"}),
        ("smoke,backbone=none", {"relevance", "rollout", "attention"}),
        ("smoke,backbone=resnet50,vit=0", {"gradcam"}),
    ],
)
def test_each_network_has_the_maps_that_apply(films, variant, names):
    task, variables, batch = task_and_variables(films, variant)
    maps = jax.jit(task.explain)(variables, {"image": batch["image"]})
    assert maps.keys() == names
    for name, heat in maps.items():
        assert heat.shape[:-2] == ((6, 3) if name in ("relevance", "gradcam") else (6,))
        assert 0 <= heat.min() < heat.max() == 1
    alone = jax.jit(task.explain)(variables, {"image": batch["image"][1:2]})
    for name, heat in maps.items():
        np.testing.assert_allclose(alone[name][0], heat[1], rtol=2e-3, atol=1e-3)


def test_an_ensemble_is_explained_for_the_class_that_it_calls(films, monkeypatch):
    """Two members of other opinions: the map is the mean of both their maps of one class."""
    task, variables, batch = task_and_variables(films[:1])
    maps = jax.jit(task.explain)(variables, batch)
    one = {**maps, "probs": np.array([[0.9, 0.1, 0.0]])}
    two = {k: v[:, ::-1] if v.ndim == 4 else v for k, v in maps.items()}
    two |= {"probs": np.array([[0.0, 0.3, 0.7]])}
    both = {k: np.asarray(v[0]) for k, v in task.combine([one, two]).items()}
    drawn = {}
    panel = figures.diagnosis_panel
    monkeypatch.setattr(
        figures, "diagnosis_panel", lambda film, **k: (drawn.update(k["maps"]), panel(film, **k))[1]
    )
    task.figure(films[0], both)
    heat = (maps["gradcam"][0, 0] + maps["gradcam"][0, 2]) / 2
    np.testing.assert_allclose(
        drawn["Grad-CAM, for normal"], task.visible.on_film(np.asarray(heat), films[0]), atol=1e-6
    )
    assert len(drawn) == 4


def test_explanations_are_measured_of_the_true_class(films):
    task, variables, batch = task_and_variables(films)
    maps, measure = jax.jit(task.explain)(variables, batch), jax.jit(task.measure)
    called = np.arange(6) % 3
    there = {**batch, "diagnosis": called.astype(np.int32)}
    lesion, rows = np.asarray(batch["lesion"]) > 0, measure(variables, there)
    for name in ("relevance", "gradcam"):
        heat = np.asarray(maps[name])[np.arange(6), called]
        step = lesion.shape[1] // heat.shape[1]
        middles = lesion[:, step // 2 :: step, step // 2 :: step]
        for b in np.flatnonzero(lesion.any(axis=(1, 2))):
            hit = middles[b][heat[b] == heat[b].max()].mean()
            np.testing.assert_allclose(rows[f"{name}_hit"][b], hit)
            assert rows[f"{name}_valid"][b]
    other = measure(variables, {**batch, "diagnosis": ((called + 1) % 3).astype(np.int32)})
    assert not np.allclose(other["relevance_share"], rows["relevance_share"])


# Which films it takes.


class Table:
    """Films of given classes and views."""

    name, version, split = "table", "1", "train"
    fields, partial = frozenset({"image", "id", "group", "diagnosis", "view"}), frozenset()

    def __init__(self, *rows, partial=()):
        self.rows, self.partial = rows, frozenset(partial)

    def __len__(self):
        return len(self.rows)

    def __getitem__(self, index):
        film = {"image": np.zeros((8, 8), np.uint8), "id": str(index), "group": str(index)}
        label, view = self.rows[index]
        return film | ({} if label is None else {"diagnosis": label}) | {"view": view}


def adapted(source, *, training=False, **changes):
    config = config_of("diagnosis", "smoke")
    config.update_from_flattened_dict(changes)
    chosen = make_task(config).data.adapt(source, training=training)
    return [(chosen[i]["id"], chosen[i]["diagnosis"]) for i in range(len(chosen))], chosen


ALL = ((0, "PA"), (1, "AP"), (2, "PA"), (2, ""), (0, "AP"), (1, "PA"))


def test_it_takes_the_films_of_one_view():
    assert adapted(Table(*ALL))[1].version == "1"
    films, chosen = adapted(Table(*ALL), view="PA", training=True)
    assert films == [("0", 0), ("2", 2), ("5", 1)]
    assert chosen.notes == ("left out: 3 of 6 films, which are no PA (AP 2, unknown 1)",)
    assert chosen.version != adapted(Table(*ALL), view="AP")[1].version


def test_it_takes_some_of_the_classes():
    films, chosen = adapted(Table(*ALL), classes=("covid-19", "normal"), training=True)
    assert films == [("0", 1), ("2", 0), ("3", 0), ("4", 1)]
    assert [sources.peek(chosen, i, "diagnosis") for i in range(4)] == [1, 0, 0, 1]
    assert [sources.peek(chosen, i, "group") for i in range(4)] == ["0", "2", "3", "4"]


def test_films_without_a_diagnosis_are_left_out():
    source = Table((0, ""), (None, ""), (2, ""), partial={"diagnosis"})
    assert adapted(source)[0] == [("0", 0), ("2", 2)]


def test_every_reason_why_a_film_is_left_out_is_told():
    source = Table((0, "PA"), (None, "PA"), (2, "AP"), (1, "PA"), partial={"diagnosis"})
    _, chosen = adapted(source, view="PA", classes=("normal", "covid-19"))
    assert chosen.notes == (
        "left out: 1 of 4 records, which have no diagnosis",
        "left out: 1 of 3 films, which are no PA (AP 1)",
        "left out: 1 of 2 films, of other classes",
    )


def test_a_frozen_corpus_is_frozen_with_what_weighs_it():
    frozen = make_task(config_of("diagnosis", "smoke,frozen=1,corpus=3")).frozen
    assert set(frozen) == {"backbone/.*", "heads/.*"}
    assert set(make_task(config_of("diagnosis", "smoke,frozen=1")).frozen) == {"backbone/.*"}
    assert not make_task(config_of("diagnosis", "smoke,corpus=3")).frozen


@pytest.mark.parametrize(
    "rows, changes, words",
    [
        (((0, ""), (1, "")), {}, "no training film is of class covid-19; name the classes there"),
        (((1, ""),), {}, "no training film is of class normal, covid-19"),
        (ALL, {"view": "AP"}, "no training film is of class covid-19"),
        (((0, "PA"),), {"view": "AP"}, "has no film of view 'AP'; it has PA 1"),
        (ALL, {"classes": ("normal", "flu")}, "config.classes has 'flu'; data set 'table' has"),
        (ALL, {"classes": ("normal",)}, "expected at least two different names"),
        (ALL, {"classes": ("normal", "normal")}, "expected at least two different names"),
        (ALL, {"view": "LL"}, "config.view='LL'; expected PA, AP, or nothing"),
        (ALL, {"model.weighing": ("fracture",)}, "config.model.weighing has 'fracture'"),
        (ALL, {"visible.crop": "circle"}, "config.visible.crop='circle'"),
        (ALL, {"second.name": "phantom_cxr"}, "nothing can be learned from films without a"),
        (ALL, {"preprocess.size": 100}, "the stride must divide it"),
    ],
)
def test_what_cannot_be_meant_is_one_line(rows, changes, words):
    with pytest.raises(InputError, match=words):
        adapted(Table(*rows), training=True, **changes)


@pytest.mark.parametrize(
    "variant, words",
    [
        ("size=3x3", "size='3x3'; expected one of 12x12"),
        ("backbone=none,vit=0", "the baselines are densenet121"),
        ("backbone=resnet50,vit=0,corpus=3", "of the transformer's projection"),
        ("crop=circle", "crop='circle'"),
    ],
)
def test_options_that_exclude_each_other(variant, words):
    with pytest.raises(InputError, match=words):
        config_of("diagnosis", variant)


# What is chosen on validation films.


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    config = config_of("diagnosis", "smoke")
    config.devices = 1
    workdir = tmp_path_factory.mktemp("diagnosis")
    assert train.train(config, workdir)
    return config, workdir, evaluate.evaluate(config, workdir)


def rows_of(workdir, label):
    with np.load(workdir / f"rows-{label}.npz") as file:
        return {name: file[name] for name in file.files}


def test_thresholds_come_from_the_validation_films(run):
    config, workdir, metrics = run
    results = json.loads((workdir / "results.json").read_text())
    fitted = results["evaluations"]["test"]["fitted"]
    assert fitted["examples"] == config.data.val
    assert evaluate.evaluate(config, workdir, split="val")["val/ece"].value is not None
    validation = rows_of(workdir, "val")
    for k, name in enumerate(("normal", "other_infection", "covid_19")):
        scores = np.sort(validation["probs"][validation["label"] == k, k])[::-1]
        wanted = scores[int(np.ceil(0.8 * len(scores) - 1e-9)) - 1]
        assert fitted["values"][f"threshold_{name}"] == pytest.approx(wanted, rel=1e-6)
    np.testing.assert_allclose(
        rows_of(workdir, "test")["threshold"][0],
        [fitted["values"][f"threshold_{n}"] for n in ("normal", "other_infection", "covid_19")],
    )
    assert metrics["test/mean_sensitivity"].value is not None


def test_the_validation_split_is_not_scored_at_its_own_choice(run):
    config, workdir, _ = run
    metrics = evaluate.evaluate(config, workdir, split="val")
    assert metrics["val/mean_sensitivity"].value is None
    assert metrics["val/mean_sensitivity"].reason
    results = json.loads((workdir / "results.json").read_text())
    assert results["metrics"]["val/mean_sensitivity"]["reason"]
    assert results["metrics"]["val/mean_auc"].keys() >= {"value", "low", "high", "n"}


def test_an_external_test_takes_the_thresholds_of_the_runs_own_films(run):
    config, workdir, _ = run
    other = config.copy_and_resolve_references()
    other.data.update(seed=5, test=9, val=0)  # it has no validation films at all
    metrics = evaluate.evaluate(other, workdir)
    (label,) = {name.rpartition("/")[0] for name in metrics}
    assert label != "test"
    np.testing.assert_array_equal(
        rows_of(workdir, label)["threshold"][0], rows_of(workdir, "test")["threshold"][0]
    )


def test_a_whole_split_is_explained_where_that_is_asked_for(run):
    config, workdir, metrics = run
    assert not any("relevance" in name for name in metrics)
    asked = config.copy_and_resolve_references()
    asked.measure_explanations = True
    measured = evaluate.evaluate(asked, workdir)
    for name in ("relevance", "rollout", "attention", "gradcam", "brightness", "blind"):
        for what in ("hit", "chance", "share"):
            assert 0 <= measured[f"test/{name}_{what}"].value <= 1
            assert 0 < measured[f"test/{name}_{what}"].n < config.data.test
        for what in ("deletion", "insertion"):
            assert 0 <= measured[f"test/{name}_{what}"].value <= 1
            assert measured[f"test/{name}_{what}"].n == config.data.test
    assert measured["test/relevance_chance"] == measured["test/brightness_chance"]
    assert measured["test/blind_hit"].value == pytest.approx(measured["test/blind_chance"].value)
    for name, metric in metrics.items():  # nothing else changes
        assert measured[name].value == metric.value


def test_a_class_that_no_test_film_has_is_null_with_a_reason(run):
    config, workdir, _ = run
    other = config.copy_and_resolve_references()
    other.data.update(seed=7, test=6, test_diseased=0.0)
    metrics = evaluate.evaluate(other, workdir)
    (label,) = {name.rpartition("/")[0] for name in metrics}
    found = json.loads((workdir / "results.json").read_text())["metrics"]
    for name in ("auc_covid_19", "recall_covid_19", "covid_19_called_normal", "mean_auc"):
        metric = found[f"{label}/{name}"]
        assert metric["value"] is None
        assert "no film is of class covid-19" in metric["reason"] or name == "mean_auc"
    assert found[f"{label}/recall_normal"]["value"] is not None


def test_what_was_chosen_has_no_mean_over_seeds(run):
    """The mean of the probabilities has thresholds of its own, which nobody has chosen."""
    _, workdir, _ = run
    one = report.report([workdir], "test", pool=False, resamples=10)
    two = report.report([workdir, workdir], "test", pool=False, resamples=10)
    column = [name.strip() for name in one.splitlines()[0].split("|")].index("mean_sensitivity")
    cells = [text.splitlines()[3].split("|")[column].strip() for text in (one, two)]
    assert cells[0][0] in "01"
    assert cells[1] == "-"


def test_what_an_audit_found_of_a_prepared_set_stands_beside_the_result(run, tmp_path):
    config, workdir, _ = run
    fake_sets.run_prepare("cxr_3class", fake_sets.make_3class(tmp_path / "set"), tmp_path / "data")
    other = config.copy_and_resolve_references()
    other.data = sources.block("cxr_3class", data_dir=str(tmp_path / "data"))
    found = {
        **{"films": 20, "total": 20, "copies": 3, "warnings": ["told from size alone"]},
        **{"told": {"diagnosis": {"size": 0.8}}, "chance": {"diagnosis": 1 / 3}},
    }
    stored.store(tmp_path / "data" / "cxr_3class" / "1.0.0", found)
    evaluate.evaluate(other, workdir)
    evaluations = json.loads((workdir / "results.json").read_text())["evaluations"]
    assert evaluations["cxr_3class-test"]["data"]["audit"] == found
    assert evaluations["test"]["data"]["audit"] is None  # phantoms
