"""The feature pyramid (Lin et al., CVPR 2017, arXiv:1612.03144) of RetinaNet and of FeCNN.

Over the last strides of a backbone, and two levels above. Lin et al., ICCV 2017 (arXiv:1708.02002,
Sec. 4) and Wu et al. 2022 (Sec. 3.1.2) have the same one, but for two things: only the second has
batch norm behind the 1x1 convolutions, only the first speaks of a ReLU between the levels above.
Here are both.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array

MORE_LEVELS = 2  # above those of the backbone


class Pyramid(nn.Module):
    """Maps of several strides -> as many maps of one width, and two more of higher strides.

    From the top each map is enlarged to the next one's cells, by repetition, and added to it. The
    first level above is a convolution of stride 2 on the backbone's last map, the second one on
    ReLU of the first (P6 and P7 of RetinaNet, C6 and C7 of FeCNN).

    Attributes:
      width: channels.
      dtype: of the computation.
    """

    width: int = 256
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, maps: list[Array], *, train: bool) -> list[Array]:
        """[B, h, w, C], the finest first, each with half the cells a side of the one before,
        rounded up -> [B, h, w, width], the finest first."""
        merged: list[Array] = []
        for index, x in reversed(list(enumerate(maps))):
            x = layers.Conv1x1(
                self.width, use_bias=False, dtype=self.dtype, name=f"lateral{index}"
            )(x)
            x = layers.BatchNorm(dtype=self.dtype, name=f"norm{index}")(x, train=train)
            if merged:
                x = x + _enlarged(merged[0], x.shape)
            merged.insert(0, x)
        found = []
        for index, x in enumerate(merged):
            conv = layers.Conv3x3(
                self.width, use_bias=True, dtype=self.dtype, name=f"smooth{index}"
            )
            found.append(conv(x))
        x = maps[-1]
        for index in range(MORE_LEVELS):
            conv = layers.Conv3x3(
                self.width, stride=2, use_bias=True, dtype=self.dtype, name=f"more{index}"
            )
            x = conv(nn.relu(x) if index else x)
            found.append(x)
        return found


def _enlarged(x: Array, shape: tuple[int, ...]) -> Array:
    """Every cell twice a side; one row or column less where the finer map's number is odd."""
    x = jnp.repeat(jnp.repeat(x, 2, axis=1), 2, axis=2)
    return x[:, : shape[1], : shape[2]]
