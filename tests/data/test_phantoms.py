"""Phantoms: exact truth, and pictures that show it."""

import hashlib
import multiprocessing
import pickle

import cv2
import numpy as np
import pytest

from cxr_jax.data.phantoms import Population, phantom
from cxr_jax.data.phantoms.anatomy import Chest
from cxr_jax.data.phantoms.attenuation import vessel_shadow
from cxr_jax.data.phantoms.drawing import Pen
from cxr_jax.data.phantoms.film import draw_film
from cxr_jax.data.phantoms.patient import Patient, Visit
from cxr_jax.data.phantoms.signs import Signs, pleural_air
from cxr_jax.data.records import DIAGNOSES, FILM_FIELDS, FINDINGS, REGIONS
from cxr_jax.errors import InputError

FINDING = {name: i for i, name in enumerate(FINDINGS)}
REGION = {name: i for i, name in enumerate(REGIONS)}
# Everything at once: most films carry several findings.
BUSY = Population(
    cardiomegaly=0.4,
    edema=0.3,
    atelectasis=0.4,
    pneumothorax=0.4,
    pleural_effusion=0.4,
    support_devices=0.5,
)
COUNT = 300


@pytest.fixture(scope="module")
def usual():
    return [phantom(0, i, 128) for i in range(COUNT)]


@pytest.fixture(scope="module")
def busy():
    return [phantom(1, i, 128, population=BUSY) for i in range(60)]


def zones_of(lungs: np.ndarray) -> np.ndarray:
    """Zone map by the rule of PAPERS, pixel by pixel; 0 outside, 1..6."""
    zones = np.zeros(lungs.shape, int)
    for side in (1, 2):
        y, x = np.nonzero(lungs == side)
        share = (y - y.min()) / (y.max() + 1 - y.min())
        zones[y, x] = side + 2 * (share >= 5 / 12) + 2 * (share >= 2 / 3)
    return zones


def digest(record) -> str:
    parts = (f"{key}:{np.asarray(record[key]).tobytes()!r}" for key in sorted(record))
    return hashlib.sha256("|".join(parts).encode()).hexdigest()


def _digest_in_another_process(arguments):
    return digest(phantom(*arguments))


def same(a, b) -> bool:
    return a.keys() == b.keys() and all(
        np.array_equal(a[k], b[k], equal_nan=np.asarray(a[k]).dtype.kind == "f") for k in a
    )


def test_has_every_field_of_a_film_with_its_type(busy):
    size = 128
    expected = {
        "image": (np.uint8, (size, size)),
        "lungs": (np.uint8, (size, size)),
        "lesion": (np.uint8, (size, size)),
        "lesion_type": (np.uint8, (size, size)),
        "severity": (np.int8, (3, 2)),
        "severity_valid": (bool, (3, 2)),
        "findings": (np.float32, (10,)),
        "regions": (np.float32, (29, 4)),
        "region_present": (bool, (29,)),
        "region_findings": (np.float32, (29, 10)),
    }
    for record in busy:
        assert set(record) == FILM_FIELDS - {"severity_second"}
        for key, (dtype, shape) in expected.items():
            assert record[key].dtype == dtype, key
            assert record[key].shape == shape, key
        count = len(record["box_label"])
        assert record["boxes"].shape == (count, 4)
        assert record["boxes"].dtype == np.float32
        assert record["box_label"].dtype == np.int32
        assert record["diagnosis"] in range(len(DIAGNOSES))
        assert record["view"] in ("PA", "AP")
        assert isinstance(record["id"], str)
        assert isinstance(record["group"], str)


def test_depends_on_its_arguments_only():
    first = phantom(3, 5, 128)
    phantom(3, 6, 128)
    np.random.default_rng(0).random(10)
    assert same(first, phantom(3, 5, 128))
    assert same(first, pickle.loads(pickle.dumps(first)))
    for other in (phantom(4, 5, 128), phantom(3, 4, 128)):
        assert not np.array_equal(first["image"], other["image"])


def test_is_the_same_in_another_process():
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        other = pool.apply(_digest_in_another_process, ((3, 5, 128),))
    assert other == digest(phantom(3, 5, 128))


