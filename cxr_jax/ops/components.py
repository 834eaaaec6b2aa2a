"""Connected components of a batch of masks, on the host."""

import numpy as np
import scipy.ndimage

# Neighbours by a side within a mask; the masks of a batch do not touch.
_BESIDE = np.zeros((3, 3, 3), bool)
_BESIDE[1] = scipy.ndimage.generate_binary_structure(2, 1)


def label_components(masks: np.ndarray) -> tuple[np.ndarray, int]:
    """4-connected components of each mask.

    [B, H, W], inside where not 0 -> int [B, H, W], 0 outside and a number a component, 1 .. n over
    the whole batch; and n.
    """
    return scipy.ndimage.label(np.asarray(masks) != 0, _BESIDE)
