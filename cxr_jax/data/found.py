"""What a search through a user's folders found, and what it left out and why."""

from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

_KINDS = 5  # endings that are named


class Found(NamedTuple):
    """Attributes:
    files: what is read.
    left_out: why -> what was seen and is not read for this reason.
    """

    files: list[Path]
    left_out: dict[str, list[Path]]

    def without(self, own: Iterable[Path], why: str) -> "Found":
        """Some of the files left out as well."""
        own = set(own)
        if not own:
            return self
        kept = [file for file in self.files if file not in own]
        return Found(kept, {**self.left_out, why: sorted(own)})

    def told(self) -> list[str]:
        """A line for each reason: how many, of which kinds."""
        lines = []
        for why, paths in self.left_out.items():
            kinds = Counter(_kind(path) for path in paths).most_common()
            some = ", ".join(f"{kind} {count}" for kind, count in kinds[:_KINDS])
            more = ", ..." if len(kinds) > _KINDS else ""
            lines.append(f"left out: {len(paths)} that {why} ({some}{more})")
        return lines


def _kind(path: Path) -> str:
    """The ending of a file's name, or what it is where it has none."""
    if path.is_dir():
        return "folders"
    return path.suffix.lower() if path.suffix.strip(".") else "no ending"
