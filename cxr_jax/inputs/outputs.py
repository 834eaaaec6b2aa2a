"""The folder that `predict` writes to: one line a file, pictures and masks beside it.

`predictions.jsonl` says under `written` which files a prediction consists of, with their SHA-256.
So predict knows its own: what has a recorded name and the recorded bytes is replaced by a later
prediction of the same file, and never predicted on. Whatever else is in the folder stays as it is;
a new file gets a number where its name is taken, also in another case.

While predict runs, the lines are in a hidden file. It stays where the run is killed, so that the
next one knows what was written, and is cleared away by it.
"""

import contextlib
import fcntl
import functools
import itertools
import json
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TextIO

from cxr_jax import safe_write, small_files
from cxr_jax.errors import InputError
from cxr_jax.inputs import prediction_table
from cxr_jax.inputs.doors import Prediction

NAME = "predictions.jsonl"
_LEFT = f".{NAME}.*.part*"  # of a run that was killed; also of one that is running
_LONGEST_STEM = 80

Part = tuple[str, Callable[[pathlib.Path], object]]  # ending of the name, and what writes it
Written = dict[str, dict[str, set[str]]]  # file -> name of what was written of it -> SHA-256


class OutputFolder:
    """Where predictions of some files go.

    Args:
      folder: is made if need be.
      files: what will be predicted.

    Raises:
      InputError: not a folder; `predictions.jsonl` is no file of predict, or of other files; there
        is a `predictions.csv` and no `predictions.jsonl`.
    """

    def __init__(self, folder: pathlib.Path, files: Iterable[pathlib.Path]):
        self._folder, self._lines = folder, folder / NAME
        self._table = folder / prediction_table.NAME
        safe_write.make_folder(folder, "--output")
        if os.path.lexists(self._table) and not os.path.lexists(self._lines):
            raise InputError(f"{self._table} is no file of predict; give another --output")
        names = {str(path) for path in files}
        self._before = _state(self._lines)
        earlier = _read_whole(self._lines)
        others = earlier.keys() - names
        if others and any(earlier.values()):  # of errors alone nothing is lost
            raise InputError(
                f"{self._lines} holds predictions of {len(others)} other files, e.g. "
                f"{min(others)}; give another --output"
            )
        self._own = [earlier, *map(_read_some, folder.glob(_LEFT))]
        self._taken = {name.casefold() for name in os.listdir(folder)}
        self._files = names
        self._journal: TextIO | None = None
        self.pictures = 0

    @contextlib.contextmanager
    def writing(self) -> Iterator[None]:
        """Around every `add`; the lines take the place of earlier ones at its end.

        Raises:
          InputError: another run has written there in the meantime.
        """
        left = [path for path in self._folder.glob(_LEFT) if self._can_go(path)]
        partial = safe_write.create(self._lines)
        try:
            with partial.open("w", encoding="utf-8") as self._journal:
                with contextlib.suppress(OSError):  # a file system without locks
                    fcntl.flock(self._journal, fcntl.LOCK_EX)
                yield
                if _state(self._lines) != self._before:
                    raise InputError(
                        f"{self._lines} was written by another run in the meantime; run the same "
                        "command again with another --output"
                    )
                os.replace(partial, self._lines)
            prediction_table.write(self._lines, self._table)
        finally:
            if partial.exists() and not partial.stat().st_size:
                partial.unlink()
        for path in left:
            path.unlink(missing_ok=True)

    def fail(self, path: pathlib.Path, error: str) -> None:
        """The line of a file that could not be used."""
        line = {"file": str(path), "error": error}
        left = self._left_of(str(path))
        self._write({**line, "written": left} if left else line)

    def add(self, path: pathlib.Path, found: Prediction) -> None:
        """Writes what the prediction of one file consists of.

        Raises:
          InputError: something took the name in the meantime.
        """
        from cxr_jax.figures import save

        picture = functools.partial(save, found.figure)
        parts: dict[str, Part] = {"picture": (".png", picture), **found.files}
        stem = self._stem(str(path), found.stem, [ending for ending, _ in parts.values()])
        names = {key: f"{stem}{ending}" for key, (ending, _) in parts.items()}
        with contextlib.ExitStack() as stack:
            written = {}
            for key, (_, write) in parts.items():
                partial = stack.enter_context(safe_write.fresh(self._folder / names[key]))
                write(partial)
                written[names[key]] = partial
            digests = {name: safe_write.digest(partial) for name, partial in written.items()}
            digests = self._left_of(str(path)) | digests
            line = {"file": str(path), "picture": names["picture"], **found.line, **names}
            self._write({**line, "written": digests})  # first: a killed run's files are known
            for name, partial in written.items():
                self._place(str(path), name, partial)
        self.pictures += 1

    def _write(self, line: dict[str, Any]) -> None:
        assert self._journal is not None  # inside `writing`
        self._journal.write(json.dumps(line, allow_nan=False) + "\n")
        self._journal.flush()

    def _stem(self, file: str, stem: str, endings: list[str]) -> str:
        """A stem that is free for every ending, of this file's earlier prediction if there is one;
        the names are taken from then on."""
        stem = re.sub(r"[^A-Za-z0-9._-]+", "_", stem)[:_LONGEST_STEM]
        own = (name for written in self._own for name in written.get(file, {}))
        earlier = [n.removesuffix(endings[0]) for n in own if n.endswith(endings[0])]
        numbered = (f"{stem}-{count}" for count in itertools.count(2))
        for some in itertools.chain(earlier, [stem], numbered):
            names = [f"{some}{ending}" for ending in endings]
            if all(n.casefold() not in self._taken or self._is_own(file, n) for n in names):
                self._taken |= {name.casefold() for name in names}
                return some
        raise AssertionError("there is always another number")

    def _is_own(self, file: str, name: str) -> bool:
        """Whether a file of the folder is, to the byte, of this file's earlier prediction."""
        recorded = set().union(*(written.get(file, {}).get(name, ()) for written in self._own))
        return bool(recorded) and safe_write.digest(self._folder / name) in recorded

    def _left_of(self, file: str) -> dict[str, str]:
        """What is there of earlier predictions of a file: name -> SHA-256. It stays known."""
        names = {name for written in self._own for name in written.get(file, {})}
        return {
            name: safe_write.digest(self._folder / name)
            for name in sorted(names)
            if self._is_own(file, name)
        }

    def _place(self, file: str, name: str, partial: pathlib.Path) -> None:
        path = self._folder / name
        if self._is_own(file, name):
            os.replace(partial, path)
            return
        try:
            safe_write.place(partial, path)
        except FileExistsError as error:
            raise InputError(f"{path} came to be while predict ran; run it again") from error

    def _can_go(self, left: pathlib.Path) -> bool:
        """Whether the lines of a killed run are of files that this run predicts anew."""
        if left.is_symlink() or not left.is_file():
            return False
        with left.open("rb") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                return False  # that run is alive
        return _read_some(left).keys() <= self._files


