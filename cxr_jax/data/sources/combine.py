"""Two data sets as one training split: labelled films first, then those that join them."""

from typing import Any

from cxr_jax.data.records import Record
from cxr_jax.data.sources.base import Source, names_of, peek
from cxr_jax.errors import InputError


class Hidden:
    """A source without some of its fields, e.g. with its labels kept from a semi-supervised run."""

    def __init__(self, source: Source, hidden: frozenset[str]):
        self._source, self._hidden = source, hidden
        self.name, self.version, self.split = source.name, source.version, source.split
        self.fields = source.fields - hidden
        self.partial = source.partial - hidden
        self.findings, self.diagnoses = names_of(source, "findings"), names_of(source, "diagnoses")

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Record:
        return {k: v for k, v in self._source[index].items() if k not in self._hidden}

    def peek(self, index: int, field: str) -> Any:
        """See `base.peek`."""
        return None if field in self._hidden else peek(self._source, index, field)


class Joined:
    """The records of `first`, then those of `second`.

    Attributes:
      parts: number of records of each.

    Raises:
      InputError: both have findings or diagnoses, but not the same ones.
    """

    def __init__(self, first: Source, second: Source):
        self._first, self._second = first, second
        self.parts = len(first), len(second)
        self.name = f"{first.name}+{second.name}"
        self.version = f"{first.version}+{second.version}"
        self.split = first.split
        self.fields = first.fields | second.fields
        self.partial = first.partial | second.partial | (first.fields ^ second.fields)
        self.findings = _shared_names(first, second, "findings", field="findings")
        self.diagnoses = _shared_names(first, second, "diagnoses", field="diagnosis")

    def __len__(self) -> int:
        return sum(self.parts)

    def __getitem__(self, index: int) -> Record:
        count = self.parts[0]
        return self._first[index] if index < count else self._second[index - count]

    def peek(self, index: int, field: str) -> Any:
        """See `base.peek`."""
        count = self.parts[0]
        one, at = (self._first, index) if index < count else (self._second, index - count)
        return peek(one, at, field)


def _shared_names(first: Source, second: Source, names: str, *, field: str) -> tuple[str, ...]:
    """The names of both; of the one that has the field, where only one has."""
    having = [source for source in (first, second) if field in source.fields] or [first]
    found = [names_of(source, names) for source in having]
    if found[0] != found[-1]:
        raise InputError(
            f"data sets {first.name!r} ({', '.join(found[0])}) and {second.name!r} "
            f"({', '.join(found[-1])}) name other {names}; give two that name the same"
        )
    return found[0]
