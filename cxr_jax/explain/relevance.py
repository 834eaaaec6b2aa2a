"""Relevance through a ViT (Chefer, Gur and Wolf, CVPR 2021, arXiv:2012.09838), per class.

Relevance R starts as 1 at the class's logit and is passed down to every layer's attention A by the
rules below. There it is weighted by the gradient of the logit and the layers are multiplied, later
ones on the left:

    A' = mean over heads of max(dlogit/dA * R_A, 0);   map = class row of (I + A'_L) ... (I + A'_1)

The rules are those of the authors' code (`tests/golden/README.md`, `relevance.npz`), with two
differences that no ordinary number sees. A sum's total is taken per image, never over the batch: an
image's map does not depend on its neighbours. And numbers stay finite: see `divide` and `LIMIT`.

All of it is float32 with full products, whatever the module's dtype is; dropout is off.
"""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from cxr_jax.explain import attention as attention_maps
from cxr_jax.models import layers
from cxr_jax.models.vit import LAYER_NORM_EPS, ViT, extract_patches, resample_position

Array = jax.Array
Params = Mapping[str, Any]

EPSILON = 1e-9  # of every division, as in the authors' code
LIMIT = 1e12  # where sums x + y cancel, R grows by x / (x + y); products of it must not overflow


class Trace(NamedTuple):
    """What one encoder block computed; d is the width of a head, M of the MLP."""

    x: Array  # [B, N, D], the block's input
    normed: Array  # [B, N, D], what the attention reads
    query: Array  # [B, heads, N, d], as are the next two
    key: Array
    value: Array
    scores: Array  # [B, heads, N, N], before their scaling
    attention: Array  # [B, heads, N, N]
    mixed: Array  # [B, heads, N, d], attention times values
    attended: Array  # [B, N, D], the first branch
    middle: Array  # [B, N, D], x + attended
    normed_middle: Array  # [B, N, D], what the MLP reads
    hidden: Array  # [B, N, M], after the GELU
    mlp: Array  # [B, N, D], the second branch


# The forward pass of models/vit.py once more, with what the rules need.


def _dense(params: Params, x: Array) -> Array:
    return x @ params["kernel"] + params["bias"]


def _norm(params: Params, x: Array, epsilon: float = LAYER_NORM_EPS) -> Array:
    return nn.LayerNorm(epsilon).apply({"params": params}, x)


def _embed(
    vit: ViT, params: Params, features: Array, grid: tuple[int, int] | None
) -> tuple[Array, tuple[int, int]]:
    """The tokens before the first block, [B, N, D], and the cells' (h, w)."""
    if vit.patch_size > 1:
        features = extract_patches(features, vit.patch_size)
    embedding = layers.Conv1x1(vit.width, stride=vit.stride)
    x = embedding.apply({"params": params["embedding"]}, features)
    batch, h, w, width = x.shape
    cls = jnp.broadcast_to(params["cls"], (batch, 1, width))
    x = jnp.concatenate([cls, x.reshape(batch, h * w, width)], axis=1)
    grid = (h, w) if grid is None else grid
    return x + resample_position(params["position"], grid, (h, w)), (h, w)


