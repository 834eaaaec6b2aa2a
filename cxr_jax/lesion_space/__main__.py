"""The lesions that a network finds on CT slices, in clusters of what it sees there.

    python -m cxr_jax.lesion_space --workdir=DIR [--split=test] [--clusters=2]
    python -m cxr_jax.lesion_space --workdir=DIR --split=test --apply=SPACE.npz

of a run of `configs/lesions.py`, its last checkpoint. The features of all lesions of the split are
put into clusters by k-means: as many as --clusters says, or where the curve of the distances bends.
Writes to DIR/lesion_space/SPLIT (or --output): lesions.csv, a line each; space.npz, the clusters,
which --apply takes to other slices; report.json; space.png, all lesions in two dimensions;
elbow.png; clusters.png, those nearest to each cluster's middle; slices/, with the clusters' numbers
on them. Where lesions are known by mask and type, how well clusters tell the types.
"""

import argparse
import pathlib
from collections.abc import Sequence

from cxr_jax import cli, safe_write
from cxr_jax.errors import InputError

SPLITS = ("train", "val", "test")


def main(argv: Sequence[str] | None = None) -> None:
    """The command. See the module; `--help` lists the options.

    Raises:
      InputError: a run of another task, fewer lesions than clusters, a space of another network, or
        a folder that cannot be written.
    """
    args = _parser().parse_args(argv)
    if args.clusters < 0:
        raise InputError(f"--clusters={args.clusters}; expected at least 1, or 0: by the elbow")
    if args.apply and args.clusters:
        raise InputError("--clusters and --apply exclude each other: a space has its clusters")
    if args.slices < 0:
        raise InputError(f"--slices={args.slices}; expected at least 0")
    cli.setup_jax()
    # Imported here so that --help answers at once.
    from cxr_jax.lesion_space import collected, space
    from cxr_jax.lesion_space import written as files

    run = collected.load(args.workdir)
    fitted = space.read(args.apply, network=run.version) if args.apply else None
    folder = args.output or args.workdir / "lesion_space" / args.split
    safe_write.make_folder(folder, "--output")
    found = collected.collect(run, args.split)
    if fitted is None:
        fitted = space.fit(found, network=run.version, clusters=args.clusters, seed=args.seed)
    report = files.write(folder, run, found, fitted, slices=args.slices, seed=args.seed)
    print(files.told(report))
    print(f"{folder}: " + ", ".join(sorted(path.name for path in folder.iterdir())))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m cxr_jax.lesion_space",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of the run")
    parser.add_argument("--split", default="test", choices=SPLITS)
    parser.add_argument("--clusters", type=int, default=0, help="K; default 0: by the elbow")
    parser.add_argument("--apply", type=pathlib.Path, help="the space.npz of another split")
    parser.add_argument("--slices", type=int, default=12, help="slices that are drawn")
    parser.add_argument("--seed", type=int, default=0, help="of k-means and t-SNE")
    parser.add_argument("--output", type=pathlib.Path, help="a folder")
    return parser


if __name__ == "__main__":
    cli.run_command(main)
