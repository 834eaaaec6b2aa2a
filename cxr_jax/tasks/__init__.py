"""The tasks: one file a paper."""

import ml_collections

from cxr_jax.errors import InputError
from cxr_jax.tasks.base import Task


def make_task(config: ml_collections.ConfigDict) -> Task:
    """The task that `config.task` names."""
    from cxr_jax.tasks import findings, lungs, severity

    tasks = {
        "findings": findings.Findings,
        "lungs": lungs.Lungs,
        "severity": severity.Severity,
    }
    if config.task not in tasks:
        raise InputError(f"config.task={config.task!r}; expected one of {', '.join(tasks)}")
    return tasks[config.task].from_config(config)
