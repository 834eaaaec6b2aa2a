r"""M-SEAM-NAM: lesions of chest CT from labels of slices (Tang et al., MICCAI 2021).

    python -m cxr_jax.main --config=configs/seam.py:quick,method=cam --workdir=runs/cam
    python -m cxr_jax.main --config=configs/seam.py:quick,method=seam \
        --config.init_from=runs/cam --workdir=runs/seam

| variant | what |
| --- | --- |
| (none) | the paper's training on your CT volumes: 448 px, ResNet-38, SGD 1e-3 |
| quick | a ResNet-38 of a sixteenth of the width, stride 4, on phantoms; minutes on two cores |
| halves | the same on the halves of `ct_lesions` |
| smoke | two tiny steps |

| option | what |
| --- | --- |
| `method=m_seam_nam` | cam, multiscale_cam, seam, seam_nam, unet: see `cxr_jax/tasks/seam.py` |
| `bag=8` | slices of a bag; trains another method than m_seam_nam on bags too |
| `lungs=none` | ours: map, nothing is found outside the lungs; pool, a CAM is their mean too |
| `reference=paper` | released: the authors' code where it is not the paper, see `released` |

The paper's order: CAM first, then each of the others with `--config.init_from` of its run. The CAM
of m_seam_nam learns from bags too (`method=cam,bag=8`) [paper, Sec. 2.3]: one that has seen labels
of slices knows more than the method may. multiscale_cam only looks again at a CAM's run, at more
scales, and trains nothing. A CAM may itself start from what knows slices without their labels:
`configs/simclr.py:ct`.

Batch norm: `quick` takes the batch's statistics in a CAM, which starts from random numbers. What
starts from a trained run (SEAM and its successors, or a CAM with `--config.train_norms=False`) has
its norms in inference mode, as the paper has them: a step of two bags shows two patients, whose
statistics say little of all of them. A CAM on bags from random numbers has four bags a step.

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
OPTIONS = {"method": "m_seam_nam", "bag": 0, "lungs": "none", "reference": "paper"}
KNOWN = {"lungs": ("none", "map", "pool"), "reference": ("paper", "released")}
MEANINGS = {
    "method": "cam, multiscale_cam, seam, seam_nam, m_seam_nam or unet",
    "bag": "slices under one label in training",
    "model.width": "of ResNet-38 and NAM, as a share of the published ones; a multiple of 1/64",
    "model.pcm_width": "of PCM, as a share of the published one",
    "model.stride": "pixels between two cells of the maps: 8, 4 or 2",
    "model.dilations": "of b5, b6 and b7",
    "model.dropout": "of b6, of b7, and before the classifier",
    "unet.features": "channels of each level of the U-Net, finest first; read by method unet",
    "small_scale": "of the second view, as a share of the first one's sides; 0, of cam: none",
    "scales": "of the images at prediction, whose maps are added",
    "mirror": "True: at prediction the mirror image of every scale takes part",
    "train_norms": "True: batch norms take the batch's statistics; False: inference mode",
    "freeze_stem": "True: the first convolution, b2 and all norms are not trained",
    "threshold": "of the lesion map, 0..1",
    "normalize_map": "of SEAM: the map is stretched to 0..1, as its code does; False: as it is",
    "gate": "a slice below it is free of lesions: slice 0.5, bag 1 - 0.5^(1/bag), none",
    "tune": "True: threshold and gate are chosen on the validation split; False: as given",
}


def paper(config: ml_collections.ConfigDict) -> None:
    """The setting of Tang et al. 2021, but for the method's own (`method`) and the schedule."""
    config.task = "seam"
    config.model = dict(width=1.0, dropout=(0.3, 0.5, 0.5))  # [PAPERS, 3]; the last: SEAM's code
    config.model.update(pcm_width=1.0, stride=8, dilations=(2, 4, 4))  # [PAPERS, 3]
    config.unet = dict(features=(32, 64, 128, 256, 512))  # the paper names no size
    config.small_scale = 0.3  # [PAPERS, 3]
    config.losses = dict(er=1.0, ecr=1.0, nfs=1.0, nbs=1.0, nfbd=0.5)  # [paper, Eq. 8]
    config.losses.hardest = 1.0  # [paper, Eq. 3]; SEAM's code: 0.2
    config.losses.min_pool = 0.0  # [paper]; SEAM's code: 1
    config.losses.bag = "noisy_or"  # [paper, Eq. 7]
    config.affinity = dict(foreground=0.1, background=0.01, radius=5)  # [paper, Sec. 3.4]
    config.affinity.similarity = "cosine"  # [paper, Eq. 4 to 6]
    # Of all but CAM [PAPERS, 3; the authors' code].
    many = config.method not in ("cam", "unet")
    config.scales = (0.5, 1.0, 1.5, 2.0) if many else (1.0,)
    config.mirror = many
    config.normalize_map = True  # the authors' code
    config.train_norms = False  # [PAPERS, 3]
    config.freeze_stem = True  # [PAPERS, 3]
    config.threshold = 0.5  # [PAPERS, 3]
    config.gate = "bag"  # ours: see the task
    config.tune = False
    config.lungs = dict(use="none", masks="morphology", workdir="")  # ours: the paper has none
    config.data = sources.block("ct_volume")
    config.preprocess.update(size=448, order=("resize",))  # [paper]
    # Shift, rotation, flip, brightness, crop (here a zoom) [paper, which gives no sizes].
    config.augment.update(rotate_deg=10.0, shift=0.05, scale=0.1, flip=True)
    config.augment.update(brightness=0.1, contrast=0.0)
    # No momentum: the paper names none, and both released codes hand SGD the weight decay, 5e-4,
    # in the place of the momentum; their `momentum=0.9` is the exponent of the schedule.
    config.optimizer.update(name="sgd", lr=1e-3, schedule="linear", weight_decay=5e-4)
    config.optimizer.momentum = 0.0


