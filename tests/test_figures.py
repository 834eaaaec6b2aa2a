"""Figures: what is drawn where, in which colour, and what saving leaves behind."""

import json
import os
import threading

import cv2
import matplotlib
import matplotlib.colors
import numpy as np
import pytest

from cxr_jax import figures
from cxr_jax.figures import overlays


@pytest.fixture
def case():
    """A film of 96 x 80 px: two box lungs; a lesion in the right lung's middle zone."""
    film = np.full((96, 80), 90, np.uint8)
    lungs = np.zeros_like(film)
    lungs[12:84, 8:36], lungs[12:84, 44:72] = 1, 2
    zones = np.zeros_like(film)
    for row, (top, bottom) in enumerate([(12, 42), (42, 60), (60, 84)]):
        for column in (0, 1):
            inside = lungs[top:bottom] == column + 1
            zones[top:bottom][inside] = 2 * row + column + 1
    prob_map = np.zeros(film.shape, np.float32)
    prob_map[44:56, 14:26] = 0.9
    lesion = np.zeros_like(film)
    lesion[46:58, 16:30] = 1
    probs = np.array([[0.1, 0.2], [0.9, 0.3], [0.25, 0.05]])
    return dict(
        film=film, lungs=lungs, zones=zones, prob_map=prob_map, severity_probs=probs
    ), lesion


def count(figure, color, axes=0):
    """Pixels of a colour inside one of the figure's axes, and their mean place in film pixels."""
    pixels = figures.to_array(figure).astype(int)
    ax = figure.axes[axes]
    box = ax.get_window_extent()
    left, right = round(box.x0), round(box.x1)
    top, bottom = round(pixels.shape[0] - box.y1), round(pixels.shape[0] - box.y0)
    rgb = np.array(matplotlib.colors.to_rgb(color)) * 255
    near = np.abs(pixels[top:bottom, left:right] - rgb).max(axis=-1) < 20
    if not near.any():
        return 0, None
    y, x = (places.mean() for places in np.nonzero(near))
    width, height = ax.get_xlim()[1] + 0.5, ax.get_ylim()[0] + 0.5
    return int(near.sum()), (y / (bottom - top) * height, x / (right - left) * width)


def texts(figure):
    drawn = list(figure.texts)
    for ax in figure.axes:
        drawn += [*ax.texts, ax.title]
        if ax.get_legend() is not None:
            drawn += ax.get_legend().get_texts()
    return [text.get_text() for text in drawn]


def test_severity_panel_draws_prediction_in_yellow_and_truth_in_green(case):
    given, lesion = case
    figure = figures.severity_panel(**given, lesion_true=lesion)
    num, place = count(figure, figures.PREDICTION)
    # The outline of 12 x 12 film pixels, each near 6 px of the picture.
    assert 200 < num < 1500
    np.testing.assert_allclose(place, [50, 20], atol=1)  # film pixels: the box's middle
    num, place = count(figure, figures.TRUTH)
    assert 200 < num < 1500
    np.testing.assert_allclose(place, [52, 23], atol=2)  # yellow hides a little of it


def test_severity_panel_without_truth_has_no_green(case):
    given, _ = case
    figure = figures.severity_panel(**given)
    assert count(figure, figures.TRUTH)[0] == 0
    assert count(figure, figures.PREDICTION)[0] > 200


def test_severity_panel_below_one_half_has_no_yellow_and_says_so(case):
    given, lesion = case
    figure = figures.severity_panel(
        **given | {"prob_map": given["prob_map"] / 2}, lesion_true=lesion * 0
    )
    assert count(figure, figures.PREDICTION)[0] == count(figure, figures.TRUTH)[0] == 0
    assert {"predicted: none (p ≥ 0.5)", "truth: no lesion"} <= set(texts(figure))


