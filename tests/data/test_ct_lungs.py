"""Lungs of CT slices by morphology, the crop to them, and which slices are too dark."""

import pickle

import cv2
import numpy as np
import pytest
from fake_sets import run_prepare
from fake_volumes import make_ct_lesions

from cxr_jax.data import ct_lungs, readers, sources
from cxr_jax.data.ct_lungs import dice, segment
from cxr_jax.data.ct_slices import MASKS, LungCrop
from cxr_jax.data.phantoms import ct
from cxr_jax.errors import InputError

SIZE = 160


@pytest.fixture(scope="module")
def phantoms():
    """Slices through the lungs of three volumes, one of them without lesions."""
    return [
        ct.ct_slice(3, number, index, size=SIZE, positive=number > 0)
        for number in range(3)
        for index in (8, 14, 20)
    ]


def in_hu(number, index):
    return ct.draw_slice(3, number, index, size=SIZE, positive=number > 0)


def test_lungs_of_windowed_phantoms(phantoms):
    for record in phantoms:
        found = segment(record["image"])
        assert found.dtype == np.uint8
        assert dice(found, record["lungs"]) > 0.93
        for side in (1, 2):
            assert dice(found == side, record["lungs"] == side) > 0.9


def test_lungs_of_slices_in_hu():
    for index in (8, 14, 20):
        drawn = in_hu(1, index)
        assert dice(segment(drawn.hu), drawn.lungs) > 0.93
        # Whole HU, as a file has them.
        assert dice(segment(np.rint(drawn.hu).astype(np.int16)), drawn.lungs) > 0.93


@pytest.mark.parametrize("window", [(-600, 1500), (-500, 1000), (40, 400), (-700, 2000)])
def test_the_window_need_not_be_known(window):
    drawn = in_hu(0, 14)
    low, width = window[0] - window[1] / 2, window[1]
    image = np.clip((drawn.hu - low) / width * 255, 0, 255).astype(np.uint8)
    # In the mediastinal window all of the lung is black, and the threshold lies in its wall.
    assert dice(segment(image), drawn.lungs) > (0.84 if window == (40, 400) else 0.93)


def test_lungs_of_a_slice_on_its_head_or_its_side(phantoms):
    record = phantoms[1]
    for turns in (1, 2, 3):
        found = segment(np.ascontiguousarray(np.rot90(record["image"], turns)))
        assert dice(found, np.rot90(record["lungs"], turns)) > 0.93


def test_a_lung_that_the_frame_cuts_is_kept(phantoms):
    """As in figures; the air around the patient is not."""
    record = phantoms[1]
    columns = np.flatnonzero(record["lungs"].any(axis=0))
    rows = np.flatnonzero(record["lungs"].any(axis=1))
    cut = (slice(rows[0] + 4, rows[-1] - 3), slice(columns[0] + 8, columns[-1] - 7))
    found = segment(record["image"][cut])
    assert dice(found, record["lungs"][cut]) > 0.9
    assert set(np.unique(found)) == {0, 1, 2}


def test_vessels_are_closed_and_consolidations_at_the_chest_wall_filled(monkeypatch):
    """Two round lungs in a body; in one a vessel, and a dense lesion at its outer edge."""
    image = np.full((200, 240), 20, np.uint8)
    cv2.ellipse(image, (120, 100), (105, 85), 0, 0, 360, 220, cv2.FILLED)
    lungs = np.zeros_like(image)
    for x in (75, 165):
        cv2.ellipse(lungs, (x, 100), (32, 55), 0, 0, 360, 1, cv2.FILLED)
    image[lungs > 0] = 60
    cv2.line(image, (70, 80), (85, 120), 220, 3)
    image[(lungs > 0) & (np.arange(240) < 52) & (np.arange(200) > 80)[:, None]] = 220
    heart = np.zeros_like(image)
    cv2.circle(heart, (120, 120), 26, 1, cv2.FILLED)
    image[heart > 0] = 220
    found = segment(image) > 0
    assert dice(found, lungs & ~heart) > 0.95
    lesion = (lungs > 0) & (image > 200) & (heart == 0)
    assert (found & lesion).sum() / lesion.sum() > 0.6
    # The side towards the other lung is not filled: the heart stays outside.
    assert (found & (heart > 0)).sum() / heart.sum() < 0.1
    monkeypatch.setattr(ct_lungs, "MOST_ADDED", 0.0)
    bare = segment(image) > 0
    assert (bare & lesion).sum() / lesion.sum() < 0.4


def test_the_gap_in_a_table_is_no_lung(phantoms):
    """It is larger than a lung, and does not touch the frame."""
    record = phantoms[1]
    below = ((0, 44), (0, 0))
    image, lungs = (np.pad(record[name], below) for name in ("image", "lungs"))
    image[-40:-4, 2:-2] = 220
    image[-34:-10, 6:-6] = 0
    assert (image[-34:-10, 6:-6] == 0).sum() > (lungs == 1).sum()
    assert dice(segment(image), lungs) > 0.93


