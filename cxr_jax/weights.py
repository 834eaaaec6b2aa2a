"""Look into weights, compare them, and bring them in and out.

    python -m cxr_jax.weights show DIR [--step=N]          every part: arrays, numbers, norm
    python -m cxr_jax.weights diff DIR OTHER [--step=N] [--other_step=M]
    python -m cxr_jax.weights import FILE DIR [--kind=KIND] [--prefix=NAME]
    python -m cxr_jax.weights export DIR FILE.safetensors [--step=N] [--names=torch]
    python -m cxr_jax.weights pack DIR... --folder=MODEL --about=ABOUT.toml      docs/weights.md

DIR is a work directory or a folder that `import` wrote; `show` and `diff` read files as well.
`diff` compares two runs, or two steps of one, part by part: relative difference |a - b| / |a|,
what is unchanged to the bit, what only one has.

`import` reads a PyTorch state dict (.pth of either format, .safetensors; nothing in it is run) or a
vision transformer's .npz. The network is told from its names: DenseNet, DenseNet with PCAM heads
and ResNet as published, ResNet-38, ViT. DIR is then what `--config.init_from` takes: a CNN lies
there under `backbone`, PCAM heads under `heads`, a ViT under `vit`.
"""

import argparse
import collections
import hashlib
import pathlib
import re

import numpy as np

from cxr_jax import safe_write, small_files, weight_files
from cxr_jax.cli import Parser, run_command, setup_jax
from cxr_jax.errors import InputError

Arrays = dict[str, np.ndarray]

ABOUT = "weights.json"  # beside the imported arrays: where they are from


def main() -> int:
    args = _parser().parse_args()
    setup_jax()
    match args.command:
        case "show":
            print(show(load(args.path, args.step), args.depth))
        case "diff":
            arrays = load(args.path, args.step), load(args.other, args.other_step)
            text, same = diff(*arrays, args.depth)
            print(text)
            return 0 if same else 1
        case "import":
            print(import_file(args.file, args.folder, kind=args.kind, prefix=args.prefix))
        case "pack":
            from cxr_jax import packing

            steps = tuple(args.steps) if args.steps else ()
            print(
                packing.pack(
                    args.runs,
                    args.folder,
                    about=args.about,
                    steps=steps,
                    lungs=args.lungs,
                    split=args.split,
                )
            )
        case "export":
            print(export(args.folder, args.file, step=args.step, names=args.names))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        prog="python -m cxr_jax.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show_args = commands.add_parser("show", help="what is in a checkpoint or a file")
    diff_args = commands.add_parser("diff", help="how two checkpoints or files differ")
    for sub in (show_args, diff_args):
        sub.add_argument("path", type=pathlib.Path, help="a DIR or a file of weights")
        sub.add_argument("--step", type=int, help="default: the latest")
        sub.add_argument("--depth", type=int, default=2, help="levels of names a part has")
    diff_args.add_argument("other", type=pathlib.Path)
    diff_args.add_argument("--other_step", type=int, help="default: the latest")
    import_args = commands.add_parser("import", help="weights of another package, for init_from")
    import_args.add_argument("file", type=pathlib.Path, help=".pth, .safetensors or .npz")
    import_args.add_argument("folder", type=pathlib.Path, help="a new folder")
    import_args.add_argument(
        "--kind",
        default="auto",
        help="densenet, pcam, resnet, resnet38, seam, vit; auto: by the names",
    )
    import_args.add_argument("--prefix", help="the part of the model; default: backbone, or vit")
    pack_args = commands.add_parser("pack", help="runs to a model folder with a card")
    pack_args.add_argument("runs", nargs="+", type=pathlib.Path, help="DIRs that differ in seed")
    pack_args.add_argument("--folder", type=pathlib.Path, required=True, help="of the model")
    pack_args.add_argument("--about", type=pathlib.Path, required=True, help="a TOML file")
    pack_args.add_argument("--steps", type=int, nargs="*", help="checkpoints of each DIR")
    pack_args.add_argument("--lungs", default="", help="of the model: a DIR, or model:NAME")
    pack_args.add_argument("--split", default="test", choices=("train", "val", "test"))
    export_args = commands.add_parser("export", help="parameters and batch statistics to a file")
    export_args.add_argument("folder", type=pathlib.Path, help="a DIR")
    export_args.add_argument("file", type=pathlib.Path, help="FILE.safetensors")
    export_args.add_argument("--step", type=int, help="default: the latest")
    export_args.add_argument(
        "--names", choices=("native", "torch"), default="native", help="and layouts"
    )
    return parser


def load(path: pathlib.Path, step: int | None = None) -> Arrays:
    """The arrays of a checkpoint, of imported weights or of a file, by path or name.

    Raises:
      InputError: there are none, or not of this step.
    """
    if small_files.is_file(path) and step is None:
        return weight_files.read_file(path)

    from cxr_jax import initialise  # importing jax takes seconds

    return initialise.read_arrays(path, step)


