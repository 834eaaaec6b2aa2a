"""What of a CT slice a network sees: its lungs, cut out (Wu et al. 2022, Sec. 4.2.2).

A slice is made 8 bits deep through a window where it is read (`volumes.window`); figures already
are. Then, here: the lungs are found; slices of volumes that are dark are left out; the slice is cut
to the box of the lungs, black outside of them. Resizing to 512 x 512 is `Preprocess`.

The paper drops slices 'if their average pixel intensity was below 0.08', for the lungs are closed
at both ends of a sequence. Of what the average is taken it does not say. It is of the crop here
[PAPERS, 5]: over whole slices, black outside the lungs, 98% of `ct_lesions` and all phantoms lie
below 0.08; over whole slices as they are none does. Single slices cut from publications were chosen
by their authors: none of them is left out.
"""

import dataclasses

import numpy as np

from cxr_jax.data import ct_lungs
from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import SliceSubset, Source
from cxr_jax.data.visible import Visible
from cxr_jax.errors import InputError

# Where the lungs of a slice are from, as `data.lungs.MASKS` for films.
MASKS = ("morphology", "record", "record_or_morphology")


def check_masks(masks: str, field: str) -> None:
    """Refuses what is none of MASKS.

    Raises:
      InputError: names the `field` of the config.
    """
    if masks not in MASKS:
        raise InputError(f"{field}={masks!r}; expected one of {', '.join(MASKS)}")


def lungs_of(record: Record, masks: str) -> np.ndarray:
    """The lungs of a slice.

    Args:
      record: with `image`.
      masks: one of MASKS: `morphology` (`ct_lungs.segment`), the `record`'s own, or those where it
        has them.

    Returns:
      uint8 [H, W]: 0 outside, 1 right lung (image left), 2 left lung.

    Raises:
      InputError: the record has none, and no other source is allowed.
    """
    if masks != "morphology" and "lungs" in record:
        return record["lungs"]
    if masks == "record":
        raise InputError(
            f"{record.get('id', 'a slice')} has no lung mask; find the lungs by the picture "
            "(masks=morphology or record_or_morphology)"
        )
    return ct_lungs.segment(record["image"])


@dataclasses.dataclass(frozen=True)
class LungCrop:
    """What is left of a slice: `config.crop`.

    Attributes:
      masks: where the lungs are from: `morphology`, as in the paper (`ct_lungs.segment`), the
        `record`, or record_or_morphology, the record's own where it has them.
      hide: what is outside the lungs is black.
      least_intensity: 0..1, slices of volumes whose mean is lower are left out; 0: none is.
    """

    masks: str = "morphology"
    hide: bool = True
    least_intensity: float = 0.08

    def __post_init__(self):
        check_masks(self.masks, "config.crop.masks")
        if not 0 <= self.least_intensity < 1:
            raise InputError(
                f"config.crop.least_intensity={self.least_intensity}; expected 0 to below 1"
            )

    def __call__(self, record: Record) -> Record:
        """The record's pictures cut to the lungs; its boxes are left out.

        Where no lung is found, be the slice black, above the lungs or below, all of it is left:
        nothing is known to be outside.

        Args:
          record: with `image`.

        Returns:
          A record with `lungs`, as they were found, and pictures of one size, at least 1 x 1.
        """
        record = self.with_lungs(record)
        return self.visible(record)(record)

    def on_slice(self, values: np.ndarray, record: Record) -> np.ndarray:
        """A map of what was left, float32 [h, w], on the whole slice [H, W]; 0 beside the crop."""
        record = self.with_lungs(record)
        return self.visible(record).on_film(values, record)

    def with_lungs(self, record: Record) -> Record:
        """The record with its `lungs`."""
        return record | {"lungs": self.lungs(record)}

    def lungs(self, record: Record) -> np.ndarray:
        """uint8 [H, W]: 0 outside, 1 right lung (image left), 2 left lung."""
        return lungs_of(record, self.masks)

    def visible(self, record: Record) -> Visible:
        """What is left of a record that has its `lungs`."""
        if not record["lungs"].any():
            return Visible()
        return Visible(crop="lungs", hide="outside" if self.hide else "nothing")

    def intensity(self, record: Record) -> float:
        """0..1, the mean over the box of the lungs, black outside of them; 0 without a lung."""
        record = {"image": record["image"], "lungs": self.lungs(record)}
        if not record["lungs"].any():
            return 0.0
        return float(Visible(crop="lungs", hide="outside")(record)["image"].mean()) / 255

    def bright(self, source: Source) -> Source:
        """The slices of a source that are bright enough; `source` itself where all are, or where it
        is none of volumes. Reads each record once.

        Raises:
          InputError: no slice is.
        """
        if not self.least_intensity or not hasattr(source, "slice_table"):
            return source
        every = range(len(source))
        kept = [i for i in every if self.intensity(source[i]) >= self.least_intensity]
        if not kept:
            raise InputError(
                f"data set {source.name!r} (split {source.split!r}) has no slice with a mean "
                f"intensity of the lungs of at least {self.least_intensity:g}; lower "
                "config.crop.least_intensity"
            )
        if len(kept) == len(source):
            return source
        chosen = SliceSubset(source, kept, partial=source.partial)
        chosen.notes += (
            f"left out: {len(source) - len(kept)} of {len(source)} slices, in which the lungs have "
            f"a mean intensity below {self.least_intensity:g}",
        )
        return chosen