def _block(heads: int, params: Params, x: Array, nudge: Array) -> tuple[Array, Trace]:
    """One encoder block; `nudge`, zeros, is added to the attention to take its gradient there."""
    batch, tokens, width = x.shape
    normed = _norm(params["norm1"], x)
    qkv = _dense(params["attn"]["qkv"], normed).reshape(batch, tokens, 3, heads, width // heads)
    query, key, value = jnp.moveaxis(qkv, (2, 3), (0, 2))
    scores = jnp.einsum("bhqd,bhkd->bhqk", query, key)
    attention = nn.softmax(scores / jnp.sqrt(jnp.float32(width // heads))) + nudge
    mixed = jnp.einsum("bhqk,bhkd->bhqd", attention, value)
    attended = _dense(params["attn"]["proj"], _merge_heads(mixed))
    middle = x + attended
    normed_middle = _norm(params["norm2"], middle)
    hidden = nn.gelu(_dense(params["mlp"]["fc1"], normed_middle), approximate=False)
    mlp = _dense(params["mlp"]["fc2"], hidden)
    return middle + mlp, Trace(
        x=x,
        normed=normed,
        query=query,
        key=key,
        value=value,
        scores=scores,
        attention=attention,
        mixed=mixed,
        attended=attended,
        middle=middle,
        normed_middle=normed_middle,
        hidden=hidden,
        mlp=mlp,
    )


class Forward(NamedTuple):
    """A whole pass, and the way back."""

    cls: Array  # [B, D], after the last norm
    size: tuple[int, int]  # (h, w)
    blocks: list[tuple[Params, Trace, Callable]]  # pullback: dlogit/dx -> dlogit/dx, dlogit/dA
    norm_pullback: Callable  # of the last norm: gradient at cls -> (gradient at all tokens,)


def _forward(
    vit: ViT,
    params: Params,
    features: Array,
    *,
    grid: tuple[int, int] | None,
    norm_epsilon: float,
) -> Forward:
    x, size = _embed(vit, params, features, grid)
    batch, tokens, _ = x.shape
    blocks = []
    for index in range(vit.num_layers):
        block = functools.partial(_block, vit.num_heads, params[f"block{index}"])
        nudge = jnp.zeros((batch, vit.num_heads, tokens, tokens))
        x, pullback, trace = jax.vjp(block, x, nudge, has_aux=True)
        blocks.append((params[f"block{index}"], trace, pullback))
    cls, norm_pullback = jax.vjp(lambda x: _norm(params["norm"], x, norm_epsilon)[:, 0], x)
    return Forward(cls, size, blocks, norm_pullback)


def _merge_heads(x: Array) -> Array:
    """[B, heads, N, d] -> [B, N, heads * d]."""
    batch, heads, tokens, width = x.shape
    return x.transpose(0, 2, 1, 3).reshape(batch, tokens, heads * width)


def _split_heads(x: Array, heads: int) -> Array:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    batch, tokens, width = x.shape
    return x.reshape(batch, tokens, heads, width // heads).transpose(0, 2, 1, 3)


# The rules.


def divide(a: Array, b: Array) -> Array:
    """a / (b + 1e-9), and 0 where b is 0.

    Just below 0, where b + 1e-9 has a pole at -1e-9, the divisor is -1e-9.
    """
    shifted = b + EPSILON
    divisor = jnp.where(jnp.abs(shifted) < EPSILON, -EPSILON, shifted)
    return jnp.where(b == 0, 0.0, a / divisor)


def linear_rule(x: Array, kernel: Array, relevance: Array) -> Array:
    """R of a linear layer's input (alpha 1, beta 0); its bias takes no part.

    [..., C], [C, D], R [..., D] -> R [..., C]. With + and - the positive and negative parts,
    s = R / (x+ W+ + x- W-) and the result is x+ (s W+) + x- (s W-).
    """
    x_plus, x_minus = jnp.maximum(x, 0), jnp.minimum(x, 0)
    w_plus, w_minus = jnp.maximum(kernel, 0), jnp.minimum(kernel, 0)
    s = divide(relevance, x_plus @ w_plus + x_minus @ w_minus)
    return _bounded(x_plus * (s @ w_plus.T) + x_minus * (s @ w_minus.T))


def product_rule(
    x: Array, y: Array, product: Array, *, equation: str, relevance: Array
) -> tuple[Array, Array]:
    """R of both factors of einsum(equation, x, y): each times its derivative, and half of that."""
    factors, out = equation.split("->")
    left, right = factors.split(",")
    s = divide(relevance, product)
    to_x = x * jnp.einsum(f"{out},{right}->{left}", s, y)
    to_y = y * jnp.einsum(f"{left},{out}->{right}", x, s)
    return _bounded(to_x / 2), _bounded(to_y / 2)


def sum_rule(x: Array, y: Array, relevance: Array) -> tuple[Array, Array]:
    """R of both terms of x + y, [B, N, D] each.

    s = R / (x + y) gives x s and y s; of each image, each part is scaled so that its total becomes
    |its total| / (|total of x s| + |total of y s|) of the total of R.
    """
    s = divide(relevance, x + y)
    to_x, to_y = x * s, y * s
    total_x, total_y = _total(to_x), _total(to_y)
    # |t| / (|t| + |u|) * R / t, without the division by a total that may be near 0.
    scale = divide(_total(relevance), jnp.abs(total_x) + jnp.abs(total_y))
    return _bounded(to_x * jnp.sign(total_x) * scale), _bounded(to_y * jnp.sign(total_y) * scale)


def branch_rule(x: Array, *relevances: Array) -> Array:
    """R of x that goes into several branches: x times the sum of R_branch / x."""
    return x * sum(divide(relevance, x) for relevance in relevances)


def _total(x: Array) -> Array:
    """The sum of each image, [B, N, D] -> [B, 1, 1]."""
    return jnp.sum(x, axis=(1, 2), keepdims=True)


def _bounded(x: Array) -> Array:
    return jnp.clip(x, -LIMIT, LIMIT)


def _attention_relevance(params: Params, trace: Trace, relevance: Array) -> tuple[Array, Array]:
    """R of a self-attention's output -> R of its input [B, N, D], and of the attention."""
    heads = trace.query.shape[1]
    relevance = linear_rule(_merge_heads(trace.mixed), params["proj"]["kernel"], relevance)
    to_attention, to_value = product_rule(
        trace.attention,
        trace.value,
        trace.mixed,
        equation="bhqk,bhkd->bhqd",
        relevance=_split_heads(relevance, heads),
    )
    to_query, to_key = product_rule(
        trace.query,
        trace.key,
        trace.scores,
        equation="bhqd,bhkd->bhqk",
        relevance=to_attention,
    )
    parts = [_merge_heads(part) for part in (to_query, to_key, to_value)]
    to_qkv = jnp.concatenate(parts, axis=-1)
    return linear_rule(trace.normed, params["qkv"]["kernel"], to_qkv), to_attention


def _block_relevance(params: Params, trace: Trace, relevance: Array) -> tuple[Array, Array]:
    """R of a block's output -> R of its input [B, N, D], and of its attention. Norms, softmax and
    GELU pass R unchanged."""
    skip, branch = sum_rule(trace.middle, trace.mlp, relevance)
    branch = linear_rule(trace.hidden, params["mlp"]["fc2"]["kernel"], branch)
    branch = linear_rule(trace.normed_middle, params["mlp"]["fc1"]["kernel"], branch)
    relevance = branch_rule(trace.middle, skip, branch)
    skip, branch = sum_rule(trace.x, trace.attended, relevance)
    branch, to_attention = _attention_relevance(params["attn"], trace, branch)
    return branch_rule(trace.x, skip, branch), to_attention


# The explanation.


def relevance_maps(
    vit: ViT,
    params: Params,
    features: Array,
    *,
    head: Mapping[str, Array],
    classes: Array,
    grid: tuple[int, int] | None = None,
    norm_epsilon: float = LAYER_NORM_EPS,
    return_layers: bool = False,
) -> dict[str, Array]:
    """Explains logits = cls @ kernel + bias of a ViT's [class] token. Pure; jit it.

    Several classes share the forward pass and every divisor of the rules.

    Args:
      vit: the module; its dtype and dropout are not used.
      params: its parameters, those of `vit.apply({'params': params}, ...)`.
      features: what goes into it: a map [B, h, w, C], or an image where `patch_size` > 1.
      head: 'kernel' [D, K] and 'bias' [K] of the linear layer on the [class] token.
      classes: int [B] or [B, n], whose logits are explained; outside 0..K-1 the relevance is 0.
      grid: as in `ViT.__call__`.
      norm_epsilon: of the last layer norm.
      return_layers: adds what every layer holds.

    Returns:
      On the ViT's cells h', w', not scaled: 'relevance', 'rollout_relevance' (the authors' method
      'rollout': relevance without its gradient) and 'last_layer' (the same of the last layer
      alone), each [B, h', w'], or [B, n, h', w'] where the classes are [B, n]; 'rollout' and
      'attention' [B, h', w'], which are attention rollout and the last layer's attention, of no
      class; 'logits' [B, K]. With `return_layers` also 'attn' [B, L, heads, N, N], and 'attn_grad'
      and 'attn_relevance' [B, (n,) L, heads, N, N], N with the [class] token.
    """
    classes = jnp.asarray(classes)
    with jax.default_matmul_precision("highest"):
        forward = _forward(vit, params, features, grid=grid, norm_epsilon=norm_epsilon)
        explain = functools.partial(_explain, forward, head["kernel"], return_layers)
        # Over an image's classes at once: what does not depend on the class is not repeated.
        columns = classes.reshape(len(classes), -1)
        out = jax.vmap(explain, in_axes=1, out_axes=1)(columns)
        out = {key: x if classes.ndim == 2 else x[:, 0] for key, x in out.items()}
        attention = [trace.attention for _, trace, _ in forward.blocks]
        out |= {
            "rollout": _to_map(attention_maps.rollout(attention), forward.size),
            "attention": _to_map(attention_maps.last_layer(attention), forward.size),
            "logits": _dense(head, forward.cls),
        }
    return out | {"attn": jnp.stack(attention, axis=1)} if return_layers else out


def _to_map(x: Array, size: tuple[int, int]) -> Array:
    """[B, h * w] -> [B, h, w]."""
    return x.reshape(len(x), *size)


def _explain(
    forward: Forward, kernel: Array, return_layers: bool, classes: Array
) -> dict[str, Array]:
    """What `relevance_maps` returns for one class [B] an image."""
    picked = jax.nn.one_hot(classes, kernel.shape[1])
    (gradient,) = forward.norm_pullback(picked @ kernel.T)
    # R of the class token goes to its row.
    relevance = jnp.zeros_like(gradient)
    relevance = relevance.at[:, 0].set(linear_rule(forward.cls, kernel, picked))
    weighted = unweighted = attention_maps.class_row(*gradient.shape[:2])
    gradients, relevances, last = [], [], None
    for params, trace, pullback in reversed(forward.blocks):
        gradient, to_attention_gradient = pullback(gradient)
        relevance, to_attention = _block_relevance(params, trace, relevance)
        mixing = _mean_positive(to_attention)
        last = mixing[:, 0, 1:] if last is None else last
        unweighted = _one_layer_more(unweighted, mixing)
        weighted = _one_layer_more(weighted, _mean_positive(to_attention_gradient * to_attention))
        gradients.insert(0, to_attention_gradient)
        relevances.insert(0, to_attention)
    out = {"relevance": weighted[:, 1:], "rollout_relevance": unweighted[:, 1:], "last_layer": last}
    out = {key: _to_map(row, forward.size) for key, row in out.items()}
    if return_layers:
        out["attn_grad"] = jnp.stack(gradients, axis=1)
        out["attn_relevance"] = jnp.stack(relevances, axis=1)
    return out


def _mean_positive(x: Array) -> Array:
    """Mean over heads of max(x, 0): [B, heads, N, N] -> [B, N, N]."""
    return jnp.mean(_bounded(jnp.maximum(x, 0)), axis=1)


def _one_layer_more(row: Array, mixing: Array) -> Array:
    """row (I + A'): [B, N], [B, N, N] -> [B, N]."""
    return _bounded(row + attention_maps.through_layer(row, mixing))
