"""Lung segmentation: the supervised U-Net of Kim et al. 2021, Sec. 3.

    python -m cxr_jax.main --config=configs/lungs.py:quick
    python -m cxr_jax.main --config=configs/lungs.py:cohen

| variant | what |
| --- | --- |
| (none) | the paper's training: Adam 1e-4, batch 1, 20,000 steps |
| quick | a small U-Net on phantoms, minutes on two cores |
| cohen | the same on the 86 masked training films of `brixia_cohen` |
| smoke | two tiny steps |
"""

import ml_collections

from configs import common


def get_config(variant: str = "") -> ml_collections.ConfigDict:
    base, _ = common.read_variant(variant, ("quick", "cohen", "smoke"))
    config = common.get_config()
    config.task = "lungs"
    config.total_steps = 20_000  # [paper, Sec. 3]
    config.batch_size = 1  # [paper]
    config.optimizer.update(name="adam", lr=1e-4)  # [paper]
    config.model = dict(features=(32, 64, 128, 256, 512))  # the paper names no size
    if base:
        config.preprocess.size = 128
        config.model.features = (16, 32, 64, 96)
        config.total_steps = 800
        config.batch_size = 8
        config.checkpoint_every = 200
        config.optimizer.update(name="adamw", lr=2e-3, weight_decay=1e-4, clip_norm=1.0)
        config.optimizer.update(schedule="cosine", warmup_steps=50)
    if base == "cohen":
        config.data.name = "brixia_cohen"
        config.augment.update(rotate_deg=10.0, shift=0.06, scale=0.15, brightness=0.15)
        config.augment.contrast = 0.3
    if base == "smoke":
        config.preprocess.size = 64
        config.model.features = (4, 8)
        config.data.update(size=128, train=8, val=4, test=5)
        config.total_steps = config.batch_size = config.eval_batch_size = 2
        config.log_every = config.checkpoint_every = 1
        config.bootstrap = 20
        config.figures = 2
    return config.lock()
