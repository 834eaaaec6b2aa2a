"""What a run takes of another's weights: patterns, names, shapes, the teacher, the report."""

import jax
import jax.numpy as jnp
import ml_collections
import numpy as np
import pytest

from configs import common
from cxr_jax import initialise, state, teacher, weight_files
from cxr_jax.errors import InputError
from cxr_jax.models.vit import resample_position

SHAPES = {
    "params/backbone/conv/kernel": (2, 3),
    "params/backbone/norm/scale": (3,),
    "batch_stats/backbone/norm/mean": (3,),
    "params/vit/position": (1, 10, 4),
    "params/head/kernel": (3, 1),
}


def numbers(shapes=SHAPES):
    """An array of each shape; no two numbers are the same."""
    rng = np.random.default_rng(0)
    return {name: rng.normal(size=shape).astype(np.float32) for name, shape in shapes.items()}


def test_everything_that_fits_is_taken_and_said():
    given = numbers()
    del given["params/head/kernel"]
    given["params/heads/fc/kernel"] = np.zeros((3, 4), np.float32)
    given["teacher/params/head/kernel"] = np.zeros((3, 1), np.float32)
    taken, report = initialise.select(SHAPES, given)
    assert taken.keys() == SHAPES.keys() - {"params/head/kernel"}
    for name, array in taken.items():
        np.testing.assert_array_equal(array, given[name], err_msg=name)
    lines = report.splitlines()
    assert lines[0] == "4 arrays taken"
    assert lines[1].split() == ["backbone", "3", "of", "3", "arrays,", "12", "numbers"]
    assert lines[2].split() == ["vit", "1", "of", "1", "arrays,", "40", "numbers"]
    assert lines[3].split()[:6] == ["head", "0", "of", "1", "arrays,", "0"]
    assert "1 not there, left as initialised (e.g. params/head/kernel)" in lines[3]
    assert "not used: 1 arrays that this model has not (e.g. params/heads/fc/kernel)" in lines[4]


@pytest.mark.parametrize(
    "patterns, tops",
    [
        (dict(include=("backbone/.*",)), {"backbone"}),
        (dict(exclude=("backbone/.*",)), {"vit", "head"}),
        (dict(include=(".*",), exclude=("vit/pos.*",)), {"backbone", "head"}),
        (dict(include=("backbone/.*", "head/kernel")), {"backbone", "head"}),
    ],
    ids=["include", "exclude", "both", "two"],
)
def test_patterns_are_of_paths_without_the_collection(patterns, tops):
    """So a part's batch statistics go with its parameters."""
    taken, report = initialise.select(SHAPES, numbers(), **patterns)
    assert taken.keys() == {name for name in SHAPES if name.split("/")[1] in tops}
    assert "excluded, left as initialised" in report


def test_names_are_changed_by_pairs_one_after_the_other():
    given = {name.replace("backbone", "encoder"): x for name, x in numbers().items()}
    taken, _ = initialise.select(SHAPES, given, rename=(("^encoder/", "backbone/"),))
    assert taken.keys() == SHAPES.keys()
    rename = (("^enc", "deco"), (r"^(\w+)oder/", r"back\1/"), ("backdeco", "backbone"))
    taken, _ = initialise.select(SHAPES, given, rename=rename)
    assert taken.keys() == SHAPES.keys()


