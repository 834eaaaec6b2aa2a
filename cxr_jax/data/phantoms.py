"""Chest film phantoms: drawn radiographs with exact truth for every field of a record.

`phantom(seed, index)` draws one film. Anatomy is laid out in the patient's frame (x = 0 is the
midline, positive towards the patient's left, y runs down, the film is one unit wide), moved to the
film by one affine map, and drawn as an attenuation map A: soft tissue times the share of it that is
not air, plus bone, vessels and devices. The film is then exposed,

    I = (exp(-A) + f * scatter(exp(-A))) / (1 + f) + noise,      v = curve(-log I),

so that what is dense is bright and what lies behind the heart keeps little contrast, as on real
films. What is filled with fluid takes the place of air, so ribs and vessels still show through.

Exact truth. Masks and boxes are taken from the very shapes that are drawn:

* `lungs`: the air-filled fields as a reader outlines them, from apex to diaphragm (or to the top of
  a pleural effusion) and to the mediastinum; the part behind the heart belongs to them.
* `lesion`: pixels where a lesion's opacity is at least 35% of its peak. Outside the positive zones
  the opacity is exactly 0.
* `severity`: of the burden b = (ground glass + 2 x consolidation pixels) / lung pixels of the zone:
  0 where the zone has no lesion pixel, 1 for b < 0.3, 2 for b < 0.6, else 3.
* Edema is an opacity: it counts in `lesion` and `severity`. Atelectasis, effusion and pneumothorax
  are findings with boxes, not lesions.
* `diagnosis` names the infection only: a 'normal' film may show a large heart or a tube.

Phantoms are not patients. They serve to test code and to see whether a model can learn at all;
a number measured on them claims nothing about any patient or any reader.
"""

import dataclasses
import functools

import cv2
import numpy as np

from cxr_jax.data.records import FINDINGS, REGIONS, Record
from cxr_jax.errors import InputError

APPEARANCES = ("standard", "shifted")
MIN_SIZE, MAX_SIZE = 128, 1024

# Cuts between the lung zones, as shares of each lung's top to bottom extent (PAPERS: zones).
ZONE_CUTS = (5 / 12, 2 / 3)
# Burdens from which a zone scores 2 and 3.
SEVERITY_CUTS = (0.3, 0.6)
# A lesion ends where its opacity falls under this share of its peak.
LESION_CUT = 0.35
# A positive zone whose lesion covers less than this share of it is cleared: no spill, no doubt.
LEAST_COVER = 0.04

GROUND_GLASS, CONSOLIDATION = 1, 2
NORMAL, OTHER_INFECTION, COVID = 0, 1, 2

# Smooth fields (lesions, thickness) are laid out on this many cells whatever the film's size.
_LATTICE = 96

_FINDING = {name: i for i, name in enumerate(FINDINGS)}
_REGION = {name: i for i, name in enumerate(REGIONS)}
_SIDES = (("right", -1.0), ("left", 1.0))
_LUNG_REGIONS = (
    "lung",
    "upper lung zone",
    "mid lung zone",
    "lower lung zone",
    "hilar structures",
    "apical zone",
    "costophrenic angle",
)

_UNIT = np.arange(256, dtype=np.float32) / 255

# Lateral distance and height of the right and the left hilum in the standard chest.
_HILUM = np.array([[0.095, 0.425], [0.095, 0.413]])
# How dark each generation of vessels is drawn, 0..255.
_VESSEL_SHADES = (220, 180, 130, 85)


@dataclasses.dataclass(frozen=True)
class Population:
    """Who is filmed, and on what machine.

    Attributes:
      normal, other_infection, covid: shares of the three diagnoses; they must sum to 1.
      cardiomegaly, edema, atelectasis, pneumothorax, pleural_effusion, support_devices: chance of
        each finding on a film (of cardiomegaly: for a patient), whatever the diagnosis.
      ap: share of AP (bedside) films.
      appearance: 'standard', or 'shifted' for another scanner (contrast, noise, grid, exposure).
      heavy: 0..1, raises how much of the infected lungs is covered and consolidated.

    Raises:
      InputError: a share or rate outside 0..1, shares that do not sum to 1, an unknown appearance.
    """

    normal: float = 0.35
    other_infection: float = 0.15
    covid: float = 0.50
    cardiomegaly: float = 0.06
    edema: float = 0.03
    atelectasis: float = 0.06
    pneumothorax: float = 0.06
    pleural_effusion: float = 0.06
    support_devices: float = 0.15
    ap: float = 0.40
    appearance: str = "standard"
    heavy: float = 0.0

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if field.name != "appearance" and not 0 <= value <= 1:
                raise InputError(f"population.{field.name}={value!r} must lie in 0..1")
        total = self.normal + self.other_infection + self.covid
        if abs(total - 1) > 1e-6:
            raise InputError(
                f"population: normal + other_infection + covid = {total:g} must be 1; "
                "give all three shares"
            )
        if self.appearance not in APPEARANCES:
            raise InputError(
                f"population.appearance={self.appearance!r}; expected one of {APPEARANCES}"
            )


def phantom(
    seed: int, index: int, size: int = 256, *, population: Population | None = None
) -> Record:
    """Draws film `index` of the phantom data set `seed`.

    Films 2k and 2k + 1 are one patient (`group`): they share anatomy and diagnosis; pose,
    inspiration, view, exposure, extent of disease, fluid, air and devices differ. The record
    depends on the four arguments only, and the anatomy not on `size`: pictures of another size are
    the same films, sampled finer or coarser (their noise grains differ).

    Args:
      seed: the data set, >= 0.
      index: the film, >= 0.
      size: height and width, 128..1024 px.
      population: who is filmed; default `Population()`.

    Returns:
      A record with every field of `cxr_jax.data.records` but `severity_second`: image, lungs,
      lesion, lesion_type uint8 [size, size]; severity int8 [3, 2]; severity_valid bool [3, 2] (all
      true); findings float32 [10] of 0 and 1; regions float32 [29, 4] (xyxy px, NaN where out of
      view), region_present bool [29], region_findings float32 [29, 10] of 0 and 1 (all 0 where
      out of view); boxes float32 [M, 4] (xyxy px), box_label int32 [M]; diagnosis int; id, group,
      view str. Boxes hold pixels x0 <= x < x1; a border of at most 4% of the
      film may cover the rim of a region other than the lungs.

    Raises:
      InputError: a negative seed or index, a size outside 128..1024.
    """
    population = Population() if population is None else population
    if seed < 0 or index < 0:
        raise InputError(f"phantom seed={seed}, index={index} must not be negative")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"phantom size={size} px must lie in {MIN_SIZE}..{MAX_SIZE}")
    return _film(seed, index, size, population, lesions=True)


