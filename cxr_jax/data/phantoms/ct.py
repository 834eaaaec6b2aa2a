"""Chest CT phantoms: drawn axial slices with exact truth for every lesion.

`ct_slice(seed, number, index)` draws one slice of one volume, alone. A volume is a patient: a few
hundred numbers, from which every slice cuts its own picture. Lengths are in units of the field of
view; x = 0 is the midline, positive towards the patient's left (the image's right), y runs from
front to back, and z runs from 0 at the apex of the lungs to about 1 below the diaphragm. The trees
of arteries, veins and airways are curves in space that are cut by a slab, ribs are bands along the
chest wall, the domes of the diaphragm are paraboloids, all else is outlines that change smoothly
with z. The slice is drawn in approximate Hounsfield units and windowed,

    hu = tissue + lung * (air - tissue), then the walls and lumina of the airways upon it,
    air = parenchyma, then opacity, then fissures and vessels upon it,
    image = 255 * clip((hu + noise - centre) / width + 1/2, 0, 1).

Exact truth. Masks are taken from the very fields that are drawn:

* `lungs`: inside the pleura, less the mediastinum and what lies under the diaphragm. Vessels,
  airways and lesions in a lung belong to it, as a reader outlines it.
* `lesion`: pixels of the lungs where a lesion's opacity is at least 35% of its peak, which is what
  its middle has before a slice or the edge of the lung cuts it. Around that lies its rim, where the
  opacity falls to exactly 0; elsewhere it is 0. Vessels, airways, fissures, the dense dependent
  lung and the blurred dome of the diaphragm are drawn in positive and negative volumes alike and
  are never lesion; a vessel inside a lesion belongs to it.
* `lesion_type`: 1 ground glass, 2 consolidation. Crazy paving is ground glass with a net of septa
  and has type 1. Where both overlap, consolidation.
* `diagnosis`, of the slice: normal where it has no lesion, else what the volume has.
* A slice has a lesion if and only if the mask on a fixed lattice of 256 x 256 holds a full square
  of 5 x 5 cells; a slice with less is cleared of opacity. So the label of a slice can be had
  without its picture, and agrees with its mask at every size.

A positive volume has COVID-19, one to six lesions: plain ground glass, crazy paving or
consolidation (some with a halo of ground glass, some with air bronchograms). One that is `lobar`
has another infection: one large consolidation with air bronchograms and no ground glass. Each is
an ellipsoid with a ragged edge (a smooth random field in space), clipped to the lungs, from about
1 cm to a third of a lung, more often low, at the back and near the pleura. At least one of them is
seen in some slice.

What is not true to life: the shapes are simple, the noise is not a scanner's, lesions stand at
slices that were taken and do not follow lobes, there is no third disease of the lungs.

Phantoms are not patients. They serve to test code and to see whether a model can learn at all;
a number measured on them claims nothing about any patient or any reader.
"""

import functools
from typing import NamedTuple

import cv2
import numpy as np

from cxr_jax.data.phantoms.ct_anatomy import LATTICE, Thorax, label_sides
from cxr_jax.data.phantoms.ct_disease import (
    Opacity,
    choose_lesions,
    choose_lobar,
    lesion_truth,
    opacity_at,
)
from cxr_jax.data.phantoms.ct_lungs import add_airways, lung_hu
from cxr_jax.data.phantoms.ct_scanner import mask_view, reconstruct
from cxr_jax.data.phantoms.ct_tissue import tissue_hu
from cxr_jax.data.phantoms.ct_trees import Trees
from cxr_jax.data.phantoms.drawing import Pen
from cxr_jax.data.records import DIAGNOSES, Record
from cxr_jax.errors import InputError

MIN_SIZE, MAX_SIZE = 64, 512  # px
MIN_SLICES, MAX_SLICES = 8, 512
WINDOW_HU = (-600.0, 1500.0)  # centre and width: the usual lung window


