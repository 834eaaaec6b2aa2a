"""The config of the exercise: two tiny steps of `heart.py`."""

from configs import common


def get_config(variant: str = ""):
    del variant
    config = common.get_config()
    config.task = "heart"
    common.smoke(config)
    config.eval_steps = (1, 2)
    config.optimizer.update(name="adamw", lr=1e-3)
    return config.lock()