def import_file(
    file: pathlib.Path, folder: pathlib.Path, *, kind: str = "auto", prefix: str | None = None
) -> str:
    """Reads a file of another package and writes it as this one's, for `config.init_from`.

    Args:
      file: a .pth, .safetensors or .npz.
      folder: gets weights.safetensors and weights.json; new, or of an import of the same file.
      kind: of network (`convert.KINDS`); 'auto' tells it by the names.
      prefix: the model's part that the network becomes; None is 'vit' for a ViT, else 'backbone'.
        PCAM heads always become 'heads', SEAM's keep their names.

    Returns:
      What was read, for the terminal.

    Raises:
      InputError: the file is no whole network, it holds code, or `folder` holds something else.
    """
    from cxr_jax.models import convert
    from cxr_jax.writers import write_json

    state = weight_files.read_file(file)
    try:
        imported = convert.import_state(state, kind)
    except InputError as error:
        raise InputError(f"{file}: {error}") from error
    prefix = ("vit" if imported.kind == "vit" else "backbone") if prefix is None else prefix
    arrays = _under(prefix, imported.kind, imported.variables)
    broken = [name for name, array in arrays.items() if not np.isfinite(array).all()]
    if broken:
        raise InputError(
            f"{file}: {broken[0]} is not finite ({len(broken)} such arrays); fetch it again"
        )
    with file.open("rb") as opened:
        digest = hashlib.file_digest(opened, "sha256").hexdigest()
    about = {"sha256": digest, "kind": imported.kind, "prefix": prefix}
    _check_folder(folder, about)
    numbers = sum(x.size for name, x in arrays.items() if name.startswith("params/"))
    about |= {"source": file.name, "network": imported.network, "arrays": len(arrays)}
    about |= {"parameters": numbers, "unused": imported.unused}
    _make_folder(folder)
    write_json(folder / ABOUT, about)
    # Last: with it the folder is complete.
    metadata = {"format": "cxr_jax", "source": file.name, "sha256": digest, "kind": imported.kind}
    weight_files.write_safetensors(folder / weight_files.WEIGHTS, arrays, metadata)
    lines = [
        f"{file}: {imported.kind}, {imported.network}",
        f"{len(arrays)} arrays, {numbers:,} parameters -> {folder / weight_files.WEIGHTS}; "
        f"--config.init_from={folder} takes them",
    ]
    if imported.unused:
        lines.append(
            f"left out: {len(imported.unused)} arrays that no network here has, e.g. "
            f"{imported.unused[0]}"
        )
    return "\n".join(lines)


def _under(prefix: str, kind: str, variables: dict) -> Arrays:
    """'params/PREFIX/conv0/kernel' -> array."""
    from flax import traverse_util

    if not re.fullmatch(r"\w+(/\w+)*", prefix):
        raise InputError(f"--prefix={prefix!r}; expected the name of a part, such as backbone")
    arrays = {}
    for (collection, *path), array in traverse_util.flatten_dict(variables).items():
        if kind in ("pcam", "seam"):  # their parts have names of their own
            part, *path = path
            top = prefix if part == "backbone" else part
        else:
            top = prefix
        arrays["/".join((collection, top, *path))] = array
    return arrays


