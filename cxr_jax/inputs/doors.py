"""What the two doors of `predict`, `films` and `volumes`, have in common."""

import argparse
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, ClassVar, NamedTuple, Protocol

from matplotlib.figure import Figure

from cxr_jax.data.found import Found


class Prediction(NamedTuple):
    """What is said of one file.

    Attributes:
      stem: of the files that are written.
      line: plain JSON for `predictions.jsonl`.
      figure: the picture.
      files: name in the line -> (ending of the file's name, function that writes it to a path).
    """

    stem: str
    line: dict[str, Any]
    figure: Figure
    files: Mapping[str, tuple[str, Callable[[pathlib.Path], object]]] = {}


class Door(Protocol):
    """One kind of files that a run can be applied to.

    Attributes:
      unit: what a file is called.
      options: names of its own options of the command, keyword arguments of the class after the
        run.
    """

    unit: ClassVar[str]
    options: ClassVar[tuple[str, ...]]

    @staticmethod
    def add_arguments(parser: argparse.ArgumentParser) -> None:
        """Adds its `options` to the command's."""

    def find(self, paths: Iterable[str | pathlib.Path]) -> Found:
        """The files among the user's files and folders, and what there is left out."""

    def predict(self, path: pathlib.Path) -> Prediction:
        """Reads one file and applies the run. Raises InputError where it cannot be used."""
