"""One phantom radiograph: chance, anatomy, disease, exposure and truth, put together."""

import cv2
import numpy as np

from cxr_jax.data.phantoms.anatomy import Chest, lung_labels, lung_zones, wall_distance
from cxr_jax.data.phantoms.attenuation import attenuation
from cxr_jax.data.phantoms.devices import device_layers
from cxr_jax.data.phantoms.disease import lung_opacities
from cxr_jax.data.phantoms.drawing import Pen
from cxr_jax.data.phantoms.exposure import draw_borders, draw_markers, expose
from cxr_jax.data.phantoms.lattice import Texture
from cxr_jax.data.phantoms.patient import Patient, Visit
from cxr_jax.data.phantoms.population import Population
from cxr_jax.data.phantoms.signs import Signs
from cxr_jax.data.phantoms.truth import Drawn, truth
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError

MIN_SIZE, MAX_SIZE = 128, 1024  # px


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
    return draw_film(seed, index, size=size, population=population)


def draw_film(
    seed: int, index: int, *, size: int, population: Population, show_lesions: bool = True
) -> Record:
    """The record; with `show_lesions` False its image lacks them, all else equal, the truth too."""
    patient = Patient(np.random.default_rng([seed, index // 2, 0]), population)
    rng = np.random.default_rng([seed, index, 1])
    visit = Visit(rng, patient, population)
    chest = Chest(patient, visit)
    pen = Pen(size, visit.pose)
    lungs = lung_labels(pen, chest, size)
    zones = lung_zones(lungs)
    wall = wall_distance(pen, chest)
    texture = Texture(rng)
    drawn = Drawn(
        pen=pen,
        chest=chest,
        lungs=lungs,
        zones=zones,
        sick=lung_opacities(pen, chest, wall=wall, zones=zones, texture=texture),
        signs=Signs(pen, chest),
        devices=device_layers(pen, chest),
    )
    sick = drawn.sick if show_lesions else None
    density = attenuation(pen, chest, wall=wall, sick=sick, texture=texture, signs=drawn.signs)
    return {
        "image": _exposed(drawn, density, rng),
        "id": f"phantom-{seed}-{index}",
        "group": f"phantom-{seed}-{index // 2}",
        "view": visit.view,
        "lungs": lungs,
        "severity": drawn.sick.severity,
        "severity_valid": np.ones((3, 2), bool),
        "diagnosis": patient.diagnosis,
        "lesion": (drawn.sick.kind > 0).astype(np.uint8),
        "lesion_type": drawn.sick.kind,
        **truth(drawn),
    }


def _exposed(drawn: Drawn, density: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """The film's image; devices are added to `density`, in place."""
    pen, visit = drawn.pen, drawn.chest.visit
    for layer in drawn.devices:
        cv2.scaleAdd(pen.down(layer).astype(np.float32), 0.75 / 255, density, dst=density)
    image = expose(density, visit.technique, rng)
    draw_borders(image, drawn.lungs, visit.technique)
    draw_markers(image, visit)
    return image
