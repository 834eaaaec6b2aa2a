"""Chance: what is drawn, in unit coordinates. A patient is shared by two films, a visit is one.

Every draw has its place in the stream: one that is added or left out changes all films after it.
"""

import dataclasses

import numpy as np

from cxr_jax.data.phantoms.population import Population

NORMAL, OTHER_INFECTION, COVID = 0, 1, 2  # diagnoses

# Lateral distance and height of the right and the left hilum in the standard chest.
HILUM = np.array([[0.095, 0.425], [0.095, 0.413]])
VESSEL_GENERATIONS = 4


class Patient:
    """Anatomy, sex, habitus and diagnosis of one patient."""

    def __init__(self, rng: np.random.Generator, population: Population):
        shares = (population.normal, population.other_infection, population.covid)
        self.diagnosis = int(np.searchsorted(np.cumsum(shares)[:2], rng.random(), side="right"))
        self.large_heart = bool(rng.random() < population.cardiomegaly)
        self.female = bool(rng.random() < 0.5)
        self.breast = rng.uniform(0.5, 1.0) if self.female and rng.random() < 0.75 else 0.0
        self.fat = rng.uniform(0.0, 1.0) ** 1.2
        self.arms = rng.uniform(-0.09, 0.03)  # how far the arms hang from the trunk
        self.width = rng.uniform(0.93, 1.06)
        self.height = rng.uniform(0.95, 1.06)
        self.lung_jitter = rng.normal(0, 0.0045, (2, 14, 2))
        self.dome = rng.uniform(0.010, 0.032)  # right dome above the left one
        self.dome_arch = rng.uniform(0.75, 1.2)
        self.heart_share = rng.uniform(0.40, 0.485)
        self.large_heart_share = rng.uniform(0.575, 0.66)
        self.heart_tilt = rng.uniform(-1, 1)
        self.knob = rng.uniform(0.6, 1.25)
        self.rib_tilt = rng.uniform(-0.012, 0.022)
        self.rib_pitch = rng.uniform(0.057, 0.063)
        self.rib_width = rng.uniform(0.0115, 0.0145)
        self.rib_jitter = rng.normal(0, 0.003, (2, 12))
        self.bone = rng.uniform(0.6, 1.1)
        self.scoliosis = rng.normal(0, 0.006)
        self.clavicle_tilt = rng.uniform(-0.025, 0.035)
        self.vascularity = rng.uniform(0.75, 1.2)
        self.scapula = rng.uniform(-0.02, 0.03)
        self.tree = _vessel_tree(rng)
        self.fissure = bool(rng.random() < 0.25)