@pytest.mark.parametrize("size", [128, 200, 512, 1024])
def test_sizes_show_the_same_film(size):
    small, record = phantom(2, 9, 256), phantom(2, 9, size)
    assert record["image"].shape == (size, size)
    for key in ("findings", "diagnosis", "region_present"):
        assert np.array_equal(record[key], small[key]), key
    # A burden beside a cut of the score may fall to its other side when pixels are counted anew.
    assert np.array_equal(record["severity"] > 0, small["severity"] > 0)
    assert np.abs(record["severity"] - small["severity"]).max() <= 1
    shared = cv2.resize(record["lesion"], (256, 256), interpolation=cv2.INTER_NEAREST)
    union = np.maximum(shared, small["lesion"]).sum()
    assert (shared & small["lesion"]).sum() > 0.9 * union
    # Outlines are rounded to pixels of the coarser picture; where a row cuts the rounded top of a
    # lung, one row moves its width by about two.
    step = max(1 / size, 1 / 256)
    np.testing.assert_allclose(record["regions"] / size, small["regions"] / 256, atol=2.5 * step)
    a, b = (cv2.resize(r["image"], (64, 64), interpolation=cv2.INTER_AREA) for r in (small, record))
    assert np.corrcoef(a.ravel(), b.ravel())[0, 1] > 0.98


def test_two_films_of_a_patient_share_anatomy_and_diagnosis():
    for k in range(8):
        a, b = phantom(0, 2 * k, 128), phantom(0, 2 * k + 1, 128)
        assert a["group"] == b["group"] != phantom(0, 2 * k + 2, 128)["group"]
        assert a["diagnosis"] == b["diagnosis"]
        assert a["id"] != b["id"]
        index = FINDING["cardiomegaly"]
        assert a["findings"][index] == b["findings"][index]
        assert not np.array_equal(a["image"], b["image"])


def test_lungs_are_two_components_on_their_sides(usual, busy):
    for record in usual + busy:
        lungs = record["lungs"]
        for side in (1, 2):
            count, *_ = cv2.connectedComponents((lungs == side).astype(np.uint8))
            assert count == 2
            assert (lungs == side).mean() > 0.04
        assert cv2.connectedComponents((lungs > 0).astype(np.uint8))[0] == 3
        # The patient's right is on the image's left.
        assert np.nonzero(lungs == 1)[1].max() < np.nonzero(lungs == 2)[1].min()


def test_severity_is_positive_exactly_where_a_lesion_lies(usual, busy):
    for record in usual + busy:
        zones, kind = zones_of(record["lungs"]), record["lesion_type"]
        for z in range(6):
            inside = zones == z + 1
            burden = kind[inside].sum() / inside.sum()
            score = 0 if burden == 0 else 1 if burden < 0.3 else 2 if burden < 0.6 else 3
            assert record["severity"].ravel()[z] == score
            cover = (kind[inside] > 0).mean()
            assert cover == 0 or cover >= 0.04  # no spill


def test_lesions_lie_in_the_lungs(usual, busy):
    for record in usual + busy:
        assert np.array_equal(record["lesion"], (record["lesion_type"] > 0).astype(np.uint8))
        assert not record["lesion"][record["lungs"] == 0].any()
        assert record["lesion_type"].max() <= 2


def test_findings_agree_with_what_is_drawn(usual, busy):
    for record in usual + busy:
        has = {name: bool(record["findings"][i]) for name, i in FINDING.items()}
        assert set(np.unique(record["findings"])) <= {0.0, 1.0}
        assert has["no finding"] != record["findings"][1:].any()
        assert has["lung opacity"] == record["lesion"].any()
        assert has["consolidation"] == (record["lesion_type"] == 2).any()
        assert has["lung opacity"] == (has["pneumonia"] or has["edema"])
        assert has["pneumonia"] <= (record["diagnosis"] > 0)
        # Each finding but 'no finding' has a place, and each box belongs to a finding.
        labels = set(record["box_label"].tolist())
        assert labels == set(np.flatnonzero(record["findings"][1:]) + 1)


def test_infected_films_show_it(usual):
    for record in usual:
        assert bool(record["findings"][FINDING["pneumonia"]]) == (record["diagnosis"] > 0)


def test_boxes_are_inside_the_image_and_tight(usual, busy):
    for record in usual + busy:
        for boxes in (record["boxes"], record["regions"][record["region_present"]]):
            assert (boxes[:, :2] >= 0).all()
            assert (boxes[:, 2:] <= 128).all()
            assert (boxes[:, :2] < boxes[:, 2:]).all()
        zones = zones_of(record["lungs"])
        masks = {"right lung": zones % 2 == 1, "left lung": (zones > 0) & (zones % 2 == 0)}
        masks["left lower lung zone"] = zones == 6
        for name, mask in masks.items():
            y, x = np.nonzero(mask)
            tight = [x.min(), y.min(), x.max() + 1, y.max() + 1]
            np.testing.assert_array_equal(record["regions"][REGION[name]], tight)
        opacity = record["boxes"][record["box_label"] == FINDING["lung opacity"]].astype(int)
        covered = np.zeros((128, 128), bool)
        for x0, y0, x1, y1 in opacity:
            inside = record["lesion"][y0:y1, x0:x1]
            edges = (inside[0], inside[-1], inside[:, 0], inside[:, -1])
            assert all(edge.any() for edge in edges)
            covered[y0:y1, x0:x1] = True
        if record["lesion"].any():  # only crumbs lie outside
            assert record["lesion"][~covered].sum() <= 0.15 * record["lesion"].sum()