@pytest.mark.parametrize(
    "patterns, words",
    [
        (dict(include=("bakcbone/.*",)), r"init_include: 'bakcbone/.*' matches no array.*backbone"),
        (dict(include=("params/head/.*",)), "init_include.*without params/"),
        (dict(exclude=("backbone",)), "init_exclude: 'backbone' matches no array"),
        (dict(rename=(("encoder", "backbone"),)), "init_rename: 'encoder' matches no array"),
        (dict(rename=(("kernel|scale|position", "x"), ("conv|norm", "y"))), "one name"),
        (dict(rename=(("back", r"\9"),)), r"init_rename: '\\\\9'"),
        (dict(rename=("backbone", "encoder")), r"expected \(pattern, replacement\)"),
        (dict(include=("head/.*",), exclude=("head/.*",)), "'head/.*' takes nothing"),
        (dict(include=("(",)), "no regular expression"),
        (dict(include="head/.*"), "expected a tuple"),
        (dict(exclude=(".*",)), "no array of the given weights"),
        (dict(rename=(("^", "x"),)), "no array of the given weights has a name of this model"),
    ],
)
def test_a_pattern_that_does_nothing_is_a_mistake(patterns, words):
    with pytest.raises(InputError, match=words):
        initialise.select(SHAPES, numbers(), **patterns)


def test_another_shape_is_a_mistake_that_names_the_way_out():
    given = numbers() | {"params/head/kernel": np.zeros((3, 3), np.float32)}
    words = r"params/head/kernel has the shape \(3, 3\) there and \(3, 1\) here.*'head/kernel',\)"
    with pytest.raises(InputError, match=words):
        initialise.select(SHAPES, given)
    taken, _ = initialise.select(SHAPES, given, exclude=("head/kernel",))  # the way out
    assert taken.keys() == SHAPES.keys() - {"params/head/kernel"}


@pytest.mark.parametrize("number, way_out", [(2, ("a/w0", "a/w1")), (9, ("a/.*",))])
def test_the_way_out_of_many_shapes_is_one_line(number, way_out):
    shapes = {f"params/a/w{i}": (2,) for i in range(number)} | {"params/b/w": (2,)}
    given = {name: np.zeros(3, np.float32) for name in shapes} | {"params/b/w": np.zeros(2)}
    with pytest.raises(InputError) as error:
        initialise.select(shapes, given)
    assert f"({number} such arrays)" in str(error.value)
    assert str(error.value).endswith(f"config.init_exclude={way_out!r}")
    assert initialise.select(shapes, given, exclude=way_out)[0].keys() == {"params/b/w"}


def test_numbers_that_are_none_are_refused():
    for bad in (np.full((3, 1), np.nan, np.float32), np.zeros((3, 1), np.int64)):
        with pytest.raises(InputError, match=r"params/head/kernel is not finite, or of dtype"):
            initialise.select(SHAPES, numbers() | {"params/head/kernel": bad})


@pytest.mark.parametrize("cells, grid", [(4, 2), (25, 5)])
def test_square_position_embeddings_are_resampled(cells, grid):
    position = np.random.default_rng(0).normal(size=(1, 1 + cells, 4)).astype(np.float32)
    taken, report = initialise.select(SHAPES, numbers() | {"params/vit/position": position})
    want = resample_position(position, (grid, grid), (3, 3))
    np.testing.assert_array_equal(taken["params/vit/position"], want)
    assert f"vit/position resampled from {grid}x{grid} to 3x3 cells" in report


@pytest.mark.parametrize("shape", [(1, 7, 4), (1, 17, 5), (1, 1, 4), (17, 4)])
def test_other_position_embeddings_are_not(shape):
    given = numbers() | {"params/vit/position": np.zeros(shape, np.float32)}
    with pytest.raises(InputError, match=r"params/vit/position has the shape"):
        initialise.select(SHAPES, given)


# On a training state.


def a_state(**collections):
    leaf = lambda shape: jnp.full(shape, 0.5)  # noqa: E731
    params = {"backbone": {"kernel": leaf((2, 3))}, "head": {"kernel": leaf((3, 1))}}
    stats = {"backbone": {"mean": leaf((3,))}}
    variables = {"params": params, "batch_stats": stats, **collections}
    model_state = {name: tree for name, tree in variables.items() if name != "params"}
    return state.TrainState(jnp.zeros((), jnp.int32), params, model_state, (), jnp.zeros(2))