def test_the_map_colours_the_lesion_and_leaves_the_rest_as_it_is(case):
    given, _ = case
    figure = figures.severity_panel(**given)
    pixels = figures.to_array(figure).astype(int)
    box = figure.axes[1].get_window_extent()

    def at(y, x):
        column = round(box.x0 + (x + 0.5) / 80 * box.width)
        return pixels[round(pixels.shape[0] - box.y1 + (y + 0.5) / 96 * box.height), column]

    assert np.ptp(at(50, 20)) > 60
    np.testing.assert_allclose(at(50, 60), 90, atol=1)  # the grey map has 256 steps, rounded down


def test_the_table_shows_zones_as_the_reader_sees_them(case):
    given, _ = case
    true = np.array([[0, 1], [1, 0], [0, -1]])
    figure = figures.severity_panel(**given, severity_true=true)
    table = {t.get_text(): t.get_position() for t in figure.axes[-1].texts}
    assert table["0.90"][0] < 1 < table["0.30"][0]  # the right lung is the left column
    assert table["0.10"][1] < table["0.90"][1] < table["0.25"][1] < figure.axes[-1].get_ylim()[0]
    assert table["Right lung (R)"][0] < table["Left lung (L)"][0]
    shown = texts(figure)
    assert shown.count("truth 0  ✓") == 3
    assert shown.count("truth 1  ✓") == shown.count("truth 1  ✗") == shown.count("truth –") == 1
    assert "1.8" in shown  # the soft score
    assert "truth, positive zones of 5 scored" in shown


def test_scores_of_0_to_3_also_show_their_sum(case):
    given, _ = case
    figure = figures.severity_panel(**given, severity_true=np.array([[0, 3], [2, 0], [0, 0]]))
    assert "truth, positive zones (sum 5)" in texts(figure)


def test_scores_of_three_levels_stand_in_place_of_the_probabilities(case):
    given, _ = case
    scores = np.array([[0.2, 2.9], [1.5, 0.0], [3.0, 1.1]])
    shown = texts(figures.severity_panel(**given, severity_scores=scores))
    assert {"Global score, 0 to 18", "8.7", "2.9", "predicted, sum of zone scores"} <= set(shown)


def test_a_missing_lung_is_named_and_left_out_of_the_score(case):
    given, _ = case
    given["zones"][:, 40:] = given["lungs"][:, 40:] = 0
    shown = texts(figures.severity_panel(**given))
    assert shown.count("no lung") == 3
    assert {"Global score, 0 to 3, of the 3 zones that are seen", "1.2"} <= set(
        shown
    )  # 0.1 + 0.9 + 0.25, to one digit


def test_side_markers_stand_outside_the_film(case):
    given, _ = case
    figure = figures.severity_panel(**given)
    figure.canvas.draw()
    for ax in figure.axes[:2]:
        film = ax.get_window_extent()
        sides = {t.get_text(): t.get_window_extent() for t in ax.texts}
        assert sides["R"].x1 < film.x0 + film.width / 2 < sides["L"].x0
        assert min(sides["R"].y0, sides["L"].y0) >= film.y1


def test_a_huge_film_makes_no_larger_picture(case):
    given, lesion = case
    small = figures.severity_panel(**given, lesion_true=lesion)
    big = {
        name: cv2.resize(value, (2000, 2400), interpolation=cv2.INTER_NEAREST)
        for name, value in given.items()
        if name != "severity_probs"
    }
    figure = figures.severity_panel(**big, severity_probs=given["severity_probs"])
    assert figures.to_array(figure).shape == figures.to_array(small).shape
    np.testing.assert_allclose(count(figure, figures.PREDICTION)[1], [533, 213], atol=10)


def test_masks_of_another_size_are_refused(case):
    given, _ = case
    with pytest.raises(ValueError, match=r"prob_map is \(48, 40\) and the film \(96, 80\)"):
        figures.severity_panel(**given | {"prob_map": given["prob_map"][::2, ::2]})
    with pytest.raises(ValueError, match=r"severity_probs is \(2, 3\)"):
        figures.severity_panel(**given | {"severity_probs": given["severity_probs"].T})
    with pytest.raises(ValueError, match="film is float64"):
        figures.lungs_panel(given["film"] / 255, given["lungs"])