def test_regions_lie_where_anatomy_says(usual):
    present = np.stack([record["region_present"] for record in usual])
    assert present.mean() > 0.98
    for record in usual:
        assert np.array_equal(~np.isnan(record["regions"]).any(axis=1), record["region_present"])
        if not record["region_present"].all():
            continue
        centre = (record["regions"][:, :2] + record["regions"][:, 2:]) / 2
        for name in REGIONS:
            if name.startswith("right ") and name.replace("right", "left", 1) in REGION:
                left = name.replace("right", "left", 1)
                assert centre[REGION[name], 0] < centre[REGION[left], 0], name
        y = {name: centre[i, 1] for name, i in REGION.items()}
        assert y["right apical zone"] < y["carina"] < y["cardiac silhouette"] < y["abdomen"]


def test_region_findings_agree_with_film_and_severity(usual, busy):
    for record in usual + busy:
        table, findings = record["region_findings"], record["findings"]
        assert set(np.unique(table)) <= {0.0, 1.0}
        assert not table[~record["region_present"]].any()
        assert not table[:, 1:][:, findings[1:] == 0].any()
        shown = table[record["region_present"]]
        np.testing.assert_array_equal(shown[:, 0], ~shown[:, 1:].any(axis=1))
        for z, zone in enumerate(("upper", "mid", "lower")):
            for s, side in enumerate(("right", "left")):
                row = table[REGION[f"{side} {zone} lung zone"]]
                assert bool(row[FINDING["lung opacity"]]) == (record["severity"][z, s] > 0)


def test_rates_are_the_populations(usual):
    population = Population()
    diagnosis = np.array([record["diagnosis"] for record in usual[::2]])
    shares = (population.normal, population.other_infection, population.covid)
    for d, share in enumerate(shares):
        # Four standard errors of a share among the 150 patients.
        assert abs((diagnosis == d).mean() - share) < 4 * np.sqrt(
            share * (1 - share) / len(diagnosis)
        )
    findings = np.stack([record["findings"] for record in usual])
    for name in ("atelectasis", "pneumothorax", "pleural effusion", "support devices", "edema"):
        rate = getattr(population, name.replace(" ", "_"))
        error = np.sqrt(rate * (1 - rate) / COUNT)
        assert abs(findings[:, FINDING[name]].mean() - rate) < 4 * error, name
    ap = np.mean([record["view"] == "AP" for record in usual])
    assert abs(ap - population.ap) < 4 * np.sqrt(0.4 * 0.6 / COUNT)


def test_covid_is_bilateral_and_low_and_other_infection_one_sided(usual):
    def positive(d):
        return np.stack([r["severity"] > 0 for r in usual if r["diagnosis"] == d])

    covid, other = positive(2), positive(1)
    both = [zones.any(axis=1).all(axis=1).mean() for zones in (covid, other)]
    assert both[0] > 0.7 > 0.3 > both[1]
    by_row = covid.mean(axis=(0, 2))
    assert by_row[0] < by_row[1] < by_row[2]


def test_lesions_brighten_the_film():
    gains = []
    for i in range(40):
        record = phantom(0, i, 128)
        if not record["lesion"].any():
            continue
        clear = draw_film(0, i, size=128, population=Population(), show_lesions=False)
        assert np.array_equal(clear["lesion"], record["lesion"])
        change = record["image"].astype(float) - clear["image"]
        lesion = record["lesion"] > 0
        gains.append(change[lesion].mean())
        # Clearly visible, clearly not a white hole; scatter moves the rest only a little.
        assert 5 < gains[-1] < 110, i
        outside = (record["lungs"] > 0) & ~cv2.dilate(record["lesion"], np.ones((9, 9))).astype(
            bool
        )
        assert abs(change[outside].mean()) < 0.35 * gains[-1]
        if (record["lesion_type"] == 2).sum() > 40 and (record["lesion_type"] == 1).sum() > 40:
            dense = change[record["lesion_type"] == 2].mean()
            assert dense > change[record["lesion_type"] == 1].mean()
    assert np.mean(gains) > 15


