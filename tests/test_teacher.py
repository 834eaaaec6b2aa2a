"""The second copy of a network, and the regimes of Table 3 that are made with it."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax import checkpoints, teacher, train
from cxr_jax.data import sources
from cxr_jax.data.sources import combine
from cxr_jax.errors import InputError
from cxr_jax.inputs import splits
from cxr_jax.tasks import make_task, severity
from tests.test_loops import ROOT, load_config

VARIABLES = {"params": {"w": jnp.array([1.0, 3.0])}, "batch_stats": {"m": jnp.array(2.0)}}


def changed(values, factor):
    return jax.tree.map(lambda x: factor * x, values)


def test_a_copy_is_taken_at_its_steps_and_kept_between_them():
    variables = teacher.init(VARIABLES)
    moved = {**variables, **changed(VARIABLES, 2.0)}
    kept = teacher.copy_at([3, 6], moved, jnp.int32(4))
    taken = teacher.copy_at([3, 6], moved, jnp.int32(6))
    np.testing.assert_array_equal(kept["params"]["w"], [1, 3])
    np.testing.assert_array_equal(taken["params"]["w"], [2, 6])
    np.testing.assert_array_equal(taken["batch_stats"]["m"], 4)


def test_the_average_starts_as_a_plain_mean_and_ends_as_a_moving_one():
    variables = teacher.init(changed(VARIABLES, 100.0))  # what it begins with must not linger
    history = [changed(VARIABLES, k) for k in (1.0, 2.0, 6.0)]
    for step, now in enumerate(history):
        state = {**now, "teacher": variables["teacher"]}
        variables["teacher"] = teacher.ema(0.999, state, jnp.int32(step))
    # (1 + 2 + 6) / 3; float32 rounds three times.
    np.testing.assert_allclose(variables["teacher"]["params"]["w"], [3.0, 9.0], rtol=1e-6)
    state = {**changed(VARIABLES, 0.0), "teacher": teacher.init(VARIABLES)["teacher"]}
    late = teacher.ema(0.9, state, jnp.int32(10_000))
    np.testing.assert_allclose(late["params"]["w"], [0.9, 2.7], rtol=1e-6)


def test_no_gradient_flows_into_the_teacher():
    def loss(params):
        variables = {**teacher.init(VARIABLES), "params": params}
        copy = teacher.copy_at([0], variables, jnp.int32(0))
        return jnp.sum(copy["params"]["w"] * params["w"])

    np.testing.assert_array_equal(jax.grad(loss)(VARIABLES["params"])["w"], [1, 3])


@pytest.fixture(scope="module")
def config():
    path = ROOT / "configs" / "severity.py"
    config = load_config(path, "smoke,regime=progressive,vit=0").copy_and_resolve_references()
    config.devices = 1
    config.regime.update(stage_steps=2, shares=2)
    config.total_steps = 5
    config.eval_steps = (2, 3, 5)
    return config


@pytest.fixture(scope="module")
def run(config, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("progressive")
    assert train.train(config, workdir)
    return workdir


def same(a, b):
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_the_first_stage_is_training_on_the_labelled_films(config, run, tmp_path):
    path = ROOT / "configs" / "severity.py"
    plain = load_config(path, "smoke,vit=0").copy_and_resolve_references()
    plain.devices = 1
    plain.total_steps, plain.eval_steps = config.total_steps, config.eval_steps
    assert train.train(plain, tmp_path)
    same(checkpoints.read_state(run, 2)["params"], checkpoints.read_state(tmp_path, 2)["params"])


def test_the_teacher_is_the_student_at_the_end_of_the_stage_before(run):
    student, after = (checkpoints.read_state(run, step) for step in (2, 3))
    assert not np.array_equal(*(jax.tree.leaves(s["params"])[0] for s in (student, after)))
    same(after["model_state"]["teacher"]["params"], student["params"])
    same(
        after["model_state"]["teacher"]["batch_stats"]["backbone"],
        student["model_state"]["batch_stats"]["backbone"],
    )


def test_hidden_labels_change_nothing(config, run, tmp_path, monkeypatch):
    """Other scores on the second data set: the same run, to the bit."""
    opened = sources.open_source

    def scrambled(data, split):
        source = opened(data, split)
        if data.seed != config.second.seed:
            return source
        get = type(source).__getitem__
        other = type("Other", (type(source),), {})
        other.__getitem__ = lambda self, i: get(self, i) | {"severity": np.full((3, 2), i % 4)}
        source.__class__ = other
        return source

    monkeypatch.setattr(sources, "open_source", scrambled)
    assert train.train(config, tmp_path)
    same(checkpoints.read_state(run)["params"], checkpoints.read_state(tmp_path)["params"])


@pytest.mark.parametrize("kind", ["hard", "soft"])
def test_pseudo_labels_are_the_teachers_and_follow_a_mirrored_film(config, kind, monkeypatch):
    config = config.copy_and_resolve_references()
    config.regime.pseudo_labels = kind
    task = make_task(config)
    probs = np.array([[0.1, 0.9], [0.6, 0.4], [0.5, 0.2]], np.float32)  # zone by zone
    zone_map = jnp.array([[1, 2], [3, 4], [5, 6]])[None]
    logits = jax.scipy.special.logit(probs)[None, ..., None]
    answer = lambda *args, **kwargs: (logits, zone_map, {})  # noqa: E731
    monkeypatch.setattr(severity.Severity, "_logits", answer)
    batch = {f"clean_{name}": jnp.zeros((1, 3, 2)) for name in ("image", "lungs", "zones")}
    order = jnp.arange(6).reshape(1, 3, 2)
    labels, there = task._pseudo_labels({}, batch | {"zone_order": order}, jnp.int32(2))
    wanted = probs >= 0.5 if kind == "hard" else probs
    # float32 there and back through the logit
    np.testing.assert_allclose(labels[0, ..., 0], wanted, atol=1e-6)
    assert there.all()
    mirrored, _ = task._pseudo_labels({}, batch | {"zone_order": order[..., ::-1]}, jnp.int32(2))
    np.testing.assert_array_equal(mirrored, labels[:, :, ::-1])
    silent, nowhere = task._pseudo_labels({}, batch | {"zone_order": order}, jnp.int32(1))
    assert not silent.any()  # the first stage asks no teacher
    assert not nowhere.any()


def test_the_second_set_is_trained_on(config, run):
    joined = splits.open_training(make_task(config), config, run)
    assert joined.parts == (config.data.train, config.second.train)
    trained_on = json.loads((run / "data.json").read_text())
    assert trained_on["train"] == config.data.train + config.second.train


def test_a_film_without_labels_has_none_in_its_example(config, run):
    task = make_task(config)
    source = splits.open_split(
        task, config, "train", workdir=run, data=config.second, hidden=task.data.labels
    )
    batch = splits.example_batch(task, source)
    assert not batch["labelled"].any()
    assert not batch["severity_valid"].any()


@pytest.mark.parametrize(
    "changes, words",
    [
        ({"regime.name": "labelled"}, "uses no second data set"),
        ({"regime.name": "supervised"}, "needs 'given'"),
        ({"regime.name": "twice"}, "regime.name='twice'; expected one of labelled"),
        ({"regime.pseudo_labels": "firm"}, "expected one of hard, soft"),
        ({"regime.stage_steps": 0}, "stage_steps=0"),
        ({"regime.second_fraction": 1.0}, "a share below 1"),
        ({"second.name": ""}, "needs a second data set"),
        ({"second.labels": "given"}, "needs 'hidden'"),
        ({"second.seed": 0, "second.train": 8}, "names the films of config.data"),
        (
            {
                "data": sources.block("brixia_cohen", fold=0),
                "second": sources.second_block("brixia_cohen", fold=1),
            },
            "films of the validation fold would be trained on",
        ),
        ({"regime.stage_steps": 3}, "the last stage of this training begins with step 6"),
    ],
    ids=str,
)
def test_a_regime_that_cannot_be_meant_is_one_line(config, changes, words, tmp_path):
    config = config.copy_and_resolve_references()
    config.update_from_flattened_dict(changes)
    with pytest.raises(InputError, match=words):
        train.train(config, tmp_path)


def test_two_sets_are_one_behind_the_other():
    class Films:
        def __init__(self, name, fields, count):
            self.name, self.version, self.split = name, "1", "train"
            self.fields, self.partial, self.count = frozenset(fields), frozenset(), count

        def __len__(self):
            return self.count

        def __getitem__(self, index):
            return {field: (self.name, index) for field in self.fields}

    joined = combine.Joined(
        Films("a", {"image", "severity"}, 2),
        combine.Hidden(Films("b", {"image", "severity", "lungs"}, 3), frozenset({"severity"})),
    )
    assert len(joined) == 5
    assert joined.parts == (2, 3)
    assert joined.fields == {"image", "severity", "lungs"}
    assert joined.partial == {"severity", "lungs"}
    assert joined[1] == {"image": ("a", 1), "severity": ("a", 1)}
    assert joined[2] == {"image": ("b", 0), "lungs": ("b", 0)}
