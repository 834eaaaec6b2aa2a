"""FeCNN (Wu et al. 2022, Phys. Med. Biol.): the levels of a feature pyramid vote on a CT slice.

A ResNet-50, a pyramid over its last three blocks and two levels more (Sec. 3.1.2); each level is
made a vector P_i of 256 numbers by a 1x1 convolution, batch norm and the mean over its cells;
ensemble fusion joins what the five say (Sec. 3.1.3).

    s_i = ReLU(W_i P_i + b_i)                Eq. 1, rho = number of classes [PAPERS, 5]
    w_i = 0.5 log((1 - e_i) / e_i)           Eq. 2
    e_i = share of slices with argmax s_i != label           Eq. 3
    probs = softmax(W [w_0 s_0, ..., w_4 s_4])               Eq. 4, no bias

The loss, Eq. 5, is the cross-entropy of the last one alone. Three things are settled here, since
with them open the network often does not learn:

- e_i is a running estimate, kept with the batch statistics and clipped to 1e-3 .. 0.5 where it is
  used [PAPERS, 5]. A step's weights come from earlier batches: no label reaches its own prediction.
- W starts as the plain vote, score k of every level for class k. From random weights nothing ties a
  level's score k to class k: its argmax is wrong as often as right, Eq. 2 silences the level, and
  with it its gradient, for good.
- In the backward pass a weight counts as at least `LEAST`. A level whose error rate is 0.5 or more
  has weight 0, and says nothing, but must go on learning: with three classes every level starts
  there, at 0.67.

On three classes of noisy vectors, five small levels, Adam, accuracy after training of 2 or 3 seeds:
0.33, 0.73, 0.31 from random W, 0.74, 0.72, 0.76 from the vote at a rate of 1e-3; at 3e-5 0.34, 0.34
from the vote alone (chance), and 0.74, 0.71 with the gradient kept.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers
from cxr_jax.models.pyramid import Pyramid
from cxr_jax.models.resnet import resnet50
from cxr_jax.models.slices import SliceClassifier

Array = jax.Array

ERRORS = (1e-3, 0.5)  # what an error rate is clipped to [PAPERS, 5]
FIRST_ERROR = 1 / (1 + math.e**2)  # w = 1: fusion starts without weights
LEAST = 0.1  # of a weight, in the backward pass


def level_weights(errors: Array) -> Array:
    """w_i of Eq. 2, of error rates clipped to `ERRORS`: 0 .. 3.45, float32, finite."""
    errors = jnp.clip(jnp.asarray(errors, jnp.float32), *ERRORS)
    return 0.5 * (jnp.log1p(-errors) - jnp.log(errors))


def updated_errors(errors: Array, scores: Array, labels: Array, *, momentum: float) -> Array:
    """Running error rates after one more batch: momentum e_i + (1 - momentum) (Eq. 3 of the batch).

    A level's prediction is the argmax of its scores, of equal ones (all 0, after ReLU) the first.

    Args:
      errors: [L].
      scores: s_i, [B, L, K].
      labels: int [B]; slices of a label below 0 do not count. Where none counts, nothing changes.
      momentum: 0..1.

    Returns:
      float32 [L], not clipped.
    """
    known = labels >= 0
    wrong = (jnp.argmax(scores, axis=-1) != labels[:, None]) & known[:, None]
    count = jnp.sum(known)
    rate = jnp.sum(wrong, axis=0) / jnp.maximum(count, 1)
    return jnp.where(count > 0, momentum * errors + (1 - momentum) * rate, errors)


def _vote(key: Array, shape: tuple[int, int], dtype: Any = jnp.float32) -> Array:
    """W of Eq. 4 as the sum of the levels' scores: identities, one below the other."""
    del key
    return jnp.tile(jnp.eye(shape[1], dtype=dtype), (shape[0] // shape[1], 1))


class Fusion(nn.Module):
    """Ensemble fusion, Eq. 1 to 4; see the module.

    Attributes:
      num_classes: K.
      dropout: rate on the vectors; the error rates are measured without it.
      momentum: of the running error rates.
    """

    num_classes: int
    dropout: float = 0.5
    momentum: float = 0.99

    @nn.compact
    def __call__(
        self, vectors: Array, *, train: bool, labels: Array | None = None
    ) -> dict[str, Array]:
        """Fuses what the levels say.

        Args:
          vectors: P_i, float32 [B, L, C].
          train: dropout; and with labels the error rates move, for later steps.
          labels: int [B], -1 where nobody knows; None: nobody knows any.

        Returns:
          'logits' [B, K], 'level_scores' s_i [B, L, K] and 'level_weights' w_i [L], float32.
        """
        levels, features = vectors.shape[1:]
        shape = (levels, features, self.num_classes)
        init = nn.initializers.lecun_normal(batch_axis=0)
        kernel = self.param("level_kernel", init, shape)
        bias = self.param("level_bias", nn.initializers.zeros_init(), (levels, self.num_classes))
        errors = self.variable(
            "batch_stats", "errors", jnp.full, (levels,), FIRST_ERROR, jnp.float32
        )

        def score(vectors: Array) -> Array:
            return nn.relu(jnp.einsum("blc,lck->blk", vectors, kernel) + bias)

        weights = level_weights(errors.value)
        scores = score(nn.Dropout(self.dropout, deterministic=not train)(vectors))
        # Zero in value; its gradient is what is lacking to LEAST.
        lacking = jnp.maximum(LEAST - weights, 0.0)[:, None]
        weighted = weights[:, None] * scores + lacking * (scores - jax.lax.stop_gradient(scores))
        dense = nn.Dense(self.num_classes, use_bias=False, kernel_init=_vote, name="classes")
        logits = dense(weighted.reshape(len(vectors), -1))
        if train and labels is not None and not self.is_initializing():
            errors.value = updated_errors(
                errors.value, score(vectors), labels, momentum=self.momentum
            )
        return {"logits": logits, "level_scores": scores, "level_weights": weights}


class LevelHead(nn.Module):
    """Pyramid and fusion, or less of it: the four rows of Table 4.

    | `pyramid` | `fusion` | what is classified |
    | --- | --- | --- |
    | yes | yes | the five levels, fused: FeCNN |
    | no | yes | the last three blocks, each made a vector, fused |
    | yes | no | the five levels' vectors, concatenated, one dense layer |
    | no | no | the mean of the last block, one dense layer |

    The paper names the rows and no more; what stands in the second and third is ours.

    Attributes:
      num_classes: K.
      pyramid: see the table.
      fusion: see the table.
      width: of the pyramid and of the levels' vectors.
      dropout: rate on the vectors.
      momentum: of the running error rates.
      dtype: of the pyramid; what follows the mean over the cells is float32.
    """

    num_classes: int = 2
    pyramid: bool = True
    fusion: bool = True
    width: int = 256
    dropout: float = 0.5
    momentum: float = 0.99
    dtype: Any = jnp.float32

    @property
    def levels(self) -> int:
        """How many maps it reads."""
        return 3 if self.pyramid or self.fusion else 1

    @nn.compact
    def __call__(
        self, maps: Sequence[Array], *, train: bool, labels: Array | None = None
    ) -> dict[str, Array]:
        """The last maps [B, h, w, C], the finest first -> 'logits' [B, K]; with fusion what
        `Fusion` gives."""
        maps = list(maps)
        if self.pyramid:
            maps = Pyramid(self.width, self.dtype, name="pyramid")(maps, train=train)
        if self.levels > 1:
            maps = [self._level(x, index, train) for index, x in enumerate(maps)]
        vectors = jnp.stack([jnp.mean(x.astype(jnp.float32), axis=(1, 2)) for x in maps], axis=1)
        if self.fusion:
            fusion = Fusion(self.num_classes, self.dropout, self.momentum, name="fusion")
            return fusion(vectors, train=train, labels=labels)
        vectors = nn.Dropout(self.dropout, deterministic=not train)(vectors)
        dense = nn.Dense(self.num_classes, name="classes")
        return {"logits": dense(vectors.reshape(len(vectors), -1))}

    def _level(self, x: Array, index: int, train: bool) -> Array:
        """[B, h, w, C] -> [B, h, w, width]."""
        conv = layers.Conv1x1(
            self.width, use_bias=False, dtype=self.dtype, name=f"level{index}_conv"
        )
        norm = layers.BatchNorm(dtype=self.dtype, name=f"level{index}_norm")
        return norm(conv(x), train=train)


def fecnn(*, num_classes: int = 2, dtype: Any = jnp.float32) -> SliceClassifier:
    """FeCNN at full size: 31.84 M parameters with two classes."""
    return SliceClassifier(resnet50(dtype=dtype), LevelHead(num_classes, dtype=dtype))
