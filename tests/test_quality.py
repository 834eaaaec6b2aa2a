"""What is told of a picture that a model of films should not score."""

import json

import cv2
import numpy as np
import pytest

from cxr_jax.data import readers, sources
from cxr_jax.figures import mark, to_array
from cxr_jax.figures.style import dark_figure
from cxr_jax.inputs import quality


@pytest.fixture(scope="module")
def films():
    source = sources.open_source(sources.block("phantom_cxr", size=192), "test")
    return [source[k] for k in range(12)]


def judged(record, turn=lambda x: x, film=None):
    """Of a film whose picture and lungs are turned alike."""
    picture = turn(record["image"]) if film is None else film(record["image"])
    return quality.judge(np.ascontiguousarray(picture), lungs=turn(record["lungs"]))


def test_films_pass(films):
    for record in films:
        assert judged(record).reasons == ()
        assert quality.judge(record["image"]).reasons == ()


@pytest.mark.parametrize("quarters", [1, 2, 3])
def test_turned_films_are_told(films, quarters):
    for record in films:
        told = judged(record, lambda x: np.rot90(x, quarters))
        assert "looks turned, by 90 or 180 degrees" in told.reasons


def test_inverted_films_are_told(films):
    for record in films:
        assert (
            "looks inverted: air light, bone dark" in judged(record, film=lambda x: 255 - x).reasons
        )


def test_half_a_chest_is_told(films):
    for record in films:
        told = judged(record, lambda x: x[:, : x.shape[1] // 2])
        assert "shows one lung, or one that is far smaller" in told.reasons


@pytest.mark.parametrize("size", [(1, 1), (2, 300), (64, 64)])
def test_any_picture_has_an_answer(size):
    rng = np.random.default_rng(0)
    for picture in (np.zeros(size, np.uint8), rng.integers(0, 256, size, dtype=np.uint8)):
        told = quality.judge(picture, lungs=np.zeros(size, np.uint8))
        assert told.reasons
        assert all(np.isfinite(value) for value in told.measures.values())
        json.dumps(told.to_json(), allow_nan=False)


def test_exposure_and_size_do_not_change_what_a_film_is_like(films):
    mean = quality.standard().mean_film
    picture = films[0]["image"]
    there = quality.measures(picture, mean)["likeness"]
    darker = (picture.astype(np.float32) ** 1.5 / 255**0.5).astype(np.uint8)
    larger = cv2.resize(picture, None, fx=2.5, fy=2.5)
    for other in (darker, larger):
        assert quality.measures(other, mean)["likeness"] == pytest.approx(there, abs=0.02)


def test_colour_is_told_of_the_file(tmp_path, films):
    picture = films[0]["image"]
    coloured = np.dstack([picture, picture // 2, 255 - picture])
    cv2.imwrite(str(tmp_path / "grey.png"), picture)
    cv2.imwrite(str(tmp_path / "coloured.png"), coloured)
    cv2.imwrite(str(tmp_path / "three.jpg"), np.dstack([picture] * 3))
    assert readers.read_colour(tmp_path / "grey.png") == 0
    assert readers.read_colour(tmp_path / "three.jpg") < 2
    colour = readers.read_colour(tmp_path / "coloured.png")
    assert "is a colour picture" in quality.judge(picture, coloured=colour).reasons


def test_reasons_and_ranges_belong_together():
    ranges = quality.standard().ranges
    assert set(ranges) == set(quality.REASONS)
    for name, (low, high) in ranges.items():
        below, above = quality.REASONS[name]
        assert (low is None) == (below == ""), name
        assert (high is None) == (above == ""), name


def test_a_marked_figure_keeps_its_picture():
    figure = dark_figure(3, 2)
    axes = figure.add_axes([0.1, 0.1, 0.8, 0.8])
    axes.imshow(np.arange(16).reshape(4, 4))
    plain = to_array(figure)
    mark(figure, "This picture looks turned. " * 4)
    marked = to_array(figure)
    more = len(marked) - len(plain)
    assert more > 20
    difference = np.abs(marked[more:].astype(int) - plain)[..., :3]
    assert np.mean(difference > 40) < 0.02  # the same below the band, but for the edge's rounding
    assert marked[more // 2, 2, 0] > 150  # red above


def test_a_chest_film_is_no_slice_and_a_slice_is_none(films):
    scans = sources.open_source(
        sources.block("phantom_ct", size=96, train=1, val=1, test=1), "test"
    )
    for record in films[:4]:
        assert quality.judge_slice(record["image"]).reasons
    for k in range(0, len(scans), max(1, len(scans) // 8)):
        assert quality.judge_slice(scans[k]["image"]).reasons == ()