class Slice(NamedTuple):
    """One slice as drawn.

    Attributes:
      hu: float32 [size, size], with noise, before the window.
      opacity: float32 [size, size], of the lesions as a share of their peak; exactly 0 off them.
      lungs, lesion, lesion_type: uint8 [size, size], as in the record.
    """

    hu: np.ndarray
    opacity: np.ndarray
    lungs: np.ndarray
    lesion: np.ndarray
    lesion_type: np.ndarray


def ct_slice(
    seed: int,
    number: int,
    index: int,
    *,
    size: int = 256,
    slices: int = 32,
    positive: bool = True,
    lobar: bool = False,
    disease_extent: float = 0.0,
    window_hu: tuple[float, float] = WINDOW_HU,
) -> Record:
    """Draws slice `index` of volume `number` of the phantom data set `seed`.

    The record depends on the arguments only, and anatomy and label not on `size`: pictures of
    another size are the same slices, sampled finer or coarser (their noise grains differ). The
    anatomy does not depend on `positive` either.

    Args:
      seed: the data set, >= 0.
      number: the volume, which is one patient, >= 0.
      index: the slice, 0 (apex) .. slices - 1.
      size: height and width, 64..512 px.
      slices: of the volume, 8..512; they span the same chest, so more lie closer together.
      positive: whether the volume has lesions: then at least one slice has.
      lobar: whether they are those of another infection than COVID-19.
      disease_extent: 0..1, how much wider and longer lesions are: at 1 twice.
      window_hu: centre and width of the window.

    Returns:
      A record: image, lungs, lesion, lesion_type uint8 [size, size]; slice int32, slice_label
      float32 (0 or 1, exact), pixel_area float32 (1); diagnosis int; id, group, volume str.

    Raises:
      InputError: an argument outside its range.
    """
    _check_numbers(seed, number, size)
    _check_slices(slices)
    _check_slice(index, slices, disease_extent)
    if not window_hu[1] > 0:
        raise InputError(f"window_hu={window_hu}: the width must be positive")
    volume = ct_volume(
        seed, number, slices=slices, positive=positive, lobar=lobar, disease_extent=disease_extent
    )
    drawn = _draw(volume, index, size=size, show_lesions=True)
    name = f"ct-{seed}-{number:07d}"
    sick = bool(drawn.lesion.any())
    return {
        "image": _windowed(drawn.hu, *window_hu),
        "id": f"{name}-{index:03d}",
        "group": name,
        "volume": name,
        "slice": np.int32(index),
        "slice_label": np.float32(sick),
        "diagnosis": slice_diagnosis(sick, lobar),
        "pixel_area": np.float32(1),
        "lungs": drawn.lungs,
        "lesion": drawn.lesion,
        "lesion_type": drawn.lesion_type,
    }


def slice_diagnosis(lesion: bool, lobar: bool) -> int:
    """The number in `records.DIAGNOSES` of a slice with or without a lesion."""
    disease = "other infection" if lobar else "covid-19"
    return DIAGNOSES.index(disease if lesion else "normal")


def _check_numbers(seed: int, number: int, size: int) -> None:
    if min(seed, number) < 0:
        raise InputError(f"phantom seed={seed}, volume={number} must not be negative")
    if not MIN_SIZE <= size <= MAX_SIZE:
        raise InputError(f"CT phantom size={size} px must lie in {MIN_SIZE}..{MAX_SIZE}")


def _check_slice(index: int, slices: int, disease_extent: float) -> None:
    if not 0 <= disease_extent <= 1:
        raise InputError(f"disease_extent={disease_extent}; expected 0..1")
    if not 0 <= index < slices:
        raise InputError(f"slice {index} of a volume of {slices}; expected 0..{slices - 1}")


def _check_slices(slices: int) -> None:
    if not MIN_SLICES <= slices <= MAX_SLICES:
        raise InputError(f"{slices} slices a volume; expected {MIN_SLICES}..{MAX_SLICES}")


def _windowed(hu: np.ndarray, centre: float, width: float) -> np.ndarray:
    """uint8 image of a picture in HU."""
    scale = 255 / width
    image = cv2.addWeighted(hu, scale, hu, 0, 127.5 - centre * scale)
    return np.clip(image, 0, 255).astype(np.uint8)