def _film(seed: int, index: int, size: int, population: Population, *, lesions: bool) -> Record:
    """The record; with `lesions` False its image lacks them, all else (and the truth) equal."""
    patient = _Patient(np.random.default_rng([seed, index // 2, 0]), population)
    rng = np.random.default_rng([seed, index, 1])
    visit = _Visit(rng, patient, population)
    chest = _Chest(patient, visit)
    pen = _Pen(size, visit.pose)

    lungs = _lung_labels(pen, chest, size)
    zones = _zones(lungs)
    wall = _wall_distance(pen, chest)
    texture = _Texture(rng)
    sick = _lesions(pen, chest, wall, zones, texture)
    devices = _devices(pen, chest, visit)
    signs = _Signs(pen, chest, visit)

    density = _attenuation(pen, chest, wall, sick if lesions else None, texture, signs)
    for layer in devices:
        cv2.scaleAdd(pen.down(layer).astype(np.float32), 0.75 / 255, density, dst=density)
    image = _expose(density, pen, visit, rng)
    _borders(image, lungs, visit.technique)
    _markers(image, visit)

    record = {
        "image": image,
        "id": f"phantom-{seed}-{index}",
        "group": f"phantom-{seed}-{index // 2}",
        "view": visit.view,
        "lungs": lungs,
        "severity": sick.severity,
        "severity_valid": np.ones((3, 2), bool),
        "diagnosis": patient.diagnosis,
        "lesion": (sick.kind > 0).astype(np.uint8),
        "lesion_type": sick.kind,
    }
    record.update(_truth(pen, chest, lungs, zones, sick, signs, devices))
    return record


# ---------------------------------------------------------------------------------------------
# Chance: what is drawn, in unit coordinates. A patient is shared by two films, a visit is one.
# ---------------------------------------------------------------------------------------------


class _Patient:
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


class _Visit:
    """One film of a patient: view, pose, inspiration, disease of the day, technique."""

    def __init__(self, rng: np.random.Generator, patient: _Patient, population: Population):
        self.view = "AP" if rng.random() < population.ap else "PA"
        ap = self.view == "AP"
        angle = np.deg2rad(rng.normal(0, 2.2 if ap else 1.2))
        scale = rng.uniform(1.05, 1.24) * (1.02 if ap else 1.0)
        stretch = rng.uniform(0.95, 1.05)
        shift = rng.normal(0, 0.012, 2)
        cos, sin = np.cos(angle), np.sin(angle)
        turn = np.array([[cos, -sin], [sin, cos]]) @ np.diag([scale * stretch, scale / stretch])
        centre = np.array([0.0, 0.46])
        offset = np.array([0.5, 0.50]) + shift - turn @ centre
        self.pose = np.concatenate([turn, offset[:, None]], axis=1)
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
        bands = rng.integers(1, 4)
        self.bands = np.stack(
            [
                rng.uniform(0.10, 0.24, bands),  # lateral position
                rng.uniform(0.06, 0.17, bands),  # above the diaphragm
                rng.uniform(0.09, 0.16, bands),  # length
                rng.uniform(-0.35, 0.25, bands),  # slope
                rng.uniform(0.006, 0.011, bands),  # thickness
            ],
            axis=1,
        )
        self.stomach = rng.random() < 0.6
        self.stomach_shape = rng.uniform([-0.02, 0.04, 0.035, 0.020], [0.05, 0.08, 0.07, 0.045])
        self.bowel = rng.uniform(size=(4, 4)) if rng.random() < 0.4 else np.zeros((0, 4))
        self.extent = _choose_extent(rng, patient, population)
        self.edema_amount = rng.uniform(0.30, 0.55)
        self.edema_upper = bool(rng.random() < 0.4)
        self.technique = _choose_technique(rng, population, ap)


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


def _choose_extent(rng: np.random.Generator, patient: _Patient, population: Population) -> dict:
    """Which zones the infection takes and how much of each: `cover` and `dense` [3, 2], `style`.

    COVID-19: both lungs as a rule, lower before upper zones, ground glass before consolidation.
    Other infection: one lung as a rule, one or two neighbouring zones, consolidated.
    """
    heavy = population.heavy
    grade = rng.beta(1.6 + 2 * heavy, 1.8)
    u, cover, dense = rng.random((3, 2)), rng.random((3, 2)), rng.random((3, 2))
    side, both, first, spread = rng.random(4)
    covid = np.array([0.12, 0.45, 0.70])[:, None] + np.array([0.55, 0.55, 0.35])[:, None] * grade
    positive = u < covid
    if both < 0.12:  # a one-sided case
        positive[:, int(side < 0.5)] = False
    if not positive.any():
        positive[2, int(side < 0.5)] = True
    amount = 0.14 + (0.22 + 0.30 * grade + 0.12 * heavy) * cover + 0.08 * heavy
    chance = 0.25 + 0.45 * grade + 0.3 * heavy
    solid = np.where(dense < chance, 0.15 + (0.25 + 0.35 * heavy) * (1 - dense), 0.0)
    style = "patchy"
    if patient.diagnosis == OTHER_INFECTION:
        positive = np.zeros((3, 2), bool)
        start = 2 if first < 0.5 else 1 if first < 0.75 else 0
        positive[start, int(side < 0.5)] = True
        if spread < 0.4 + 0.3 * heavy:
            positive[1 if start != 1 else 2, int(side < 0.5)] = True
        if both < 0.08 + 0.2 * heavy:
            positive[2, :] = True
        amount = 0.28 + 0.38 * cover + 0.05 * heavy
        if positive[1].any() and positive.sum() == 1:
            amount = 0.6 * amount  # a round focus, not a band from cut to cut
        solid = 0.45 + 0.35 * dense
        style = "lobar"
    if patient.diagnosis == NORMAL:
        positive = np.zeros((3, 2), bool)
    return {
        "style": style,
        "positive": positive,
        "cover": np.where(positive, amount, 0.0),
        "dense": np.where(positive, solid, 0.0),
        "soft": 0.7 if style == "lobar" else 1.1,
        "filling": rng.uniform(0.30, 0.42) + 0.05 * heavy,
        "solid_filling": rng.uniform(0.24, 0.38),
        "bronchograms": rng.random() < 0.6,
        "place": rng.uniform([0.14, -0.4], [0.26, 0.4], (2, 2)),
    }


def _choose_technique(rng: np.random.Generator, population: Population, ap: bool) -> dict:
    """Exposure, scatter, display and borders of the film."""
    shifted = population.appearance == "shifted"
    technique = {
        "thickness": rng.uniform(2.9, 3.5),
        "scatter": rng.uniform(0.35, 0.8) * (1.3 if ap else 1.0),
        "noise": rng.uniform(0.006, 0.016) * (1.5 if ap else 1.0),
        "blur": rng.uniform(0.45, 0.8) / 256,
        "low": rng.uniform(0.05, 0.35),
        "high": rng.uniform(1.18, 1.5),
        "gamma": rng.uniform(0.85, 1.2),
        "curve": rng.uniform(0.0, 0.6),
        "detail": rng.uniform(0.1, 0.7),
        "heel": rng.normal(0, 0.06, 2),
        "border": rng.random(),
        "field": rng.uniform(0.0, 0.04, 4) * (rng.random(4) < 0.6),
        "marker": rng.random(4),
        "grid": 0.0,
    }
    other = rng.random(6)  # drawn for both scanners, so that all later draws are the same
    if shifted:
        technique["scatter"] *= 1.7
        technique["noise"] *= 2.4
        technique["blur"] = (0.8 + 0.4 * other[0]) / 256
        technique["gamma"] = 1.25 + 0.45 * other[1]
        technique["low"] = 0.3 + 0.25 * other[2]
        technique["high"] = 1.05 + 0.25 * other[3]
        technique["curve"] = 0.0
        technique["detail"] = 0.15 * other[4]
        technique["grid"] = 0.012 + 0.018 * other[5]
    return technique


def _vessel_tree(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two branching trees (right, left) of one patient.

    Returns:
      For each generation (paths [n, 4, 2], widths [n]); the first half is the right lung's, the
      paths are (lateral distance, height) of the standard chest.
    """
    fan = np.deg2rad(np.array([-84, -62, -40, -14, 14, 36, 54, 70, 86.0]))
    angle = np.tile(fan, 2) + rng.normal(0, 0.16, 2 * len(fan))
    at = np.repeat(_HILUM, len(fan), axis=0)
    at = at + np.stack([0.004 * np.cos(angle), 0.035 * np.sin(angle)], axis=1)
    width = np.tile(0.0125 * np.array([0.75, 0.75, 0.68, 0.65, 0.75, 0.9, 1.0, 1.0, 0.85]), 2)
    length = 0.076 * rng.uniform(0.5, 1.25, angle.shape)
    tree = []
    for _ in _VESSEL_SHADES:
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


# ---------------------------------------------------------------------------------------------
# Geometry in the patient's frame.
# ---------------------------------------------------------------------------------------------


def _xy(x, y) -> np.ndarray:
    return np.stack([np.asarray(x, float), np.asarray(y, float)], axis=1)


@functools.cache
def _spline_basis(n: int) -> np.ndarray:
    t = np.arange(n)[:, None] / n
    powers = np.concatenate([np.ones_like(t), t, t**2, t**3], axis=1)
    basis = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    return powers @ basis


def _curve(points, n: int = 6) -> np.ndarray:
    """Catmull-Rom curve through [k, 2] points: [(k - 1) * n + 1, 2]."""
    points = np.asarray(points, float)
    k = len(points) - 1
    ends = np.concatenate([points[:1], points, points[-1:]])
    windows = np.stack([ends[i : i + k] for i in range(4)], axis=1)  # [k, 4, 2]
    body = _spline_basis(n) @ windows  # [k, n, 2]
    return np.concatenate([body.reshape(-1, 2), points[-1:]])


@functools.cache
def _bezier_basis(n: int) -> np.ndarray:
    t = np.linspace(0, 1, n)[:, None]
    return np.concatenate([(1 - t) ** 3, 3 * t * (1 - t) ** 2, 3 * t**2 * (1 - t), t**3], axis=1)


def _edges(path: np.ndarray, half_width) -> tuple[np.ndarray, np.ndarray]:
    """Both edges of bands around `path` [..., n, 2]; `half_width` broadcasts to [..., n]."""
    along = np.empty_like(path)
    along[..., 1:-1, :] = path[..., 2:, :] - path[..., :-2, :]
    along[..., 0, :] = path[..., 1, :] - path[..., 0, :]
    along[..., -1, :] = path[..., -1, :] - path[..., -2, :]
    half = half_width / (np.hypot(along[..., 0], along[..., 1]) + 1e-9)
    across = np.stack([-along[..., 1] * half, along[..., 0] * half], axis=-1)
    return path + across, path - across


def _ring(path: np.ndarray, half_width) -> np.ndarray:
    one, other = _edges(path, half_width)
    return np.concatenate([one, other[..., ::-1, :]], axis=-2)


@functools.cache
def _circle(n: int) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    return _xy(np.cos(t), np.sin(t))


def _ellipse(centre, radii, n: int = 20) -> np.ndarray:
    """[..., n, 2] ellipses around [..., 2] centres."""
    return np.asarray(centre)[..., None, :] + _circle(n) * radii


# A right lung, lateral distance from the midline and height: from the mediastinum over the apex
# to the costophrenic angle, along the diaphragm to the midline, and up the mediastinum.
_LATERAL = _xy(
    [0.056, 0.060, 0.083, 0.130, 0.188, 0.247, 0.296, 0.325, 0.341, 0.347, 0.343],
    [0.300, 0.200, 0.137, 0.110, 0.135, 0.210, 0.335, 0.470, 0.600, 0.700, 0.785],
)
_DIAPHRAGM = _xy(
    [0.343, 0.325, 0.275, 0.205, 0.135, 0.072], [0.785, 0.748, 0.706, 0.688, 0.699, 0.728]
)
_MEDIAL = _xy([0.072, 0.060, 0.054, 0.056], [0.728, 0.620, 0.460, 0.300])


class _Chest:
    """The outlines of one film in the patient's frame."""

    def __init__(self, patient: _Patient, visit: _Visit):
        self.patient, self.visit = patient, visit
        self.lateral, self.diaphragm, self.lung = [], [], []
        self.fluid: np.ndarray | None = None
        for s, (_, sign) in enumerate(_SIDES):
            lateral, diaphragm, medial = (
                self.place(part, sign) for part in (_LATERAL, _DIAPHRAGM, _MEDIAL)
            )
            jitter = patient.lung_jitter[s]
            lateral[3:-1] += jitter[:7]
            diaphragm[1:-1] += jitter[8:12] * [0.3, 0.8]
            foot = diaphragm[0, 1]
            diaphragm[1:, 1] = foot + (diaphragm[1:, 1] - foot) * patient.dome_arch
            if s == 0:  # the liver
                diaphragm[1:, 1] -= patient.dome
                diaphragm[0, 1] -= 0.5 * patient.dome
            lateral[-1], medial[0] = diaphragm[0], diaphragm[-1]
            self.lateral.append(_curve(lateral))
            self.diaphragm.append(_curve(diaphragm))
            side, base = self.lateral[s], self.diaphragm[s]
            if visit.effusion == s:
                side, base, self.fluid = self._meniscus(s, sign)
            self.lung.append(np.concatenate([side, base[1:], _curve(medial)[1:-1]]))
        self.tip = [diaphragm[0] for diaphragm in self.diaphragm]
        self.thorax_width = self.lateral[1][:, 0].max() - self.lateral[0][:, 0].min()
        self.hilum = [self.place(_HILUM[s : s + 1], g)[0] for s, (_, g) in enumerate(_SIDES)]
        self.clavicle = [self._clavicle(sign) for _, sign in _SIDES]
        self._mediastinum()

    def place(self, points: np.ndarray, sign: float) -> np.ndarray:
        """(lateral distance, height) of the standard chest -> this body, at this breath."""
        x, y = points[..., 0], points[..., 1]
        # Breathing moves what lies below the hila.
        y = np.where(y > 0.30, 0.30 + (y - 0.30) * self.visit.inspiration, y)
        x = sign * x * self.patient.width + self.visit.turned * np.maximum(0, 1 - x / 0.2)
        return np.stack([x, 0.46 + (y - 0.46) * self.patient.height], axis=-1)

    def wall(self, y: np.ndarray, side: int) -> np.ndarray:
        """|x| of the inner chest wall at heights `y`; below the lung it runs straight down."""
        edge = self.lateral[side][18:]
        return np.interp(y, edge[:, 1], np.abs(edge[:, 0]))

    def _meniscus(self, s: int, sign: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """A pleural effusion: (lateral edge cut short, lung base over the fluid, fluid outline)."""
        lateral, base = self.lateral[s], self.diaphragm[s]
        top = base[:, 1].min() + 0.045 - self.visit.fluid
        last = max(20, 20 + int(np.argmax(lateral[20:, 1] > top)))
        side = lateral[:last]
        foot = min(int(len(base) * (0.45 + 1.6 * self.visit.fluid)), len(base) - 4)
        start, end = side[-1], base[foot]
        # Steep beside the wall, then flat: the fluid climbs the chest wall.
        bend = np.array([start[0] - sign * 0.035, end[1] - 0.010])
        t = np.linspace(0, 1, 12)[:, None]
        edge = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        fluid = np.concatenate([lateral[last:], base[:foot], edge[::-1]])
        return side, np.concatenate([edge, base[foot + 1 :]]), fluid

    def _clavicle(self, sign: float) -> np.ndarray:
        tilt = self.patient.clavicle_tilt - (0.02 if self.visit.view == "AP" else 0.0)
        x = np.array([0.030, 0.075, 0.15, 0.24, 0.32, 0.40]) * self.patient.width
        y = np.array([0.205, 0.190, 0.168, 0.138, 0.118, 0.122])
        y = y - tilt * np.array([0.0, 0.0, 0.4, 0.8, 1.0, 1.0])
        return _curve(_xy(sign * x + self.visit.turned, y))

    def _mediastinum(self) -> None:
        patient, visit = self.patient, self.visit
        turned = visit.turned
        width = self.thorax_width * visit.heart_share
        right = max(0.076, 0.30 * width) + 0.006 * patient.heart_tilt
        left = width - right
        top = 0.30 + 0.10 * visit.inspiration
        high = float(self.diaphragm[1][20, 1]) - top

        def line(x, share) -> np.ndarray:
            return _xy(np.asarray(x) + 0.5 * turned, top + np.asarray(share) * high)

        x = [-0.048, -0.060, -0.92 * right, -right, -0.99 * right, -0.04, 0.42 * left, 0.82 * left,
             0.97 * left, left, 0.91 * left, 0.67 * left, 0.42 * left, 0.050]  # fmt: skip
        y = [-0.02, 0.18, 0.42, 0.66, 0.97, 1.14, 1.16, 1.11, 0.98, 0.82, 0.55, 0.26, 0.05, -0.10]
        self.heart = _curve(line(x, y))
        self.right_atrium = np.concatenate([self.heart[6:26], line([-0.005], [0.92])])
        k = patient.knob
        self.knob = _ellipse(np.array([0.036 + turned, 0.287]), (0.030 * k + 0.005, 0.034))
        x = [-0.050, -0.047, -0.050, -0.054, -0.052, 0.0, 0.060, 0.058, 0.048, 0.040 + 0.026 * k,
             0.040 + 0.024 * k, 0.045, 0.043, 0.050]  # fmt: skip
        y = [0.02, 0.12, 0.22, 0.32, top + 0.1 * high, top + 0.3 * high, top + 0.14 * high,
             top + 0.01, 0.345, 0.295, 0.262, 0.225, 0.14, 0.02]  # fmt: skip
        self.great_vessels = _curve(_xy(np.asarray(x) + turned, y))
        low = float(self.diaphragm[1].max(axis=0)[1])
        self.prevertebral = _xy(
            np.array([-0.040, -0.052, 0.068, 0.050]) + turned, [top, low, low, top]
        )
        self.svc = _curve(
            _xy(np.array([-0.040, -0.043, -0.043]) + turned, [0.235, 0.32, top + 0.08])
        )
        self.cavoatrial = np.array([-0.050 + turned, top + 0.12 * high])
        self.carina = np.array([-0.004 + turned, 0.30 + 0.045 * visit.inspiration])
        x = np.array([0.0, 0.001, -0.006, -0.004]) + turned
        self.trachea = _curve(_xy(x, [-0.06, 0.10, 0.24, self.carina[1]]))
        x = patient.scoliosis * np.array([0, 1, -1, 0, 0.5])
        self.spine = _curve(_xy(x, [-0.1, 0.2, 0.5, 0.8, 1.1]))


class _Pen:
    """Draws shapes of the patient's frame on square 8-bit layers of any resolution."""

    def __init__(self, size: int, pose: np.ndarray):
        self.size, self.pose = size, pose
        self.scale = float(np.sqrt(abs(np.linalg.det(pose[:, :2]))))
        self._turn, self._offset = np.ascontiguousarray(pose[:, :2].T) * 16, pose[:, 2] * 16

    def layer(self, n: int | None = None) -> np.ndarray:
        """An empty layer of n x n px; default the film's size."""
        return np.zeros((n or self.size, n or self.size), np.uint8)

    def fine_layer(self) -> np.ndarray:
        """A layer for thin lines: at least 512 px wide or the film's size."""
        return self.layer(2 * self.size if self.size <= 384 else self.size)

    def film(self, points: np.ndarray) -> np.ndarray:
        """Patient's frame -> film, 0..1, [..., 2]."""
        return points @ self.pose[:, :2].T + self.pose[:, 2]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Patient's frame -> pixels of the record's image, [..., 2]."""
        return self.film(points) * self.size

    def fixed(self, points: np.ndarray, n: int) -> list[np.ndarray]:
        """Patient's frame -> 1/16 px of an n x n layer, where pixel centres are whole numbers."""
        # One flat product: matmul takes stacks of small matrices one by one.
        flat = points.reshape(-1, 2) @ (self._turn * n)
        flat += self._offset * n - 8
        fixed = np.rint(flat, out=flat).astype(np.int32).reshape(points.shape)
        return [fixed] if fixed.ndim == 2 else list(fixed)

    def fill(self, layer: np.ndarray, outlines: np.ndarray, value: float = 255) -> None:
        """Fills one outline [n, 2], or many that do not overlap, [m, n, 2]."""
        points = self.fixed(outlines, len(layer))
        cv2.fillPoly(layer, points, int(min(value, 255)), cv2.LINE_AA, 4)

    def line(self, layer: np.ndarray, paths: np.ndarray, width: float, value: float = 255) -> None:
        """Strokes one path [n, 2] or many [m, n, 2]; `width` in units of the film's width."""
        pixels = width * self.scale * len(layer)
        thick = max(1, round(pixels))
        value = int(min(value, 255) * min(1.0, max(pixels / thick, 0.15)))
        # Supersampled layers need no smoothing of their own, which is slow for thick lines.
        kind = cv2.LINE_AA if len(layer) == self.size or thick == 1 else cv2.LINE_8
        cv2.polylines(layer, self.fixed(paths, len(layer)), False, value, thick, kind, 4)

    def down(self, layer: np.ndarray) -> np.ndarray:
        """A fine layer at the film's size; others as they are."""
        if len(layer) <= self.size:
            return layer
        return cv2.resize(layer, (self.size, self.size), interpolation=cv2.INTER_AREA)

    def shadow(self, layer: np.ndarray, sigma: float = 0.0) -> np.ndarray:
        """Layer -> float32 in 0..1, blurred, no finer than the film."""
        return cv2.LUT(_blur(self.down(layer), sigma), _UNIT)


def _blur(field: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur; `sigma` in units of the film's width. Wide blurs go by a small copy."""
    n, step = len(field), 1
    pixels = sigma * n
    while pixels / step > 3 and n // (2 * step) >= 16:
        step *= 2
    if step == 1:
        return cv2.GaussianBlur(field, (0, 0), pixels) if pixels > 0.2 else field
    small = cv2.resize(field, (n // step, n // step), interpolation=cv2.INTER_AREA)
    small = cv2.GaussianBlur(small, (0, 0), pixels / step)
    return cv2.resize(small, (n, n), interpolation=cv2.INTER_LINEAR)


class _Texture:
    """Random fields of one film, on the lattice, so that they do not depend on its size."""

    def __init__(self, rng: np.random.Generator):
        self.fine = rng.standard_normal((_LATTICE, _LATTICE), np.float32)
        self.mid = _at_size(rng.standard_normal((44, 44), np.float32), _LATTICE)
        self.patch = _at_size(rng.standard_normal((15, 15), np.float32), _LATTICE)
        self.broad = _at_size(rng.standard_normal((7, 7), np.float32), _LATTICE)


def _at_size(field: np.ndarray, size: int) -> np.ndarray:
    kind = cv2.INTER_CUBIC if len(field) < _LATTICE else cv2.INTER_LINEAR
    return cv2.resize(field, (size, size), interpolation=kind)


def _smooth(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


def _depth(layer: np.ndarray) -> np.ndarray:
    """Distance to the outside of a lattice mask in units; the film's border is no outside."""
    mask = (layer > 127).astype(np.uint8)
    return cv2.distanceTransform(mask, cv2.DIST_L2, 3) / np.float32(_LATTICE)


# ---------------------------------------------------------------------------------------------
# Lungs and zones.
# ---------------------------------------------------------------------------------------------


def _lung_labels(pen: _Pen, chest: _Chest, n: int) -> np.ndarray:
    """uint8 [n, n]: 0 outside, 1 right lung, 2 left lung; each is one component."""
    labels = pen.layer(n)
    for s in range(2):
        cv2.fillPoly(labels, pen.fixed(chest.lung[s], n), s + 1, cv2.LINE_8, 4)
    return labels


def _zones(labels: np.ndarray) -> np.ndarray:
    """Zone map uint8: 0 outside, 1..6 row by row, right before left, as the record's severity."""
    zones = np.zeros_like(labels)
    for s in range(2):
        lung = labels == s + 1
        rows = np.flatnonzero(lung.any(axis=1))
        if len(rows):
            share = (np.arange(len(labels)) - rows[0]) / (rows[-1] + 1 - rows[0])
            number = 1 + s + 2 * np.searchsorted(ZONE_CUTS, share, side="right")
            zones += lung * number.astype(np.uint8)[:, None]
    return zones


def _in_zones(zones: np.ndarray, chosen: np.ndarray) -> np.ndarray:
    """bool [size, size]: the pixel's zone is among `chosen`, bool [3, 2]."""
    table = np.zeros(256, np.uint8)
    table[1:7] = chosen.ravel()
    return cv2.LUT(zones, table).view(bool)


def _count(field: np.ndarray, n: int, mask: np.ndarray | None = None) -> np.ndarray:
    """How often each of 0..n-1 occurs in a uint8 field (under a mask); float32 [n], exact."""
    mask = None if mask is None else mask.view(np.uint8)
    return cv2.calcHist([field], [0], mask, [n], [0, n]).ravel()


def _wall_distance(pen: _Pen, chest: _Chest) -> np.ndarray:
    """float32 [lattice, lattice]: distance to the inner chest wall and apex, in units."""
    right, left = chest.lateral[0][12:], chest.lateral[1][12:]
    low = np.array([[0.0, 0.6]])
    layer = pen.layer(_LATTICE)
    pen.fill(layer, np.concatenate([right, right[-1:] + low, left[-1:] + low, left[::-1]]))
    return _depth(layer)


# ---------------------------------------------------------------------------------------------
# Lesions.
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Sick:
    """Parenchymal opacity: `haze`, `solid` are the shares of the air that are filled."""

    haze: np.ndarray  # float32 [size, size]
    solid: np.ndarray  # float32 [size, size]
    kind: np.ndarray  # uint8 [size, size], index into LESION_TYPES
    infection: np.ndarray  # bool [size, size]
    edema: np.ndarray  # bool [size, size]
    severity: np.ndarray  # int8 [3, 2]


def _lesions(pen, chest, wall, zones, texture) -> _Sick:
    """Opacity fields and their exact masks at the film's size."""
    size, visit = pen.size, chest.visit
    haze = solid = np.zeros((size, size), np.float32)
    kind, infection = np.zeros((size, size), np.uint8), np.zeros((size, size), bool)
    edema, severity = infection, np.zeros((3, 2), np.int8)
    extent = visit.extent
    infected = extent["positive"].any()
    if not infected and not visit.edema:
        return _Sick(haze, solid, kind, infection, edema, severity)
    pixels = np.maximum(_count(zones, 7), 1)
    small = _zones(_lung_labels(pen, chest, _LATTICE))  # not by resizing: the same for any size
    barred = np.zeros((_LATTICE, _LATTICE), bool)
    if visit.pneumothorax is not None:  # there is no lung in the pleural air
        layer = pen.layer(_LATTICE)
        pen.fill(layer, _pleural_air(chest, visit)[0])
        barred = layer > 60
    if infected:
        cover = extent["cover"]
        liking = _infection_liking(pen, chest, wall, texture)
        field, core = _opacity(
            liking, small, (cover, cover * extent["dense"]), barred, extent["soft"], texture
        )
        field, infection = _within(_at_size(field, size), cover > 0, zones, pixels)
        core = _at_size(core, size) * infection
        consolidated = core >= 0.5
        if np.count_nonzero(consolidated) < 0.0008 * size * size:
            core = core * 0  # too little to be called so
            consolidated = core > 0
        kind = infection.astype(np.uint8) + consolidated
        haze, solid = extent["filling"] * field, extent["solid_filling"] * core
    if visit.edema:
        amount = np.array([[0.5 * visit.edema_upper], [1.0], [0.8]]) * visit.edema_amount
        cover = np.repeat(amount, 2, axis=1)
        liking = _edema_liking(pen, chest, texture)
        field = _opacity(liking, small, (cover,), barred, 1.3, texture)[0]
        field, edema = _within(_at_size(field, size), cover > 0, zones, pixels)
        haze = np.maximum(haze, 0.34 * field)
        kind = np.maximum(kind, edema.astype(np.uint8))
    counts = _count(zones + 8 * kind, 24)
    burden = (counts[9:15] + 2 * counts[17:23]) / pixels[1:7]
    score = 1 + np.searchsorted(SEVERITY_CUTS, burden, side="right")
    severity = np.where(burden > 0, score, 0).reshape(3, 2).astype(np.int8)
    return _Sick(haze, solid, kind, infection, edema, severity)


def _within(field, wanted, zones, pixels) -> tuple[np.ndarray, np.ndarray]:
    """Keeps `field` [size, size] to the `wanted` [3, 2] zones it covers well, and cuts its mask."""
    mask = (field >= LESION_CUT) & _in_zones(zones, wanted)
    cover = _count(zones, 7, mask)[1:] / pixels[1:]
    kept = _in_zones(zones, cover >= LEAST_COVER)
    return field * kept, mask & kept


def _infection_liking(pen, chest, wall, texture) -> np.ndarray:
    """Where the infection prefers to lie, on the lattice; higher is likelier.

    It seldom lies behind the heart, where no reader could see it.
    """
    heart = pen.layer(_LATTICE)
    pen.fill(heart, chest.heart)
    hidden = -1.5 * pen.shadow(heart, 0.02)
    extent = chest.visit.extent
    if extent["style"] == "patchy":
        periphery = np.exp(-((wall / 0.085) ** 2))
        return (
            hidden
            + 1.5 * periphery
            + 0.9 * texture.patch
            + 0.25 * texture.mid
            + 0.4 * texture.broad
        )
    centres = []
    for s, (_, sign) in enumerate(_SIDES):
        rows = np.flatnonzero(extent["positive"][:, s])
        if len(rows):
            lateral, lean = extent["place"][s]
            height = np.array([0.24, 0.46, 0.63])[rows].mean() + 0.05 * lean
            centres.append(chest.place(np.array([lateral, height]), sign))
    near = _nearness(pen, centres, 0.11, 1.1)
    return hidden + near + 0.45 * texture.patch + 0.25 * texture.mid + 0.2 * texture.broad


def _edema_liking(pen, chest, texture) -> np.ndarray:
    near = _nearness(pen, [hilum + [0.0, 0.05] for hilum in chest.hilum], 0.10, 0.75)
    return near + 0.3 * texture.patch + 0.2 * texture.mid


def _nearness(pen: _Pen, centres: list[np.ndarray], reach: float, tall: float) -> np.ndarray:
    """-1.5 x the distance to the nearest of the centres in units of `reach`, on the lattice."""
    nearest = np.full((_LATTICE, _LATTICE), 9.0, np.float32)
    at = np.arange(_LATTICE, dtype=np.float32)
    for x, y in (pen.film(centre) * _LATTICE for centre in centres):
        squared = ((at - x) ** 2)[None, :] + ((at - y) ** 2)[:, None] * np.float32(tall**2)
        np.minimum(nearest, np.sqrt(squared) / np.float32(reach * _LATTICE), out=nearest)
    return -1.5 * nearest


def _opacity(liking, zones, covers, barred, soft, texture) -> list[np.ndarray]:
    """Opacities 0..1 on the lattice, one for each of `covers`.

    The threshold of each positive zone is the quantile of `liking` that covers the wanted share,
    covers[i][z, s], of it; between neighbouring positive zones it runs smoothly. Towards a zone
    that is to stay free the opacity is tapered to exactly 0.
    """
    free = np.append(False, covers[0].ravel() == 0)[zones]
    gap = cv2.distanceTransform((~free).astype(np.uint8), cv2.DIST_L2, 3) / np.float32(_LATTICE)
    taper = _smooth((gap - 0.012 - 0.012 * np.abs(texture.mid)) / 0.05) * ~barred
    liking = liking - 4.0 * (1 - taper)
    left = np.flatnonzero(((zones > 0) & (zones % 2 == 0)).any(axis=0))
    right = np.flatnonzero((zones % 2 == 1).any(axis=0))
    middle = (right[-1] + left[0] + 1) // 2
    fields = []
    for cover in covers:
        field = np.zeros_like(liking)
        for s, columns in enumerate((slice(0, middle), slice(middle, None))):
            rows = np.full(_LATTICE, np.nan, np.float32)
            for z in np.flatnonzero(cover[:, s] > 0):
                inside = zones == 1 + 2 * z + s
                values = liking[inside]
                if len(values):
                    rank = int((1 - cover[z, s]) * (len(values) - 1))
                    rows[inside.any(axis=1)] = np.partition(values, rank)[rank]
            known = np.flatnonzero(~np.isnan(rows))
            if not len(known):
                continue
            level = np.interp(np.arange(_LATTICE), known, rows[known])
            level = np.convolve(np.pad(level, 4, mode="edge"), np.full(9, 1 / 9), "valid")
            level = level.astype(np.float32)[:, None]
            # _smooth(0.4) is 0.352: LESION_CUT covers what was asked for.
            field[:, columns] = _smooth((liking[:, columns] - level) / np.float32(soft) + 0.4)
        fields.append(cv2.GaussianBlur(field, (0, 0), 1.0) * taper)
    return fields


# ---------------------------------------------------------------------------------------------
# Signs of the other findings.
# ---------------------------------------------------------------------------------------------


def _pleural_air(chest: _Chest, visit: _Visit) -> tuple[np.ndarray, np.ndarray]:
    """Pneumothorax: (outline of the air [n, 2], the visceral pleural line [m, 2])."""
    s = visit.pneumothorax
    edge = chest.lateral[s][8:]
    edge = edge[: max(12, int(len(edge) * visit.air_end))]
    t = np.linspace(0, 1, len(edge))
    # Widest over the apex, closing downwards.
    inward = visit.air * np.sin(np.pi * (0.18 + 0.82 * t)) ** 0.8
    line = edge + inward[:, None] * (chest.hilum[s] + [0.0, 0.05] - edge)
    return np.concatenate([edge, line[::-1]]), line


class _Signs:
    """Layers of plate atelectasis (`bands`) and pneumothorax (`air`, `pleura`); None where absent.

    All are float32 [size, size] in 0..1.
    """

    def __init__(self, pen: _Pen, chest: _Chest, visit: _Visit):
        self.bands = self.air = self.pleura = None
        if visit.atelectasis is not None:
            layer = pen.fine_layer()
            for band in visit.bands:
                self._band(pen, layer, chest, visit.atelectasis, *band)
            self.bands = pen.shadow(layer, 0.002)
        if visit.pneumothorax is not None:
            outline, line = _pleural_air(chest, visit)
            layer = pen.layer()
            pen.fill(layer, outline)
            self.air = pen.shadow(layer)
            layer = pen.fine_layer()
            pen.line(layer, line, 0.0046)
            self.pleura = pen.shadow(layer)

    @staticmethod
    def _band(pen, layer, chest, side, lateral, above, length, slope, thick) -> None:
        sign = _SIDES[side][1]
        base = chest.diaphragm[side][:: -int(sign)]  # left to right
        x = sign * lateral
        centre = np.array([x, np.interp(x, base[:, 0], base[:, 1]) - above])
        t = np.linspace(-0.5, 0.5, 9)[:, None]
        path = centre + t * length * [sign, slope] + [0, 0.04] * t**2
        pen.fill(layer, _ring(path, 0.5 * thick * np.cos(2.7 * t[:, 0])))


def _devices(pen: _Pen, chest: _Chest, visit: _Visit) -> list[np.ndarray]:
    """A layer for each device that shows on the film."""
    drawn = []
    for name, seed in visit.devices:
        layer = pen.fine_layer()
        _DEVICE_DRAWERS[name](pen, layer, chest, np.random.default_rng(seed))
        if layer.any():
            drawn.append(layer)
    return drawn


def _draw_tube(pen, layer, chest, rng):
    tip = chest.carina[1] - rng.uniform(0.035, 0.08)
    path = chest.trachea[chest.trachea[:, 1] < tip]
    for edge in _edges(path, 0.0075):
        pen.line(layer, edge, 0.0028, 150)
    pen.line(layer, path, 0.0025, 90)


def _draw_line(pen, layer, chest, rng):
    end = chest.cavoatrial + [0.004, rng.uniform(-0.05, 0.03)]
    neck = _xy([-0.115, -0.085, -0.055], [-0.05, 0.08, 0.17])
    shoulder = _xy([-0.30, -0.25, -0.14, -0.07], [0.02, 0.13, 0.185, 0.20])
    start = neck if rng.random() < 0.5 else shoulder
    pen.line(layer, _curve(np.concatenate([start, chest.svc[2:3], end[None]])), 0.0042, 190)


def _draw_gastric(pen, layer, chest, rng):
    low = chest.diaphragm[1][:, 1].min()
    x = np.array([0.012, 0.010, 0.016, 0.022, 0.07, 0.13]) + rng.normal(0, 0.005, 6)
    pen.line(layer, _curve(_xy(x, [-0.05, 0.2, 0.45, low, low + 0.09, low + 0.10])), 0.0038, 150)


def _draw_leads(pen, layer, chest, rng):
    spots = _xy([-0.26, 0.25, -0.25, 0.29, 0.06], [0.20, 0.19, 0.66, 0.64, 0.52])
    spots = spots + rng.normal(0, 0.025, spots.shape)
    hub = np.array([rng.choice([-0.1, 0.12]), 1.08])
    for spot in spots[: rng.integers(3, 6)]:
        bend = (spot + hub) / 2 + rng.normal(0, 0.06, 2)
        pen.line(layer, _curve([spot, (spot + bend) / 2 + [0.02, 0], bend, hub]), 0.0026, 130)
        pen.fill(layer, _ellipse(spot, (0.0125, 0.0125), 14), 110)
        pen.fill(layer, _ellipse(spot, (0.006, 0.006), 10), 255)


def _draw_pacemaker(pen, layer, chest, rng):
    centre = np.array([rng.uniform(0.22, 0.27), rng.uniform(0.20, 0.25)])
    body = np.sign(_circle(24)) * np.abs(_circle(24)) ** 0.6 * [0.042, 0.036]
    pen.fill(layer, body + centre, 255)
    low = chest.diaphragm[1][:, 1].min()
    for end in ((0.085, low - 0.03), (-0.035, low - 0.14))[: rng.integers(1, 3)]:
        x = [centre[0] - 0.02, 0.12, 0.01, chest.svc[4, 0], -0.045, end[0]]
        y = [centre[1] - 0.03, 0.165, 0.21, chest.svc[4, 1], low - 0.22, end[1]]
        pen.line(layer, _curve(_xy(x, y)), 0.0038, 200)


_DEVICE_DRAWERS = {
    "tube": _draw_tube,
    "line": _draw_line,
    "gastric": _draw_gastric,
    "leads": _draw_leads,
    "pacemaker": _draw_pacemaker,
}


# ---------------------------------------------------------------------------------------------
# Attenuation.
# ---------------------------------------------------------------------------------------------


def _soft_tissue(pen: _Pen, chest: _Chest, texture: _Texture) -> np.ndarray:
    """Thickness of body and arms, float32 [size, size], about 1 at the middle of the trunk."""
    patient = chest.patient
    fat = 0.034 + 0.080 * patient.fat
    sides, arms, skin = [], pen.layer(_LATTICE), pen.layer()
    for s, (_, sign) in enumerate(_SIDES):
        x = np.array([0.082, 0.088, 0.125, 0.25, 0.37, 0.47, 0.50, 0.45])
        top = _xy(
            x * patient.width + 0.4 * fat, [-0.10, 0.02, 0.055, 0.075, 0.095, 0.15, 0.24, 0.35]
        )
        y = np.array([0.46, 0.57, 0.68, 0.80, 0.95, 1.15])
        x = chest.wall(y, s) + fat
        x[3:] = np.maximum(x[3:], x[2] + np.array([0.0, 0.005, 0.01]))
        sides.append(_curve(np.concatenate([top, _xy(x, y)])) * [sign, 1])
        x = np.array([0.44, 0.52, 0.56, 0.58]) + 0.8 * fat
        x += patient.arms * np.array([0.30, 0.53, 0.77, 1.0])
        arm = _ring(_curve(_xy(sign * x, [0.17, 0.32, 0.55, 0.90])), 0.065 + 0.4 * fat)
        pen.fill(arms, arm)
        pen.fill(skin, arm)
    outline = np.concatenate([sides[0], sides[1][::-1]])
    trunk = pen.layer(_LATTICE)
    pen.fill(trunk, outline)
    pen.fill(skin, outline)
    t = np.minimum(_depth(trunk) / 0.17, 1)
    y = (np.arange(_LATTICE, dtype=np.float32)[:, None] + 0.5) / _LATTICE
    trunk = np.sqrt(t * (2 - t)) * (0.80 + 0.26 * _smooth((y - 0.05) / 0.75))
    trunk *= 1 + 0.015 * texture.broad + 0.012 * texture.patch
    t = np.minimum(_depth(arms) / 0.075, 1)
    thickness = np.maximum(trunk, 0.55 * np.sqrt(t * (2 - t)))
    # The skin line is crisp: it is cut at the film's size, not on the lattice.
    return _at_size(np.maximum(thickness, 0.12), pen.size) * pen.shadow(skin)


def _ribs(chest: _Chest) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Paths in the patient's frame: posterior [22, n, 2], anterior [16, n, 2], first [2, m, 2]."""
    patient = chest.patient
    i = np.arange(1, 12)
    back, front, first = [], [], []
    for s, (_, sign) in enumerate(_SIDES):
        start = 0.085 + patient.rib_pitch * i + patient.rib_jitter[s, 1:]
        drop = 0.030 + 0.0125 * i + patient.rib_tilt
        end = start + drop
        wall = chest.wall(end + 0.02, s) + 0.008
        x = np.stack([np.full(11, 0.036), 0.42 * wall, 0.97 * wall, wall], axis=1)
        y = [start + 0.012, start - 0.035 + 0.002 * i, start - 0.005 + 0.25 * drop, end + 0.045]
        back.append(np.stack([sign * x, np.stack(y, axis=1)], axis=-1))
        x0, x3 = wall, 0.125 + 0.012 * i
        x = np.stack([x0, x0 - 0.002, (x0 + x3) / 2 + 0.015, x3], axis=1)
        y0, y3 = end + 0.030, end + 0.115 + 0.010 * i
        y = np.stack([y0, y0 + 0.055, (y0 + y3) / 2 + 0.035, y3], axis=1)
        front.append(np.stack([sign * x, y], axis=-1)[:8])
        y0 = 0.085 + patient.rib_jitter[s, 0]
        x = [0.038, 0.09, 0.138, 0.135, 0.07]
        path = _xy(x, [y0 + 0.01, y0 - 0.008, y0 + 0.03, y0 + 0.085, y0 + 0.125])
        first.append(_curve(path) * [sign * patient.width, 1])
    basis = _bezier_basis(14)
    return basis @ np.concatenate(back), basis @ np.concatenate(front), np.stack(first)


def _bones(pen: _Pen, chest: _Chest) -> np.ndarray:
    """Bone thickness, float32 [size, size]; about 1 for the shadow of a posterior rib."""
    patient, ap = chest.patient, chest.visit.view == "AP"
    back, front, edges, deep = (pen.layer() for _ in range(4))
    posterior, anterior, first = _ribs(chest)
    number = np.tile(np.minimum(np.arange(1, 12), 6), 2)[:, None]
    half = patient.rib_width * (0.80 + 0.03 * number)
    bulge = 0.8 + 0.35 * np.sin(np.pi * np.minimum(np.linspace(0, 1.1, 14), 1))
    upper, lower = _edges(posterior, half * bulge)
    pen.fill(back, np.concatenate([upper, lower[:, ::-1]], axis=1), 125)
    pen.fill(back, _ring(first, patient.rib_width * 0.8), 130)
    pen.line(edges, upper, 0.0032, 100)
    pen.line(edges, lower, 0.0036, 140)
    upper, lower = _edges(anterior, patient.rib_width * 1.02)
    pen.fill(front, np.concatenate([upper, lower[:, ::-1]], axis=1), 66)
    pen.line(edges, np.concatenate([upper, lower])[:, :-3], 0.0026, 55)

    clavicles = np.stack(chest.clavicle)
    half = 0.0125 * np.interp(np.linspace(0, 1, clavicles.shape[1]), [0, 0.3, 0.7, 1],
                              [1.25, 0.85, 0.8, 1.1])  # fmt: skip
    upper, lower = _edges(clavicles, half)
    for s in range(2):
        pen.fill(front, np.concatenate([upper[s], lower[s, ::-1]]), 190)
    pen.line(edges, np.concatenate([upper, lower]), 0.0034, 160)

    out = patient.scapula + (-0.02 if ap else 0.025)
    x = np.array([0.33, 0.345, 0.375, 0.395, 0.415, 0.425, 0.435])
    blade = _curve(_xy(x + out, [0.135, 0.23, 0.33, 0.42, 0.36, 0.25, 0.175]))
    shaft = _curve(_xy([0.475, 0.505, 0.535, 0.56], [0.19, 0.32, 0.55, 0.90]))
    mirror = np.array([[[-1.0, 1.0]], [[1.0, 1.0]]])
    blades, shafts = blade * mirror, shaft * mirror
    pen.fill(deep, np.concatenate([blades, mirror * [0.36 + out, 0.13]], axis=1), 60)
    pen.line(edges, blades[:, :20], 0.0034, 80)
    pen.line(edges, blades[:, 20:], 0.0050, 100)
    pen.fill(deep, _ellipse(mirror[:, 0] * [0.468, 0.172], (0.042, 0.046)), 115)
    pen.fill(deep, _ring(shafts, 0.024), 110)
    pen.line(edges, np.concatenate(_edges(shafts, 0.022)), 0.006, 120)
    _vertebrae(pen, chest, deep, edges)

    total = cv2.addWeighted(back, 1 / 125, front, 1 / 125, 0, dtype=cv2.CV_32F)
    other = cv2.addWeighted(edges, 0.005, deep, 0.0085, 0, dtype=cv2.CV_32F)
    return cv2.addWeighted(total, patient.bone, other, patient.bone, 0)


def _vertebrae(pen: _Pen, chest: _Chest, deep: np.ndarray, edges: np.ndarray) -> None:
    """Bodies with end plates, pedicles and spinous processes."""
    tops = [-0.06]
    while tops[-1] < 1.08:
        tops.append(tops[-1] + 0.042 + 0.018 * min(max(tops[-1], 0), 1))
    y = np.array(tops)
    h, y = np.diff(y)[:, None], y[:-1, None]
    half = 0.030 + 0.008 * np.clip(y, 0, 1)
    x = np.interp((y + h / 2)[:, 0], chest.spine[:, 1], chest.spine[:, 0])[:, None]
    across = x + half * [-1, -0.88, -1, 1, 0.88, 1]
    down = y + h * [0.12, 0.5, 0.88, 0.88, 0.5, 0.12]
    body = np.stack([across, down], axis=-1)  # [v, 6, 2]
    pen.fill(deep, body, 85)
    pen.line(edges, np.concatenate([body[:, 2:4], body[:, [5, 0]]]), 0.004, 80)
    for side in (-0.62, 0.62):
        centre = np.concatenate([x + side * half, y + 0.42 * h], axis=1)
        pen.fill(deep, _ellipse(centre, (0.006, 0.009), 10), 150)
    pen.fill(deep, _ellipse(np.concatenate([x, y + 0.8 * h], axis=1), (0.005, 0.012), 10), 140)


def _vessels(pen: _Pen, chest: _Chest) -> np.ndarray:
    """Vessel shadow float32 [size, size], 0..1, of both lungs."""
    layer = pen.fine_layer()
    for generation, (paths, widths) in enumerate(chest.patient.tree):
        placed = []
        for half, (_, sign) in zip(np.split(paths, 2), _SIDES):
            placed.append(chest.place(half, sign))
        moved = np.concatenate(placed)
        # Upright, the upper vessels are thinner; in edema they are as wide as the lower ones.
        upper = paths[:, 0, 1] < 0.40
        widths = widths * np.where(upper, 1.5 if chest.visit.edema else 0.9, 1.0)
        thick = np.maximum(1, np.rint(widths * pen.scale * len(layer))).astype(int)
        value = _VESSEL_SHADES[generation] * chest.patient.vascularity
        for step in np.unique(thick):
            chosen = thick == step
            pen.line(layer, moved[chosen], float(widths[chosen].mean()), value)
    return pen.shadow(layer)


def _attenuation(pen, chest, wall, sick, texture, signs) -> np.ndarray:
    """A, float32 [size, size], without devices; `sick` None leaves the lungs clear of lesions."""
    size, visit = pen.size, chest.visit
    lung, heart, middle = pen.layer(), pen.layer(), pen.layer()
    for outline in chest.lung:
        pen.fill(lung, outline)
    lung = pen.shadow(lung, 0.0035)
    pen.fill(heart, chest.heart)
    heart = pen.shadow(heart, 0.005)
    heart *= 0.62 + 0.38 * _blur(heart, 0.045)
    pen.fill(middle, chest.great_vessels)
    pen.fill(middle, chest.knob)
    pen.fill(middle, chest.prevertebral, 215)
    middle = pen.shadow(middle, 0.006)

    t = np.minimum(wall / 0.10, 1)
    air = _at_size(0.50 + 0.50 * np.sqrt(t * (2 - t)), size)
    air *= lung
    displaced = 0.5 * _blur(middle, 0.03)
    middle *= 0.76
    np.maximum(displaced, middle, out=displaced)
    np.maximum(displaced, 0.86 * heart, out=displaced)
    cv2.subtract(1.0, displaced, dst=displaced)
    air *= displaced

    vessels = _vessels(pen, chest)
    hila = pen.layer(_LATTICE)
    pen.fill(hila, _ellipse(np.stack(chest.hilum) + [0, 0.01], (0.022, 0.048)), 215)
    hila = pen.shadow(hila, 0.014) * (1 + 0.25 * texture.mid)
    grain = 0.045 * cv2.GaussianBlur(texture.fine, (0, 0), 0.7) + 0.020 * texture.mid
    markings = cv2.scaleAdd(vessels, 0.85, _at_size(0.8 * hila + grain, size))
    if signs.air is not None:
        markings *= 1 - signs.air
        markings += 1.2 * signs.pleura
        air *= 1 + 0.20 * signs.air
    if signs.bands is not None:
        markings += 0.75 * signs.bands
    if sick is not None and sick.kind.any():
        grain = 0.13 * texture.mid + 0.13 * texture.fine + 0.08 * texture.patch
        filled = sick.haze + sick.solid
        filled *= _at_size(np.clip(1 + grain, 0.5, 1.5), size)
        if visit.extent["bronchograms"] and sick.solid.any():
            tubes = np.clip(_blur(vessels, 0.002) - 0.25, 0, 0.6)
            filled -= 0.9 * sick.solid * tubes
        markings *= 1 - cv2.addWeighted(sick.solid, 1.1, sick.haze, 0.4, 0)
        air *= 1 - np.clip(filled, 0, 0.92)
    body = _soft_tissue(pen, chest, texture)
    thickness = visit.technique["thickness"]
    density = cv2.multiply(body, air, scale=-0.64 * thickness)
    density = cv2.scaleAdd(body, thickness, density, dst=density)

    # Scatter hides the ribs that lie over the abdomen and the spine behind the heart.
    bare = cv2.addWeighted(heart, -0.5, heart, 0, 1)
    y = np.linspace(0, 1, size, dtype=np.float32)[:, None]
    shows = 1 - 0.65 * _smooth((y - 0.30) / 0.35)
    bones = _bones(pen, chest)
    bones *= (1 - shows) * lung + shows
    bones *= bare
    bones *= np.minimum(body * 4, 1)
    density = cv2.scaleAdd(bones, 0.30, density, dst=density)
    markings *= lung
    markings *= bare
    density = cv2.scaleAdd(markings, 0.50, density, dst=density)
    _abdomen_and_airways(pen, chest, density, lung)
    return np.maximum(density, 0, out=density)


def _abdomen_and_airways(pen: _Pen, chest: _Chest, density: np.ndarray, lung: np.ndarray) -> None:
    """Adds trachea, bronchi, gas, breasts and the minor fissure to `density`, in place."""
    visit, patient = chest.visit, chest.patient
    dark = pen.layer()  # what holds air, outside the lungs
    pen.fill(dark, _ring(chest.trachea, 0.0125), 107)
    for s, (_, sign) in enumerate(_SIDES):
        end = chest.hilum[s] - [sign * 0.02, 0.005]
        bronchus = np.linspace(chest.carina - [0, 0.006], end, 5)
        pen.fill(dark, _ring(bronchus, np.linspace(0.0095, 0.006, 5)), 75)
    dome = chest.diaphragm[1]
    top = dome[np.argmin(dome[:, 1])]
    if visit.stomach:
        dx, dy, a, b = visit.stomach_shape
        pen.fill(dark, _ellipse(top + [dx - 0.03, dy], (a, b)), 170)
    for u in visit.bowel:
        centre = top + [(u[0] - 0.7) * 0.25, 0.10 + 0.12 * u[1]]
        pen.fill(dark, _ellipse(centre, (0.02 + 0.03 * u[2], 0.015 + 0.015 * u[3]), 16), 90)
    dark = pen.shadow(dark, 0.0045)
    dark *= 1 - lung
    density -= dark
    if patient.breast:
        layer, b = pen.layer(_LATTICE), patient.breast
        for _, sign in _SIDES:
            centre = np.array([sign * (0.235 + 0.02 * b), 0.60 + 0.05 * b])
            pen.fill(layer, _ellipse(centre, np.array([1, 1.05]) * (0.11 + 0.05 * b), 28))
        breast = pen.shadow(layer, 0.006)
        breast *= 0.105 * b + 0.195 * b * _blur(breast, 0.03)
        density += _at_size(breast, pen.size)
    if patient.fissure:
        layer = pen.fine_layer()
        pen.line(layer, chest.place(_xy([0.09, 0.20, 0.32], [0.44, 0.435, 0.45]), -1.0), 0.0022)
        density += 0.07 * pen.shadow(layer) * lung


# ---------------------------------------------------------------------------------------------
# Exposure and display.
# ---------------------------------------------------------------------------------------------


def _expose(attenuation: np.ndarray, pen: _Pen, visit: _Visit, rng) -> np.ndarray:
    """Attenuation to the displayed film, uint8 [size, size]."""
    size, technique = pen.size, visit.technique
    f = technique["scatter"]
    light = cv2.exp(cv2.subtract(0.0, attenuation))
    light = cv2.addWeighted(light, 1 / (1 + f), _blur(light, 0.09), f / (1 + f), 0)
    light = _blur(light, technique["blur"])
    grain = _grain(rng, size)
    grain *= 0.6 * technique["noise"] * size / 256
    grain *= np.sqrt(light)
    light += grain
    density = cv2.log(np.maximum(light, 0.004, out=light), dst=light)
    span = np.linspace(-1, 1, size, dtype=np.float32)
    across, down = technique["heel"]
    density *= -1 - np.float32(across) * span
    density *= (1 + np.float32(down) * span)[:, None]
    if technique["grid"]:
        wave = np.cos(np.arange(size, dtype=np.float32) * 2.2)
        density += (np.float32(technique["grid"]) * wave)[:, None]

    white = -np.log((np.exp(-technique["thickness"]) + f * 0.10) / (1 + f)) * technique["high"]
    low, sharpen = technique["low"], technique["detail"]
    # The display curve is a table, finer than the greys it gives.
    steps = 2047
    gain = steps / (white - low)
    local = _blur(density, 0.05)
    v = cv2.addWeighted(
        density, (1 + sharpen) * gain, local, -sharpen * gain, -low * gain, dtype=cv2.CV_32F
    )
    shade = np.linspace(0, 1, steps + 1, dtype=np.float32) ** np.float32(technique["gamma"])
    shade = shade + technique["curve"] * (_smooth(shade) - shade)
    table = (12 + 236 * shade).astype(np.uint8)
    image = np.take(table, np.clip(v, 0, steps, out=v).astype(np.int32))
    return image


def _grain(rng: np.random.Generator, size: int) -> np.ndarray:
    """Nearly normal noise float32 [size, size], mean 0, variance 1: sums of four random bytes."""
    raw = np.frombuffer(rng.bytes(4 * size * size), np.uint8).reshape(size, size, 4)
    scale = 1 / np.sqrt(4 * (256**2 - 1) / 12)
    return cv2.transform(raw.astype(np.float32), np.array([[scale] * 4 + [-510 * scale]]))


def _borders(image: np.ndarray, lungs: np.ndarray, technique: dict) -> None:
    """Collimation: unexposed margins, black as readers see them, now and then white.

    They never cover a lung.
    """
    if technique["border"] > 0.55:
        return
    size = len(image)
    value = 0 if technique["border"] < 0.45 else 250
    x, y, w, h = cv2.boundingRect(lungs)
    free = (y, size - y - h, x, size - x - w)
    top, bottom, left, right = (
        min(int(margin * size), room) for margin, room in zip(technique["field"], free)
    )
    image[:top] = value
    image[size - bottom :] = value
    image[:, :left] = value
    image[:, size - right :] = value


def _markers(image: np.ndarray, visit: _Visit) -> None:
    """Side marker and view stamp."""
    size = len(image)
    there, side, x, y = visit.technique["marker"]
    if there > 0.75:
        return
    letter, column = ("R", 0.05 + 0.05 * x) if side < 0.4 else ("L", 0.87 + 0.05 * x)
    at = (int(column * size), int((0.10 + 0.06 * y) * size))
    scale, thick = size / 256 * 0.45, max(1, round(size / 256))
    cv2.putText(image, letter, at, cv2.FONT_HERSHEY_DUPLEX, scale, 245, thick, cv2.LINE_AA)
    if visit.view == "AP" and side > 0.6:
        at = (at[0] - int(0.02 * size), at[1] + int(0.05 * size))
        cv2.putText(image, "AP", at, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * scale, 235, thick, cv2.LINE_AA)


# ---------------------------------------------------------------------------------------------
# Truth.
# ---------------------------------------------------------------------------------------------


def _truth(pen, chest, lungs, zones, sick, signs, devices) -> Record:
    """findings, regions and boxes from what was drawn."""
    visit = chest.visit
    device_masks = [pen.down(layer) > 40 for layer in devices]
    places = {
        "cardiomegaly": _boxes(pen, [chest.heart]) if chest.patient.large_heart else [],
        "atelectasis": [] if signs.bands is None else [_mask_box(signs.bands > 0.25)],
        "pneumothorax": [] if signs.air is None else [_mask_box(signs.air > 0.5)],
        "pleural effusion": [] if chest.fluid is None else _boxes(pen, [chest.fluid]),
        "support devices": [_mask_box(mask) for mask in device_masks],
    }
    masks = {}
    if sick.kind.any():
        masks = {
            "lung opacity": sick.kind > 0,
            "consolidation": sick.kind == CONSOLIDATION,
            "pneumonia": sick.infection,
            "edema": sick.edema,
        }
        places.update({name: _component_boxes(mask) for name, mask in masks.items()})
    spots = [
        (_FINDING[name], box) for name, boxes in places.items() for box in boxes if box is not None
    ]
    spots.sort(key=lambda spot: spot[0])
    findings = np.zeros(len(FINDINGS), np.float32)
    findings[[label for label, _ in spots]] = 1
    findings[_FINDING["no finding"]] = float(not spots)

    regions = _regions(pen, chest, lungs, zones)
    present = ~np.isnan(regions[:, 0])
    table = np.zeros((len(REGIONS), len(FINDINGS)), np.float32)
    _mark_lesions(table, masks, regions, lungs)
    for side, finding, names in (
        (visit.atelectasis, "atelectasis", ("lung", "lower lung zone")),
        (visit.pneumothorax, "pneumothorax", ("lung", "upper lung zone", "apical zone")),
        (
            visit.effusion,
            "pleural effusion",
            ("lung", "lower lung zone", "costophrenic angle", "hemidiaphragm"),
        ),
    ):
        if side is not None and findings[_FINDING[finding]]:
            rows = [_REGION[f"{_SIDES[side][0]} {name}"] for name in names]
            table[rows, _FINDING[finding]] = 1
    table[_REGION["cardiac silhouette"], _FINDING["cardiomegaly"]] = findings[
        _FINDING["cardiomegaly"]
    ]
    for mask in device_masks:
        for r in np.flatnonzero(present):
            x0, y0, x1, y1 = np.rint(regions[r]).astype(int)
            if mask[y0:y1, x0:x1].any():
                table[r, _FINDING["support devices"]] = 1
    table[~present] = 0
    table[:, _FINDING["no finding"]] = present & ~table[:, 1:].any(axis=1)
    return {
        "findings": findings,
        "regions": regions,
        "region_present": present,
        "region_findings": table,
        "boxes": np.array([box for _, box in spots], np.float32).reshape(-1, 4),
        "box_label": np.array([label for label, _ in spots], np.int32),
    }


def _mark_lesions(table, masks, regions, lungs) -> None:
    """Marks in `table` [29, 10] the regions of each lung that a lesion covers to 1% or more."""
    for s, (side, _) in enumerate(_SIDES):
        rows = [_REGION[f"{side} {name}"] for name in _LUNG_REGIONS]
        rows = [row for row in rows if not np.isnan(regions[row, 0])]
        for finding, mask in masks.items():
            mine = mask & (lungs == s + 1)
            if not mine.any():
                continue
            for row in rows:
                x0, y0, x1, y1 = np.rint(regions[row]).astype(int)
                count = np.count_nonzero(mine[y0:y1, x0:x1])
                table[row, _FINDING[finding]] = count >= max(1, 0.01 * (y1 - y0) * (x1 - x0))


def _boxes(pen: _Pen, shapes: list[np.ndarray], least: float = 0.3) -> list[np.ndarray | None]:
    """Tight boxes of shapes, clipped to the film; None where under `least` of one is in view."""
    starts = np.cumsum([0] + [len(shape) for shape in shapes[:-1]])
    points = pen.pixels(np.concatenate(shapes))
    low = np.minimum.reduceat(points, starts)
    high = np.maximum.reduceat(points, starts)
    a, b = np.clip(low, 0, pen.size), np.clip(high, 0, pen.size)
    seen = np.prod(b - a, axis=1) >= least * np.prod(high - low, axis=1)
    seen &= (b - a).min(axis=1) >= 1
    boxes = np.concatenate([a, b], axis=1).astype(np.float32)
    return [box if shown else None for box, shown in zip(boxes, seen)]


def _mask_box(mask: np.ndarray) -> np.ndarray | None:
    x, y, w, h = cv2.boundingRect(mask.view(np.uint8))
    return np.array([x, y, x + w, y + h], np.float32) if w else None


def _component_boxes(mask: np.ndarray) -> list[np.ndarray]:
    """Boxes of the components; boxes under 0.1% of the film are left out unless alone."""
    if not mask.any():
        return []
    outlines, _ = cv2.findContours(mask.view(np.uint8), cv2.RETR_EXTERNAL, cv2.CHAIN_APPROX_SIMPLE)
    rects = np.array([cv2.boundingRect(outline) for outline in outlines], np.float32)
    rects = rects[np.argsort(-rects[:, 2] * rects[:, 3], kind="stable")]
    kept = rects[:, 2] * rects[:, 3] >= 0.001 * mask.size
    kept[0] = True
    x, y, w, h = rects[kept].T
    return list(np.stack([x, y, x + w, y + h], axis=1))


def _regions(pen: _Pen, chest: _Chest, lungs: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """Boxes of the 29 regions, float32 [29, 4], NaN where out of view."""
    shapes, boxes = {}, {}
    for s, (side, sign) in enumerate(_SIDES):
        lung = lungs == s + 1
        boxes[f"{side} lung"] = box = _mask_box(lung)
        for z, name in enumerate(("upper", "mid", "lower")):
            boxes[f"{side} {name} lung zone"] = _mask_box(zones == 1 + 2 * z + s)
        if box is not None:
            end = int(box[1] + 0.16 * (box[3] - box[1])) + 1
            boxes[f"{side} apical zone"] = _mask_box(np.ascontiguousarray(lung[:end]))
        shapes[f"{side} hilar structures"] = _ellipse(chest.hilum[s] + [0, 0.01], (0.045, 0.075), 8)
        corner = _xy([-sign * 0.045, sign * 0.01], [-0.06, 0.012])
        shapes[f"{side} costophrenic angle"] = chest.tip[s] + corner
        shapes[f"{side} hemidiaphragm"] = chest.diaphragm[s]
        shapes[f"{side} clavicle"] = _ring(chest.clavicle[s], 0.012)
    shapes["trachea"] = _ring(chest.trachea, 0.0125)
    shapes["spine"] = _ring(chest.spine, 0.034)
    shapes["aortic arch"] = chest.knob
    shapes["mediastinum"] = np.concatenate([chest.great_vessels, chest.heart])
    high = chest.great_vessels[:, 1] <= chest.carina[1] + 0.01
    shapes["upper mediastinum"] = chest.great_vessels[high]
    shapes["svc"] = _ring(chest.svc, 0.013)
    shapes["cardiac silhouette"] = chest.heart
    shapes["cavoatrial junction"] = _ellipse(chest.cavoatrial, (0.02, 0.02), 8)
    shapes["right atrium"] = chest.right_atrium
    shapes["carina"] = _ellipse(chest.carina, (0.028, 0.022), 8)
    dome = min(path[:, 1].min() for path in chest.diaphragm)
    width = abs(chest.tip[0][0]) + 0.02
    shapes["abdomen"] = _xy([-width, width], [dome, 1.05])
    boxes.update(zip(shapes, _boxes(pen, list(shapes.values()))))
    out = np.full((len(REGIONS), 4), np.nan, np.float32)
    for name, box in boxes.items():
        if box is not None:
            out[_REGION[name]] = box
    return out
