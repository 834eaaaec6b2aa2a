"""Anatomy-driven pathology detection (Müller et al., MICCAI 2023, Sec. 3.1).

A CNN's last map, projected; one DETR decoder layer in which a learned query per anatomical region
attends to it; three heads that all regions share: whether the region is there, its box, and its
pathologies. A query is one and the same region always, so nothing needs to be matched.
"""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from cxr_jax.models import backbones, layers
from cxr_jax.models.vit import SelfAttention

Array = jax.Array

LAYER_NORM_EPS = 1e-5
TEMPERATURE = 10_000.0  # of the sine positions
PRESENT_LOGIT = 0.5  # a region counts as there above it: a probability of 0.62, as released


def sine_positions(height: int, width: int, features: int) -> np.ndarray:
    """DETR's sine positions, normalised (Carion et al., ECCV 2020): float32 [height, width, D].

    Row i of H is at (i + 1) / (H + 1e-6) * 2 pi, columns likewise. Number k of the D / 2 of a
    direction is the sine (k even) or the cosine (k odd) of position / 10000^(2 floor(k / 2) /
    (D / 2)); the row's come first.

    Raises:
      ValueError: `features` (D) is not a multiple of 4.
    """
    if features % 4:
        raise ValueError(f"{features} features; sines and cosines of two directions need 4 n.")
    half = features // 2
    rates = TEMPERATURE ** -(2 * (np.arange(half) // 2) / half)

    def encode(length: int) -> np.ndarray:
        angles = (np.arange(1, length + 1) / (length + 1e-6) * 2 * np.pi)[:, None] * rates
        return np.where(np.arange(half) % 2, np.cos(angles), np.sin(angles))  # [length, D / 2]

    shape = (height, width, half)
    rows = np.broadcast_to(encode(height)[:, None], shape)
    return np.concatenate([rows, np.broadcast_to(encode(width), shape)], -1).astype(np.float32)


class CrossAttention(nn.Module):
    """Multi-head softmax(Q K^T / sqrt(d)) V with Q of `x`, K and V of `source`.

    d is the head's width; the softmax is in float32.
    """

    num_heads: int
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, source: Array) -> tuple[Array, Array]:
        """[B, A, D], [B, N, D] -> [B, A, D] and the attention [B, heads, A, N], rows sum to 1.

        Raises:
          ValueError: D is not a multiple of the number of heads.
        """
        width = x.shape[-1]
        if width % self.num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads={self.num_heads}.")
        init, head = nn.initializers.xavier_uniform(), width // self.num_heads
        query = nn.Dense(width, dtype=self.dtype, kernel_init=init, name="q")(x)
        both = nn.Dense(2 * width, dtype=self.dtype, kernel_init=init, name="kv")(source)
        query = query.reshape(*x.shape[:2], self.num_heads, head)
        both = both.reshape(*source.shape[:2], 2, self.num_heads, head)
        key, value = both[:, :, 0], both[:, :, 1]
        scores = jnp.einsum("bqhd,bkhd->bhqk", query, key, preferred_element_type=jnp.float32)
        attention = nn.softmax(scores / jnp.sqrt(jnp.float32(head)))
        mixed = jnp.einsum("bhqk,bkhd->bqhd", attention.astype(self.dtype), value)
        out = nn.Dense(width, dtype=self.dtype, kernel_init=init, name="proj")
        return out(mixed.reshape(x.shape)), attention


class DecoderBlock(nn.Module):
    """One decoder layer of ADPD: norms first, none at the end, each branch with a layer scale.

    x += s SA(LN(x + t)); x += s MHA(LN(x + t), LN(f + e)); x += s MLP(LN(x)), with the queries t as
    positions of the tokens x and e those of the patches f. Unlike in DETR the positions are part of
    the values too.

    Attributes:
      num_heads: of both attentions.
      mlp_dim: hidden units of the MLP, whose activation is ReLU.
      dropout: behind each attention and in the MLP; none on the attention's weights.
      drop_path: how often a film's self-attention or MLP is left out, the rest being enlarged; the
        released code leaves the cross-attention in.
      layer_scale: what s starts at.
      dtype: of the products; parameters, softmax, norms and the sum x stay float32.
    """

    num_heads: int
    mlp_dim: int
    dropout: float = 0.0
    drop_path: float = 0.0
    layer_scale: float = 0.1
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self, x: Array, queries: Array, *, patches: Array, positions: Array, train: bool
    ) -> dict[str, Array]:
        """One layer.

        Args:
          x: [B, A, D] tokens, float32.
          queries: [A, D].
          patches: [B, N, D].
          positions: [N, D] of the patches.
          train: turns dropout and drop path on (random stream 'dropout').

        Returns:
          'tokens' [B, A, D] float32, 'attention' [B, heads, A, N] of the cross-attention, and what
          the two attentions add to x: 'self_branch', 'cross_branch'.
        """
        drop = nn.Dropout(self.dropout, deterministic=not train)
        drop_path = nn.Dropout(self.drop_path, broadcast_dims=(1, 2), deterministic=not train)

        def norm(name: str, values: Array) -> Array:
            return nn.LayerNorm(LAYER_NORM_EPS, dtype=self.dtype, name=name)(values)

        def scaled(name: str, branch: Array) -> Array:
            start = nn.initializers.constant(self.layer_scale)
            return branch.astype(jnp.float32) * self.param(f"scale_{name}", start, (x.shape[-1],))

        attend = SelfAttention(self.num_heads, dtype=self.dtype, name="self")
        branch, _ = attend(norm("norm_self", x + queries), train=train)
        self_branch = drop_path(scaled("self", drop(branch)))
        x = x + self_branch
        attend = CrossAttention(self.num_heads, self.dtype, name="cross")
        source = norm("norm_patches", patches.astype(jnp.float32) + positions)
        branch, attention = attend(norm("norm_cross", x + queries), source)
        cross_branch = scaled("cross", drop(branch))
        x = x + cross_branch
        y = nn.Dense(self.mlp_dim, dtype=self.dtype, name="fc1")(norm("norm_mlp", x))
        y = nn.Dense(x.shape[-1], dtype=self.dtype, name="fc2")(drop(nn.relu(y)))
        return {
            "tokens": x + drop_path(scaled("mlp", drop(y))),
            "attention": attention,
            "self_branch": self_branch,
            "cross_branch": cross_branch,
        }