def lesion_slices(
    seed: int,
    number: int,
    *,
    slices: int = 32,
    positive: bool = True,
    lobar: bool = False,
    disease_extent: float = 0.0,
) -> np.ndarray:
    """bool [slices]: which slices of the volume have a lesion. Draws no picture."""
    _check_slices(slices)
    if not positive:
        return np.zeros(slices, bool)
    volume = ct_volume(
        seed, number, slices=slices, positive=positive, lobar=lobar, disease_extent=disease_extent
    )
    return np.array([volume.opacity_at(z) is not None for z in volume.thorax.z])


def draw_slice(
    seed: int,
    number: int,
    index: int,
    *,
    size: int,
    slices: int = 32,
    positive: bool = True,
    lobar: bool = False,
    disease_extent: float = 0.0,
    show_lesions: bool = True,
) -> Slice:
    """The slice in HU; with `show_lesions` False its picture lacks them, all else equal."""
    volume = ct_volume(
        seed, number, slices=slices, positive=positive, lobar=lobar, disease_extent=disease_extent
    )
    return _draw(volume, index, size=size, show_lesions=show_lesions)


class Volume:
    """One patient's scan. Not changed after construction: threads may share it."""

    def __init__(
        self,
        seed: int,
        number: int,
        *,
        slices: int,
        positive: bool,
        lobar: bool,
        disease_extent: float,
    ):
        self._key = (seed, number)
        self.thorax = Thorax(self.rng(0), slices)
        choose = choose_lobar if lobar else choose_lesions
        self.lesions = choose(self.thorax, self.rng(1), disease_extent) if positive else []
        self.trees = Trees(self.thorax, seed, number)

    def rng(self, *stream: int) -> np.random.Generator:
        """One of the streams of chance of this volume; equal streams are equal."""
        return np.random.default_rng([*self._key, *stream])

    def opacity_at(self, z: float) -> Opacity | None:
        """Opacity of the lesions at z; None where there is no lesion to speak of."""
        return opacity_at(self.lesions, self.thorax, z)


# A volume is some 300 kB and takes milliseconds; neighbouring slices are mostly read in a row.
@functools.lru_cache(maxsize=8)
def ct_volume(
    seed: int, number: int, *, slices: int, positive: bool, lobar: bool, disease_extent: float
) -> Volume:
    """The volume with these numbers, which a small cache keeps."""
    return Volume(
        seed,
        number,
        slices=slices,
        positive=positive,
        lobar=lobar,
        disease_extent=disease_extent,
    )


def _draw(volume: Volume, index: int, *, size: int, show_lesions: bool) -> Slice:
    thorax, trees = volume.thorax, volume.trees
    z = float(thorax.z[index])
    pen = Pen(size, thorax.pose)
    at_size = cv2.resize(thorax.lung_layer(z), (size, size), interpolation=cv2.INTER_LINEAR)
    lungs = label_sides(at_size >= 128, thorax)
    sick = volume.opacity_at(z)
    opacity, lesion, kind = lesion_truth(sick, lungs)
    shown = sick if show_lesions else None

    hu = tissue_hu(pen, thorax, z)
    air = lung_hu(pen, thorax, trees=trees, z=z, sick=shown)
    # An enlarged lattice has wide edges: they are made as sharp as the picture can show.
    share = cv2.LUT(at_size, _edge_table(max(1.0, size / LATTICE)))
    air -= hu
    air *= share
    hu += air
    add_airways(pen, thorax, trees=trees, z=z, hu=hu, lung=share, sick=shown)
    mask_view(hu, thorax)
    hu = reconstruct(hu, thorax, volume.rng(2, index))
    return Slice(hu=hu, opacity=opacity, lungs=lungs, lesion=lesion, lesion_type=kind)


@functools.lru_cache(maxsize=64)
def _edge_table(sharp: float) -> np.ndarray:
    share = (np.arange(256, dtype=np.float32) - 127.5) / 255 * np.float32(sharp) + 0.5
    return np.clip(share, 0, 1)
