"""Films from files: PNG, JPEG and DICOM to one grey picture, and mistakes to one clear line.

A film comes out as uint8 [H, W] as the reader sees it: air dark, bone light. What is not 8 bit grey
already is made so in one way, without options:

- Colour becomes luminance (0.299 R + 0.587 G + 0.114 B). Alpha and transparency are dropped.
- The EXIF orientation, where a file has one, is applied, as every viewer does.
- A 16-bit PNG carries no display window: its lowest..highest value is mapped to 0..255.
- DICOM: stored values -> modality LUT or rescale slope and intercept -> VOI LUT, else the first
  window, else lowest..highest (8-bit films that state none of these are taken as they are)
  -> padding black -> MONOCHROME1 inverted, last.
- A DICOM film that says it was stored mirrored (Patient Orientation R\\F) is mirrored back, so
  that the patient's right is on the image's left.

Files are hostile until proven otherwise. The kind is told from the first bytes, never from the
name; the size is read from the header and checked before anything is decoded; a file that ends
early is refused, although decoders like to fill the rest with grey. Every mistake of a file is an
`InputError` that names it.

`films` tells the kinds apart; `pictures` and `dicom` read them (`jpeg` finds a scan that ends too
early, `dicom_header` opens and checks a DICOM file, `dicom_grey` is its grey scale); `checks` is
what all of them ask first; `whole` looks at header and end only.
"""

from cxr_jax.data.readers.dicom import (
    SliceHeader,
    is_mirrored,
    read_header,
    read_hounsfield,
    read_slice_header,
    read_view,
)
from cxr_jax.data.readers.films import (
    check_frontal,
    films_in,
    find_films,
    read_colour,
    read_film,
    read_labels,
    read_mask,
)
from cxr_jax.data.readers.pictures import colourfulness, decode_png, encode_png, read_jsrt
from cxr_jax.data.readers.whole import check_whole

__all__ = [
    "SliceHeader",
    "check_frontal",
    "check_whole",
    "colourfulness",
    "decode_png",
    "encode_png",
    "films_in",
    "find_films",
    "is_mirrored",
    "read_colour",
    "read_film",
    "read_header",
    "read_hounsfield",
    "read_jsrt",
    "read_labels",
    "read_mask",
    "read_slice_header",
    "read_view",
]