def test_lungs_comparison_says_which_method_misses_lung(case):
    film, true = case[0]["film"], case[0]["lungs"]
    half = true.copy()
    half[40:] = 0
    alone = figures.lungs_comparison(film, true, {"all": true})
    both = figures.lungs_comparison(film, true, {"all": true, "half": half}, title="a film")
    assert both.get_size_inches()[0] > 1.9 * alone.get_size_inches()[0]
    texts = [text.get_text() for ax in both.axes for text in ax.texts]
    share = f"area {(half > 0).sum() / (true > 0).sum():.2f} of the true"
    assert any("all: Dice 1.00, 1.00" in text and "area 1.00" in text for text in texts)
    assert any(text.startswith("half: ") and share in text for text in texts)
    assert figures.to_array(both).std() > 10
    with pytest.raises(ValueError, match="resize it first"):
        figures.lungs_comparison(film, true, {"small": true[:40]})
    with pytest.raises(ValueError, match="no method"):
        figures.lungs_comparison(film, true, {})


def test_lungs_panel(case):
    given, _ = case
    film, true = given["film"], given["lungs"]
    pred = np.where(true == 2, 0, true)
    pred[48:84] = 0  # the lower half of the right lung is missed
    figure = figures.lungs_panel(film, pred, true)
    assert {"right lung, Dice 0.67", "no left lung found, Dice 0.00"} <= set(texts(figure))
    assert count(figure, figures.TRUTH, axes=1)[0] > 1000
    assert count(figure, figures.PREDICTION, axes=1)[0] > 500
    assert count(figure, figures.PREDICTION, axes=0)[0] == 0  # the bare film stays bare
    alone = figures.lungs_panel(film, pred, dice=(0.5, np.nan))
    assert {"right lung, Dice 0.50", "no left lung found, Dice –"} <= set(texts(alone))
    assert count(alone, figures.TRUTH, axes=1)[0] == 0


def test_layers_are_checked_and_shrunk_with_the_film():
    film = np.zeros((2000, 1000), np.uint8)
    labels = np.zeros(film.shape, np.int64)
    labels[1000:] = 7
    shown, kept, averaged, absent = overlays.fit_layers(
        film, labels=labels, heat=labels / 7, other=None
    )
    assert shown.shape == kept.shape == averaged.shape == (1024, 512)
    assert absent is None
    assert (kept.dtype, averaged.dtype) == (np.uint8, np.float32)
    assert set(np.unique(kept)) == {0, 7}  # labels are never mixed
    with pytest.raises(ValueError, match=r"heat is \(10, 10\) and the film \(2000, 1000\)"):
        overlays.fit_layers(film, heat=np.zeros((10, 10)))


def test_labels_are_tinted_each_in_its_colour():
    film = np.full((60, 80), 100, np.uint8)
    labels = np.zeros_like(film)
    labels[20:40, 10:30], labels[20:40, 50:70], labels[45:55, 30:50] = 1, 2, 3
    figure, bare, ax = overlays.film_pair(film, title="")
    overlays.draw_labels(ax, labels, colors={1: "red", 2: "blue"})
    pixels = figures.to_array(figure).astype(int)

    def at(axes, y, x):
        across, up = axes.transData.transform((x, y))
        return pixels[round(pixels.shape[0] - up), round(across)]

    assert at(ax, 30, 20)[0] > at(ax, 30, 20)[2] + 20
    assert at(ax, 30, 60)[2] > at(ax, 30, 60)[0] + 20
    for axes, y, x in ((ax, 50, 40), (ax, 5, 5), (bare, 30, 20)):  # no colour for the label 3
        np.testing.assert_allclose(at(axes, y, x), 100, atol=1)