def empty_slices():
    body = np.full((96, 128), 10, np.uint8)
    cv2.ellipse(body, (64, 48), (50, 36), 0, 0, 360, 200, cv2.FILLED)
    noise = np.random.default_rng(0).integers(190, 230, (64, 64), dtype=np.uint8)
    fat = np.full((96, 128), 205, np.uint8)  # around bone
    cv2.ellipse(fat, (64, 48), (30, 30), 0, 0, 360, 180, cv2.FILLED)
    fat[46:50, 62:66] = 255
    return {
        "black": np.zeros((64, 64), np.uint8),
        "white": np.full((64, 64), 255, np.uint8),
        "abdomen": body,
        "tissue": noise,
        "fat": fat,
        "black HU": np.full((64, 64), -1000.0),
        "abdomen HU": np.where(body > 100, 40, -1000).astype(np.int16),
        "tissue HU": noise.astype(np.float32),
    }


@pytest.mark.parametrize("name", empty_slices())
def test_no_lungs_are_an_empty_mask(name):
    image = empty_slices()[name]
    found = segment(image)
    assert found.shape == image.shape
    assert not found.any()


@pytest.mark.parametrize("shape", [(1, 1), (1, 300), (300, 1), (2, 2), (7, 5), (33, 64)])
def test_any_picture_gives_a_mask(shape):
    rng = np.random.default_rng(0)
    for image in (rng.integers(0, 256, shape, np.uint8), rng.normal(-400, 400, shape)):
        found = segment(image)
        assert found.shape == shape
        assert set(np.unique(found)) <= {0, 1, 2}


@pytest.mark.parametrize(
    "image", [np.zeros((2, 3, 4), np.uint8), np.zeros((0, 3), np.uint8), np.full((4, 4), np.nan)]
)
def test_what_is_no_slice_is_refused(image):
    with pytest.raises(ValueError, match="expected finite values"):
        segment(image)


def test_dice_by_hand():
    a, b = np.zeros((2, 4, 4), np.uint8)
    assert dice(a, b) == 1
    a[0], b[0, :2], b[1] = 1, 2, 1
    assert dice(a, b) == 2 * 2 / (4 + 6)
    assert dice(a, np.zeros_like(a)) == 0


# The command


def test_the_command_tells_every_volume(tmp_path, capsys):
    run_prepare("ct_lesions", make_ct_lesions(tmp_path / "source"), tmp_path / "data")
    capsys.readouterr()
    ct_lungs.main(["ct_lesions", f"--data_dir={tmp_path / 'data'}"])
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[0] for line in lines[2:]] == [
        *(f"| v{k}" for k in range(7)), "| all 7"
    ]  # fmt: skip
    source = sources.open_source(
        sources.block("ct_lesions", data_dir=str(tmp_path / "data")), "test"
    )
    records = [source[i] for i in range(len(source))]
    found = np.stack([segment(record["image"]) for record in records]) > 0
    drawn = np.stack([record["lungs"] for record in records])
    lesion = np.stack([record["lesion"] for record in records]) > 0
    cells = lines[-2].strip("| ").split(" | ")
    assert cells[:3] == ["v6", "4", f"{dice(found, drawn):.3f}"]
    assert cells[4] == f"{found[lesion].mean():.3f}"
    each = [dice(f, d) for f, d in zip(found, drawn)]
    assert cells[3] == f"{np.mean(each):.3f} +- {np.std(each):.3f}"
    ct_lungs.main(["ct_lesions", f"--data_dir={tmp_path / 'data'}", "--split=test"])
    assert len(capsys.readouterr().out.splitlines()) == 4


@pytest.mark.parametrize(
    "args, words",
    [
        (["none"], "NAME='none'; expected one of"),
        (["phantom_cxr", "--train=2", "--test=2"], "has no volumes with lungs drawn"),
        (["phantom_ct", "--sizes=64"], "has no option 'sizes'"),
        (["phantom_ct", "--split=dev"], "split 'dev'; expected one of"),
    ],
)
def test_mistakes_of_the_command(args, words):
    with pytest.raises(InputError, match=words) as error:
        ct_lungs.main(args)
    assert "\n" not in str(error.value)


def test_the_real_lungs(cxr_data):
    """Every fortieth slice of ct_lesions; over all of them the Dice is 0.936."""
    folder, scores = cxr_data / "ct_lesions", []
    for path in sorted((folder / "ct").glob("*.png"))[::40]:
        drawn = readers.read_mask(folder / "lungs" / path.name)
        scores.append(dice(segment(readers.read_film(path)), drawn))
    assert len(scores) > 30
    assert np.mean(scores) > 0.9


# The crop


def test_the_crop_is_the_lungs_and_black_outside(phantoms):
    record = phantoms[4]
    seen = LungCrop(masks="record_or_morphology")(record)
    assert seen["image"].shape == seen["lungs"].shape == seen["lesion"].shape
    assert seen["image"].size < record["image"].size / 2
    assert (seen["image"] * (seen["lungs"] == 0)).sum() == 0
    assert (seen["lungs"] > 0).sum() == (record["lungs"] > 0).sum()
    inside = record["image"][record["lungs"] > 0]
    np.testing.assert_array_equal(seen["image"][seen["lungs"] > 0], inside)
    shown = LungCrop(masks="record_or_morphology", hide=False)(record)
    assert shown["image"].shape == seen["image"].shape
    assert (shown["image"] * (seen["lungs"] == 0)).any()


