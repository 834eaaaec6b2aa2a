"""SimCLR (Chen et al. 2020) before the diagnosis of Park et al. 2021 (Table 9, Sec. 5.5.5).

    python -m cxr_jax.main --config=configs/simclr.py:quick --workdir=DIR
    python -m cxr_jax.main --config=configs/diagnosis.py:quick --config.init_from=DIR
    python -m cxr_jax.probe --workdir=DIR

The network is that of the same variant of `configs/diagnosis.py`, whose classifier then takes the
arrays of `backbone` and `vit`. The second command without `init_from` is the comparison.

| variant | what |
| --- | --- |
| (none) | the paper's network, 512 px, on the films of `config.data.sets` |
| quick | a small network on phantoms, minutes on two cores |
| cxr3 | a small network on the real films of `cxr_3class`, 224 px |
| ct | the ResNet-38 of `configs/seam.py:quick` on slices of phantom volumes: a start for its CAM |
| smoke | two tiny steps |

| option | what |
| --- | --- |
| `backbone=none`, `backbone=resnet50_hybrid` | the paper's other two: ViT and hybrid ViT |

The paper names SimCLR and no number of it. The temperature, 0.5, is one of those that Chen et al.
try; the augmentation is theirs; batch, steps and optimizer are ours (they have LARS and batches of
thousands, which no single device holds). The paper's own model has a corpus that knows findings
before: then this run starts there, `--config.init_from` a run of `configs/findings.py`.
"""

import ml_collections

from configs import common, diagnosis
from cxr_jax.data import sources
from cxr_jax.meanings import described
from cxr_jax.models.sizes import SMALL_RESNET38

OPTIONS = {"backbone": "densenet121"}
KNOWN = {"backbone": ("densenet121", "none", "resnet50_hybrid")}
MEANINGS = {
    "temperature": "of the loss, which divides the cosines",
    "model.train_backbone": "False: the corpus is frozen",
    "model.freeze_norms": "True keeps all batch norm in inference mode",
    "model.projection.hidden": "units of the first layer of the projection",
    "model.projection.size": "of the vectors that are compared",
}


def paper(config: ml_collections.ConfigDict) -> None:
    """What of a diagnosis is another thing here."""
    config.task = "simclr"
    for name in ("classes", "view", "lungs"):
        del config[name]
    del config.model["weighing"]
    config.data = sources.block("films")
    config.temperature = 0.5  # [PAPERS]
    config.augment = dict(crop=0.08, flip=True, brightness=0.8, contrast=0.8, blur=2.0)  # Chen
    # Chen et al.: 128; their hidden layer is as wide as what goes in, 2048 of a ResNet-50.
    config.model.projection = dict(hidden=2048, size=128)
    config.batch_size = config.eval_batch_size = 64
    config.total_steps = 20_000
    config.eval_steps = ()
    config.optimizer.update(name="adamw", lr=3e-4, weight_decay=1e-2, clip_norm=1.0)
    config.optimizer.update(schedule="cosine", warmup_steps=1000)


def small(config: ml_collections.ConfigDict) -> None:
    """Crops and jitter are milder: the films are small, and their lesions are faint."""
    config.data = sources.block("phantom_cxr", train=1500, val=256, test=256)
    config.augment.update(crop=0.3, brightness=0.4, contrast=0.4, blur=1.0)
    config.model.projection = dict(hidden=192, size=64)
    config.batch_size = config.eval_batch_size = 32
    config.total_steps = 400
    config.checkpoint_every = 100
    common.small_optimizer(config, warmup_steps=40, lr=1e-3)


def cxr3(config: ml_collections.ConfigDict) -> None:
    """The training films of `cxr_3class` without the patients that `brixia_cohen` has too, so that
    either set tests what starts from here, and without the classifier's validation fold. The middle
    square of each, as the classifier has it."""
    config.data = sources.block("films", sets="cxr_3class", fold=3)
    config.total_steps = 1000
    config.checkpoint_every = 250
    config.optimizer.update(lr=5e-4, weight_decay=1e-2, warmup_steps=100)


def ct(config: ml_collections.ConfigDict) -> None:
    """The training slices of `configs/seam.py:quick`, of which most have no label there. A slice
    stands for its neighbours too, which that network sees as channels."""
    config.model.backbone = SMALL_RESNET38
    config.model.vit.num_layers = 0
    config.data = sources.block(
        "phantom_ct", size=128, train=200, val=4, test=4, disease_extent=1.0, positive=0.5
    )
    config.preprocess.order = ("resize",)
    config.batch_size = 16
    config.total_steps = 100
    config.optimizer.warmup_steps = 10


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two tiny steps."""
    common.smoke(config)
    config.model.projection = dict(hidden=16, size=8)
    config.eval_steps = (1, 2)


VARIANTS = {
    "": (paper,),
    "quick": (paper, small),
    "cxr3": (paper, small, cxr3),
    "ct": (paper, small, ct),
    "smoke": (paper, small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    common.check_options(options, KNOWN)
    like = "quick" if base == "ct" else base
    theirs = ",".join(filter(None, [like, f"backbone={options['backbone']}"]))
    config = diagnosis.get_config(theirs).copy_and_resolve_references().unlock()
    for change in VARIANTS[base]:
        change(config)
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.data.two_views import TwoViews
    from cxr_jax.data.visible import Visible
    from cxr_jax.models.vit import ViT

    return (
        common.meanings()
        | common.BACKBONE_MEANINGS
        | MEANINGS
        | described("model.vit", ViT)
        | described("visible", Visible)
        | described("augment", TwoViews)
    )