def test_boxes_are_green_and_solid_unless_told_otherwise():
    film = np.full((100, 100), 90, np.uint8)
    figure, (solid, dashed), _ = overlays.film_row(film, 2, title="")
    box = np.array([[20.0, 30.0, 60.0, 70.0]])
    overlays.draw_boxes(solid, box)
    overlays.draw_boxes(dashed, box, edgecolor=figures.PREDICTION, linestyle="--")
    num, place = count(figure, figures.TRUTH, axes=0)
    np.testing.assert_allclose(place, [49.5, 39.5], atol=1)  # [y, x], pixel middles
    assert count(figure, figures.PREDICTION, axes=0)[0] == 0
    assert 0.4 * num < count(figure, figures.PREDICTION, axes=1)[0] < 0.9 * num


def test_scatter_places_each_film_and_computes_its_metrics():
    true = np.array([0, 0, 0, 3, 6])
    pred = np.array([0.5, 0.5, 2.0, 3.0, 5.0])
    figure = figures.scatter_scores(pred, true, title="test")
    dots = figure.axes[0].collections[-1].get_offsets()
    np.testing.assert_array_equal(dots[:, 1], pred)
    assert np.abs(dots[:, 0] - true).max() <= 0.16
    assert len(np.unique(dots[:3, 0])) == 3  # equal films do not hide each other
    assert figure.axes[0].get_title(loc="left") == "5 films    MSE 1.10    MAE 0.80    CC 0.95"
    shown = figures.scatter_scores(pred[:1], true[:1], {"CC": float("nan")})
    assert shown.axes[0].get_title(loc="left") == "1 film    CC –"


def test_training_curves_draw_what_was_logged(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = [{"step": s, "loss": 1 / s, "lr": 0.1, "grad_norm": 1.0} for s in range(1, 100)]
    lines += [
        {"step": 50, "val/mse": 2.0, "val/cc": None},
        {"step": 99, "val/mse": 1.0, "val/cc": None},
    ]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines) + '{"step": 100, "lo')
    figure = figures.training_curves(path)
    titles = [ax.get_title() for ax in figure.axes]
    assert titles == ["loss", "lr", "grad_norm", "val/mse"]  # val/cc was never defined
    steps, values = figure.axes[3].lines[0].get_data()
    np.testing.assert_array_equal([steps, values], [[50, 99], [2, 1]])
    np.testing.assert_allclose(figure.axes[0].lines[0].get_ydata(), 1 / np.arange(1, 100))