class RegionHeads(nn.Module):
    """The three heads, shared by all regions; float32.

    Attributes:
      num_findings: K.
      dropout: between the layers of the boxes' MLP.
    """

    num_findings: int
    dropout: float = 0.0

    @nn.compact
    def __call__(self, tokens: Array, *, train: bool) -> dict[str, Array]:
        """[B, A, D] -> 'presence' [B, A] and 'findings' [B, A, K], logits, and 'boxes' [B, A, 4],
        cxcywh as shares of the film, 0..1."""
        tokens = tokens.astype(jnp.float32)
        y = tokens
        for index in range(2):
            y = nn.relu(nn.Dense(tokens.shape[-1], name=f"box{index}")(y))
            y = nn.Dropout(self.dropout)(y, deterministic=not train)
        return {
            "presence": nn.Dense(1, name="presence")(tokens)[..., 0],
            "boxes": nn.sigmoid(nn.Dense(4, name="box2")(y)),
            "findings": nn.Dense(self.num_findings, name="findings")(tokens),
        }


class ADPD(nn.Module):
    """Backbone, projection, decoder and heads.

    Attributes:
      backbone: its last map is what the queries look at (`final` of a DenseNet-121 in the paper).
      heads: the three heads.
      width: D, a multiple of 4 and of the heads' number (512 where regions have labels of their
        own, 256 where only films do).
      num_regions: A, one query each.
      num_layers: of the decoder; the paper has one and saw no gain of more.
      num_heads: of the attention.
      mlp_factor: hidden units of the decoder's MLP, as a multiple of D.
      dropout, drop_path, layer_scale: as `DecoderBlock` has them; dropout is also behind the
        projection.
      freeze_norms: True keeps the backbone's batch norm in inference mode.
      dtype: of the decoder's products; its sum x and the heads stay float32.
    """

    backbone: backbones.Backbone
    heads: RegionHeads
    width: int = 512
    num_regions: int = 29
    num_layers: int = 1
    num_heads: int = 8
    mlp_factor: int = 4
    dropout: float = 0.3
    drop_path: float = 0.2
    layer_scale: float = 0.1
    freeze_norms: bool = False
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> dict[str, Array]:
        """Normalised films [B, H, W] -> what `RegionHeads` gives, and 'tokens' [B, A, D], the
        regions' features, and 'attention' [B, A, h, w], the heads' mean of the last layer's
        cross-attention: where a region's query looked; its cells sum to 1."""
        films = jnp.repeat(x[..., None], 3, axis=-1)
        taps = self.backbone(films, train=train and not self.freeze_norms)
        cells = taps[self.backbone.stop_at]
        project = layers.Conv1x1(
            self.width, dtype=self.dtype, kernel_init=nn.initializers.lecun_normal(), name="project"
        )
        patches = nn.Dropout(self.dropout)(project(cells), deterministic=not train)
        batch, h, w, _ = patches.shape
        start = nn.initializers.normal(self.width**-0.5)
        queries = self.param("queries", start, (self.num_regions, self.width))
        positions = jnp.asarray(sine_positions(h, w, self.width).reshape(h * w, self.width))
        patches = patches.reshape(batch, h * w, self.width)
        out = {"tokens": jnp.zeros((batch, self.num_regions, self.width))}
        for index in range(self.num_layers):
            block = DecoderBlock(
                self.num_heads,
                self.mlp_factor * self.width,
                dropout=self.dropout,
                drop_path=self.drop_path,
                layer_scale=self.layer_scale,
                dtype=self.dtype,
                name=f"block{index}",
            )
            out = block(out["tokens"], queries, patches=patches, positions=positions, train=train)
        attention = jnp.mean(out["attention"], axis=1).reshape(batch, self.num_regions, h, w)
        found = self.heads(out["tokens"], train=train)
        return found | {"tokens": out["tokens"], "attention": attention}
