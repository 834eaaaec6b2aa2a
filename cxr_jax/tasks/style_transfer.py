"""The losses of Oh and Ye (arXiv:2104.05892) on unpaired normal and abnormal films.

    generator, styles: fool + style + cycle - diversity    (Choi et al., arXiv:1912.01865, Eqs. 1-4)
    discriminator:     real + made + R1
    distillation:      |lungs of the film at once - lungs of the film made normal|

Each is one number an example, and all are parts of one loss, of which one backward pass gives every
network the gradient of its own terms: what belongs to the others is held constant. So generator and
discriminator step together, where the released code steps them in turns. As there, styles come
from noise in one step and from another film in the next, in which mapping and style encoder are
held; a film is always taken to the other domain.
"""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from cxr_jax import losses
from cxr_jax.errors import InputError
from cxr_jax.models.stargan import NORMAL, StarGAN

Array = jax.Array
Params = dict[str, Any]
Terms = dict[str, Array]


@dataclasses.dataclass(frozen=True)
class StyleTransfer:
    """How a generator learns styles. Weights as in the released code.

    Attributes:
      latent_size: numbers of the noise that a style is made of.
      segment_weight: of the masks of normal films.
      style_weight: of finding a film's style again in what was made with it.
      cycle_weight: of the way back to the film itself.
      diversity_weight: of two styles making two films; it falls to 0 in `diversity_steps`.
      diversity_steps: see there.
      r1_weight: of the discriminator's slope at real films.
      distil_weight, distil_normal_weight: of the masks at once, of abnormal and of normal films.
    """

    latent_size: int
    segment_weight: float
    style_weight: float
    cycle_weight: float
    diversity_weight: float
    diversity_steps: int
    r1_weight: float
    distil_weight: float
    distil_normal_weight: float

    def __post_init__(self):
        for field in dataclasses.fields(self):
            value, least = getattr(self, field.name), 0 if field.name.endswith("weight") else 1
            if value < least:
                raise InputError(f"config.adain.{field.name}={value}; expected at least {least}")

    def loss(self, terms: Terms, step: Array) -> Array:
        """The weighted sum [B] of `generator_terms` and `discriminator_terms`."""
        fallen = jnp.clip(1 - step / self.diversity_steps, 0.0, 1.0)
        return (
            terms["fool"]
            + self.style_weight * terms["style"]
            + self.cycle_weight * terms["cycle"]
            - self.diversity_weight * fallen * terms["diversity"]
            + terms["real"]
            + terms["made"]
            + self.r1_weight * terms["r1"]
        )

    def distillation(self, labelled: Array) -> Array:
        """The weight [B] of `distil_terms` of each film."""
        return jnp.where(labelled, self.distil_normal_weight, self.distil_weight)


def references(films: Array, domain: Array, *, wanted: Array, rng: Array) -> tuple[Array, Array]:
    """For each `wanted` domain [n] a film of the batch of that domain, by chance: [n, H, W]; and
    whether there is one, bool [n]."""
    fits = domain[None, :] == wanted[:, None]
    drawn = jnp.where(fits, jax.random.uniform(rng, fits.shape), -1.0)
    return films[jnp.argmax(drawn, axis=1)], jnp.any(fits, axis=1)


def styles(
    model: StarGAN, params: Params, batch: tuple[Array, Array], *, rng: Array, wanted: Array,
    latent_size: int, from_noise: Array,
) -> Array:  # fmt: skip
    """A style [n, D] for each `wanted` domain [n]: of noise, or of a film of the batch of (films,
    their domains) where there is one."""
    films, domain = batch
    for_noise, for_film = jax.random.split(rng)
    noise = jax.random.normal(for_noise, (len(wanted), latent_size))
    made = model.apply({"params": params}, noise, wanted, method="code")
    reference, there = references(films, domain, wanted=wanted, rng=for_film)
    seen = model.apply({"params": params}, reference, wanted, method="style_of")
    return jnp.where((from_noise | ~there)[:, None], made, seen)


def generator_terms(
    model: StarGAN, params: Params, batch: tuple[Array, Array], *, rng: Array, step: Array,
    latent_size: int,
) -> tuple[Terms, Array]:  # fmt: skip
    """`fool`, `style`, `cycle` and `diversity` [B], and the films made [B, H, W], a constant.

    The discriminator is held; on odd steps, when styles are those of films, so are mapping and
    style encoder.
    """
    films, domain = batch
    wanted, even = 1 - domain, step % 2 == 0
    params = {
        **params,
        "discriminator": jax.lax.stop_gradient(params["discriminator"]),
        "mapping": _held_unless(even, params["mapping"]),
        "style": _held_unless(even, params["style"]),
    }

    def apply(method: str, *arrays: Array) -> Array:
        return model.apply({"params": params}, *arrays, method=method)

    twice = jnp.concatenate([wanted, wanted])
    codes = styles(
        model, params, batch, rng=rng, wanted=twice, latent_size=latent_size, from_noise=even
    )
    code, other = jnp.split(codes, 2)
    made = apply("translate", films, code)
    back = apply("translate", made, apply("style_of", films, domain))
    second = jax.lax.stop_gradient(apply("translate", films, other))
    terms = {
        "fool": losses.adversarial_loss(apply("judge", made, wanted), real=True),
        "style": losses.l1_distance(apply("style_of", made, wanted), code),
        "cycle": losses.l1_distance(back, films),
        "diversity": losses.l1_distance(made, second),
    }
    return terms, jax.lax.stop_gradient(made)


def discriminator_terms(
    model: StarGAN, params: Params, batch: tuple[Array, Array], *, made: Array
) -> Terms:
    """`real`, `made` and `r1` [B]: of the films (films, their domains), and of those `made` of
    them, constants of the other domain."""
    films, domain = batch

    def judge(films: Array, domain: Array) -> Array:
        return model.apply({"params": params}, films, domain, method="judge")

    return {
        "real": losses.adversarial_loss(judge(films, domain), real=True),
        "made": losses.adversarial_loss(judge(made, 1 - domain), real=False),
        "r1": losses.r1_penalty(lambda x: judge(x, domain), films),
    }


def distil_terms(
    model: StarGAN, params: Params, seen: Array, *, teacher: Params, batch: tuple[Array, Array],
    rng: Array, latent_size: int,
) -> Array:  # fmt: skip
    """How far [B] the lungs at once of the films `seen` are from the teacher's, which are those of
    a normal film, and of an abnormal one after it was made normal.

    Args:
      params, teacher: of the network, and of what teaches it, a constant.
      batch: the films as the teacher sees them, and their domains.
    """
    films, domain = batch
    teacher = jax.lax.stop_gradient(teacher)
    normal = jnp.full_like(domain, NORMAL)
    code = styles(
        model, teacher, batch, rng=rng, wanted=normal, latent_size=latent_size, from_noise=False
    )
    changed = model.apply({"params": teacher}, films, code, method="translate")
    shown = jnp.where((domain == NORMAL)[:, None, None], films, changed)
    target = model.apply({"params": teacher}, shown, method="segment")
    at_once = model.apply({"params": params}, seen, distilled=True, method="segment")
    return losses.l1_distance(jax.nn.sigmoid(at_once), jax.nn.sigmoid(target))


def _held_unless(trained: Array, params: Params) -> Params:
    return jax.tree.map(lambda p: jnp.where(trained, p, jax.lax.stop_gradient(p)), params)
