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
  0 where the zone has no lesion pixel, 1 for b < 0.25, 2 for b < 0.6, else 3.
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
SEVERITY_CUTS = (0.25, 0.6)
# A lesion ends where its opacity falls under this share of its peak.
LESION_CUT = 0.35
# A positive zone whose lesion covers less than this share of it is cleared: no spill, no doubt.
LEAST_COVER = 0.04

GROUND_GLASS, CONSOLIDATION = 1, 2
NORMAL, OTHER_INFECTION, COVID = 0, 1, 2

# Smooth fields (lesions, thickness) are laid out on this many cells whatever the film's size.
_LATTICE = 128

_FINDING = {name: i for i, name in enumerate(FINDINGS)}
_REGION = {name: i for i, name in enumerate(REGIONS)}
_SIDES = (("right", -1.0), ("left", 1.0))


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
      view str. Boxes hold pixels x0 <= x < x1.

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
    coarse = _Pen(_LATTICE, visit.pose, supersample=1)

    lungs = _lung_labels(pen, chest)
    zones = _zones(lungs)
    wall = _wall_distance(coarse, chest)
    texture = _Texture(rng)
    sick = _lesions(visit, chest, pen, coarse, wall, zones, texture)
    tissue = _soft_tissue(pen, coarse, chest, patient, visit, wall)
    devices = _devices(pen, chest, visit)

    attenuation = _attenuation(pen, chest, patient, visit, tissue, sick, texture, devices, lesions)
    image = _expose(attenuation, pen, visit, population, rng)

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
    record.update(_truth(pen, chest, visit, lungs, zones, sick, devices))
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
        self.fat = rng.uniform(0.0, 1.0) ** 1.5
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
        self.bone = rng.uniform(0.75, 1.25)
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
        scale = rng.uniform(1.06, 1.22) * (1.02 if ap else 1.0)
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
        self.air = rng.uniform(0.16, 0.34)
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
        solid = 0.45 + 0.35 * dense
        style = "lobar"
    if patient.diagnosis == NORMAL:
        positive = np.zeros((3, 2), bool)
    return {
        "style": style,
        "positive": positive,
        "cover": np.where(positive, amount, 0.0),
        "dense": np.where(positive, solid, 0.0),
        "filling": rng.uniform(0.30, 0.42) + 0.05 * heavy,
        "solid_filling": rng.uniform(0.30, 0.42),
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
        "blur": rng.uniform(0.3, 0.6) / 256,
        "low": rng.uniform(0.05, 0.35),
        "high": rng.uniform(1.12, 1.35),
        "gamma": rng.uniform(0.85, 1.2),
        "curve": rng.uniform(0.0, 0.6),
        "detail": rng.uniform(0.1, 0.7),
        "heel": rng.normal(0, 0.06, 2),
        "border": rng.random(),
        "field": rng.uniform(0.0, 0.035, 4) * (rng.random(4) < 0.6),
        "marker": rng.random(4),
        "grid": 0.0,
    }
    if shifted:
        technique["scatter"] *= 1.7
        technique["noise"] *= 2.4
        technique["blur"] = rng.uniform(0.7, 1.1) / 256
        technique["gamma"] = rng.uniform(1.25, 1.7)
        technique["low"] = rng.uniform(0.3, 0.55)
        technique["high"] = rng.uniform(1.05, 1.3)
        technique["curve"] = 0.0
        technique["detail"] = rng.uniform(0.0, 0.15)
        technique["grid"] = rng.uniform(0.012, 0.03)
    return technique


def _vessel_tree(rng: np.random.Generator) -> list[tuple[np.ndarray, np.ndarray]]:
    """Two branching trees (right, left) of one patient.

    Returns:
      A list over generations of (paths [n, 4, 2], widths [n]) in the patient's frame.
    """
    tree = []
    for s, (_, sign) in enumerate(_SIDES):
        fan = np.deg2rad(np.array([-84, -66, -44, -20, 4, 24, 42, 58, 72, 86.0]))
        fan = fan + rng.normal(0, 0.16, fan.shape)
        root = np.array([0.088, 0.425 - 0.012 * s])
        at = root + np.stack([0.004 * np.cos(fan), 0.035 * np.sin(fan)], axis=1)
        width = 0.0095 * np.array([0.75, 0.75, 0.7, 0.65, 0.7, 0.8, 0.95, 1.0, 1.0, 0.85])
        length = 0.066 * rng.uniform(0.55, 1.25, fan.shape)
        angle = fan
        for _ in range(5):
            n = len(angle)
            bend = rng.normal(0, 0.38, n)
            steps = np.linspace(0, 1, 4)[None, :]
            theta = angle[:, None] + bend[:, None] * steps
            hop = np.stack([np.cos(theta), np.sin(theta)], -1)[:, :3] * (length / 3)[:, None, None]
            path = np.concatenate([at[:, None], at[:, None] + np.cumsum(hop, axis=1)], axis=1)
            tree.append((path * [sign, 1.0], width))
            spread = rng.uniform(0.16, 0.55, (n, 2)) * [1, -1]
            at = np.repeat(path[:, -1], 2, axis=0)
            angle = (angle[:, None] + bend[:, None] + spread).ravel()
            width = (width[:, None] * rng.uniform(0.6, 0.82, (n, 2))).ravel()
            length = (length[:, None] * rng.uniform(0.6, 1.0, (n, 2))).ravel()
    return tree


# ---------------------------------------------------------------------------------------------
# Geometry in the patient's frame.
# ---------------------------------------------------------------------------------------------


@functools.cache
def _spline_basis(n: int) -> np.ndarray:
    t = np.arange(n)[:, None] / n
    powers = np.concatenate([np.ones_like(t), t, t**2, t**3], axis=1)
    basis = 0.5 * np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]])
    return powers @ basis


def _curve(points, n: int = 6) -> np.ndarray:
    """Catmull-Rom curve through [k, 2] points: [(k - 1) * n + 1, 2]."""
    points = np.asarray(points, float)
    ends = np.concatenate([points[:1], points, points[-1:]])
    windows = np.stack([ends[i : i + len(points) - 1] for i in range(4)])  # [4, k - 1, 2]
    body = np.tensordot(_spline_basis(n), windows, axes=(1, 0))  # [n, k - 1, 2]
    return np.concatenate([body.transpose(1, 0, 2).reshape(-1, 2), points[-1:]])