def test_pneumothorax_has_no_markings():
    population = Population(normal=1, other_infection=0, covid=0, pneumothorax=1, edema=0)
    without = Population(normal=1, other_infection=0, covid=0, pneumothorax=0, edema=0)
    rough = []
    for i in range(10):
        air, full = (phantom(7, i, 256, population=p) for p in (population, without))
        box = air["boxes"][air["box_label"] == FINDING["pneumothorax"]].astype(int)
        assert len(box) == 1
        visit = _visit_of(7, i, population)
        outline = pleural_air(visit.chest)[0]
        mask = np.zeros((256, 256), np.uint8)
        visit.pen.fill(mask, outline)
        mask = cv2.erode(mask, np.ones((9, 9))) > 200
        # Darker, and flatter once ribs, which both films share, are taken out.
        both = [f["image"][mask].astype(float) for f in (air, full)]
        assert both[0].mean() < both[1].mean()
        rough.append(visit.markings(without)[mask].mean() - visit.markings(population)[mask].mean())
    assert np.mean(rough) > 0.03


class _visit_of:
    """The drawn chest of a film, to look at one layer alone."""

    def __init__(self, seed, index, population):
        self.patient = Patient(np.random.default_rng([seed, index // 2, 0]), population)
        rng = np.random.default_rng([seed, index, 1])
        self.visit = Visit(rng, self.patient, population)
        self.chest = Chest(self.patient, self.visit)
        self.pen = Pen(256, self.visit.pose)

    def markings(self, population):
        vessels = vessel_shadow(self.pen, self.chest)
        signs = Signs(self.pen, self.chest)
        return vessels * (1 - signs.air) if population.pneumothorax else vessels


def test_effusion_takes_lung_from_the_angle():
    population = Population(normal=1, other_infection=0, covid=0, pleural_effusion=1)
    dry = Population(normal=1, other_infection=0, covid=0, pleural_effusion=0)
    for i in range(8):
        wet, clear = phantom(5, i, 128, population=population), phantom(5, i, 128, population=dry)
        label = FINDING["pleural effusion"]
        x0, y0, x1, y1 = wet["boxes"][wet["box_label"] == label][0]
        (x0, y0), (x1, y1) = np.floor((x0, y0)).astype(int), np.ceil((x1, y1)).astype(int)
        lost = (clear["lungs"] > 0) & (wet["lungs"] == 0)
        assert lost[y0:y1, x0:x1].sum() > 0.97 * lost.sum() > 0
        assert wet["image"][lost].mean() > clear["image"][lost].mean() + 10


def test_large_hearts_are_large(busy):
    def share(record):
        heart = record["regions"][REGION["cardiac silhouette"]]
        lungs = np.nonzero(record["lungs"].any(axis=0))[0]
        return (heart[2] - heart[0]) / (lungs[-1] + 1 - lungs[0])

    large = [r["findings"][FINDING["cardiomegaly"]] == 1 for r in busy]
    shares = np.array([share(r) for r in busy])
    assert shares[large].min() > 0.53
    assert shares[~np.array(large)].max() < 0.57


def test_heavy_raises_severity():
    light, heavy = (
        np.mean(
            [
                phantom(0, i, 128, population=Population(disease_extent=h))["severity"]
                for i in range(40)
            ]
        )
        for h in (0.0, 1.0)
    )
    assert heavy > 1.3 * light


def test_shifted_scanner_shows_the_same_patients_otherwise():
    for i in range(6):
        a, b = phantom(0, i, 128), phantom(0, i, 128, population=Population(appearance="shifted"))
        for key in ("lungs", "lesion", "severity", "findings"):
            assert np.array_equal(a[key], b[key]), key
        assert np.abs(a["image"].astype(int) - b["image"]).mean() > 10


def test_films_have_the_tones_of_films(usual):
    for record in usual:
        image, lungs = record["image"], record["lungs"] > 0
        assert image.std() > 25
        middle = image[90:, 56:72]  # spine and abdomen
        assert np.median(image[lungs]) + 30 < np.median(middle)


@pytest.mark.parametrize(
    "call, word",
    [
        (lambda: phantom(-1, 0), "seed"),
        (lambda: phantom(0, -1), "index"),
        (lambda: phantom(0, 0, 64), "128..1024"),
        (lambda: phantom(0, 0, 2048), "128..1024"),
        (lambda: Population(covid=0.9), "must be 1"),
        (lambda: Population(edema=1.5), "population.edema"),
        (lambda: Population(appearance="film"), "appearance"),
    ],
)
def test_refuses_bad_arguments(call, word):
    with pytest.raises(InputError, match=word):
        call()
