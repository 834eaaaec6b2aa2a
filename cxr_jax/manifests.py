"""The hashes of a checkpoint: written with it, compared before it is loaded.

`checkpoints/STEP/MANIFEST.json` has the size and the SHA-256 of every other file of the folder. A
folder is whole if, and only if, a manifest made of it now has the same bytes as the one written
then: so a changed bit of the manifest itself is noticed too.
"""

import hashlib
import json
import os
import pathlib

MANIFEST = "MANIFEST.json"


def write(folder: pathlib.Path, step: int) -> None:
    """Writes the manifest of a folder that nobody writes to any more."""
    (folder / MANIFEST).write_bytes(_text(_files(folder), step))


def is_hashed(folder: pathlib.Path) -> bool:
    """Whether the folder has a manifest, whole or not; those of older versions have none."""
    return os.path.lexists(folder / MANIFEST)


def digest(folder: pathlib.Path) -> str | None:
    """SHA-256 of the manifest, which stands for all files; None where there is none."""
    return _sha256(folder / MANIFEST) if is_hashed(folder) else None


def damage(folder: pathlib.Path, step: int) -> str | None:
    """What is not as it was written, None where all is; reads every file.

    Args:
      folder: has a manifest.
      step: the step that its name says.
    """
    try:
        written = (folder / MANIFEST).read_bytes()
        found = _files(folder)
    except OSError as error:
        name = pathlib.Path(error.filename or folder).name
        return f"{name} cannot be read ({error.strerror or error})"
    if written == _text(found, step):
        return None
    try:
        manifest = json.loads(written)
        if manifest["step"] != step:
            return f"its {MANIFEST} is of step {int(manifest['step'])}"
        return _difference(dict(manifest["files"]), found) or f"{MANIFEST} was changed"
    except (ValueError, TypeError, KeyError, RecursionError):
        return f"{MANIFEST} is no manifest"


def _files(folder: pathlib.Path) -> dict[str, list]:
    """'state/manifest.ocdbt' -> [bytes, SHA-256]; hidden files are the system's, not ours."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    names = {path.relative_to(folder).as_posix(): path for path in paths}
    return {
        name: [path.stat().st_size, _sha256(path)]
        for name, path in names.items()
        if name != MANIFEST and not path.name.startswith(".")
    }


def _sha256(path: pathlib.Path) -> str:
    # Releases the interpreter's lock: a training step goes on beside it.
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _text(files: dict[str, list], step: int) -> bytes:
    return (json.dumps({"step": step, "files": files}, indent=1, sort_keys=True) + "\n").encode()


def _difference(written: dict[str, list], found: dict[str, list]) -> str | None:
    """The first file that differs, and how."""
    for name in sorted(written.keys() | found.keys()):
        if name not in found:
            return f"{name!r} is missing"
        if name not in written:
            return f"{name!r} was not there when it was written"
        if written[name] != found[name]:
            (size, _), now = written[name], found[name][0]
            return (
                f"{name!r} has other bytes than were written"
                if size == now
                else f"{name!r} has {now} bytes in place of {int(size)}"
            )
    return None