def released(config: ml_collections.ConfigDict) -> None:
    """What the authors' code has instead: the bag's label for every slice in it, an affinity
    exp(-L1) whose weights rise over ten epochs to these, T_fg 0.2, SEAM's hard pixels and min
    pooling. It fills a positive bag with random unknown slices: where every slice has its own loss,
    that is no more than another order of the same slices."""
    config.losses.update(bag="slice", hardest=0.2, min_pool=1.0)
    config.losses.update(nfs=0.25, nbs=0.25, nfbd=0.5)
    config.affinity.update(similarity="exp_l1", foreground=0.2)


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
    """A narrow network at 128 px, on phantoms. The published stride and dilations would have every
    cell see 41% of such a slice, and a map of 16x16 cells."""
    config.preprocess.size = 128
    config.model.update(width=1 / 16, dropout=(0.0, 0.0, 0.0), stride=4, dilations=(1, 1, 1))
    config.unet.features = (16, 32, 64, 96)
    starts = config.method in ("cam", "unet")  # from random numbers
    # 0.3 would leave maps of 10 x 10; a CAM needs no second view.
    config.small_scale = 0.0 if config.method == "cam" else 0.5
    config.freeze_stem, config.train_norms = False, starts
    if config.method not in ("cam", "unet"):
        config.scales = (0.5, 1.0)  # with 1.5 and 2 a core takes seconds a slice
    config.tune = True
    config.data = sources.block(
        "phantom_ct", size=128, train=200, val=10, test=40, disease_extent=1.0, positive=0.5
    )
    config.batch_size, config.total_steps = max(16 // config.bag, 2), 200 if starts else 100
    if config.method == "cam" and config.bag > 1:
        config.batch_size, config.total_steps = 4, 100
    common.small_optimizer(config, lr=2e-3 if starts else 5e-4, warmup_steps=20)
    config.optimizer.accumulate = 1
    config.log_every, config.checkpoint_every = 50, 100
    config.eval_batch_size = 32


def halves(config: ml_collections.ConfigDict) -> None:
    """Real slices, cut in two."""
    config.data = sources.block("ct_lesions", halves=True)


def smoke(config: ml_collections.ConfigDict) -> None:
    """Two tiny steps."""
    common.smoke(config)
    config.model.update(width=1 / 16, pcm_width=1 / 16)
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
    common.check_options(options, KNOWN)
    config = common.get_config()
    config.method = method = options["method"]
    config.bag = options["bag"] or (BAG if method == "m_seam_nam" else 1)
    paper(config)
    schedule(config)
    for change in VARIANTS[base]:
        change(config)
    config.lungs.use = options["lungs"]
    if options["reference"] == "released":
        released(config)
    if method == "multiscale_cam":
        look_again(config)
    return config.lock()


def meanings() -> dict[str, str]:
    """Path -> what the field means, of all fields but `data` and `second`. Imports JAX."""
    from cxr_jax.tasks.seam_settings import Affinity, Lungs, Weights

    return (
        common.meanings()
        | MEANINGS
        | described("losses", Weights)
        | described("affinity", Affinity)
        | described("lungs", Lungs)
    )
