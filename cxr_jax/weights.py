"""Look into checkpoints.

    python -m cxr_jax.weights show DIR [--step=N]          every part: arrays, parameters, norm
    python -m cxr_jax.weights diff DIR OTHER [--step=N] [--other_step=M]

DIR is a work directory. `diff` compares two runs, or two steps of one, part by part: relative
difference |a - b| / |a|, what is unchanged to the bit, what only one has.
"""

import argparse
import collections
import pathlib

import numpy as np

from cxr_jax.cli import run_command, setup_jax

Arrays = dict[str, np.ndarray]


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m cxr_jax.weights",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(dest="command", required=True)
    show_args = commands.add_parser("show", help="what is in a checkpoint")
    diff_args = commands.add_parser("diff", help="how two checkpoints differ")
    for sub in (show_args, diff_args):
        sub.add_argument("workdir", type=pathlib.Path)
        sub.add_argument("--step", type=int, help="default: the latest")
        sub.add_argument("--depth", type=int, default=2, help="levels of names a part has")
    diff_args.add_argument("other", type=pathlib.Path)
    diff_args.add_argument("--other_step", type=int, help="default: the latest")
    args = parser.parse_args()
    setup_jax()
    if args.command == "show":
        print(show(load(args.workdir, args.step), args.depth))
        return 0
    text, same = diff(load(args.workdir, args.step), load(args.other, args.other_step), args.depth)
    print(text)
    return 0 if same else 1


def load(workdir: pathlib.Path, step: int | None) -> Arrays:
    """Parameters and model state of a checkpoint by path; raises InputError if there is none."""
    import jax

    from cxr_jax.checkpoints import read_state
    from cxr_jax.optimizers import path_of

    state = read_state(workdir, step)
    tree = {"params": state["params"], **state["model_state"]}
    return {path_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(tree)}


def show(arrays: Arrays, depth: int) -> str:
    """A table of parts: number of arrays and parameters, root mean square, largest value."""
    lines = [f"{'part':<44} {'arrays':>6} {'numbers':>12} {'rms':>10} {'max |x|':>10}"]
    for part, names in _parts(arrays, depth).items():
        values = np.concatenate([np.ravel(arrays[n]).astype(np.float64) for n in names])
        lines.append(
            f"{part:<44} {len(names):>6} {values.size:>12,} "
            f"{np.sqrt(np.mean(values**2)):>10.4g} {np.abs(values).max():>10.4g}"
        )
        if not np.isfinite(values).all():
            lines[-1] += "  NOT FINITE"
    total = sum(x.size for name, x in arrays.items() if name.startswith("params/"))
    return "\n".join([*lines, f"{total:,} parameters ({total / 1e6:.2f} M)"])


def diff(a: Arrays, b: Arrays, depth: int) -> tuple[str, bool]:
    """(table of parts, whether all is the same to the bit)."""
    lines = [f"{'part':<44} {'same':>6} {'changed':>8} {'|a-b|/|a|':>10} {'max |a-b|':>10}"]
    shared = {n: a[n] for n in a if n in b and a[n].shape == b[n].shape}
    equal = True
    for part, names in _parts(shared, depth).items():
        same = sum(np.array_equal(a[n], b[n], equal_nan=True) for n in names)
        x = np.concatenate([np.ravel(a[n]).astype(np.float64) for n in names])
        y = np.concatenate([np.ravel(b[n]).astype(np.float64) for n in names])
        relative = np.linalg.norm(x - y) / max(np.linalg.norm(x), np.finfo(float).tiny)
        lines.append(
            f"{part:<44} {same:>6} {len(names) - same:>8} {relative:>10.3g} "
            f"{np.abs(x - y).max():>10.3g}"
        )
        equal &= same == len(names)
    for title, names in (
        ("only in the first", [n for n in a if n not in b]),
        ("only in the second", [n for n in b if n not in a]),
        ("of another shape", [n for n in a if n in b and a[n].shape != b[n].shape]),
    ):
        if names:
            equal = False
            lines.append(f"{len(names)} arrays {title}, e.g. {names[0]}")
    return "\n".join([*lines, "the same to the bit" if equal else "they differ"]), equal


def _parts(names, depth: int) -> dict[str, list[str]]:
    parts = collections.defaultdict(list)
    for name in names:
        parts["/".join(name.split("/")[: depth + 1])].append(name)
    return parts


if __name__ == "__main__":
    run_command(main)
