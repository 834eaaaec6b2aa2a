"""Lung masks: where a record's come from, and how a network's probabilities become labels."""

import dataclasses

import numpy as np

from cxr_jax.data import zones
from cxr_jax.data.preprocess import resize_map
from cxr_jax.errors import InputError

RIGHT, LEFT = 0, 1  # channels of a network's probabilities
MASKS = ("record", "predicted", "record_or_predicted")


@dataclasses.dataclass(frozen=True)
class LungMasks:
    """Where the lung masks of a task come from: `config.lungs`.

    Attributes:
      masks: 'record', 'predicted' by the run in `workdir`, or 'record_or_predicted'.
      workdir: of a trained lungs run.
    """

    masks: str
    workdir: str

    def __post_init__(self):
        if self.masks not in MASKS:
            raise InputError(
                f"config.lungs.masks={self.masks!r}; expected one of {', '.join(MASKS)}"
            )
        if self.masks != "record" and not self.workdir:
            raise InputError(
                f"config.lungs.masks={self.masks!r} needs config.lungs.workdir, the work "
                "directory of a trained lungs run (--config=configs/lungs.py)"
            )


def labels_from_probs(probs: np.ndarray) -> np.ndarray:
    """[h, w, 2] probabilities of right and left lung -> uint8 [h, w]: 0 outside, 1 right, 2 left;
    holes are filled, and each lung is one component."""
    return zones.lungs_from_probs(probs[..., RIGHT], probs[..., LEFT])


def label_map(probs: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """[h, w, 2] probabilities -> uint8 [H, W] lung labels of a film of `shape`."""
    return labels_from_probs(resize_map(np.asarray(probs, np.float32), shape))


def enlarge(labels: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """uint8 [h, w] lung labels -> uint8 [H, W] of `shape`, with smooth borders."""
    right, left = (resize_map((labels == i).astype(np.float32), shape) for i in (1, 2))
    return np.where(right >= 0.5, 1, np.where(left > 0.5, 2, 0)).astype(np.uint8)
