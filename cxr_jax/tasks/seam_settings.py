"""Settings of the seam task, and what of a config cannot be meant."""

import dataclasses

import ml_collections
import numpy as np

from cxr_jax.data import ct_slices
from cxr_jax.data.lungs import MASKS, LungMasks
from cxr_jax.data.records import Record
from cxr_jax.errors import InputError

METHODS = ("cam", "multiscale_cam", "seam", "seam_nam", "m_seam_nam", "unet")
REFINED = ("seam", "seam_nam", "m_seam_nam")  # have PCM
GATES = ("slice", "bag", "none")
USES = ("none", "map", "pool")
BAG_LOSSES = ("noisy_or", "slice")
SIMILARITIES = ("cosine", "exp_l1")


@dataclasses.dataclass(frozen=True)
class Weights:
    """Weights of the losses: `config.losses`. Eq. 8 has all one but `nfbd`, 0.5.

    Attributes:
      er: of the equivariant regularisation, Eq. 2.
      ecr: of the equivariant cross regularisation, Eq. 3.
      nfs: of the foreground's similarity, Eq. 4.
      nbs: of the background's similarity, Eq. 5.
      nfbd: of the difference between the two, Eq. 6.
      hardest: share of the values that Eq. 3 averages, the largest ones: 1 is the paper's
        equation, 0.2 the published code of SEAM.
      min_pool: of the adaptive min pooling of that code; 0 in the paper.
      bag: noisy_or is Eq. 7; slice, the released code: every slice has the bag's label, Eq. 1.
    """

    er: float
    ecr: float
    nfs: float
    nbs: float
    nfbd: float
    hardest: float
    min_pool: float
    bag: str

    def __post_init__(self):
        if not 0 < self.hardest <= 1:
            raise InputError(f"config.losses.hardest={self.hardest}; a share above 0, at most 1")
        if self.bag not in BAG_LOSSES:
            raise InputError(
                f"config.losses.bag={self.bag!r}; expected one of {', '.join(BAG_LOSSES)}"
            )

    def of(self, term: str) -> float:
        """The weight of a term of the loss, by its name."""
        return dataclasses.asdict(self)[term]


@dataclasses.dataclass(frozen=True)
class Affinity:
    """The neighbourhood affinity module: `config.affinity`.

    Attributes:
      foreground: T_fg; pixels of D above it are foreground.
      background: T_bg; pixels of D below it are background.
      radius: r, in pixels of the map.
      similarity: of two pixels: cosine is Eq. 4 to 6, exp_l1 the released code's.
    """

    foreground: float
    background: float
    radius: int
    similarity: str

    def __post_init__(self):
        if self.radius < 1:
            raise InputError(f"config.affinity.radius={self.radius}; it must be at least 1")
        if not self.background < self.foreground:
            raise InputError(
                f"config.affinity.background={self.background} and foreground="
                f"{self.foreground}; the first must be the smaller"
            )
        if self.similarity not in SIMILARITIES:
            raise InputError(
                f"config.affinity.similarity={self.similarity!r}; expected one of "
                f"{', '.join(SIMILARITIES)}"
            )


