"""The audit that `prepare` ends with: a few hundred films, small forests, no search for copies."""

from typing import Any

from cxr_jax.data.audit import films, report, stored
from cxr_jax.errors import one_line

FILMS = 240


def warnings(data: Any) -> list[str]:
    """The warnings of a prepared set, a line each; those that are kept beside it, where it was
    audited before.

    Args:
      data: a block of `sources.block`.

    Raises:
      InputError: what is kept is broken, or the set cannot be opened.
      OSError: nothing can be written beside the set.
    """
    opened, _ = films.open_splits(data)
    found = stored.headline(opened[0])
    if found is None:
        found = report.headline(
            report.audit(films.collect(opened, most=FILMS, prints=False), quick=True)
        )
        if (folder := stored.folder_of(opened[0])) is not None:
            stored.store(folder, found)
    some = f" ({found['films']} films looked at)" if found["films"] < found["total"] else ""
    return [one_line(f"{text}{some}") for text in found["warnings"]]