def _vessel_tree(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two branching trees (right, left) of one patient.

    Returns:
      For each generation (paths [n, 4, 2], widths [n]); the first half is the right lung's, the
      paths are (lateral distance, height) of the standard chest.
    """
    fan = np.deg2rad(np.array([-84, -62, -40, -14, 14, 36, 54, 70, 86.0]))
    angle = np.tile(fan, 2) + rng.normal(0, 0.16, 2 * len(fan))
    at = np.repeat(HILUM, len(fan), axis=0)
    at = at + np.stack([0.004 * np.cos(angle), 0.035 * np.sin(angle)], axis=1)
    width = np.tile(0.0125 * np.array([0.75, 0.75, 0.68, 0.65, 0.75, 0.9, 1.0, 1.0, 0.85]), 2)
    length = 0.076 * rng.uniform(0.5, 1.25, angle.shape)
    tree = []
    for _ in range(VESSEL_GENERATIONS):
        n = len(angle)
        bend = rng.normal(0, 0.38, (n, 1))
        theta = angle[:, None] + bend * [0, 0.5, 1]
        hop = np.stack([np.cos(theta), np.sin(theta)], axis=-1) * (length / 3)[:, None, None]
        path = np.concatenate([at[:, None], at[:, None] + np.cumsum(hop, axis=1)], axis=1)
        tree.append((path, width))
        at = np.repeat(path[:, -1], 2, axis=0)
        angle = (angle[:, None] + bend + rng.uniform(0.16, 0.55, (n, 2)) * [1, -1]).ravel()
        width = (width[:, None] * rng.uniform(0.55, 0.8, (n, 2))).ravel()
        length = (length[:, None] * rng.uniform(0.6, 1.0, (n, 2))).ravel()
    return tree


class Visit:
    """One film of a patient: view, pose, inspiration, disease of the day, technique."""

    def __init__(self, rng: np.random.Generator, patient: Patient, population: Population):
        self.view = "AP" if rng.random() < population.ap else "PA"
        ap = self.view == "AP"
        self.pose = _pose(rng, ap)
        self.inspiration = rng.uniform(0.80, 0.97) if ap else rng.uniform(0.93, 1.07)
        self.turned = rng.normal(0, 0.008)  # patient turned about the long axis
        share = patient.large_heart_share if patient.large_heart else patient.heart_share
        self.heart_share = share + (0.035 if ap else 0.0) + rng.uniform(-0.008, 0.008)

        self.edema = bool(rng.random() < population.edema)
        self.atelectasis = _side_or_none(rng, population.atelectasis)
        self.pneumothorax = _side_or_none(rng, population.pneumothorax)
        self.effusion = _side_or_none(rng, population.pleural_effusion)
        if self.effusion is not None and self.effusion == self.pneumothorax:
            self.pneumothorax = 1 - self.pneumothorax  # air over fluid has no meniscus: not drawn
        if self.atelectasis is not None and self.atelectasis == self.effusion:
            self.atelectasis = 1 - self.atelectasis  # the fluid would hide the bands
        self.devices = _choose_devices(rng, population, ap)
        self.fluid = rng.uniform(0.07, 0.20)
        self.air = rng.uniform(0.26, 0.46)
        self.air_end = rng.uniform(0.45, 0.75)
        self.bands = _choose_bands(rng)
        self.stomach = rng.random() < 0.6
        self.stomach_shape = rng.uniform([-0.02, 0.04, 0.035, 0.020], [0.05, 0.08, 0.07, 0.045])
        self.bowel = rng.uniform(size=(4, 4)) if rng.random() < 0.4 else np.zeros((0, 4))
        self.infection = _choose_infection(rng, patient, population)
        self.edema_amount = rng.uniform(0.30, 0.55)
        self.edema_upper = bool(rng.random() < 0.4)
        self.technique = _choose_technique(rng, population, ap)


def _pose(rng: np.random.Generator, ap: bool) -> np.ndarray:
    """Affine map [2, 3] from the patient's frame to the film's, 0..1."""
    angle = np.deg2rad(rng.normal(0, 2.2 if ap else 1.2))
    scale = rng.uniform(1.05, 1.24) * (1.02 if ap else 1.0)
    stretch = rng.uniform(0.95, 1.05)
    shift = rng.normal(0, 0.012, 2)
    cos, sin = np.cos(angle), np.sin(angle)
    turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([scale * stretch, scale / stretch])
    centre = np.array([0.0, 0.46])
    offset = np.array([0.5, 0.50]) + shift - turn @ centre
    return np.concatenate([turn, offset[:, None]], axis=1)


def _side_or_none(rng: np.random.Generator, rate: float) -> int | None:
    """0 right, 1 left, None absent; draws the same number of values either way."""
    there, side = rng.random(2)
    return int(side < 0.5) if there < rate else None


def _choose_devices(rng: np.random.Generator, population: Population, ap: bool) -> tuple:
    """Names of the devices on the film, with one seed each for their course."""
    there = rng.random() < population.support_devices
    draws, seeds = rng.random(5), rng.integers(0, 2**31, 5)
    names = ("tube", "line", "gastric", "leads", "pacemaker")
    odds = (0.45, 0.6, 0.35, 0.6, 0.1) if ap else (0.0, 0.35, 0.0, 0.35, 0.5)
    if not there:
        return ()
    chosen = [(n, int(s)) for n, d, o, s in zip(names, draws, odds, seeds) if d < o]
    return tuple(chosen) or (("line", int(seeds[1])),)


@dataclasses.dataclass(frozen=True)
class Band:
    """A plate of atelectasis; lengths in units of the film's width."""

    lateral: float  # distance of its middle from the midline
    above: float  # height of its middle above the diaphragm
    length: float
    slope: float
    thick: float


def _choose_bands(rng: np.random.Generator) -> list[Band]:
    n = rng.integers(1, 4)
    drawn = (
        rng.uniform(0.10, 0.24, n),
        rng.uniform(0.06, 0.17, n),
        rng.uniform(0.09, 0.16, n),
        rng.uniform(-0.35, 0.25, n),
        rng.uniform(0.006, 0.011, n),
    )
    return [Band(*values) for values in zip(*drawn)]


@dataclasses.dataclass(frozen=True)
class Infection:
    """Which zones an infection takes and how much of each; rows upper to lower, right, left.

    Attributes:
      style: 'patchy' (COVID-19, and where there is none) or 'lobar'.
      positive: bool [3, 2].
      cover: [3, 2], share of the zone that is covered.
      dense: [3, 2], share of the cover that is consolidated.
      soft: how wide the edge of an opacity is.
      filling, solid_filling: share of the air that ground glass fills, and consolidation on top.
      bronchograms: whether airways show in consolidation.
      place: [2, 2], of each lung: lateral distance of a lobar focus and how far it leans.
    """

    style: str
    positive: np.ndarray
    cover: np.ndarray
    dense: np.ndarray
    soft: float
    filling: float
    solid_filling: float
    bronchograms: bool
    place: np.ndarray


def _choose_infection(
    rng: np.random.Generator, patient: Patient, population: Population
) -> Infection:
    """COVID-19: both lungs as a rule, lower before upper zones, ground glass before consolidation.

    Other infection: one lung as a rule, one or two neighbouring zones, consolidated.
    """
    extent = population.disease_extent
    grade = rng.beta(1.6 + 2 * extent, 1.8)
    u, cover, dense = rng.random((3, 2)), rng.random((3, 2)), rng.random((3, 2))
    side, both, first, spread = rng.random(4)
    side = int(side < 0.5)
    if patient.diagnosis == OTHER_INFECTION:
        positive = _lobar_zones(first, side=side, spread=spread, both=both, extent=extent)
        amount = 0.28 + 0.38 * cover + 0.05 * extent
        if positive[1].any() and positive.sum() == 1:
            amount = 0.6 * amount  # a round focus, not a band from cut to cut
        solid = 0.45 + 0.35 * dense
    else:
        positive = _patchy_zones(u, side=side, both=both, grade=grade)
        amount = 0.14 + (0.22 + 0.30 * grade + 0.12 * extent) * cover + 0.08 * extent
        chance = 0.25 + 0.45 * grade + 0.3 * extent
        solid = np.where(dense < chance, 0.15 + (0.25 + 0.35 * extent) * (1 - dense), 0.0)
    positive &= patient.diagnosis != NORMAL
    lobar = patient.diagnosis == OTHER_INFECTION
    return Infection(
        style="lobar" if lobar else "patchy",
        positive=positive,
        cover=np.where(positive, amount, 0.0),
        dense=np.where(positive, solid, 0.0),
        soft=0.7 if lobar else 1.1,
        filling=rng.uniform(0.30, 0.42) + 0.05 * extent,
        solid_filling=rng.uniform(0.24, 0.38),
        bronchograms=rng.random() < 0.6,
        place=rng.uniform([0.14, -0.4], [0.26, 0.4], (2, 2)),
    )


def _patchy_zones(u: np.ndarray, *, side: int, both: float, grade: float) -> np.ndarray:
    """bool [3, 2]: the zones that COVID-19 of this grade takes."""
    chance = np.array([0.12, 0.45, 0.70])[:, None] + np.array([0.55, 0.55, 0.35])[:, None] * grade
    positive = u < chance
    if both < 0.12:  # a one-sided case
        positive[:, side] = False
    if not positive.any():
        positive[2, side] = True
    return positive


def _lobar_zones(
    first: float, *, side: int, spread: float, both: float, extent: float
) -> np.ndarray:
    """bool [3, 2]: the zone where another infection begins, and those it spreads to."""
    positive = np.zeros((3, 2), bool)
    start = 2 if first < 0.5 else 1 if first < 0.75 else 0
    positive[start, side] = True
    if spread < 0.4 + 0.3 * extent:
        positive[1 if start != 1 else 2, side] = True
    if both < 0.08 + 0.2 * extent:
        positive[2, :] = True
    return positive


@dataclasses.dataclass(frozen=True)
class Technique:
    """Exposure, scatter, display and borders of a film.

    Attributes:
      thickness: attenuation of the middle of the trunk.
      scatter: scattered light as a share of the rest.
      noise: of the detector, as a share of the light at 256 px.
      blur: of the detector, in units of the film's width.
      low, high: density where the display's black ends, and its white as a multiple of the trunk's.
      gamma, curve: of the display: exponent, and share of an S-shaped curve.
      detail: how much it sharpens.
      heel: [2], relative change of density across the film and down it.
      border, field: chance of collimation, and its margins [4].
      marker: [4], chance of a side marker, its side, and where it lies.
      grid: strength of the lines of an anti-scatter grid.
    """

    thickness: float
    scatter: float
    noise: float
    blur: float
    low: float
    high: float
    gamma: float
    curve: float
    detail: float
    heel: np.ndarray
    border: float
    field: np.ndarray
    marker: np.ndarray
    grid: float = 0.0


def _choose_technique(rng: np.random.Generator, population: Population, ap: bool) -> Technique:
    technique = Technique(
        thickness=rng.uniform(2.9, 3.5),
        scatter=rng.uniform(0.35, 0.8) * (1.3 if ap else 1.0),
        noise=rng.uniform(0.006, 0.016) * (1.5 if ap else 1.0),
        blur=rng.uniform(0.45, 0.8) / 256,
        low=rng.uniform(0.05, 0.35),
        high=rng.uniform(1.18, 1.5),
        gamma=rng.uniform(0.85, 1.2),
        curve=rng.uniform(0.0, 0.6),
        detail=rng.uniform(0.1, 0.7),
        heel=rng.normal(0, 0.06, 2),
        border=rng.random(),
        field=rng.uniform(0.0, 0.04, 4) * (rng.random(4) < 0.6),
        marker=rng.random(4),
    )
    other = rng.random(6)  # drawn for both scanners, so that all later draws are the same
    if population.appearance != "shifted":
        return technique
    return dataclasses.replace(
        technique,
        scatter=1.7 * technique.scatter,
        noise=2.4 * technique.noise,
        blur=(0.8 + 0.4 * other[0]) / 256,
        gamma=1.25 + 0.45 * other[1],
        low=0.3 + 0.25 * other[2],
        high=1.05 + 0.25 * other[3],
        curve=0.0,
        detail=0.15 * other[4],
        grid=0.012 + 0.018 * other[5],
    )
