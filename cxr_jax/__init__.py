"""Chest radiograph and chest CT papers on one JAX core.

    model = cxr_jax.load("severity-cohen")    # available() has the names; or a work directory
    result = model("film.dcm")                # a path, an array, a pydicom data set, or a list
    result["map"]; result.to_json(); result.figure()

Commands: `cxr`, or python -m cxr_jax.main (train and evaluate), .predict, .report, .sweep, .probe,
.lesion_space, .weights, .data.prepare, .data.audit; each has --help.

Research software. Not a medical device, and not fit for any clinical use.
"""

from typing import TYPE_CHECKING, Any

from cxr_jax.errors import InputError
from cxr_jax.version import VERSION

if TYPE_CHECKING:
    from cxr_jax.model import Model, Result, load
    from cxr_jax.model_files import names as available

__version__ = VERSION
__all__ = ["InputError", "Model", "Result", "__version__", "available", "load"]


def __getattr__(name: str) -> Any:
    """What needs NumPy or JAX is imported when it is asked for."""
    if name == "available":
        from cxr_jax import model_files

        return model_files.names
    if name in ("Model", "Result", "load"):
        from cxr_jax import model

        return getattr(model, name)
    raise AttributeError(f"module 'cxr_jax' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
