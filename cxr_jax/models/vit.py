"""Vision transformer (Dosovitskiy et al., arXiv:2010.11929) on a feature map or on raw patches."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.models import layers

Array = jax.Array

LAYER_NORM_EPS = 1e-6


def extract_patches(image: Array, size: int) -> Array:
    """Cuts an image into squares: [B, H, W, C] -> [B, H // size, W // size, size * size * C].

    A patch's pixels lie row by row with the channel last, so that `patches @ kernel` is a
    convolution of that size and stride whose kernel [size, size, C, D] is flattened.

    Raises:
      ValueError: H or W is not a multiple of `size`.
    """
    batch, height, width, channels = image.shape
    if height % size or width % size:
        raise ValueError(
            f"the image is {height}x{width} px; both sides must be multiples of {size} (the patch)."
        )
    h, w = height // size, width // size
    patches = image.reshape(batch, h, size, w, size, channels).transpose(0, 1, 3, 2, 4, 5)
    return patches.reshape(batch, h, w, size * size * channels)


def resample_position(
    position: Array, old_grid: tuple[int, int], new_grid: tuple[int, int]
) -> Array:
    """Position embeddings for another grid: [1, 1 + N, D] -> [1, 1 + N', D].

    The [class] token's entry, the first, is kept; the others are resized as a map, bilinearly
    (half-pixel centres). The same grid gives the same array.

    Raises:
      ValueError: `old_grid` does not have N cells.
    """
    old_h, old_w = old_grid
    if position.shape[1] != 1 + old_h * old_w:
        raise ValueError(
            f"the embedding has {position.shape[1]} entries; a {old_h}x{old_w} grid and the class "
            f"token need {1 + old_h * old_w}."
        )
    if tuple(old_grid) == tuple(new_grid):
        return position
    width = position.shape[-1]
    cells = position[:, 1:].reshape(1, old_h, old_w, width)
    cells = jax.image.resize(cells, (1, *new_grid, width), "bilinear", antialias=False)
    return jnp.concatenate([position[:, :1], cells.reshape(1, -1, width)], axis=1)


class SelfAttention(nn.Module):
    """Multi-head softmax(Q K^T / sqrt(d)) V, d the head's width; the softmax is in float32."""

    num_heads: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """[B, N, D] -> [B, N, D] and the attention [B, heads, N, N] (query, key), rows sum to 1.

        Raises:
          ValueError: D is not a multiple of the number of heads.
        """
        batch, tokens, width = x.shape
        if width % self.num_heads:
            raise ValueError(f"width {width} is not a multiple of num_heads={self.num_heads}.")
        qkv = nn.Dense(
            3 * width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="qkv"
        )(x)
        qkv = qkv.reshape(batch, tokens, 3, self.num_heads, width // self.num_heads)
        query, key, value = jnp.moveaxis(qkv, (2, 3), (0, 2))  # each [B, heads, N, d]
        scores = jnp.einsum("bhqd,bhkd->bhqk", query, key, preferred_element_type=jnp.float32)
        attention = nn.softmax(scores / jnp.sqrt(jnp.float32(width // self.num_heads)))
        attention = nn.Dropout(self.dropout)(attention, deterministic=not train)
        mixed = jnp.einsum("bhqk,bhkd->bqhd", attention.astype(self.dtype), value)
        out = nn.Dense(
            width, dtype=self.dtype, kernel_init=nn.initializers.xavier_uniform(), name="proj"
        )(mixed.reshape(batch, tokens, width))
        return out, attention


class EncoderBlock(nn.Module):
    """Pre-norm block (Eqs. 2 and 3): x += MSA(LN(x)); x += MLP(LN(x)); the GELU is exact (erf)."""

    num_heads: int
    mlp_dim: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> tuple[Array, Array]:
        """[B, N, D] -> [B, N, D] and the attention [B, heads, N, N]."""
        drop = nn.Dropout(self.dropout, deterministic=not train)
        y = nn.LayerNorm(LAYER_NORM_EPS, dtype=self.dtype, name="norm1")(x)
        y, attention = SelfAttention(self.num_heads, self.dropout, self.dtype, name="attn")(
            y, train=train
        )
        x = x + drop(y)
        y = nn.LayerNorm(LAYER_NORM_EPS, dtype=self.dtype, name="norm2")(x)
        y = Mlp(self.mlp_dim, self.dropout, self.dtype, name="mlp")(y, train=train)
        return x + drop(y), attention


class Mlp(nn.Module):
    """Dense-GELU-Dense, `hidden` units between; the GELU is x Phi(x) with erf, not tanh's guess."""

    hidden: int
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, x: Array, *, train: bool) -> Array:
        """[B, N, D] -> [B, N, D]."""
        width, init = x.shape[-1], nn.initializers.xavier_uniform()
        x = nn.Dense(self.hidden, dtype=self.dtype, kernel_init=init, name="fc1")(x)
        x = nn.gelu(x, approximate=False)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        return nn.Dense(width, dtype=self.dtype, kernel_init=init, name="fc2")(x)


class ViT(nn.Module):
    """A transformer over the cells of a map and a learned [class] token.

    Attributes:
      num_layers: L.
      num_heads: of the attention.
      width: D.
      mlp_dim: the MLP's hidden size.
      stride: of the 1x1 projection (2 for the 1024-pixel ablation of Park et al. 2021).
      patch_size: 1 takes the cells of a feature map; 16 cuts a raw image into 16x16 patches.
      dropout: after the embedding, in the attention and in the MLP.
      dtype: of the computation; parameters, softmax and layer-norm statistics stay float32.
    """

    num_layers: int
    num_heads: int
    width: int
    mlp_dim: int
    stride: int = 1
    patch_size: int = 1
    dropout: float = 0.0
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(
        self,
        features: Array,
        *,
        train: bool,
        grid: tuple[int, int] | None = None,
        return_attention: bool = False,
    ) -> dict[str, Array | list[Array]]:
        """Runs the encoder.

        Args:
          features: [B, h, w, C] map, or an image where `patch_size` > 1.
          train: turns dropout on (needs the random stream 'dropout' if it is not 0).
          grid: the grid the position embedding was made for; resampled where the map's differs.
            None is the map's own.
          return_attention: adds every layer's attention.

        Returns:
          'tokens' [B, 1 + N, D] after the last LayerNorm, the [class] token first; 'cls' [B, D];
          'map' [B, h, w, D], the other tokens in their places; with `return_attention`,
          'attention', a list of [B, heads, 1 + N, 1 + N] (query, key).
        """
        if self.patch_size > 1:
            features = extract_patches(features, self.patch_size)
        x = layers.Conv1x1(
            self.width,
            stride=self.stride,
            dtype=self.dtype,
            kernel_init=nn.initializers.lecun_normal(),
            name="embedding",
        )(features)
        batch, h, w, width = x.shape
        grid = (h, w) if grid is None else grid
        cls = self.param("cls", nn.initializers.zeros_init(), (1, 1, width))
        position = self.param(
            "position", nn.initializers.normal(0.02), (1, 1 + grid[0] * grid[1], width)
        )
        x = jnp.concatenate(
            [
                jnp.broadcast_to(cls.astype(self.dtype), (batch, 1, width)),
                x.reshape(batch, h * w, width),
            ],
            axis=1,
        )
        x = x + resample_position(position, grid, (h, w)).astype(self.dtype)
        x = nn.Dropout(self.dropout)(x, deterministic=not train)
        attention = []
        for index in range(self.num_layers):
            block = EncoderBlock(
                self.num_heads,
                self.mlp_dim,
                dropout=self.dropout,
                dtype=self.dtype,
                name=f"block{index}",
            )
            x, weights = block(x, train=train)
            attention.append(weights)
        x = nn.LayerNorm(LAYER_NORM_EPS, dtype=self.dtype, name="norm")(x)
        out = {"tokens": x, "cls": x[:, 0], "map": x[:, 1:].reshape(batch, h, w, width)}
        return out | {"attention": attention} if return_attention else out


def vit_b16(
    *, stride: int = 1, patch_size: int = 1, dropout: float = 0.0, dtype: Any = jnp.float32
) -> ViT:
    """ViT-B: 12 layers, 12 heads, width 768, MLP 3072; 85.1 M parameters without the embeddings."""
    return ViT(
        num_layers=12,
        num_heads=12,
        width=768,
        mlp_dim=3072,
        stride=stride,
        patch_size=patch_size,
        dropout=dropout,
        dtype=dtype,
    )
