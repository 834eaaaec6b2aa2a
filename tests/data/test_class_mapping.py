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


def test_scores_are_means_and_any_member_is_enough():
    made = mapping()
    assert made.names == ("effusion", "infiltration", "mass")
    probs = np.array([[[0.5, 0.25, 0.75, 0.125]]], np.float32)
    np.testing.assert_allclose(made.scores(probs), [[[0.125, 0.5, 0.5]]], rtol=1e-6)
    found = probs > 0.7
    np.testing.assert_array_equal(made.positive(found), [[[False, False, True]]])
    # A finding with fewer members than others has no further ones.
    opacity = np.array([True, False, False, False])
    assert made.positive(opacity).tolist() == [False, True, False]
    # The mean may lie below a threshold that one member is above: both are told.
    assert made.scores(probs)[0, 0, 2] < 0.7


def test_numpy_and_jax_agree_under_jit():
    made = mapping()
    probs = np.random.default_rng(0).random((2, 29, 4), np.float32)
    np.testing.assert_allclose(jax.jit(made.scores)(probs), made.scores(probs), rtol=1e-6)
    np.testing.assert_array_equal(
        jax.jit(made.positive)(jnp.asarray(probs > 0.5)), made.positive(probs > 0.5)
    )


def test_what_was_not_trained_stands_for_nothing():
    made = mapping(untrained=("mass", "fluid"))
    assert made.known.tolist() == [False, True, True]
    probs = np.array([0.5, 0.25, 0.75, 0.125], np.float32)
    np.testing.assert_allclose(made.scores(probs), [0, 0.5, 0.75], rtol=1e-6)
    assert made.positive(np.array([False, True, False, True])).tolist() == [False, False, False]
    assert made.positive(np.array([False, False, True, False])).tolist() == [False, False, True]


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