def _strip(path: np.ndarray, half_width) -> tuple[np.ndarray, np.ndarray]:
    """Both edges [n, 2] of a band around [n, 2] `path`; `half_width` a number or [n]."""
    along = np.gradient(path, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-9
    across = np.stack([-along[:, 1], along[:, 0]], axis=1) * np.broadcast_to(
        half_width, len(path)
    ).reshape(-1, 1)
    return path + across, path - across


def _ring(path: np.ndarray, half_width) -> np.ndarray:
    one, other = _strip(path, half_width)
    return np.concatenate([one, other[::-1]])


def _ellipse(centre, radii, n: int = 20, angle: float = 0.0) -> np.ndarray:
    t = np.linspace(0, 2 * np.pi, n, endpoint=False)
    x, y = radii[0] * np.cos(t), radii[1] * np.sin(t)
    cos, sin = np.cos(angle), np.sin(angle)
    return np.stack([centre[0] + x * cos - y * sin, centre[1] + x * sin + y * cos], axis=1)


# Right lung, lateral distance from the midline and height, from the medial end of the apex to the
# costophrenic angle, then along the diaphragm to the midline, then up the mediastinum.
_LATERAL = np.array(
    [
        (0.056, 0.30), (0.060, 0.20), (0.083, 0.137), (0.130, 0.110), (0.188, 0.135),
        (0.247, 0.210), (0.296, 0.335), (0.325, 0.470), (0.341, 0.600), (0.347, 0.700),
        (0.343, 0.785),
    ]
)  # fmt: skip
_DIAPHRAGM = np.array(
    [(0.343, 0.785), (0.325, 0.748), (0.275, 0.706), (0.205, 0.688), (0.135, 0.699), (0.072, 0.728)]
)
_MEDIAL = np.array([(0.072, 0.728), (0.060, 0.62), (0.054, 0.46), (0.056, 0.30)])


class _Chest:
    """All outlines of one film in the patient's frame, by name."""

    def __init__(self, patient: _Patient, visit: _Visit):
        self.visit, self.patient = visit, patient
        self.k = visit.inspiration
        ap = visit.view == "AP"
        self.lateral, self.diaphragm, self.lung, self.tip = [], [], [], []
        for s, (_, sign) in enumerate(_SIDES):
            lift = (patient.dome if s == 0 else 0.0) * 1.0
            lateral, diaphragm, medial = (
                self.place(part, s, sign) for part in (_LATERAL, _DIAPHRAGM, _MEDIAL)
            )
            jitter = patient.lung_jitter[s]
            lateral[3:-1] += jitter[: len(lateral) - 4]
            diaphragm[1:-1] += jitter[8 : 8 + len(diaphragm) - 2] * [0.3, 0.8]
            foot = diaphragm[0, 1]
            diaphragm[1:, 1] = foot + (diaphragm[1:, 1] - foot) * patient.dome_arch
            diaphragm[1:, 1] -= lift
            diaphragm[0, 1] -= 0.5 * lift
            lateral[-1] = diaphragm[0]
            medial[0] = diaphragm[-1]
            self.lateral.append(_curve(lateral))
            self.diaphragm.append(_curve(diaphragm))
            self.tip.append(diaphragm[0])
            base = self.diaphragm[s]
            side = self.lateral[s]
            if visit.effusion == s:
                side, base = self._meniscus(s, sign)
            self.lung.append(np.concatenate([side, base[1:], _curve(medial)[1:-1]]))
        self.thorax_width = self.lateral[1][:, 0].max() - self.lateral[0][:, 0].min()
        self.hilum = [self.place(np.array([(0.095, 0.425 - 0.012 * s)]), s, g)[0]
                      for s, (_, g) in enumerate(_SIDES)]  # fmt: skip
        self._mediastinum(ap)

    def place(self, points: np.ndarray, side: int, sign: float) -> np.ndarray:
        """Canonical (lateral distance, height) to the patient's frame, for this body and breath."""
        p = np.array(points, float)
        y = p[:, 1]
        y = np.where(y > 0.30, 0.30 + (y - 0.30) * self.k, y)
        x = sign * p[:, 0] * self.patient.width
        x = x + self.visit.turned * (1 - np.minimum(p[:, 0] / 0.2, 1))
        return np.stack([x, 0.46 + (y - 0.46) * self.patient.height], axis=1)

    def wall(self, y: np.ndarray, side: int) -> np.ndarray:
        """|x| of the inner chest wall at height y; below the lung it runs straight down."""
        edge = self.lateral[side][18:]
        return np.interp(y, edge[:, 1], np.abs(edge[:, 0]))

    def _meniscus(self, s: int, sign: float) -> tuple[np.ndarray, np.ndarray]:
        """Lung edge over a pleural effusion: (lateral path cut short, curve down to the dome)."""
        lateral, base = self.lateral[s], self.diaphragm[s]
        top = base[:, 1].min() + 0.045 - self.visit.fluid
        cut = int(np.argmax(lateral[:, 1] * (np.arange(len(lateral)) > 18) > top))
        keep = lateral[: max(cut, 20)]
        start = keep[-1]
        end_at = int(len(base) * (0.45 + 1.6 * self.visit.fluid))
        end = base[min(end_at, len(base) - 4)]
        t = np.linspace(0, 1, 12)[1:, None]
        # Steep beside the wall, then flat: the fluid climbs the chest wall.
        bend = np.array([start[0] - sign * 0.035, end[1] - 0.010])
        curve = (1 - t) ** 2 * start + 2 * t * (1 - t) * bend + t**2 * end
        rest = base[min(end_at, len(base) - 4) + 1 :]
        return keep, np.concatenate([start[None], curve, rest])

    def _mediastinum(self, ap: bool) -> None:
        patient, visit = self.patient, self.visit
        width = self.thorax_width * visit.heart_share
        right = max(0.072, 0.28 * width) + 0.006 * patient.heart_tilt
        left = width - right
        low = float(self.diaphragm[1][len(self.diaphragm[1]) * 2 // 3, 1])
        top = 0.30 + (0.40 - 0.30) * self.k
        h = low - top
        grow = visit.heart_share / 0.45

        def at(x, share):
            return (x + visit.turned * 0.5, top + share * h)

        self.heart = _curve(
            [
                at(-0.048, -0.02), at(-0.060, 0.18), at(-right * 0.93, 0.42), at(-right, 0.66),
                at(-right * 0.90, 0.92), at(-0.04, 1.12), at(left * 0.42, 1.16),
                at(left * 0.80, 1.12), at(left * 0.97, 0.98), at(left, 0.84),
                at(left * 0.88, 0.60), at(left * 0.62, 0.30 / grow**0.5), at(left * 0.42, 0.08),
                at(0.052, -0.10),
            ]
        )  # fmt: skip
        self.right_atrium = self.heart[6:26]
        knob_y = 0.275
        k = patient.knob
        dx = visit.turned
        self.knob = _ellipse((0.036 + dx, knob_y + 0.012), (0.030 * k + 0.005, 0.034), 20)
        self.great_vessels = _curve(
            [
                (-0.050 + dx, 0.02), (-0.047 + dx, 0.12), (-0.050 + dx, 0.22), (-0.054 + dx, 0.32),
                (-0.052 + dx, top + 0.1 * h), (0.0, top + 0.3 * h), (0.060 + dx, top + 0.14 * h),
                (0.058 + dx, top + 0.01), (0.048 + dx, 0.345), (0.040 + 0.026 * k + dx, 0.295),
                (0.040 + 0.024 * k + dx, 0.262), (0.045 + dx, 0.225), (0.043 + dx, 0.14),
                (0.050 + dx, 0.02),
            ]
        )  # fmt: skip
        self.svc = _curve([(-0.040 + dx, 0.235), (-0.043 + dx, 0.32), (-0.043 + dx, top + 0.08)])
        carina = 0.30 + (0.345 - 0.30) * self.k
        self.carina = np.array([-0.004 + dx, carina])
        self.trachea = _curve(
            [(0.0 + dx, -0.06), (0.001 + dx, 0.10), (-0.006 + dx, 0.24), tuple(self.carina)]
        )
        self.cavoatrial = np.array([-0.050 + dx, top + 0.12 * h])
        self.spine = _curve(
            [(patient.scoliosis * b, y) for b, y in ((0, -0.1), (1, 0.2), (-1, 0.5), (0, 0.8),
                                                      (0.5, 1.1))]
        )  # fmt: skip


class _Pen:
    """Draws shapes of the patient's frame on 8-bit layers of the film."""

    def __init__(self, size: int, pose: np.ndarray, supersample: int | None = None):
        self.size, self.pose = size, pose
        self.supersample = supersample or (2 if size <= 384 else 1)
        self.fine = size * self.supersample
        self.scale = float(np.sqrt(abs(np.linalg.det(pose[:, :2]))))

    def layer(self) -> np.ndarray:
        return np.zeros((self.fine, self.fine), np.uint8)

    def film(self, points: np.ndarray) -> np.ndarray:
        """Patient's frame -> film, 0..1."""
        return points @ self.pose[:, :2].T + self.pose[:, 2]

    def pixels(self, points: np.ndarray) -> np.ndarray:
        """Patient's frame -> pixels of the record's image."""
        return self.film(points) * self.size

    def _fixed(self, points: np.ndarray) -> np.ndarray:
        return np.rint((self.film(points) * self.fine - 0.5) * 16).astype(np.int32)

    def fill(self, layer: np.ndarray, outline: np.ndarray, value: int = 255) -> None:
        cv2.fillPoly(layer, [self._fixed(outline)], int(value), cv2.LINE_AA, 4)

    def line(self, layer, path: np.ndarray, width: float, value: int = 255, closed=False) -> None:
        """Strokes one path [n, 2] or many of equal length [m, n, 2]; `width` in units."""
        pixels = width * self.scale * self.fine
        thick = max(1, round(pixels))
        value = int(value * min(1.0, max(pixels / thick, 0.15)))
        paths = list(self._fixed(path)) if path.ndim == 3 else [self._fixed(path)]
        cv2.polylines(layer, paths, closed, value, thick, cv2.LINE_AA, 4)

    def down(self, layer: np.ndarray) -> np.ndarray:
        if self.supersample == 1:
            return layer
        return cv2.resize(layer, (self.size, self.size), interpolation=cv2.INTER_AREA)

    def blur(self, layer: np.ndarray, sigma: float) -> np.ndarray:
        """Gaussian blur; sigma in units of the film's width. Wide blurs go by a small copy."""
        pixels = sigma * len(layer)
        step = 1
        while pixels / step > 3 and len(layer) // (2 * step) >= 16:
            step *= 2
        if step == 1:
            return cv2.GaussianBlur(layer, (0, 0), pixels) if pixels > 0.2 else layer
        n = len(layer)
        small = cv2.resize(layer, (n // step, n // step), interpolation=cv2.INTER_AREA)
        small = cv2.GaussianBlur(small, (0, 0), pixels / step)
        return cv2.resize(small, (n, n), interpolation=cv2.INTER_LINEAR)


class _Texture:
    """Random fields of one film, on the lattice, so that they do not depend on its size."""

    def __init__(self, rng: np.random.Generator):
        n = _LATTICE
        self.fine = rng.standard_normal((n, n), np.float32)
        self.mid = _grown(rng.standard_normal((44, 44), np.float32), n)
        self.patch = _grown(rng.standard_normal((18, 18), np.float32), n)
        self.broad = _grown(rng.standard_normal((8, 8), np.float32), n)


def _grown(field: np.ndarray, n: int) -> np.ndarray:
    return cv2.resize(field, (n, n), interpolation=cv2.INTER_CUBIC)


def _smooth(x: np.ndarray) -> np.ndarray:
    x = np.clip(x, 0, 1)
    return x * x * (3 - 2 * x)


# ---------------------------------------------------------------------------------------------
# Lungs and zones.
# ---------------------------------------------------------------------------------------------


def _lung_labels(pen: _Pen, chest: _Chest) -> np.ndarray:
    """uint8 [size, size]: 0 outside, 1 right lung, 2 left lung; each one component."""
    labels = np.zeros((pen.size, pen.size), np.uint8)
    for s in range(2):
        points = np.rint((pen.film(chest.lung[s]) * pen.size - 0.5) * 16).astype(np.int32)
        cv2.fillPoly(labels, [points], s + 1, cv2.LINE_8, 4)
    return labels


def _zones(labels: np.ndarray) -> np.ndarray:
    """Zone map uint8: 0 outside, 1..6 row by row, right before left, as the record's severity."""
    zones = np.zeros_like(labels)
    for s in range(2):
        inside = labels == s + 1
        rows = np.flatnonzero(inside.any(axis=1))
        if not len(rows):
            continue
        top, bottom = rows[0], rows[-1] + 1
        share = (np.arange(len(labels)) - top) / (bottom - top)
        row_zone = 1 + s + 2 * np.searchsorted(ZONE_CUTS, share, side="right")
        zones += inside * row_zone.astype(np.uint8)[:, None]
    return zones


def _wall_distance(coarse: _Pen, chest: _Chest) -> np.ndarray:
    """float32 [lattice, lattice]: distance to the inner chest wall and apex, in film units."""
    right, left = chest.lateral[0][12:], chest.lateral[1][12:]
    down_right = right[-1:] + [0.0, 0.6]
    down_left = left[-1:] + [0.0, 0.6]
    outline = np.concatenate([right, down_right, down_left, left[::-1]])
    layer = coarse.layer()
    coarse.fill(layer, outline)
    mask = (layer > 127).astype(np.uint8)
    mask[-1] = np.maximum(mask[-1], 0)
    padded = cv2.copyMakeBorder(mask, 0, 8, 0, 0, cv2.BORDER_REPLICATE)
    distance = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[:-8]
    return distance / _LATTICE


# ---------------------------------------------------------------------------------------------
# Lesions.
# ---------------------------------------------------------------------------------------------


@dataclasses.dataclass
class _Sick:
    """Opacity of a film: `haze` and `solid` float32 0..1 (shares of the air that is filled)."""

    haze: np.ndarray
    solid: np.ndarray
    kind: np.ndarray  # uint8 [size, size], index into LESION_TYPES
    infection: np.ndarray  # bool [size, size]
    edema: np.ndarray  # bool [size, size]
    severity: np.ndarray  # int8 [3, 2]


def _lesions(visit, chest, pen, coarse, wall, zones, texture) -> _Sick:
    """Opacity fields and their exact masks at the film's size."""
    size = pen.size
    nothing = np.zeros((size, size), np.float32)
    sick = _Sick(nothing, nothing, np.zeros((size, size), np.uint8), nothing > 0, nothing > 0,
                 np.zeros((3, 2), np.int8))  # fmt: skip
    positive = visit.extent["positive"]
    if not positive.any() and not visit.edema:
        return sick
    small_zones = cv2.resize(zones, (_LATTICE, _LATTICE), interpolation=cv2.INTER_NEAREST)
    blocked = None
    if visit.pneumothorax is not None:
        layer = coarse.layer()
        coarse.fill(layer, _pleural_air(chest, visit)[0])
        blocked = layer > 60
    haze = solid = nothing
    if positive.any():
        cover, dense = visit.extent["cover"], visit.extent["dense"]
        liking = _infection_liking(visit, chest, coarse, wall, texture)
        soft = 0.9 if visit.extent["style"] == "patchy" else 0.7
        field, core = _opacity(liking, small_zones, cover, cover * dense, blocked, soft, texture)
        field, core = (_at_size(f, size) for f in (field, core))
        sick.infection = (field >= LESION_CUT) & np.isin(zones, _zone_numbers(positive))
        sick.infection = _without_specks(sick.infection, zones)
        inside = np.isin(zones, _zone_numbers(_zones_hit(sick.infection, zones)))
        field, core = field * inside, core * inside
        sick.kind[sick.infection] = GROUND_GLASS
        sick.kind[sick.infection & (core >= 0.5)] = CONSOLIDATION
        if (sick.kind == CONSOLIDATION).sum() < 2e-4 * size * size * 4:
            sick.kind[sick.infection] = GROUND_GLASS  # too little to call
            core = core * 0
        haze, solid = visit.extent["filling"] * field, visit.extent["solid_filling"] * core
    if visit.edema:
        amount = np.array([[0.5 if visit.edema_upper else 0.0], [1.0], [0.8]])
        cover = np.repeat(amount * visit.edema_amount, 2, axis=1)
        liking = _edema_liking(chest, coarse, texture)
        field, _ = _opacity(liking, small_zones, cover, cover * 0, blocked, 1.2, texture)
        field = _at_size(field, size)
        sick.edema = (field >= LESION_CUT) & np.isin(zones, _zone_numbers(cover > 0))
        sick.edema = _without_specks(sick.edema, zones)
        inside = np.isin(zones, _zone_numbers(_zones_hit(sick.edema, zones)))
        haze = np.maximum(haze, 0.34 * field * inside)
        sick.kind[sick.edema & (sick.kind == 0)] = GROUND_GLASS
    sick.haze, sick.solid = haze, solid
    sick.severity = _severity(sick.kind, zones)
    return sick


def _zone_numbers(chosen: np.ndarray) -> np.ndarray:
    return np.flatnonzero(chosen.ravel()) + 1


def _zones_hit(mask: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """bool [6]: the zone holds a pixel of `mask`."""
    return np.bincount(zones[mask], minlength=7)[1:7] > 0


def _without_specks(mask: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """Clears zones of which the mask covers less than `LEAST_COVER`."""
    cover = np.bincount(zones[mask], minlength=7) / np.maximum(
        np.bincount(zones.ravel(), minlength=7), 1
    )
    return mask & (cover >= LEAST_COVER)[zones]


def _severity(kind: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """Zone scores int8 [3, 2] by the module's rule."""
    burden = np.bincount(zones.ravel(), weights=kind.ravel().astype(np.float64), minlength=7)[1:7]
    pixels = np.maximum(np.bincount(zones.ravel(), minlength=7)[1:7], 1)
    score = 1 + np.searchsorted(SEVERITY_CUTS, burden / pixels, side="right")
    return np.where(burden > 0, score, 0).reshape(3, 2).astype(np.int8)


def _at_size(field: np.ndarray, size: int) -> np.ndarray:
    return cv2.resize(field, (size, size), interpolation=cv2.INTER_LINEAR)


def _infection_liking(visit, chest, coarse, wall, texture) -> np.ndarray:
    """Where the infection prefers to lie, on the lattice; higher is likelier."""
    if visit.extent["style"] == "patchy":
        periphery = np.exp(-((wall / 0.07) ** 2))
        return 1.6 * periphery + 0.95 * texture.patch + 0.35 * texture.mid + 0.3 * texture.broad
    y, x = np.mgrid[0:_LATTICE, 0:_LATTICE].astype(np.float32)
    liking = np.full((_LATTICE, _LATTICE), -9.0, np.float32)
    positive = visit.extent["positive"]
    for s, (_, sign) in enumerate(_SIDES):
        rows = np.flatnonzero(positive[:, s])
        if not len(rows):
            continue
        lateral, lean = visit.extent["place"][s]
        height = np.array([0.24, 0.46, 0.63])[rows].mean() + 0.05 * lean
        centre = coarse.film(chest.place(np.array([(lateral, height)]), s, sign))[0] * _LATTICE
        distance = np.hypot(x - centre[0], (y - centre[1]) * 1.1) / (0.11 * _LATTICE)
        liking = np.maximum(liking, -distance)
    return 1.5 * liking + 0.45 * texture.patch + 0.25 * texture.mid + 0.2 * texture.broad


def _edema_liking(chest, coarse, texture) -> np.ndarray:
    y, x = np.mgrid[0:_LATTICE, 0:_LATTICE].astype(np.float32)
    liking = np.full((_LATTICE, _LATTICE), -9.0, np.float32)
    for s in range(2):
        centre = coarse.film(chest.hilum[s][None] + [0.0, 0.05])[0] * _LATTICE
        distance = np.hypot(x - centre[0], (y - centre[1]) * 0.75) / (0.10 * _LATTICE)
        liking = np.maximum(liking, -distance)
    return 1.5 * liking + 0.3 * texture.patch + 0.2 * texture.mid


def _opacity(liking, zones, cover, dense, blocked, soft, texture):
    """Opacity and its consolidated core, 0..1 on the lattice.

    The threshold of each positive zone is the quantile of `liking` that covers the wanted share
    `cover` [3, 2] (`dense` for the core); between neighbouring positive zones it runs smoothly.
    Towards a zone that is to stay free the opacity is tapered to exactly 0.
    """
    wanted = np.concatenate([[0.0], cover.ravel()])
    free = (zones > 0) & (wanted[zones] == 0)
    gap = cv2.distanceTransform((~free).astype(np.uint8), cv2.DIST_L2, 3) / _LATTICE
    taper = _smooth((gap - 0.012 - 0.008 * np.abs(texture.mid)) / 0.05).astype(np.float32)
    if blocked is not None:
        taper = taper * ~blocked
    liking = liking - 4.0 * (1 - taper)
    fields = []
    for share in (cover, dense):
        threshold = np.full((_LATTICE, 2), 99.0, np.float32)
        for s in range(2):
            rows = np.full(_LATTICE, np.nan, np.float32)
            for z in range(3):
                if share[z, s] <= 0:
                    continue
                inside = zones == 1 + 2 * z + s
                if inside.sum() < 8:
                    continue
                level = np.quantile(liking[inside], 1 - share[z, s])
                rows[inside.any(axis=1)] = level
            known = np.flatnonzero(~np.isnan(rows))
            if len(known):
                rows = np.interp(np.arange(_LATTICE), known, rows[known])
                padded = np.pad(rows, 6, mode="edge")
                threshold[:, s] = np.convolve(padded, np.full(13, 1 / 13), mode="valid")
        side = np.zeros_like(zones)
        side[zones > 0] = (zones[zones > 0] - 1) % 2
        side = _spread_sides(zones)
        level = np.where(side == 0, threshold[:, :1], threshold[:, 1:])
        # _smooth(0.4) is LESION_CUT to three digits: the mask covers what was asked for.
        fields.append(_smooth((liking - level) / soft + 0.4).astype(np.float32) * (taper > 0))
    return fields[0] * taper, fields[1] * taper


def _spread_sides(zones: np.ndarray) -> np.ndarray:
    """0 towards the right lung, 1 towards the left, everywhere on the lattice."""
    right = np.flatnonzero((zones % 2 == 1).any(axis=0))
    left = np.flatnonzero(((zones % 2 == 0) & (zones > 0)).any(axis=0))
    middle = 0.5 * ((right[-1] if len(right) else 0) + (left[0] if len(left) else len(zones)))
    return np.broadcast_to((np.arange(zones.shape[1]) > middle).astype(int), zones.shape)


def _pleural_air(chest: _Chest, visit: _Visit) -> tuple[np.ndarray, np.ndarray]:
    """Pneumothorax: (outline of the air [n, 2], the visceral pleural line [m, 2])."""
    s = visit.pneumothorax
    edge = chest.lateral[s][8:]
    n = max(12, int(len(edge) * visit.air_end))
    edge = edge[:n]
    t = np.linspace(0, 1, n)
    # Widest at the apex, closing towards both ends.
    inward = visit.air * np.sin(np.pi * np.clip(0.18 + 0.82 * t, 0, 1)) ** 0.8
    line = edge + inward[:, None] * (chest.hilum[s] + [0.0, 0.05] - edge)
    return np.concatenate([edge, line[::-1]]), line


# ---------------------------------------------------------------------------------------------
# Attenuation.
# ---------------------------------------------------------------------------------------------


def _soft_tissue(pen, coarse, chest, patient, visit, wall) -> np.ndarray:
    """Thickness of body and arms, float32 [size, size], 1 at the middle of the trunk."""
    fat = 0.030 + 0.055 * patient.fat
    side = []
    for s, (_, sign) in enumerate(_SIDES):
        y = np.array([0.42, 0.55, 0.68, 0.80, 0.95, 1.15])
        x = np.array([chest.wall(np.array([v]), s)[0] for v in y]) + fat
        x[3:] = np.maximum(x[3:], x[2] + [0.0, 0.005, 0.01])
        top = np.array(
            [(0.082, -0.10), (0.088, 0.02), (0.125, 0.055), (0.25, 0.075), (0.37, 0.095),
             (0.45, 0.15), (0.455, 0.24), (0.40, 0.34)]
        )  # fmt: skip
        top = top * [patient.width, 1] + [fat * 0.4, 0]
        side.append(_curve(np.concatenate([top, np.stack([x, y], 1)])) * [sign, 1])
    outline = np.concatenate([side[0], side[1][::-1]])
    body = coarse.layer()
    coarse.fill(body, outline)
    padded = cv2.copyMakeBorder((body > 127).astype(np.uint8), 0, 24, 0, 0, cv2.BORDER_REPLICATE)
    padded[:24] = np.maximum(padded[:24], 0)
    depth = cv2.distanceTransform(padded, cv2.DIST_L2, 3)[:-24] / _LATTICE
    t = np.clip(depth / 0.17, 0, 1)
    profile = np.sqrt(t * (2 - t))
    y = (np.arange(_LATTICE, dtype=np.float32)[:, None] + 0.5) / _LATTICE
    profile = profile * (0.80 + 0.26 * _smooth((y - 0.05) / 0.75))
    arms = coarse.layer()
    for _, sign in _SIDES:
        arm = _curve([(0.44, 0.17), (0.50, 0.32), (0.53, 0.55), (0.55, 0.90)]) * [sign, 1]
        coarse.fill(arms, _ring(arm + [sign * fat * 0.8, 0], 0.06 + 0.4 * fat))
    t = cv2.distanceTransform((arms > 127).astype(np.uint8), cv2.DIST_L2, 3) / _LATTICE / 0.075
    t = np.clip(t, 0, 1)
    arm_profile = 0.42 * np.sqrt(t * (2 - t))
    skin = pen.layer()
    pen.fill(skin, outline)
    skin = pen.down(skin).astype(np.float32) / 255
    trunk = _at_size(np.maximum(profile, 0.12).astype(np.float32), pen.size) * skin
    return np.maximum(trunk, _at_size(arm_profile.astype(np.float32), pen.size))


def _bones(pen: _Pen, chest: _Chest, patient: _Patient, visit: _Visit) -> np.ndarray:
    """Bone thickness, float32 [size, size]; about 1 for the shadow of a posterior rib."""
    back, front, edges, deep = pen.layer(), pen.layer(), pen.layer(), pen.layer()
    t = np.linspace(0, 1, 16)
    for s, (_, sign) in enumerate(_SIDES):
        for i in range(12):
            y0 = 0.085 + patient.rib_pitch * 1.02 * i + patient.rib_jitter[s, i]
            drop = 0.030 + 0.0125 * i + patient.rib_tilt
            half = patient.rib_width * (0.80 + 0.03 * min(i, 6))
            if i == 0:
                path = _curve(
                    [(0.038, y0 + 0.01), (0.09, y0 - 0.008), (0.138, y0 + 0.03),
                     (0.135, y0 + 0.085), (0.07, y0 + 0.125)]
                ) * [sign * patient.width, 1]  # fmt: skip
                pen.fill(back, _ring(path, half), 130)
                continue
            y_end = y0 + drop
            wall = float(chest.wall(np.array([y_end + 0.02]), s)[0]) + 0.008
            p0, p1 = np.array([0.036, y0 + 0.012]), np.array([0.42 * wall, y0 - 0.035 + 0.002 * i])
            p2, p3 = (
                np.array([0.97 * wall, y0 - 0.005 + 0.25 * drop]),
                np.array([wall, y_end + 0.045]),
            )
            b = t[:, None]
            path = ((1 - b) ** 3 * p0 + 3 * b * (1 - b) ** 2 * p1 + 3 * b**2 * (1 - b) * p2
                    + b**3 * p3) * [sign, 1]  # fmt: skip
            width = half * (0.8 + 0.35 * np.sin(np.pi * np.clip(t * 1.1, 0, 1)))
            upper, lower = _strip(path, width)
            pen.fill(back, np.concatenate([upper, lower[::-1]]), 125)
            pen.line(edges, upper, 0.0032, 120)
            pen.line(edges, lower, 0.0036, 150)
            if i > 8:
                continue
            a0 = np.array([wall, y_end + 0.030])
            a3 = np.array([0.125 + 0.012 * i, y_end + 0.115 + 0.010 * i])
            a1, a2 = a0 + [-0.002, 0.055], (a0 + a3) / 2 + [0.015, 0.035]
            path = ((1 - b) ** 3 * a0 + 3 * b * (1 - b) ** 2 * a1 + 3 * b**2 * (1 - b) * a2
                    + b**3 * a3) * [sign, 1]  # fmt: skip
            upper, lower = _strip(path, half * 1.12)
            pen.fill(front, np.concatenate([upper, lower[::-1]]), 80)
            pen.line(edges, upper[:-2], 0.0026, 70)
            pen.line(edges, lower[:-2], 0.0026, 80)
        tilt = patient.clavicle_tilt - (0.02 if visit.view == "AP" else 0.0)
        clavicle = _clavicle_path(patient, tilt, sign)
        half = 0.0125 * np.interp(
            np.linspace(0, 1, len(clavicle)), [0, 0.3, 0.7, 1], [1.25, 0.85, 0.8, 1.1]
        )
        upper, lower = _strip(clavicle, half)
        pen.fill(front, np.concatenate([upper, lower[::-1]]), 200)
        pen.line(edges, upper, 0.0034, 170)
        pen.line(edges, lower, 0.0034, 170)
        out = patient.scapula + (-0.02 if visit.view == "AP" else 0.025)
        scapula = _curve(
            [(0.33 + out, 0.135), (0.345 + out, 0.23), (0.375 + out, 0.33), (0.395 + out, 0.42),
             (0.415 + out, 0.36), (0.425, 0.25), (0.435, 0.175)]
        ) * [sign, 1]  # fmt: skip
        pen.fill(deep, np.concatenate([scapula, [[sign * 0.36, 0.13]]]), 70)
        pen.line(edges, scapula[:20], 0.0034, 90)
        pen.line(edges, scapula[20:], 0.005, 110)
        pen.fill(deep, _ellipse((sign * 0.468, 0.172), (0.042, 0.046)), 130)
        shaft = _curve([(0.475, 0.19), (0.50, 0.32), (0.52, 0.55), (0.54, 0.9)]) * [sign, 1]
        pen.fill(deep, _ring(shaft, 0.024), 120)
        for edge in _strip(shaft, 0.022):
            pen.line(edges, edge, 0.006, 130)
    _vertebrae(pen, chest, deep, edges)
    total = cv2.addWeighted(pen.down(back), 1 / 125, pen.down(front), 1 / 125, 0, dtype=cv2.CV_32F)
    total = cv2.scaleAdd(pen.down(edges).astype(np.float32), 0.75 / 150, total)
    total = cv2.scaleAdd(pen.down(deep).astype(np.float32), 1.1 / 125, total)
    return pen.blur(total, 0.0022) * np.float32(patient.bone)


def _clavicle_path(patient: _Patient, tilt: float, sign: float) -> np.ndarray:
    return _curve(
        [(0.030, 0.205), (0.075, 0.190), (0.15, 0.168 - tilt * 0.4), (0.24, 0.138 - tilt * 0.8),
         (0.32, 0.118 - tilt), (0.40, 0.122 - tilt)]
    ) * [sign * patient.width, 1]  # fmt: skip


def _vertebrae(pen: _Pen, chest: _Chest, deep: np.ndarray, edges: np.ndarray) -> None:
    y = -0.06
    while y < 1.08:
        h = 0.042 + 0.018 * np.clip(y, 0, 1)
        half = 0.030 + 0.008 * np.clip(y, 0, 1)
        x = np.interp(y + h / 2, chest.spine[:, 1], chest.spine[:, 0])
        gap = 0.12 * h
        body = np.array(
            [(x - half, y + gap), (x - half * 0.88, y + h / 2), (x - half, y + h - gap),
             (x + half, y + h - gap), (x + half * 0.88, y + h / 2), (x + half, y + gap)]
        )  # fmt: skip
        pen.fill(deep, body, 135)
        pen.line(edges, body[2:4], 0.004, 90)
        pen.line(edges, body[[5, 0]], 0.004, 90)
        for g in (-1, 1):
            pen.fill(deep, _ellipse((x + g * half * 0.62, y + 0.42 * h), (0.006, 0.009), 10), 200)
        pen.fill(deep, _ellipse((x, y + 0.8 * h), (0.005, 0.012), 10), 190)
        y += h


def _vessels(pen: _Pen, chest: _Chest, patient: _Patient, visit: _Visit) -> np.ndarray:
    """Vessel shadow float32 [size, size], 0..1, of both lungs and hila."""
    layer = pen.layer()
    for g, (paths, widths) in enumerate(patient.tree):
        generation = g % 5
        flat = paths.reshape(-1, 2)
        y = np.where(flat[:, 1] > 0.30, 0.30 + (flat[:, 1] - 0.30) * chest.k, flat[:, 1])
        moved = np.stack([flat[:, 0] * patient.width, 0.46 + (y - 0.46) * patient.height], axis=1)
        moved = moved.reshape(paths.shape)
        upward = paths[:, 0, 1] < 0.40
        widths = widths * np.where(upward, 1.5 if visit.edema else 0.9, 1.0)
        pixels = widths * pen.scale * pen.fine
        steps = np.maximum(1, np.rint(pixels)).astype(int)
        value = (200, 150, 105, 75, 50)[generation] * patient.vascularity
        for thick in np.unique(steps):
            chosen = steps == thick
            width = float(widths[chosen].mean())
            pen.line(layer, moved[chosen], width, min(255, value))
    return pen.down(layer).astype(np.float32) / 255


def _attenuation(pen, chest, patient, visit, tissue, sick, texture, devices, lesions):
    """A, float32 [size, size]; with `lesions` False the lungs are clear of them."""
    size = pen.size
    outline = pen.layer()
    for s in range(2):
        pen.fill(outline, chest.lung[s])
    lung = pen.blur(pen.down(outline), 0.0024).astype(np.float32) / 255
    heart_layer = pen.layer()
    pen.fill(heart_layer, chest.heart)
    heart_mask = pen.down(heart_layer).astype(np.float32) / 255
    heart = 0.62 * pen.blur(heart_mask, 0.0035) + 0.38 * pen.blur(heart_mask, 0.045)
    middle_layer = pen.layer()
    pen.fill(middle_layer, chest.great_vessels)
    pen.fill(middle_layer, chest.knob)
    middle = pen.blur(pen.down(middle_layer), 0.003).astype(np.float32) / 255

    coarse = _Pen(_LATTICE, visit.pose, supersample=1)
    wall = _wall_distance(coarse, chest)
    t = np.clip(wall / 0.10, 0, 1)
    aerated = _at_size((0.50 + 0.50 * np.sqrt(t * (2 - t))).astype(np.float32), size)
    air = lung * aerated * (1 - 0.80 * np.maximum(heart * heart_mask, 0.95 * middle))

    hila = pen.layer()
    for s in range(2):
        pen.fill(hila, _ellipse(chest.hilum[s] + [0, 0.01], (0.022, 0.048), 20), 150)
    hila = pen.blur(pen.down(hila), 0.014).astype(np.float32) / 255
    vessels = _vessels(pen, chest, patient, visit)
    fine = _at_size(0.5 * cv2.GaussianBlur(texture.fine, (0, 0), 0.7) + 0.3 * texture.mid, size)
    markings = np.maximum(vessels, 0.8 * hila) + 0.05 * fine

    if visit.pneumothorax is not None:
        outline, line = _pleural_air(chest, visit)
        layer = pen.layer()
        pen.fill(layer, outline)
        gone = pen.down(layer).astype(np.float32) / 255
        layer = pen.layer()
        pen.line(layer, line, 0.0042)
        markings = markings * (1 - gone) + 0.42 * pen.down(layer).astype(np.float32) / 255
        air = air * (1 + 0.10 * gone)
    if visit.atelectasis is not None:
        bands = _band_layer(pen, chest, visit)
        markings = markings + 0.75 * pen.blur(bands, 0.003).astype(np.float32) / 255

    filled = np.zeros_like(air)
    if lesions and sick.kind.any():
        grain = _at_size(0.16 * texture.mid + 0.16 * texture.fine + 0.10 * texture.patch, size)
        filled = (sick.haze + sick.solid) * np.clip(1 + 0.8 * grain, 0.5, 1.5)
        if visit.extent["bronchograms"]:
            tubes = pen.blur(vessels, 0.002)
            filled = filled - 0.9 * sick.solid * np.clip(tubes - 0.25, 0, 0.6)
        markings = markings * (1 - 1.1 * sick.solid - 0.4 * sick.haze)
        if visit.edema:
            markings = pen.blur(markings, 0.003)
    body = tissue * visit.technique["thickness"]
    attenuation = body * (1 - 0.64 * air * (1 - np.clip(filled, 0, 0.92)))
    attenuation += 0.50 * markings * lung * (1 - 0.5 * heart_mask)
    attenuation += 0.30 * _bones(pen, chest, patient, visit) * (tissue > 0.02)

    windpipe = pen.layer()
    pen.fill(windpipe, _ring(chest.trachea, 0.0125), 255)
    for s, (_, sign) in enumerate(_SIDES):
        end = chest.hilum[s] + [-sign * 0.02, -0.005]
        bronchus = np.linspace(chest.carina - [0, 0.006], end, 5)
        pen.fill(windpipe, _ring(bronchus, np.linspace(0.0095, 0.006, 5)), 150)
    attenuation -= 0.42 * pen.blur(pen.down(windpipe), 0.004).astype(np.float32) / 255
    gas = _gas_layer(pen, chest, visit)
    attenuation -= 1.0 * pen.blur(gas, 0.005).astype(np.float32) / 255 * (1 - lung)
    if patient.breast:
        attenuation += 0.30 * _breast_layer(pen, chest, patient)
    if patient.fissure:
        layer = pen.layer()
        path = chest.place(np.array([(0.09, 0.44), (0.20, 0.435), (0.32, 0.45)]), 0, -1.0)
        pen.line(layer, _curve(path), 0.0022, 160)
        attenuation += 0.10 * pen.down(layer).astype(np.float32) / 255
    for _, layer in devices:
        attenuation += 0.75 * pen.down(layer).astype(np.float32) / 255
    return np.maximum(attenuation, 0)


def _band_layer(pen: _Pen, chest: _Chest, visit: _Visit) -> np.ndarray:
    """Plate-like atelectasis: uint8 [size, size]."""
    layer = pen.layer()
    for lateral, above, length, slope, thick in visit.bands:
        path = _band_path(chest, visit, lateral, above, length, slope)
        half = 0.5 * thick * np.sin(np.linspace(0.15, np.pi - 0.15, len(path)))
        pen.fill(layer, _ring(path, half))
    return pen.down(layer)


def _band_path(chest, visit, lateral, above, length, slope) -> np.ndarray:
    s = visit.atelectasis
    sign = _SIDES[s][1]
    base = chest.diaphragm[s]
    x = sign * lateral
    order = np.argsort(base[:, 0])
    y = np.interp(x, base[order, 0], base[order, 1]) - above
    along = np.linspace(-0.5, 0.5, 9)[:, None] * length
    return np.array([x, y]) + along * [sign, slope] + [0, 0.01] * (along / length) ** 2 * 4


def _gas_layer(pen: _Pen, chest: _Chest, visit: _Visit) -> np.ndarray:
    """Stomach bubble and bowel gas under the left dome: uint8 [size, size]."""
    layer = pen.layer()
    dome = chest.diaphragm[1]
    top = dome[np.argmin(dome[:, 1])]
    if visit.stomach:
        dx, dy, a, b = visit.stomach_shape
        pen.fill(layer, _ellipse(top + [dx - 0.03, dy], (a, b), 20, 0.3), 170)
    for u in visit.bowel:
        centre = top + [(u[0] - 0.7) * 0.25, 0.10 + 0.12 * u[1]]
        pen.fill(layer, _ellipse(centre, (0.02 + 0.03 * u[2], 0.015 + 0.015 * u[3]), 16), 90)
    return pen.down(layer)


def _breast_layer(pen: _Pen, chest: _Chest, patient: _Patient) -> np.ndarray:
    layer = pen.layer()
    radius = 0.11 + 0.05 * patient.breast
    for _, sign in _SIDES:
        centre = (sign * (0.235 + 0.02 * patient.breast), 0.60 + 0.05 * patient.breast)
        pen.fill(layer, _ellipse(centre, (radius, radius * 1.05), 28), 255)
    mask = pen.down(layer).astype(np.float32) / 255
    return (0.35 * pen.blur(mask, 0.006) + 0.65 * pen.blur(mask, 0.03) * mask) * patient.breast


def _devices(pen: _Pen, chest: _Chest, visit: _Visit) -> list[tuple[str, np.ndarray]]:
    """(name, uint8 layer [fine, fine]) of each device that shows on the film."""
    drawn = []
    for name, seed in visit.devices:
        rng = np.random.default_rng(seed)
        layer = pen.layer()
        _DEVICE_DRAWERS[name](pen, layer, chest, rng)
        if np.count_nonzero(pen.down(layer) > 40) > 12:
            drawn.append((name, layer))
    return drawn


def _draw_tube(pen, layer, chest, rng):
    tip = chest.carina[1] - rng.uniform(0.035, 0.08)
    path = chest.trachea[chest.trachea[:, 1] < tip]
    path = np.concatenate([path, [[np.interp(tip, *chest.trachea.T[::-1]), tip]]])
    for edge in _strip(path, 0.0075):
        pen.line(layer, edge, 0.0028, 150)
    pen.line(layer, path, 0.0025, 90)


def _draw_line(pen, layer, chest, rng):
    end = chest.cavoatrial + [0.004, rng.uniform(-0.05, 0.03)]
    svc = chest.svc[2]
    if rng.random() < 0.5:
        start = [(-0.115, -0.05), (-0.085, 0.08), (-0.055, 0.17)]
    else:
        start = [(-0.30, 0.02), (-0.25, 0.13), (-0.14, 0.185), (-0.07, 0.20)]
    pen.line(layer, _curve([*start, tuple(svc), tuple(end)]), 0.0042, 190)


def _draw_gastric(pen, layer, chest, rng):
    low = chest.diaphragm[1][:, 1].min()
    wander = rng.normal(0, 0.006, 3)
    path = [(0.012, -0.05), (0.010 + wander[0], 0.2), (0.016 + wander[1], 0.45),
            (0.022 + wander[2], low), (0.07, low + 0.09), (0.13, low + 0.10)]  # fmt: skip
    pen.line(layer, _curve(path), 0.0038, 150)


def _draw_leads(pen, layer, chest, rng):
    spots = np.array([(-0.26, 0.20), (0.25, 0.19), (-0.25, 0.66), (0.29, 0.64), (0.06, 0.52)])
    spots = spots + rng.normal(0, 0.025, spots.shape)
    hub = np.array([rng.choice([-0.1, 0.12]), 1.08])
    for spot in spots[: rng.integers(3, 6)]:
        pen.fill(layer, _ellipse(spot, (0.0125, 0.0125), 14), 110)
        pen.fill(layer, _ellipse(spot, (0.006, 0.006), 10), 255)
        bend = (spot + hub) / 2 + rng.normal(0, 0.06, 2)
        pen.line(layer, _curve([spot, (spot + bend) / 2 + [0.02, 0], bend, hub]), 0.0026, 150)


def _draw_pacemaker(pen, layer, chest, rng):
    centre = np.array([rng.uniform(0.22, 0.27), rng.uniform(0.20, 0.25)])
    body = _ellipse((0, 0), (1, 1), 24)
    body = np.sign(body) * np.abs(body) ** 0.6 * [0.042, 0.036]
    pen.fill(layer, body + centre, 255)
    low = chest.diaphragm[1][:, 1].min()
    for end in ((0.085, low - 0.03), (-0.035, low - 0.14))[: rng.integers(1, 3)]:
        path = [centre - [0.02, 0.03], (0.12, 0.165), (0.01, 0.21), tuple(chest.svc[4]),
                (-0.045, low - 0.22), end]  # fmt: skip
        pen.line(layer, _curve(path), 0.0038, 220)


_DEVICE_DRAWERS = {
    "tube": _draw_tube,
    "line": _draw_line,
    "gastric": _draw_gastric,
    "leads": _draw_leads,
    "pacemaker": _draw_pacemaker,
}


# ---------------------------------------------------------------------------------------------
# Exposure and display.
# ---------------------------------------------------------------------------------------------


def _expose(attenuation, pen, visit, population, rng) -> np.ndarray:
    """Attenuation to the displayed film, uint8 [size, size]."""
    size, technique = pen.size, visit.technique
    primary = cv2.exp(-attenuation)
    f = technique["scatter"]
    light = (primary + f * pen.blur(primary, 0.09)) / (1 + f)
    light = pen.blur(light, technique["blur"])
    grain = rng.standard_normal((size, size), np.float32) * (technique["noise"] * size / 256)
    light += grain * np.sqrt(light) * 0.6
    density = -cv2.log(np.maximum(light, 0.004))
    if technique["grid"]:
        density += technique["grid"] * np.cos(np.arange(size, dtype=np.float32) * 2.2)[:, None]
    span = np.linspace(-1, 1, size, dtype=np.float32)
    density *= 1 + technique["heel"][0] * span[None, :] + technique["heel"][1] * span[:, None]

    white = -np.log((np.exp(-technique["thickness"]) + f * 0.10) / (1 + f)) * technique["high"]
    v = (density - technique["low"]) / (white - technique["low"])
    v = v + technique["detail"] * (v - pen.blur(v, 0.05))
    v = np.clip(v, 0, 1) ** technique["gamma"]
    v = (1 - technique["curve"]) * v + technique["curve"] * _smooth(v)
    image = (12 + 236 * v).astype(np.uint8)
    _borders(image, technique)
    _markers(image, visit, technique)
    return image


def _borders(image: np.ndarray, technique: dict) -> None:
    """Collimation: unexposed margins, black as readers see them (or white, uninverted)."""
    if technique["border"] > 0.55:
        return
    size = len(image)
    value = 0 if technique["border"] < 0.45 else 250
    top, bottom, left, right = (int(m * size) for m in technique["field"])
    image[:top] = value
    image[size - bottom :] = value
    image[:, :left] = value
    image[:, size - right :] = value


def _markers(image: np.ndarray, visit: _Visit, technique: dict) -> None:
    """Side marker and view stamp."""
    size = len(image)
    there, side, x, y = technique["marker"]
    if there > 0.75:
        return
    letter = "R" if side < 0.4 else "L"
    column = (0.05 + 0.05 * x) if letter == "R" else (0.87 + 0.05 * x)
    origin = (int(column * size), int((0.10 + 0.06 * y) * size))
    scale = size / 256 * 0.45
    thick = max(1, round(size / 256))
    cv2.putText(image, letter, origin, cv2.FONT_HERSHEY_DUPLEX, scale, 245, thick, cv2.LINE_AA)
    if visit.view == "AP" and side > 0.6:
        low = (origin[0] - int(0.02 * size), origin[1] + int(0.05 * size))
        cv2.putText(
            image, "AP", low, cv2.FONT_HERSHEY_SIMPLEX, 0.6 * scale, 235, thick, cv2.LINE_AA
        )


# ---------------------------------------------------------------------------------------------
# Truth.
# ---------------------------------------------------------------------------------------------


def _truth(pen, chest, visit, lungs, zones, sick, devices) -> Record:
    """findings, regions and boxes from what was drawn."""
    spots: list[tuple[int, np.ndarray]] = []  # (finding, box) of each instance with a place

    def spot(name: str, box) -> None:
        if box is not None:
            spots.append((_FINDING[name], box))

    for name, mask in (
        ("lung opacity", sick.kind > 0),
        ("consolidation", sick.kind == CONSOLIDATION),
        ("pneumonia", sick.infection),
        ("edema", sick.edema),
    ):
        for box in _component_boxes(mask):
            spot(name, box)
    if chest.patient.large_heart:
        spot("cardiomegaly", _box(pen, chest.heart))
    sided = {}
    if visit.atelectasis is not None:
        sided["atelectasis"] = (visit.atelectasis, _mask_box(_band_layer(pen, chest, visit) > 60))
    if visit.pneumothorax is not None:
        sided["pneumothorax"] = (visit.pneumothorax, _box(pen, _pleural_air(chest, visit)[0]))
    if visit.effusion is not None:
        sided["pleural effusion"] = (visit.effusion, _box(pen, _fluid(chest, visit)))
    for name, (_, box) in sided.items():
        spot(name, box)
    device_masks = [pen.down(layer) > 40 for _, layer in devices]
    for mask in device_masks:
        spot("support devices", _mask_box(mask))

    findings = np.zeros(len(FINDINGS), np.float32)
    for label, _ in spots:
        findings[label] = 1
    findings[_FINDING["no finding"]] = float(not findings.any())

    regions = _regions(pen, chest, lungs, zones)
    present = ~np.isnan(regions[:, 0])
    region_findings = _region_findings(regions, present, lungs, zones, sick, sided, spots,
                                       device_masks)  # fmt: skip
    return {
        "findings": findings,
        "regions": regions,
        "region_present": present,
        "region_findings": region_findings,
        "boxes": np.array([b for _, b in spots], np.float32).reshape(-1, 4),
        "box_label": np.array([label for label, _ in spots], np.int32),
    }


def _fluid(chest: _Chest, visit: _Visit) -> np.ndarray:
    s = visit.effusion
    side, base = chest._meniscus(s, _SIDES[s][1])
    lateral = chest.lateral[s][len(side) - 1 :]
    return np.concatenate([lateral, chest.diaphragm[s][: len(chest.diaphragm[s]) // 2], base[:12]])


def _box(pen: _Pen, points: np.ndarray, least: float = 0.3) -> np.ndarray | None:
    """Tight box of a shape, clipped to the film; None where under `least` of it is in view."""
    p = pen.pixels(points)
    low, high = p.min(axis=0), p.max(axis=0)
    a, b = np.clip(low, 0, pen.size), np.clip(high, 0, pen.size)
    if np.any(b - a < 1) or np.prod(b - a) < least * np.prod(high - low):
        return None
    return np.concatenate([a, b]).astype(np.float32)


def _mask_box(mask: np.ndarray) -> np.ndarray | None:
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return None
    return np.array([columns[0], rows[0], columns[-1] + 1, rows[-1] + 1], np.float32)


def _component_boxes(mask: np.ndarray) -> list[np.ndarray]:
    """Boxes of the components; crumbs under 0.1% of the film are left out unless alone."""
    if not mask.any():
        return []
    _, _, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    stats = stats[1:][np.argsort(-stats[1:, cv2.CC_STAT_AREA], kind="stable")]
    least = 0.001 * mask.size
    kept = stats[(stats[:, cv2.CC_STAT_AREA] >= least) | (np.arange(len(stats)) == 0)]
    x, y, w, h = kept[:, :4].T.astype(np.float32)
    return list(np.stack([x, y, x + w, y + h], axis=1))


def _regions(pen: _Pen, chest: _Chest, lungs: np.ndarray, zones: np.ndarray) -> np.ndarray:
    """Boxes of the 29 regions, float32 [29, 4], NaN where out of view."""
    boxes: dict[str, np.ndarray | None] = {}
    for s, (side, sign) in enumerate(_SIDES):
        lung = _mask_box(lungs == s + 1)
        boxes[f"{side} lung"] = lung
        for z, name in enumerate(("upper", "mid", "lower")):
            boxes[f"{side} {name} lung zone"] = _mask_box(zones == 1 + 2 * z + s)
        hilum = chest.hilum[s]
        boxes[f"{side} hilar structures"] = _box(pen, _ellipse(hilum + [0, 0.01], (0.045, 0.075)))
        if lung is not None:
            end = int(lung[1] + 0.16 * (lung[3] - lung[1]))
            top = lungs == s + 1
            top[end:] = False
            boxes[f"{side} apical zone"] = _mask_box(top)
        tip = chest.tip[s]
        boxes[f"{side} costophrenic angle"] = _box(
            pen, np.array([tip + [-sign * 0.045, -0.06], tip + [sign * 0.01, 0.012]])
        )
        boxes[f"{side} hemidiaphragm"] = _box(pen, chest.diaphragm[s])
        tilt = chest.patient.clavicle_tilt - (0.02 if chest.visit.view == "AP" else 0.0)
        boxes[f"{side} clavicle"] = _box(
            pen, _ring(_clavicle_path(chest.patient, tilt, sign), 0.012)
        )
    boxes["trachea"] = _box(pen, _ring(chest.trachea, 0.0125))
    boxes["spine"] = _box(pen, _ring(chest.spine, 0.034))
    boxes["aortic arch"] = _box(pen, chest.knob)
    boxes["mediastinum"] = _box(pen, np.concatenate([chest.great_vessels, chest.heart]))
    upper = chest.great_vessels[chest.great_vessels[:, 1] <= chest.carina[1] + 0.01]
    boxes["upper mediastinum"] = _box(pen, upper)
    boxes["svc"] = _box(pen, _ring(chest.svc, 0.013))
    boxes["cardiac silhouette"] = _box(pen, chest.heart)
    boxes["cavoatrial junction"] = _box(pen, _ellipse(chest.cavoatrial, (0.02, 0.02)))
    right = np.concatenate([chest.right_atrium, [[-0.005, chest.right_atrium[-1, 1]]]])
    boxes["right atrium"] = _box(pen, right)
    boxes["carina"] = _box(pen, _ellipse(chest.carina, (0.028, 0.022)))
    dome = min(chest.diaphragm[0][:, 1].min(), chest.diaphragm[1][:, 1].min())
    width = float(chest.wall(np.array([1.0]), 0)[0]) + 0.02
    boxes["abdomen"] = _box(pen, np.array([(-width, dome), (width, 1.05)]))
    out = np.full((len(REGIONS), 4), np.nan, np.float32)
    for name, box in boxes.items():
        if box is not None:
            out[_REGION[name]] = box
    return out


def _region_findings(regions, present, lungs, zones, sick, sided, spots, device_masks):
    """float32 [29, 10]: the finding's pixels (or its drawn sign) lie in the region."""
    table = np.zeros((len(REGIONS), len(FINDINGS)), np.float32)
    masks = (
        ("lung opacity", sick.kind > 0),
        ("consolidation", sick.kind == CONSOLIDATION),
        ("pneumonia", sick.infection),
        ("edema", sick.edema),
    )
    for s, (side, _) in enumerate(_SIDES):
        names = [f"{side} lung", *(f"{side} {z} lung zone" for z in ("upper", "mid", "lower")),
                 f"{side} hilar structures", f"{side} apical zone",
                 f"{side} costophrenic angle"]  # fmt: skip
        for finding, mask in masks:
            if not mask.any():
                continue
            mine = mask & (lungs == s + 1)
            for name in names:
                if present[_REGION[name]]:
                    x0, y0, x1, y1 = np.rint(regions[_REGION[name]]).astype(int)
                    hit = mine[y0:y1, x0:x1].sum() >= max(1, 0.01 * (y1 - y0) * (x1 - x0))
                    table[_REGION[name], _FINDING[finding]] = hit
    where = {
        "atelectasis": ("lung", "lower lung zone"),
        "pneumothorax": ("lung", "upper lung zone", "apical zone"),
        "pleural effusion": ("lung", "lower lung zone", "costophrenic angle", "hemidiaphragm"),
    }
    for finding, (s, _) in sided.items():
        for name in where[finding]:
            table[_REGION[f"{_SIDES[s][0]} {name}"], _FINDING[finding]] = 1
    if any(label == _FINDING["cardiomegaly"] for label, _ in spots):
        table[_REGION["cardiac silhouette"], _FINDING["cardiomegaly"]] = 1
    for mask in device_masks:
        for r in np.flatnonzero(present):
            x0, y0, x1, y1 = np.rint(regions[r]).astype(int)
            if mask[y0:y1, x0:x1].any():
                table[r, _FINDING["support devices"]] = 1
    table[~present] = 0
    table[:, _FINDING["no finding"]] = present & (table[:, 1:].sum(axis=1) == 0)
    return table
