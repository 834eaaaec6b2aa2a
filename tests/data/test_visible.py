"""What of a film is seen: crops, and the lungs or all but the lungs painted black."""

import numpy as np
import pytest

from cxr_jax.data.phantoms import phantom
from cxr_jax.data.visible import CROPS, HIDES, Visible
from cxr_jax.errors import InputError


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


def test_nonsense_is_refused():
    with pytest.raises(
        InputError, match=r"config\.visible\.crop='circle'; expected one of nothing"
    ):
        Visible("circle")
    with pytest.raises(InputError, match=r"config\.visible\.hide='heart'"):
        Visible(hide="heart")
