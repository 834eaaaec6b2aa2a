"""What of a film is seen: crops, and the lungs or all but the lungs painted black."""

import types

import numpy as np
import pytest

from cxr_jax.data.phantoms import phantom
from cxr_jax.data.sources.phantom_cxr import PhantomCXR
from cxr_jax.data.visible import CROPS, HIDES, Visible
from cxr_jax.errors import InputError
from cxr_jax.inputs.lungs import WithLungs


@pytest.fixture(scope="module")
def film():
    """A phantom, cut to 200 x 160, so that it is no square."""
    record = phantom(0, 3, 256)
    planes = {name: record[name][28:228, 48:208] for name in ("image", "lungs", "lesion")}
    return {"id": "a", "group": "a", "boxes": record["boxes"], "box_label": record["box_label"],
            "diagnosis": 1, **planes}  # fmt: skip


@pytest.mark.parametrize("crop", CROPS)
@pytest.mark.parametrize("hide", HIDES)
def test_a_map_of_what_is_seen_lies_where_it_was_seen(film, crop, hide):
    visible = Visible(crop, hide)
    seen = visible(film)
    assert seen["image"].shape == seen["lungs"].shape == seen["lesion"].shape
    assert "boxes" not in seen and "box_label" not in seen  # noqa: PT018
    back = visible.on_film(seen["lungs"].astype(np.float32), film)
    rows, columns = window = visible.window(film)
    np.testing.assert_array_equal(back[window], film["lungs"][window])
    assert back.sum() == film["lungs"][rows, columns].sum()
    assert back.shape == film["image"].shape


def test_the_square_is_the_middle_one(film):
    seen = Visible("square")(film)
    np.testing.assert_array_equal(seen["image"], film["image"][20:180])
    turned = {**film, "image": film["image"].T}
    np.testing.assert_array_equal(Visible("square")(turned)["image"], film["image"].T[:, 20:180])


def test_the_box_of_the_lungs_holds_all_lungs_and_little_else(film):
    rows, columns = Visible("lungs").window(film)
    outside = film["lungs"].copy()
    outside[rows, columns] = 0
    assert film["lungs"].any()
    assert not outside.any()
    for axis, window in ((1, rows), (0, columns)):
        there = np.flatnonzero(film["lungs"].any(axis=axis))
        extent = there[-1] - there[0] + 1
        assert extent <= window.stop - window.start <= 1.05 * extent
    assert Visible("lungs").window({**film, "lungs": 0 * film["lungs"]}) == (
        slice(0, 200),
        slice(0, 160),
    )


def test_what_is_hidden_leaves_no_trace(film):
    """Other pixels under the paint give the same picture."""
    lungs = film["lungs"] > 0
    for hide, painted in (("lungs", lungs), ("outside", ~lungs)):
        other = {**film, "image": np.where(painted, 255 - film["image"], film["image"])}
        seen = Visible(hide=hide)(film)["image"]
        np.testing.assert_array_equal(seen, Visible(hide=hide)(other)["image"])
        assert not seen[painted].any()
        np.testing.assert_array_equal(seen[~painted], film["image"][~painted])


def test_a_film_without_lungs_shows_nothing(film):
    bare = {**film, "lungs": 0 * film["lungs"]}
    for hide in ("lungs", "outside"):
        assert not Visible(hide=hide)(bare)["image"].any()


@pytest.mark.parametrize("missing", [1, 2])
def test_a_lung_that_was_not_found_is_never_shown_in_place_of_the_rest(film, missing):
    lungs = np.where(film["lungs"] == missing, 0, film["lungs"])
    half = {**film, "lungs": lungs}
    assert lungs.any()
    assert not Visible(hide="lungs")(half)["image"].any()
    shown = Visible(hide="outside")(half)["image"]
    np.testing.assert_array_equal(shown, np.where(lungs > 0, film["image"], 0))
    rows, columns = Visible("lungs").window(half)
    inside = np.zeros_like(lungs)
    inside[rows, columns] = lungs[rows, columns]
    np.testing.assert_array_equal(inside, lungs)
    assert columns.stop - columns.start < film["lungs"].shape[1] / 2


class TwoOfFive:
    """A segmenter that finds both lungs on two films, on two others one, and on the last none."""

    run, batch_size, side = types.SimpleNamespace(version="v"), 3, 4
    found = iter([(1, 2), (1,), (), (2,), (1, 2)])

    def labels(self, films):
        masks = np.zeros((len(films), 4, 4), np.uint8)
        for mask, there in zip(masks, self.found, strict=False):
            for number in there:
                mask[1:3, number] = number
        return masks


def test_films_on_which_a_lung_was_not_found_are_counted(tmp_path):
    films = PhantomCXR(split="test", count=5, seed=0, size=128)
    for again in (False, True):  # and of masks that were made before
        source = WithLungs(films, TwoOfFive(), tmp_path, replace=True)
        assert source.notes == (
            "no lung was found on 1 of 5 films; one lung alone was found on 2 of 5 films",
        ), again
    assert source[2]["lungs"].max() == 0
    assert WithLungs(films, TwoOfFive(), tmp_path, replace=False).notes == ()  # their own are whole


def test_nonsense_is_refused():
    with pytest.raises(
        InputError, match=r"config\.visible\.crop='circle'; expected one of nothing"
    ):
        Visible("circle")
    with pytest.raises(InputError, match=r"config\.visible\.hide='heart'"):
        Visible(hide="heart")
