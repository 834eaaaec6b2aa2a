"""What was found, as the DICOM objects that an archive of a hospital files with the study.

Masks and maps as a segmentation, the picture as a secondary capture. Both belong to a study, so
they carry the patient's name and numbers from the files that they were made of, as DICOM asks;
nothing else that `predict` writes does. Through highdicom, of the extra `dicom`.
"""

import contextlib
import pathlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import cv2
import numpy as np
import pydicom
from matplotlib.figure import Figure

from cxr_jax.data import readers, volumes
from cxr_jax.errors import InputError, one_line
from cxr_jax.figures import to_array
from cxr_jax.version import VERSION

HELP = "of DICOM files: segmentations and the picture as DICOM too, with the patient's identity"
MAKER = "cxr_jax, research software"
SERIES = {"segmentation": 9101, "capture": 9102}  # numbers, of what is filed beside the images
# SNOMED CT: value and meaning of (category, type); what a model of ours may draw.
_ANATOMY, _CHANGE = (
    ("123037004", "Anatomical Structure"),
    (
        "49755003",
        "Morphologically Abnormal Structure",
    ),
)
KINDS = {
    "lungs": (_ANATOMY, ("39607008", "Lung")),
    "lesions": (_CHANGE, ("52988006", "Lesion")),
}

Write = Callable[[pathlib.Path], object]


class Drawn(NamedTuple):
    """One thing that was drawn.

    Attributes:
      kind: of `KINDS`.
      label: how it is called beside that.
      values: uint8 [H, W] or [S, H, W] as the images are seen: of a mask 0 or more, of a map
        0..255 for probabilities of 0..1.
      is_map: whether it is a map.
    """

    kind: str
    label: str
    values: np.ndarray
    is_map: bool = False


def check_installed() -> None:
    """Raises InputError where highdicom is not there."""
    try:
        import highdicom  # noqa: F401
    except ImportError as error:
        raise InputError(
            "--dicom writes through highdicom, which is not installed: pip install 'cxr_jax[dicom]'"
        ) from error


def files_of(
    path: pathlib.Path, drawn: Sequence[Drawn], figure: Figure, *, model: str
) -> dict[str, tuple[str, Write]]:
    """Of a DICOM film, or the folder of a series: what is to be written beside its prediction, name
    -> (ending, function that writes it); {} of another file.

    Args:
      path: the file or folder that was read.
      drawn: masks come into one object, each map into one of its own.
      figure: the picture.
      model: its name, as `predictions.jsonl` has it.

    Raises:
      InputError: the files lack something that the objects have to name.
    """
    images, turn = _images(path)
    if not images:
        return {}
    found: dict[str, tuple[str, Write]] = {}
    masks = [one for one in drawn if not one.is_map]
    groups = {"segmentation": masks} | {one.label: [one] for one in drawn if one.is_map}
    with _told(path):
        for number, (name, some) in enumerate(groups.items(), 1):
            if some:
                stored = [one._replace(values=turn(one.values)) for one in some]
                written = _segmentation(images, stored, number=number, model=model)
                found[f"{name}_dicom"] = (f"-{name}.dcm", written.save_as)
        found["capture_dicom"] = ("-capture.dcm", _capture(images[0], to_array(figure)).save_as)
    return found


def _images(
    path: pathlib.Path,
) -> tuple[list[pydicom.Dataset], Callable[[np.ndarray], np.ndarray]]:
    """The headers, in the order of the second's result: what is drawn as the files are stored."""
    if path.is_dir():
        series = volumes.stored_series(path)
        headers = [readers.read_header(file) for file in series.files]
        return [header for header in headers if header is not None], series.as_stored
    header = readers.read_header(path)
    if header is None:
        return [], np.asarray
    turn = (lambda drawn: cv2.flip(drawn, 1)) if readers.is_mirrored(header) else np.asarray
    return [header], turn


@contextlib.contextmanager
def _told(path: pathlib.Path) -> Iterator[None]:
    """What highdicom says of files that lack something, as one line."""
    try:
        yield
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(
            f"{path}: no DICOM object can be made of it ({one_line(str(error))[:200]}); leave out "
            "--dicom, or export the file whole"
        ) from error


def _segmentation(
    images: Sequence[pydicom.Dataset], drawn: Sequence[Drawn], *, number: int, model: str
) -> pydicom.Dataset:
    import highdicom as hd

    is_map = drawn[0].is_map
    values = np.stack([one.values for one in drawn], axis=-1)
    values = values[None] if values.ndim == 3 else values
    # Numbers below 1 are probabilities; a mask is 0 or 1.
    pixels = values.astype(np.float32) / 255 if is_map else (values > 0).astype(np.uint8)
    return hd.seg.Segmentation(
        source_images=images,
        pixel_array=pixels,
        segmentation_type="FRACTIONAL" if is_map else "BINARY",
        segment_descriptions=[_description(k, one, model) for k, one in enumerate(drawn, 1)],
        series_number=SERIES["segmentation"],
        instance_number=number,
        device_serial_number="0",
        manufacturer_model_name=model[:64],
        software_versions=VERSION,
        omit_empty_frames=bool((pixels > 0).any()),
        series_description=f"{MAKER}: {'map' if is_map else 'masks'}",
        series_instance_uid=hd.UID(),
        sop_instance_uid=hd.UID(),
        manufacturer=MAKER,
    )


def _description(number: int, one: Drawn, model: str) -> Any:
    import highdicom as hd
    from pydicom.sr.codedict import codes

    category, kind = (
        hd.sr.CodedConcept(value=value, scheme_designator="SCT", meaning=meaning)
        for value, meaning in KINDS[one.kind]
    )
    return hd.seg.SegmentDescription(
        segment_number=number,
        segment_label=one.label[:64],
        segmented_property_category=category,
        segmented_property_type=kind,
        algorithm_type=hd.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
        algorithm_identification=hd.AlgorithmIdentificationSequence(
            name=model[:64],
            version=VERSION,
            family=codes.cid7162.ArtificialIntelligence,
        ),
    )


def _capture(image: pydicom.Dataset, picture: np.ndarray) -> pydicom.Dataset:
    """A picture uint8 [H, W, 3] as a secondary capture of the image's study."""
    import highdicom as hd

    return hd.sc.SCImage.from_ref_dataset(
        ref_dataset=image,
        pixel_array=np.ascontiguousarray(picture[..., :3]),
        photometric_interpretation="RGB",
        bits_allocated=8,
        coordinate_system="PATIENT",
        patient_orientation=("L", "F"),
        series_number=SERIES["capture"],
        instance_number=1,
        series_instance_uid=hd.UID(),
        sop_instance_uid=hd.UID(),
        manufacturer=MAKER,
    )
