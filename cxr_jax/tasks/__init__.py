"""The tasks: one file a paper, and the table that names them."""

from collections.abc import Callable

import ml_collections

from cxr_jax.errors import InputError
from cxr_jax.tasks import (
    adpd,
    box_detector,
    cam_detector,
    diagnosis,
    findings,
    lesions,
    lungs,
    seam,
    severity,
    simclr,
)
from cxr_jax.tasks.base import Task

TASKS: dict[str, Callable[[ml_collections.ConfigDict], Task]] = {
    "adpd": adpd.AnatomyDetection.from_config,
    "box_detector": box_detector.BoxDetector.from_config,
    "cam_detector": cam_detector.CamDetection.from_config,
    "diagnosis": diagnosis.Diagnosis.from_config,
    "findings": findings.Findings.from_config,
    "lesions": lesions.Lesions.from_config,
    "lungs": lungs.Lungs.from_config,
    "seam": seam.from_config,
    "severity": severity.Severity.from_config,
    "simclr": simclr.Simclr.from_config,
}


def make_task(config: ml_collections.ConfigDict) -> Task:
    """The task that `config.task` names.

    Raises:
      InputError: an unknown task, a setting that cannot be meant, or a config that lacks a field.
    """
    if config.task not in TASKS:
        raise InputError(f"config.task={config.task!r}; expected one of {', '.join(TASKS)}")
    try:
        return TASKS[config.task](config)
    except AttributeError as error:
        if not (error.args and isinstance(error.args[0], KeyError)):
            raise  # no missing field, but a bug of ours
        raise InputError(
            f"the config lacks the field {error.args[0].args[0].split(chr(10))[0]}, so it is of "
            "another version of cxr_jax; train the run again, or add the field to its config.json"
        ) from error
    except (TypeError, ValueError, KeyError) as error:  # a config.json that was edited
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"the config makes no task {config.task!r} ({reason}); compare its fields with those "
            f"of configs/{config.task}.py"
        ) from error
