"""Class activation maps of SEAM: their normalisation and the pixel correlation module (PCM).

Wang et al. 2020 (SEAM), and Fig. 1b of Tang et al. 2021 (M-SEAM-NAM). Channel 0 of every map is the
background, channels 1..K are the foreground classes. The epsilons are those of the released code.
"""

import jax
import jax.numpy as jnp

Array = jax.Array

EPSILON = 1e-5
# Squared lengths up to here count as 0: the derivative of the root would not be finite.
TINY = 1e-24
# Numbers of the affinity that `refine_in_parts` has at a time: 128 MB.
AT_ONCE = 2**25


def strongest_class(cam: Array) -> Array:
    """Background from the foreground, then one foreground class a pixel.

    Channel 0 becomes 1 - max of the foreground; after that every foreground channel below the
    pixel's largest one becomes 0.

    Args:
      cam: [B, h, w, 1 + K], normalised. Its channel 0 is not read.

    Returns:
      [B, h, w, 1 + K].
    """
    foreground = cam[..., 1:]
    peak = jnp.max(foreground, axis=-1, keepdims=True)
    return jnp.concatenate([1.0 - peak, jnp.where(foreground < peak, 0.0, foreground)], axis=-1)


def normalize_cam(raw_cam: Array) -> Array:
    """The CAM that PCM refines: scaled to 0..1, one class a pixel, without a gradient.

    r = ReLU(cam); n = ReLU(r - 1e-5) / (max of r over the pixels + 1e-5), per image and channel;
    then `strongest_class`.

    Args:
      raw_cam: [B, h, w, 1 + K], as the classifier's convolution gives it.

    Returns:
      [B, h, w, 1 + K] float32 in 0..1.
    """
    r = jax.nn.relu(jax.lax.stop_gradient(raw_cam).astype(jnp.float32))
    scaled = jax.nn.relu(r - EPSILON) / (jnp.max(r, axis=(1, 2), keepdims=True) + EPSILON)
    return strongest_class(scaled)


def min_max_normalize(cam: Array) -> Array:
    """The maps that SEAM's losses compare: each channel of each image stretched to 0..1.

    r = ReLU(cam); ReLU(r - min r - 1e-5) / (max r - min r + 1e-5). Unlike `normalize_cam` it passes
    the gradient on, also through min and max. A constant map gives 0.

    Args:
      cam: [B, h, w, 1 + K], raw or refined.

    Returns:
      [B, h, w, 1 + K] float32 in 0..1.
    """
    r = jax.nn.relu(cam.astype(jnp.float32))
    low, high = (f(r, axis=(1, 2), keepdims=True) for f in (jnp.min, jnp.max))
    return jax.nn.relu(r - low - EPSILON) / (high - low + EPSILON)


def pixel_affinity(embedding: Array) -> Array:
    """How much each pixel i gives to each pixel j: ReLU of the cosine, columns normalised.

    e = x / (|x| + 1e-5); A[i, j] = ReLU(e_i . e_j); column j is divided by its sum + 1e-5. A pixel
    whose embedding is all zero neither gives nor receives.

    Args:
      embedding: x [B, h, w, C], after PCM's 1x1 convolution.

    Returns:
      [B, hw, hw] float32, pixels numbered row by row.
    """
    unit = _unit_embedding(embedding)
    highest = jax.lax.Precision.HIGHEST
    affinity = jax.nn.relu(jnp.einsum("bic,bjc->bij", unit, unit, precision=highest))
    return affinity / (jnp.sum(affinity, axis=1, keepdims=True) + EPSILON)


def _unit_embedding(embedding: Array) -> Array:
    """[B, h, w, C] -> x / (|x| + 1e-5), float32 [B, hw, C]."""
    x = embedding.astype(jnp.float32)
    x = x.reshape(x.shape[0], -1, x.shape[-1])
    squares = jnp.sum(x * x, axis=-1, keepdims=True)
    # Filled before the root: a masked infinity would still make the gradient NaN.
    length = jnp.where(squares > TINY, jnp.sqrt(jnp.where(squares > TINY, squares, 1.0)), 0.0)
    return x / (length + EPSILON)


def refine(cam: Array, embedding: Array) -> Array:
    """PCM: the CAM at pixel j becomes the sum over the pixels i of cam_i A[i, j].

    Args:
      cam: [B, h, w, 1 + K], of `normalize_cam`.
      embedding: [B, h, w, C], of the same size; A is its `pixel_affinity`.

    Returns:
      [B, h, w, 1 + K] float32: M-SEAM-NAM's D, 0..1 where `cam` is.
    """
    affinity = pixel_affinity(embedding)
    flat = cam.astype(jnp.float32).reshape(cam.shape[0], -1, cam.shape[-1])
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("bij,bik->bjk", affinity, flat, precision=highest).reshape(cam.shape)


def refine_in_parts(cam: Array, embedding: Array) -> Array:
    """`refine`, some pixels j at a time: for predictions at several scales.

    The affinity of a map of 112x112, a slice at twice 448 px, has 157 million numbers.
    """
    unit, flat = _unit_embedding(embedding), cam.astype(jnp.float32)
    flat = flat.reshape(cam.shape[0], -1, cam.shape[-1])
    batch, pixels, channels = unit.shape
    part = min(max(AT_ONCE // (batch * pixels), 16), pixels)
    parts = -(-pixels // part)
    columns = jnp.pad(unit, ((0, 0), (0, parts * part - pixels), (0, 0)))
    columns = columns.reshape(batch, parts, part, channels).swapaxes(0, 1)
    highest = jax.lax.Precision.HIGHEST

    def of_columns(some: Array) -> Array:
        affinity = jax.nn.relu(jnp.einsum("bic,bjc->bij", unit, some, precision=highest))
        total = jnp.sum(affinity, axis=1)[..., None] + EPSILON
        return jnp.einsum("bij,bik->bjk", affinity, flat, precision=highest) / total

    found = jax.lax.map(of_columns, columns).swapaxes(0, 1)  # [B, parts, part, 1 + K]
    return found.reshape(batch, parts * part, -1)[:, :pixels].reshape(cam.shape)