def own_files(paths: Iterable[pathlib.Path]) -> list[pathlib.Path]:
    """Those of the files that a predict run wrote, as the lines beside them say."""
    recorded = functools.cache(_recorded)
    return [
        path
        for path in paths
        if path.name in (beside := recorded(path.parent))
        and safe_write.digest(path) in beside[path.name]
    ]


def _recorded(folder: pathlib.Path) -> dict[str, set[str]]:
    """Name -> the digests under which predict has written it to this folder."""
    found: dict[str, set[str]] = {}
    for path in (folder / NAME, *folder.glob(_LEFT)):
        for names in _read_some(path).values():
            for name, digests in names.items():
                found.setdefault(name, set()).update(digests)
    return found


def _read_whole(path: pathlib.Path) -> Written:
    """What the lines of an earlier run say.

    Raises:
      InputError: the file is there and is not one of predict's.
    """
    if not os.path.lexists(path):
        return {}
    if path.is_symlink() or not path.is_file():
        raise InputError(f"{path} is a link or a folder; remove it, or give another --output")
    found: Written = {}
    for number, (_, said) in enumerate(small_files.scan_lines(path), 1):
        if not _add_line(found, said):
            raise InputError(
                f"{path} is broken, or no file of predict (line {number}); remove it, or give "
                "another --output"
            )
    return found


def _read_some(path: pathlib.Path) -> Written:
    """What can be read: the last line of a killed run is a half."""
    found: Written = {}
    if path.is_file() and not path.is_symlink():
        with contextlib.suppress(InputError):
            for _, said in small_files.scan_lines(path):
                _add_line(found, said)
    return found


def _add_line(found: Written, said: dict[str, Any] | None) -> bool:
    """Adds what a line says; False for what is no line of predict."""
    if said is None or not isinstance(said.get("file"), str):
        return False
    written = said.get("written", {})
    if not isinstance(written, dict):
        return False
    names = found.setdefault(said["file"], {})
    for name, digest in written.items():
        if isinstance(digest, str):
            names.setdefault(name, set()).add(digest)
    return True


def _state(path: pathlib.Path) -> tuple[int, ...]:
    """What changes when another run writes the file; () where there is none."""
    try:
        stat = os.lstat(path)
    except FileNotFoundError:
        return ()
    return stat.st_ino, stat.st_size, stat.st_mtime_ns