@pytest.mark.parametrize("masks", MASKS)
@pytest.mark.parametrize("hide", [True, False])
def test_a_map_of_the_crop_lies_where_it_was(phantoms, masks, hide):
    record, crop = phantoms[4], LungCrop(masks=masks, hide=hide)
    seen = crop(record)
    back = crop.on_slice(seen["lungs"].astype(np.float32), record)
    assert back.shape == record["image"].shape
    np.testing.assert_array_equal(back, crop.lungs(record))


def test_where_the_lungs_are_from(phantoms):
    record = {**phantoms[4], "lungs": np.zeros_like(phantoms[4]["lungs"])}
    record["lungs"][40:60, 30:50] = 1
    bare = {name: value for name, value in record.items() if name != "lungs"}
    morphology = segment(record["image"])
    expected = {"morphology": morphology, "record_or_morphology": record["lungs"]}
    for masks, drawn in expected.items():
        crop = LungCrop(masks=masks)
        np.testing.assert_array_equal(crop.lungs(record), drawn)
        assert (crop(bare)["lungs"] > 0).sum() == (morphology > 0).sum()
        np.testing.assert_array_equal(crop.lungs(bare), morphology)


@pytest.mark.parametrize("grey", [0, 200])
def test_a_slice_without_lungs_is_left_whole(grey):
    record = {
        "image": np.full((40, 50), grey, np.uint8),
        "lesion": np.zeros((40, 50), np.uint8),
        "id": "a",
    }
    crop = LungCrop()
    seen = crop(record)
    np.testing.assert_array_equal(seen["image"], record["image"])
    assert not seen["lungs"].any()
    assert seen["lesion"].shape == (40, 50)
    assert crop.intensity(record) == 0
    assert crop.on_slice(np.ones((4, 5), np.float32), record).sum() == 40 * 50


def test_intensity_by_hand():
    """Two lungs of 10 x 10 of grey 51 in a box of 10 x 40: a fifth of half of it."""
    image = np.full((30, 60), 255, np.uint8)
    lungs = np.zeros_like(image)
    lungs[10:20, 10:20], lungs[10:20, 40:50] = 1, 2
    image[lungs > 0] = 51
    record = {"image": image, "lungs": lungs}
    crop = LungCrop(masks="record_or_morphology")
    # The box has a margin of 2% of its sides: one pixel to the left and to the right.
    assert crop.intensity(record) == pytest.approx(0.2 * 200 / (10 * 42))


@pytest.fixture(scope="module")
def volumes():
    return sources.open_source(
        sources.block("phantom_ct", size=64, slices=16, train=2, val=1, test=2), "test"
    )


def test_dark_slices_of_volumes_are_left_out_and_counted(volumes):
    crop = LungCrop(masks="record_or_morphology")
    kept = pickle.loads(pickle.dumps(crop.bright(volumes)))
    intensities = [crop.intensity(volumes[i]) for i in range(len(volumes))]
    bright = [i for i, value in enumerate(intensities) if value >= 0.08]
    assert 0 < len(volumes) - len(bright) < 8
    assert [kept[i]["id"] for i in range(len(kept))] == [volumes[i]["id"] for i in bright]
    # They are the ends of the volumes.
    gone = {i % 16 for i in range(len(volumes))} - {i % 16 for i in bright}
    assert gone <= {0, 1, 14, 15}
    np.testing.assert_array_equal(
        kept.slice_table().position, volumes.slice_table().position[bright]
    )
    assert kept.notes[-1] == (
        f"left out: {len(volumes) - len(bright)} of 32 slices, in which the lungs have a mean "
        "intensity below 0.08"
    )
    assert crop.bright(kept) is kept


def test_nothing_is_left_out_of_figures_or_without_a_limit(volumes):
    assert LungCrop(least_intensity=0).bright(volumes) is volumes
    films = sources.open_source(sources.block("phantom_cxr", train=2), "train")
    assert LungCrop().bright(films) is films
    with pytest.raises(InputError, match="no slice with a mean intensity of the lungs of at least"):
        LungCrop(masks="record_or_morphology", least_intensity=0.99).bright(volumes)


@pytest.mark.parametrize(
    "fields, words",
    [
        (
            {"masks": "drawn"},
            "config.crop.masks='drawn'; expected one of morphology, record, record_or_morphology",
        ),
        ({"least_intensity": 1.0}, "config.crop.least_intensity=1.0; expected 0 to below 1"),
        ({"least_intensity": float("nan")}, "config.crop.least_intensity=nan"),
    ],
)
def test_a_wrong_crop_is_refused(fields, words):
    with pytest.raises(InputError, match=words):
        LungCrop(**fields)