def _make_folder(folder: pathlib.Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(f"{folder} would lie in a file; give another folder") from error


def _check_folder(folder: pathlib.Path, about: dict[str, str]) -> None:
    """Refuses a folder that holds anything but an import of the same file."""
    if small_files.exists(folder) and not folder.is_dir():
        raise InputError(f"{folder} is a file; give a folder")
    ours = (ABOUT, weight_files.WEIGHTS)
    found = sorted(item.name for item in folder.iterdir()) if folder.exists() else []
    others = [name for name in found if name not in ours and not safe_write.is_left(name)]
    if others:
        raise InputError(f"{folder} holds something else ({others[0]}); give a new folder")
    if ABOUT not in found:
        if weight_files.WEIGHTS in found:
            raise InputError(f"{folder} holds weights of unknown origin; give a new folder")
        return
    there = small_files.read_fields(folder / ABOUT, "give a new folder")
    if any(there.get(key, str) != value for key, value in about.items()):
        raise InputError(
            f"{folder} holds {there.get('kind', str)} weights of {there.get('source', str, None)} "
            f"under {there.get('prefix', str)!r}, which are others; give a new folder"
        )


def export(
    folder: pathlib.Path, file: pathlib.Path, *, step: int | None = None, names: str = "native"
) -> str:
    """Writes the parameters and batch statistics of a run to a .safetensors file.

    Args:
      folder: a work directory or a folder of imported weights.
      step: of the checkpoint; None takes the latest.
      names: 'native', which `config.init_from` reads, or 'torch': names and layouts of
        `convert.to_torch`.

    Returns:
      What was written, for the terminal.

    Raises:
      InputError: there are no weights, or the file is there or has another ending.
    """
    from flax import traverse_util

    from cxr_jax import initialise
    from cxr_jax.models import convert

    if file.suffix != ".safetensors":
        raise InputError(f"{file}: expected a name that ends in .safetensors")
    if small_files.exists(file):
        raise InputError(f"{file} is there already; give another name")
    found = initialise.read_arrays(folder, step)
    arrays = {name: x for name, x in found.items() if name.split("/")[0] in initialise.COLLECTIONS}
    if names == "torch":
        tree = {tuple(name.split("/")): array for name, array in arrays.items()}
        arrays = convert.to_torch(traverse_util.unflatten_dict(tree))
    _make_folder(file.parent)
    weight_files.write_safetensors(file, arrays, {"format": f"cxr_jax, names of {names}"})
    left = len(found) - sum(name in arrays for name in found) if names == "native" else 0
    more = f"; {left} arrays beside (a teacher's) left out" if left else ""
    return f"{len(arrays)} arrays, {sum(x.size for x in arrays.values()):,} numbers -> {file}{more}"


def show(arrays: Arrays, depth: int) -> str:
    """A table of parts: number of arrays and numbers, 2-norm, root mean square, largest value."""
    lines = [f"{'part':<44} {'arrays':>6} {'numbers':>12} {'norm':>10} {'rms':>10} {'max |x|':>10}"]
    for part, names in _parts(arrays, depth).items():
        values = np.concatenate([np.ravel(arrays[n]).astype(np.float64) for n in names])
        norm, size = np.linalg.norm(values), max(values.size, 1)
        lines.append(
            f"{part:<44} {len(names):>6} {values.size:>12,} {norm:>10.4g} "
            f"{norm / np.sqrt(size):>10.4g} {np.abs(values).max(initial=0.0):>10.4g}"
        )
        if not np.isfinite(values).all():
            lines[-1] += "  NOT FINITE"
    total = sum(x.size for name, x in arrays.items() if _is_parameter(name))
    return "\n".join([*lines, f"{total:,} parameters ({total / 1e6:.2f} M)"])


def _is_parameter(name: str) -> bool:
    """Of this package by its collection, of PyTorch by what is none."""
    if name.startswith(("params/", "batch_stats/", "teacher/")):
        return name.startswith("params/")
    return not name.endswith((".running_mean", ".running_var", ".num_batches_tracked"))


def diff(a: Arrays, b: Arrays, depth: int) -> tuple[str, bool]:
    """(table of parts, whether all is the same to the bit)."""
    lines = [
        f"{'part':<44} {'same':>6} {'changed':>8} {'|a|':>10} {'|b|':>10} {'|a-b|/|a|':>10} "
        f"{'max |a-b|':>10}"
    ]
    shared = {n: a[n] for n in a if n in b and a[n].shape == b[n].shape}
    equal = True
    for part, names in _parts(shared, depth).items():
        same = sum(_same(a[n], b[n]) for n in names)
        x = np.concatenate([np.ravel(a[n]).astype(np.float64) for n in names])
        y = np.concatenate([np.ravel(b[n]).astype(np.float64) for n in names])
        norm = np.linalg.norm(x)
        relative = np.linalg.norm(x - y) / max(norm, np.finfo(float).tiny)
        lines.append(
            f"{part:<44} {same:>6} {len(names) - same:>8} {norm:>10.4g} {np.linalg.norm(y):>10.4g} "
            f"{relative:>10.3g} {np.abs(x - y).max(initial=0.0):>10.3g}"
        )
        equal &= same == len(names)
    unchanged = [n for n in shared if _is_parameter(n) and _same(a[n], b[n])]
    parameters = [n for n in shared if _is_parameter(n)]
    lines.append(f"{len(unchanged)} of {len(parameters)} arrays of parameters are unchanged")
    for title, names in (
        ("only in the first", [n for n in a if n not in b]),
        ("only in the second", [n for n in b if n not in a]),
        ("of another shape", [n for n in a if n in b and a[n].shape != b[n].shape]),
    ):
        if names:
            equal = False
            lines.append(f"{len(names)} arrays {title}, e.g. {names[0]}")
    return "\n".join([*lines, "the same to the bit" if equal else "they differ"]), equal


def _same(x: np.ndarray, y: np.ndarray) -> bool:
    return x.dtype == y.dtype and x.tobytes() == y.tobytes()


def _parts(names, depth: int) -> dict[str, list[str]]:
    """Names of this package end at '/', PyTorch's at '.'; the collection counts as no level."""
    parts = collections.defaultdict(list)
    for name in names:
        levels = re.split(r"[/.]", name)
        parts["/".join(levels[: depth + ("/" in name)])].append(name)
    return parts


if __name__ == "__main__":
    run_command(main)
