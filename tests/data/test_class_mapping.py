"""Trained findings -> those of another set: means, any, labels, and tables that cannot be meant."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from cxr_jax.data.class_mapping import NIH_BY_CHEST_IMAGENOME, class_mapping
from cxr_jax.errors import InputError

TRAINED = ("opacity", "mass", "masses", "fluid")
TABLE = {"effusion": ("fluid",), "infiltration": ["opacity"], "mass": ("masses", "mass")}


def mapping(table=TABLE, **kwargs):
    return class_mapping(table, trained=TRAINED, **kwargs)


def test_scores_are_means_and_so_is_what_is_positive():
    made = mapping()
    assert made.names == ("effusion", "infiltration", "mass")
    probs = np.array([[[0.5, 0.25, 0.75, 0.125]]], np.float32)
    np.testing.assert_allclose(made.scores(probs), [[[0.125, 0.5, 0.5]]], rtol=1e-6)
    assert made.positive(probs, 0.49).tolist() == [[[False, True, True]]]
    assert made.positive(probs, 0.5).tolist() == [[[False, False, False]]]


def test_any_member_is_enough_as_in_the_released_code():
    made = mapping(positive_by="any")
    # Masses alone are above; the mean of both, which is the score, is not.
    probs = np.array([[[0.5, 0.25, 0.75, 0.125]]], np.float32)
    np.testing.assert_array_equal(made.positive(probs, 0.7), [[[False, False, True]]])
    assert made.scores(probs)[0, 0, 2] < 0.7
    # A finding with fewer members than others has no further ones.
    opacity = np.array([0.9, 0, 0, 0], np.float32)
    assert made.positive(opacity, 0.5).tolist() == [False, True, False]


@pytest.mark.parametrize("positive_by", ["mean", "any"])
def test_numpy_and_jax_agree_under_jit(positive_by):
    made = mapping(positive_by=positive_by)
    probs = np.random.default_rng(0).random((2, 29, 4), np.float32)
    np.testing.assert_allclose(jax.jit(made.scores)(probs), made.scores(probs), rtol=1e-6)
    np.testing.assert_array_equal(
        jax.jit(made.positive)(jnp.asarray(probs), 0.5), made.positive(probs, 0.5)
    )


@pytest.mark.parametrize("positive_by", ["mean", "any"])
def test_what_was_not_trained_stands_for_nothing(positive_by):
    made = mapping(untrained=("mass", "fluid"), positive_by=positive_by)
    assert made.known.tolist() == [False, True, True]
    probs = np.array([0.5, 0.25, 0.75, 0.125], np.float32)
    np.testing.assert_allclose(made.scores(probs), [0, 0.5, 0.75], rtol=1e-6)
    for threshold in (0.0, 0.5):
        only = np.array([0, 1, 0, 1], np.float32)
        assert made.positive(only, threshold).tolist() == [False, False, False]
        assert made.positive(only[::-1], threshold).tolist() == [False, True, True]


def test_an_empty_table_is_every_finding_itself():
    made = mapping({})
    assert made.names == TRAINED
    assert made.known.all()
    probs = np.arange(4, dtype=np.float32)
    assert made.scores(probs).tolist() == probs.tolist()
    assert mapping({}, untrained=("masses",)).known.tolist() == [True, True, False, True]


@pytest.mark.parametrize(
    "table, words",
    [
        ({"mass": ("lump",)}, r"\['mass'\]: no trained finding is called 'lump'; they are opacity"),
        ({"mass": ()}, r"class_mapping\['mass'\]=\(\); expected one or more trained findings"),
        ({"mass": "mass"}, r"\['mass'\]='mass'; expected one or more trained findings, each once"),
        ({"mass": ("mass", "mass")}, r"each once, as a tuple"),
    ],
)
def test_tables_that_cannot_be_meant(table, words):
    with pytest.raises(InputError, match=words) as error:
        mapping(table)
    assert "\n" not in str(error.value)


def test_the_papers_table_is_one_of_the_two_sets():
    from cxr_jax.data.sources import chest_imagenome, nih_cxr8

    made = class_mapping(NIH_BY_CHEST_IMAGENOME, trained=chest_imagenome.FINDINGS)
    assert made.names == nih_cxr8.FINDINGS
    assert (made.weights > 0).sum(axis=1).tolist() == [1, 1, 1, 2, 2, 1, 1, 1]