def a_config(path, **changes):
    config = common.get_config()
    config.update(init_from=str(path), **changes)
    return ml_collections.FrozenConfigDict(config)


@pytest.fixture
def file(tmp_path):
    """Weights of the backbone alone, in half precision."""
    arrays = {
        "params/backbone/kernel": np.arange(6, dtype=np.float16).reshape(2, 3),
        "batch_stats/backbone/mean": np.arange(3, dtype=np.float16),
    }
    weight_files.write_safetensors(tmp_path / "a.safetensors", arrays, {})
    return tmp_path / "a.safetensors"


def test_a_state_takes_a_file_and_keeps_its_own_types(file, capsys):
    trainable = jax.tree.map(lambda _: True, a_state().params)
    for config in (a_config(file), a_config(file, init_include=("backbone/.*",))):
        got = initialise.initialise(config, a_state(), trainable)
        assert got.params["backbone"]["kernel"].dtype == jnp.float32
        np.testing.assert_array_equal(got.params["backbone"]["kernel"].ravel(), range(6))
        np.testing.assert_array_equal(got.model_state["batch_stats"]["backbone"]["mean"], range(3))
        np.testing.assert_array_equal(got.params["head"]["kernel"], 0.5)
        assert jax.tree.structure(got) == jax.tree.structure(a_state())
        assert f"init_from {file}: 2 arrays taken" in capsys.readouterr().out


def test_the_teacher_starts_as_a_copy_of_the_student(file):
    before = a_state()
    student = {"params": before.params, **before.model_state}
    other = jax.tree.map(lambda x: x + 1, student)
    before = a_state(**{teacher.COLLECTION: other}, memory={"bank": jnp.ones(2)})
    trainable = jax.tree.map(lambda _: True, before.params)
    got = initialise.initialise(a_config(file), before, trainable)
    assert jax.tree.structure(got) == jax.tree.structure(before)
    student = {"params": got.params, "batch_stats": got.model_state["batch_stats"]}
    jax.tree.map(np.testing.assert_array_equal, got.model_state["teacher"], student)
    np.testing.assert_array_equal(student["params"]["backbone"]["kernel"].ravel(), range(6))
    np.testing.assert_array_equal(got.model_state["memory"]["bank"], 1)
    # The train step donates the whole state: no buffer may be in it twice.
    jax.jit(lambda s: jax.tree.map(lambda x: x + 1, s), donate_argnums=0)(got)


def test_a_frozen_part_must_not_stay_random(file):
    trainable = {"backbone": {"kernel": False}, "head": {"kernel": True}}
    initialise.initialise(a_config(file), a_state(), trainable)
    with pytest.raises(InputError, match="1 frozen arrays would keep their random numbers"):
        initialise.initialise(a_config(""), a_state(), trainable)
    trainable = {"backbone": {"kernel": True}, "head": {"kernel": False}}
    with pytest.raises(InputError, match="params/head/kernel"):
        initialise.initialise(a_config(file), a_state(), trainable)
    initialise.initialise(a_config(file, allow_random_frozen=True), a_state(), trainable)


def test_what_init_from_may_be(file, tmp_path):
    folder = tmp_path / "imported"
    folder.mkdir()
    with pytest.raises(InputError, match=r"no checkpoints and no weights\.safetensors"):
        initialise.read_arrays(folder)
    (folder / "weights.safetensors").write_bytes(file.read_bytes())
    assert initialise.read_arrays(folder).keys() == initialise.read_arrays(file).keys()
    with pytest.raises(InputError, match="leave out --step"):
        initialise.read_arrays(folder, 3)
    weight_files.write_safetensors(tmp_path / "t.safetensors", {"conv1.weight": np.zeros(3)}, {})
    with pytest.raises(InputError, match=r"'conv1\.weight'.*cxr_jax\.weights import .*t\.safetens"):
        initialise.read_arrays(tmp_path / "t.safetensors")
