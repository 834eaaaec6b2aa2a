"""The tasks: one file a paper."""

import ml_collections

from cxr_jax.errors import InputError
from cxr_jax.tasks.base import Task


def make_task(config: ml_collections.ConfigDict) -> Task:
    """The task that `config.task` names.

    Raises:
      InputError: an unknown task, a setting that cannot be meant, or a config that lacks a field.
    """
    from cxr_jax.tasks import findings, lungs, seam, severity

    tasks = {
        "findings": findings.Findings.from_config,
        "lungs": lungs.Lungs.from_config,
        "seam": seam.from_config,
        "severity": severity.Severity.from_config,
    }
    if config.task not in tasks:
        raise InputError(f"config.task={config.task!r}; expected one of {', '.join(tasks)}")
    try:
        return tasks[config.task](config)
    except AttributeError as error:
        if not (error.args and isinstance(error.args[0], KeyError)):
            raise  # no missing field, but a bug of ours
        raise InputError(
            f"the config lacks the field {error.args[0].args[0].split(chr(10))[0]}, so it is of "
            "another version of cxr_jax; train the run again, or add the field to its config.json"
        ) from error
