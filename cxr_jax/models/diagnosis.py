"""Diagnosis from a corpus of low-level features (Park et al. 2021, 'corpus_vit').

Eq. 1: F = G(x), the corpus. Eqs. 3, 4: a ViT over its cells, each projected by a 1x1 convolution,
behind a [class] token. A linear head on that token gives the logits of the classes (Fig. 3A).
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models.corpus_vit import CorpusViT
from cxr_jax.models.pcam import PCAMHeads

Array = jax.Array


class DiagnosisNet(CorpusViT):
    """Corpus, transformer and a linear head.

    Without a ViT the head is on the mean of the last map's cells: the CNN baselines of Table 7.

    Attributes:
      head: [.., C] -> [.., K], linear, float32.
      heads: None: the corpus is the map before PCAM. Else (Sec. 5.5.2) those of the pre-training,
        under their name there; their probability maps weigh the corpus.
      weighing: which of their findings weigh it, by number: the weighted maps lie one behind the
        other.
    """

    head: nn.Dense
    heads: PCAMHeads | None = None
    weighing: tuple[int, ...] = ()

    def __call__(self, x: Array, *, train: bool) -> Array:
        """Normalised films [B, H, W] -> logits [B, K], float32."""
        return self.classify(self.corpus(x, train=train), train=train)

    def corpus(self, x: Array, *, train: bool) -> Array:
        """Normalised films [B, H, W] -> what the transformer reads [B, h, w, C], or C times the
        number of weighing findings; raw patches' pixels where there is no backbone."""
        cells = self.features(x, train=train)
        if self.heads is None:
            return cells
        maps = jax.nn.sigmoid(self.heads(cells)["logit_maps"])[..., list(self.weighing)]
        weighted = cells[..., None, :] * maps[..., None].astype(cells.dtype)
        return weighted.reshape(*cells.shape[:3], -1)

    def classify(self, cells: Array, *, train: bool) -> Array:
        """What `corpus` gives -> logits [B, K], float32."""
        if self.vit is None:
            pooled = jnp.mean(cells.astype(jnp.float32), axis=(1, 2))
        else:
            pooled = self.vit(cells, train=train)["cls"]
        return self.head(pooled.astype(jnp.float32))