def test_training_curves_of_an_empty_log_say_so(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.touch()
    assert texts(figures.training_curves(path)) == ["no step was logged"]


def test_contact_sheet_shows_every_film_whole():
    films = [np.full((40, 40), 200, np.uint8), np.full((20, 40, 3), [255, 0, 0], np.uint8)]
    films.append(np.full((400, 100), 100, np.uint8))
    sheet = figures.to_array(figures.contact_sheet(films, 2, titles=["a", "b", "c"], cell=80))
    assert sheet.shape == (2 * (80 + 22 + 6) + 6, 2 * 86 + 6, 3)
    assert (sheet == 200).all(axis=-1).sum() >= 80 * 80
    assert (sheet == [255, 0, 0]).all(axis=-1).sum() == 40 * 80
    assert (sheet == 100).all(axis=-1).sum() >= 80 * 20
    with pytest.raises(ValueError, match="1 titles for 3 films"):
        figures.contact_sheet(films, titles=["a"])
    with pytest.raises(ValueError, match="no film"):
        figures.contact_sheet([])


@pytest.mark.parametrize(
    "title", ["한글 名.png", "$x_1$ 100%", "turned \u202eround\x07", "x" * 500, ""]
)
def test_any_file_name_can_be_a_title(case, title, recwarn):
    given, _ = case
    figure = figures.lungs_panel(given["film"], given["lungs"], title=title)
    figures.to_array(figure)
    assert not list(recwarn)  # matplotlib warns of glyphs it lacks
    box = figure.texts[0].get_window_extent()
    assert box.x1 <= figure.bbox.x1


def test_save_replaces_whole_files_and_leaves_nothing_else(tmp_path, case):
    given, _ = case
    path = tmp_path / "new" / "folder" / "film.png"
    for _ in range(2):
        figure = figures.lungs_panel(given["film"], given["lungs"])
        pixels = figures.to_array(figure)
        figures.save(figure, path)
        assert os.listdir(path.parent) == ["film.png"]
        np.testing.assert_array_equal(cv2.imread(str(path))[..., ::-1], pixels)
        assert not figure.axes


def test_a_failed_save_keeps_the_old_file(tmp_path, case, monkeypatch):
    given, _ = case
    path = tmp_path / "film.png"
    path.write_bytes(b"old")
    figure = figures.lungs_panel(given["film"], given["lungs"])

    def full(partial, **_):
        partial.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        figures.save(figure, path)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["film.png"]


def test_equal_figures_are_equal_files_from_any_thread(tmp_path, case):
    given, _ = case
    before = dict(matplotlib.rcParams)

    def draw(name):
        figures.save(figures.lungs_panel(given["film"], given["lungs"]), tmp_path / name)

    threads = [threading.Thread(target=draw, args=(f"{i}.png",)) for i in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    files = {(tmp_path / f"{i}.png").read_bytes() for i in range(3)}
    assert len(files) == 1
    assert dict(matplotlib.rcParams) == before


CLASSES = ("normal", "other infection", "covid-19")


def test_diagnosis_panel_draws_each_map_over_its_own_maximum(case):
    given, lesion = case
    heat = 1e-3 * given["prob_map"]
    probs = np.array([0.1, 0.2, 0.7])
    maps = {"relevance": heat, "flat": np.zeros_like(heat), "negative": -heat}
    figure = figures.diagnosis_panel(
        given["film"], probs, CLASSES, maps=maps, label=1, lesion_true=lesion
    )
    shown = [text.get_text() for text in figure.findobj(matplotlib.text.Text)]
    assert {*maps, *CLASSES, "0.70", "of max"} <= set(shown)
    assert shown.count("yes") == 1
    num, place = count(figure, figures.PREDICTION, axes=1)  # the cross
    assert num > 20
    np.testing.assert_allclose(place, [44, 14], atol=2)  # the first of the equal cells
    for empty in (0, 2, 3):
        assert count(figure, figures.PREDICTION, axes=empty)[0] == 0
        assert count(figure, figures.TRUTH, axes=empty)[0] > 100


def test_diagnosis_panel_without_maps_and_truth(case):
    given, _ = case
    figure = figures.diagnosis_panel(given["film"], np.array([0.5, 0.5, 0]), CLASSES, maps={})
    assert len(figure.axes) == 2  # the film and the table
    assert "yes" not in texts(figure)
    assert count(figure, figures.TRUTH)[0] == 0
    with pytest.raises(ValueError, match="3 probabilities and 2 names"):
        figures.diagnosis_panel(given["film"], np.ones(3) / 3, CLASSES[:2], maps={})


@pytest.mark.parametrize("labels", [[0, 1, 2, 2], [1, 1, 1, 1]])
@pytest.mark.parametrize("temperature", [np.nan, 2.0])
def test_charts_of_classes(labels, temperature):
    labels = np.array(labels)
    probs = np.array([[0.8, 0.1, 0.1], [0.2, 0.7, 0.1], [0.3, 0.1, 0.6], [0.6, 0.3, 0.1]])
    shown = texts(figures.confusion_chart(probs.argmax(axis=1), labels, CLASSES))
    assert "2\n50%" in shown if labels[0] else "1\n100%" in shown
    shown = texts(figures.roc_chart(probs, labels, CLASSES))
    assert ("normal, AUC 1.000" in shown) == (labels[0] == 0)
    assert ("undefined: one class only" in shown) == (labels[0] == 1)
    shown = texts(figures.reliability_chart(probs, labels, temperature))
    assert ("temperature 2.00" in " ".join(shown)) != np.isnan(temperature)
