r"""M-SEAM-NAM: lesions of chest CT from labels of slices (Tang et al., MICCAI 2021).

    python -m cxr_jax.main --config=configs/seam.py:quick,method=cam --workdir=runs/cam
    python -m cxr_jax.main --config=configs/seam.py:quick,method=seam \
        --config.init_from=runs/cam --workdir=runs/seam

| variant | what |
| --- | --- |
| (none) | the paper's training on your CT volumes: 448 px, ResNet-38, SGD 1e-3 |
| quick | a ResNet-38 of a sixteenth of the width on phantom volumes, minutes on two cores |
| halves | the same on the halves of `ct_lesions` |
| smoke | two tiny steps |

Options: `method=cam|multiscale_cam|seam|seam_nam|m_seam_nam|unet` (see `cxr_jax/tasks/seam.py`);
`bag=8` trains another method than m_seam_nam on bags of eight.
The paper's order: CAM first, then each of the others with `--config.init_from` of its run. The CAM
of m_seam_nam learns from bags too (`method=cam,bag=8`) [paper, Sec. 2.3]: one that has seen labels
of slices knows more than the method may. multiscale_cam only looks again at a CAM's run, at more
scales, and trains nothing.

The paper's setting: `--config.total_steps` is 16 epochs of the paper's 8309 labelled slices, so set
it for your own. Nobody has run it whole here: it needs a GPU or TPU. Alone, the config needs
`--config.data.path` (the folder that `prepare ct_volume` prints) and, for its frozen stem,
`--config.init_from`, imported ResNet-38 weights.
"""

import ml_collections

from configs import common
from cxr_jax.data import sources
from cxr_jax.meanings import described

BAG = 8  # slices [paper, Sec. 2.3]
POSITIVE_SLICES = 8309  # labelled in the paper's training set [Sec. 3.1]
EPOCHS, UNET_EPOCHS = 16, 100  # [paper, Sec. 3.2]
OPTIONS = {"method": "m_seam_nam", "bag": 0}
MEANINGS = {
    "method": "cam, multiscale_cam, seam, seam_nam, m_seam_nam or unet",
    "bag": "slices under one label in training",
    "model.width": "of ResNet-38, as a share of the published one; a multiple of 1/64",
    "model.dropout": "of b6, of b7, and before the classifier",
    "unet.features": "channels of each level of the U-Net, finest first; read by method unet",
    "small_scale": "of the second view, as a share of the first one's sides",
    "scales": "of the images of multiscale_cam at prediction",
    "train_norms": "True: batch norms take the batch's statistics; False: inference mode",
    "freeze_stem": "True: the first convolution, b2 and all norms are not trained",
    "threshold": "of the lesion map, 0..1",
    "normalize_map": "True: the map is divided by its maximum, as SEAM's code does",
    "gate": "slice: a slice whose own probability is below 0.5 is free of lesions; or none",
}


def paper(config: ml_collections.ConfigDict) -> None:
    """The setting of Tang et al. 2021, but for the method's own (`method`) and the schedule."""
    config.task = "seam"
    config.model = dict(width=1.0, dropout=(0.3, 0.5, 0.5))  # [PAPERS, 3]; the last: SEAM's code
    config.unet = dict(features=(32, 64, 128, 256, 512))  # the paper names no size
    config.small_scale = 0.3  # [PAPERS, 3]
    config.losses = dict(er=1.0, ecr=1.0, nfs=1.0, nbs=1.0, nfbd=0.5)  # [paper, Eq. 8]
    config.losses.hardest = 1.0  # [paper, Eq. 3]; SEAM's code: 0.2
    config.losses.min_pool = 0.0  # [paper]; SEAM's code: 1
    config.affinity = dict(foreground=0.1, background=0.01, radius=5)  # [paper, Sec. 3.4]
    config.scales = (0.5, 1.0, 1.5, 2.0)  # [PAPERS, 3]
    config.train_norms = False  # [PAPERS, 3]
    config.freeze_stem = True  # [PAPERS, 3]
    config.threshold = 0.5  # [PAPERS, 3]
    config.normalize_map = False
    config.gate = "slice"  # ours: see the task
    config.data = sources.block("ct_volume")
    config.preprocess.update(size=448, order=("resize",))  # [paper]
    # Shift, rotation, flip, brightness, crop (here a zoom) [paper, which gives no sizes].
    config.augment.update(rotate_deg=10.0, shift=0.05, scale=0.1, flip=True)
    config.augment.update(brightness=0.1, contrast=0.0)
    # No momentum: the paper names none, and both released codes hand SGD the weight decay, 5e-4,
    # in the place of the momentum; their `momentum=0.9` is the exponent of the schedule.
    config.optimizer.update(name="sgd", lr=1e-3, schedule="linear", weight_decay=5e-4)
    config.optimizer.momentum = 0.0


