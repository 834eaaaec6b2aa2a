"""Heat maps of a class from the gradient at any map before any head: Grad-CAM and its kin.

F [B, h, w, C] are the features, g = dscore/dF of the class that is explained. All functions have
one signature, (scores, features, classes) -> heat, and give maps that are not scaled:

| function | heat |
| --- | --- |
| `grad_cam` | ReLU(sum over c of alpha_c F_c), alpha_c the mean of g_c over the cells |
| `cam` | sum over c of w_c F_c, w_c the sum of g_c over the cells |
| `grad_cam_plus_plus` | ReLU(sum over c of w_c F_c), w_c a weighted sum of ReLU(g_c) |
| `norm_grad` | |F| |g|, lengths over the channels |
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

Array = jax.Array
Scores = Callable[[Array], Array]
Method = Callable[[Scores, Array, Array], Array]

HIGHEST = jax.lax.Precision.HIGHEST


def grad_cam(scores: Scores, features: Array, classes: Array) -> Array:
    """ReLU(sum over channels of alpha_c F_c), alpha the mean of dscore/dF over the cells.

    Selvaraju et al., ICCV 2017, arXiv:1610.02391, Eq. 1 and 2.

    Args:
      scores: [B, h, w, C] -> logits [B, K]. It must treat each image on its own, batch norm in
        inference mode; then no image's map depends on its neighbours. The score must depend on the
        cells: the cells of a ViT's last layer have no part in its [class] token, and their map
        would be 0.
      features: F [B, h, w, C], of any float dtype.
      classes: int [B] or [B, n]; outside 0..K-1 the map is 0.

    Returns:
      float32 [B, h, w], or [B, n, h, w] where the classes are [B, n]; not scaled.
    """

    def heat(features: Array, gradient: Array) -> Array:
        return jnp.maximum(_weighted(jnp.mean(gradient, axis=(1, 2)), features), 0)

    return _heats(scores, features, classes, heat)


def cam(scores: Scores, features: Array, classes: Array) -> Array:
    """Class activation map (Zhou et al., CVPR 2016, arXiv:1512.04150, Eq. 2): sum of w_c F_c.

    Theirs is for a head that is a mean over the cells and one linear layer with weights w. There
    w_c is the sum of dscore/dF_c over the cells, which is what is taken here of any head (as in
    Sec. 3.1 of Selvaraju et al.). Signed: it has no ReLU. Arguments as `grad_cam`.
    """

    def heat(features: Array, gradient: Array) -> Array:
        return _weighted(jnp.sum(gradient, axis=(1, 2)), features)

    return _heats(scores, features, classes, heat)


def grad_cam_plus_plus(scores: Scores, features: Array, classes: Array) -> Array:
    """Grad-CAM++ (Chattopadhyay et al., WACV 2018, arXiv:1710.11063, Eq. 10, 11 and 19).

    w_c = sum over the cells of a_c ReLU(g_c), a_c = g^2 / (2 g^2 + g^3 sum over the cells of F_c),
    for the score exp(S), S the logit or, of lesions, the log-odds, on whose scale the map depends;
    exp(S) itself, a factor of the whole map, is left out. Where
    g > 0 that is 1 / (2 + g sum of F_c), which does not underflow; elsewhere ReLU(g) is 0. F is
    what comes out of a ReLU; of other features, channels of a negative sum count as of sum 0.
    Arguments as `grad_cam`.
    """

    def heat(features: Array, gradient: Array) -> Array:
        total = jnp.maximum(jnp.sum(features, axis=(1, 2), keepdims=True), 0)
        rising = jnp.maximum(gradient, 0)
        weights = jnp.sum(rising / (2 + rising * total), axis=(1, 2))
        return jnp.maximum(_weighted(weights, features), 0)

    return _heats(scores, features, classes, heat)


def norm_grad(scores: Scores, features: Array, classes: Array) -> Array:
    """NormGrad (Rebuffi et al. 2019, arXiv:1910.08823): |F| |g| of every cell.

    How much a cell adds to the gradient of a 1x1 convolution's weights at this place, had there
    been one that copies: the Frobenius norm of g F^T. Cells against the class are hot too.
    Theirs is of the training loss; the gradient of a class's log-probability differs from that of
    its log-odds by a factor of the whole map. Arguments as `grad_cam`.
    """

    def heat(features: Array, gradient: Array) -> Array:
        return _length(features) * _length(gradient)

    return _heats(scores, features, classes, heat)


METHODS: dict[str, Method] = {
    "grad_cam": grad_cam,
    "cam": cam,
    "grad_cam_plus_plus": grad_cam_plus_plus,
    "norm_grad": norm_grad,
}


def _heats(
    scores: Scores, features: Array, classes: Array, heat: Callable[[Array, Array], Array]
) -> Array:
    """`heat(features, gradient)`, both float32 [B, h, w, C] -> [B, h, w], for every class asked."""
    classes = jnp.asarray(classes)
    logits, pullback = jax.vjp(scores, features)
    exact = features.astype(jnp.float32)

    def of_one(chosen: Array) -> Array:
        picked = jax.nn.one_hot(chosen, logits.shape[1], dtype=logits.dtype)
        (gradient,) = pullback(picked)
        return heat(exact, gradient.astype(jnp.float32))

    columns = classes.reshape(len(classes), -1)
    heats = jax.vmap(of_one, in_axes=1, out_axes=1)(columns)
    return heats if classes.ndim == 2 else heats[:, 0]


def _weighted(weights: Array, features: Array) -> Array:
    """[B, C], [B, h, w, C] -> [B, h, w]."""
    return jnp.einsum("bc,bhwc->bhw", weights, features, precision=HIGHEST)


def _length(x: Array) -> Array:
    """Over the channels, [B, h, w, C] -> [B, h, w]; squares neither overflow nor vanish."""
    top = jnp.max(jnp.abs(x), axis=-1, keepdims=True)
    unit = x / jnp.where(top > 0, top, 1.0)
    return top[..., 0] * jnp.sqrt(jnp.sum(jnp.square(unit), axis=-1))