@dataclasses.dataclass(frozen=True)
class Lungs:
    """What the lungs are used for, which is ours: `config.lungs`. The paper has no lungs.

    Attributes:
      use: 'none'; 'map': outside of them a predicted map is 0; 'pool': besides, a slice's logit is
        the mean of its activation map over them, in training and prediction.
      masks: where they are from: 'morphology' (`ct_lungs.segment`), which leaves out much of what
        is dense; 'predicted' by the run in `workdir`, of configs/lungs.py on CT slices; the
        'record', which at a test are the true ones; record_or_morphology, record_or_predicted. Of a
        slice without a lung all of it counts.
      workdir: of a trained lungs run.
    """

    use: str
    masks: str
    workdir: str

    def __post_init__(self):
        if self.use not in USES:
            raise InputError(f"config.lungs.use={self.use!r}; expected one of {', '.join(USES)}")
        if self.completed:
            LungMasks(masks=self.masks, workdir=self.workdir)  # checks the folder
        elif self.masks not in ct_slices.MASKS:
            known = ", ".join(dict.fromkeys((*ct_slices.MASKS, *MASKS)))
            raise InputError(f"config.lungs.masks={self.masks!r}; expected one of {known}")

    @property
    def pooled(self) -> bool:
        """Whether training reads them."""
        return self.use == "pool"

    @property
    def completed(self) -> bool:
        """Whether every record must bring its own, or is given one by another run."""
        return self.masks in MASKS

    @property
    def of_record(self) -> bool:
        """Whether the masks of records are read."""
        return self.masks != "morphology"

    @property
    def needed(self) -> bool:
        """Whether a slice is of no use without: they are not found by its picture."""
        return self.completed and (self.use != "none" or self.masks != "record")

    def of(self, record: Record) -> np.ndarray:
        """uint8 [H, W], above 0 in the lungs of a slice."""
        return record["lungs"] if self.completed else ct_slices.lungs_of(record, self.masks)

    def found_in(self, record: Record) -> np.ndarray:
        """The same by what looks at the picture, where a slice has truth that is not to be known:
        of 'record' and 'record_or_morphology' by morphology."""
        looked = self.completed and self.masks != "record"
        return record["lungs"] if looked else ct_slices.lungs_of(record, "morphology")

    def drawn_in(self, record: Record) -> np.ndarray | None:
        """The record's own, where they have not been replaced by a network's; else None."""
        replaced = self.completed and self.masks != "record"
        return None if replaced else record.get("lungs")


def gate_levels(bag: int) -> dict[str, float]:
    """Gate -> the probability of its own that a slice needs to have a lesion.

    The noisy-or asks one slice of a bag for 0.5, and so, of n slices as likely as one another, each
    for 1 - 0.5^(1/n): 0.083 of eight. Of bags of one slice both are 0.5.
    """
    return {"slice": 0.5, "bag": 1 - 0.5 ** (1 / bag), "none": 0.0}


def scales_of(config: ml_collections.ConfigDict) -> tuple[float, ...]:
    """`config.scales`.

    Raises:
      InputError: there is none, or one is no positive number.
    """
    try:
        scales = tuple(float(scale) for scale in config.scales)
    except (TypeError, ValueError) as error:
        raise InputError(f"config.scales={config.scales}; expected positive numbers") from error
    if not scales or not all(0 < scale <= 8 for scale in scales):
        raise InputError(f"config.scales={scales}; expected positive numbers, at most 8")
    return scales


def check(config: ml_collections.ConfigDict) -> None:
    """Refuses what no method can mean.

    Raises:
      InputError: names the field.
    """
    if config.method not in METHODS:
        raise InputError(f"config.method={config.method!r}; expected one of {', '.join(METHODS)}")
    if config.gate not in GATES:
        raise InputError(f"config.gate={config.gate!r}; expected one of {', '.join(GATES)}")
    if not 0 <= config.threshold < 1:
        raise InputError(f"config.threshold={config.threshold}; it must lie in 0..1")
    if config.bag < 1:
        raise InputError(f"config.bag={config.bag}; a bag holds at least one slice")
    if config.second.name:
        raise InputError(
            f"config.second.name={config.second.name!r}: this task trains on one data set; leave "
            "it empty"
        )


def check_weak(config: ml_collections.ConfigDict) -> None:
    """Refuses settings of the weak methods that cannot be meant.

    Raises:
      InputError: names the field.
    """
    model = config.model
    if len(model.dropout) != 3 or not all(0 <= p < 1 for p in model.dropout):
        raise InputError(
            f"config.model.dropout={tuple(model.dropout)}; expected three shares below 1: "
            "of b6, of b7 and before the classifier"
        )
    if not 0 <= config.small_scale < 1 or (not config.small_scale and config.method in REFINED):
        raise InputError(
            f"config.small_scale={config.small_scale}; it must lie between 0 and 1 (0, one view "
            "alone, is of cam)"
        )
    for name, value in (("width", model.width), ("pcm_width", model.pcm_width)):
        if value <= 0 or value * 64 % 1:
            raise InputError(f"config.model.{name}={value}; expected a positive multiple of 1/64")
    if model.stride not in (2, 4, 8):
        raise InputError(f"config.model.stride={model.stride}; expected 2, 4 or 8")
    if len(model.dilations) != 3 or min(model.dilations) < 1:
        raise InputError(
            f"config.model.dilations={tuple(model.dilations)}; expected three numbers of at least "
            "1: of b5, b6 and b7"
        )