def schedule(config: ml_collections.ConfigDict) -> None:
    """Steps and batches of the method: as many negative bags as positive ones."""
    epochs = UNET_EPOCHS if config.method == "unet" else EPOCHS
    if config.method != "unet":
        config.optimizer.lr_factors = (("(?!backbone/).*", 10.0),)  # new layers [PAPERS, 3]
    bags = 2 * POSITIVE_SLICES * epochs
    if config.bag > 1:  # an update every eight bags
        config.batch_size, config.optimizer.accumulate, config.total_steps = 1, 8, bags
        # Bags come in turns, positive and negative: an odd number shows both kinds in the log.
        config.log_every, config.checkpoint_every = 51, 4000
    else:
        config.batch_size, config.total_steps = 8, bags // 8
    config.eval_batch_size = 8


def small(config: ml_collections.ConfigDict) -> None:
    """A narrow network at 128 px, on phantoms, from random numbers: nothing is frozen."""
    config.preprocess.size = 128
    config.model.update(width=1 / 16, dropout=(0.0, 0.0, 0.0))
    config.unet.features = (16, 32, 64, 96)
    config.small_scale = 0.5  # 0.3 would leave maps of 5 x 5
    config.freeze_stem, config.train_norms = False, True
    config.data = sources.block(
        "phantom_ct", size=128, train=200, val=10, test=40, disease_extent=1.0, positive=0.5
    )
    slices = 16
    config.batch_size, config.total_steps = max(slices // config.bag, 2), 400
    common.small_optimizer(config, lr=5e-4, warmup_steps=20)
    config.optimizer.accumulate = 1
    config.log_every, config.checkpoint_every = 50, 200
    config.eval_batch_size = 32


def halves(config: ml_collections.ConfigDict) -> None:
    """Real slices, cut in two."""
    config.data = sources.block("ct_lesions", halves=True)


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two tiny steps."""
    common.smoke(config)
    config.model.width = 1 / 16
    config.unet.features = (4, 8)
    config.bag = min(config.bag, 3)
    config.optimizer.warmup_steps = 0
    config.data.update(size=64, slices=8, positive=0.5, train=2, val=2, test=2)


def look_again(config: ml_collections.ConfigDict) -> None:
    """multiscale_cam is a way to predict, not to train: one step at rate 0 makes a run of the CAM's
    weights."""
    config.total_steps, config.train_norms = 1, False
    config.optimizer.update(lr=0.0, warmup_steps=0, accumulate=1)


VARIANTS = {
    "": (),
    "quick": (small,),
    "halves": (small, halves),
    "smoke": (small, smoke),
}


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    """The config of a variant with its options; see the module.

    Raises:
      InputError: an unknown variant, option or value.
    """
    base, options = common.read_variant(variant, VARIANTS, OPTIONS)
    config = common.get_config()
    config.method = method = options["method"]
    config.bag = options["bag"] or (BAG if method == "m_seam_nam" else 1)
    paper(config)
    schedule(config)
    for change in VARIANTS[base]:
        change(config)
    if method == "multiscale_cam":
        look_again(config)
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.tasks.seam import Affinity, Weights

    return (
        common.meanings()
        | MEANINGS
        | described("losses", Weights)
        | described("affinity", Affinity)
    )
