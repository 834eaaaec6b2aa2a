"""SEAM with a neighbourhood affinity module (Wang et al., CVPR 2020; Tang et al., MICCAI 2021)."""

from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax import lax

from cxr_jax.models import layers
from cxr_jax.ops import pcm
from cxr_jax.ops.resize import resize_aligned

Array = jax.Array

# Four times Xavier's deviation, as in the released code: what feeds the ELU of f10. For f9, which
# has the same there, it makes no difference: nothing but a cosine follows.
_WIDE = nn.initializers.variance_scaling(16.0, "fan_avg", "uniform")
_HE = nn.initializers.he_normal()


class SEAM(nn.Module):
    """Class activation maps, refined by the pixel correlation module, and NAM's features.

    Tang et al. 2021, Fig. 1. With neither part it is the CAM network, whose parameters have the
    same names, so that SEAM starts from it by `init_from`. Names are those of the published code
    of SEAM (fc8, f8_3, f8_4, f9) and of this paper (f8_5, f10).

    Attributes:
      backbone: a network whose call gives the taps 'conv4', 'conv5', 'conv6' (`ResNet38`): the
        paper's B3, B4 and B5.
      classes: foreground classes; channel 0 of every map is the background.
      refine: has the pixel correlation module (PCM).
      neighbourhood: has the features of the neighbourhood affinity module (NAM) too, with `refine`
        only: B3, B4 and B5 projected to 64 + 128 + 256 channels, a 1x1 convolution and an ELU. As
        in the released code the first two projections are PCM's own (Fig. 1 draws one box for
        both), and no gradient passes below any of the three: what NAM changes at prediction is PCM.
      width: a factor on the channels of NAM, as of the backbone.
      pcm_width: a factor on those of PCM: 1 is the published 64, 128 and 192, however narrow the
        backbone, for by 12 channels few places can be told apart.
      dropout: probability that a channel of conv6 is dropped before the classifier [Wang et al.,
        released code].
    """

    backbone: nn.Module
    classes: int = 1
    refine: bool = True
    neighbourhood: bool = True
    width: float = 1.0
    pcm_width: float = 1.0
    dropout: float = 0.5
    dtype: Any = jnp.float32

    @nn.compact
    def __call__(self, image: Array, *, train: bool, train_norms: bool = False) -> dict[str, Array]:
        """[B, H, W, 3] -> maps at the backbone's last stride, float32.

        Without `train` PCM's affinity is never there as a whole, which costs memory alone.

        Returns:
          'cam' [B, h, w, 1 + classes]: C, the raw maps before the ReLU.
          'revised' [B, h, w, 1 + classes], with `refine`: D, 0..1.
          'features' [B, h, w, 448 width], with both: F', what NAM compares.

        Raises:
          ValueError: as the backbone.
        """
        taps = self.backbone(image, train=train, train_norms=train_norms)
        height, width = taps["conv6"].shape[1:3]

        def conv1x1(x: Array, channels: float, name: str, init=_HE) -> Array:
            return layers.Conv1x1(
                max(round(channels), 1),
                use_bias=False,
                dtype=self.dtype,
                kernel_init=init,
                name=name,
            )(x)

        drop = nn.Dropout(self.dropout, broadcast_dims=(1, 2), deterministic=not train)
        classifier = layers.Conv1x1(1 + self.classes, use_bias=False, dtype=self.dtype, name="fc8")
        cam = classifier(drop(taps["conv6"])).astype(jnp.float32)
        out = {"cam": cam}
        if self.refine:
            small = resize_aligned(image, (height, width)).astype(self.dtype)
            of_pcm, of_nam = self.pcm_width, self.width
            projected = [
                nn.relu(conv1x1(lax.stop_gradient(taps["conv4"]), 64 * of_pcm, "f8_3")),
                nn.relu(conv1x1(lax.stop_gradient(taps["conv5"]), 128 * of_pcm, "f8_4")),
            ]
            embedding = conv1x1(jnp.concatenate([small, *projected], axis=-1), 192 * of_pcm, "f9")
            refine = pcm.refine if train else pcm.refine_in_parts
            out["revised"] = refine(pcm.normalize_cam(cam), embedding.astype(jnp.float32))
            if self.neighbourhood:
                b5 = nn.relu(conv1x1(lax.stop_gradient(taps["conv6"]), 256 * of_nam, "f8_5"))
                features = jnp.concatenate([*projected, b5], axis=-1)
                mixed = nn.elu(conv1x1(features, 448 * of_nam, "f10", _WIDE))
                out["features"] = mixed.astype(jnp.float32)
        return out
