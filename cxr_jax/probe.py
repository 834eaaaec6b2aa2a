"""A linear probe: how much of a set's classes a frozen network's features tell.

    python -m cxr_jax.probe --workdir=DIR --data=cxr_3class [--OPTION=VALUE]

of a run whose predictions have an `embedding` (`configs/simclr.py`). A logistic regression on the
features of the training films, its strength chosen by cross-validation over patients, is scored on
the test films; beside it the same on the untrained network (random weights, the run's seed), and
the classes' shares among the training films. The last checkpoint is used. Options of the data set
are given as --OPTION=VALUE; those that the run's own set has too are kept. Writes DIR/probe.json.
"""

import argparse
import pathlib
from collections.abc import Sequence

from cxr_jax import cli, tables
from cxr_jax.data import sources


def main(argv: Sequence[str] | None = None) -> None:
    """The command. See the module; `--help` lists the options.

    Raises:
      InputError: what `linear_probe.probe` raises, or an option that the set has not.
    """
    args, rest = _parser().parse_known_args(argv)
    cli.setup_jax()
    # Imported here so that --help answers at once.
    from cxr_jax import linear_probe, workdir

    own = workdir.read_config(args.workdir).data
    data = sources.switched(own, args.data or own.name, "--data")
    data.update(sources.read_options(data.name, rest))
    found = linear_probe.probe(args.workdir, data)
    lines = {
        title: {name: tables.with_interval(metric) for name, metric in metrics.items()}
        for title, metrics in found.items()
    }
    print(tables.markdown(lines, linear_probe.METRICS))


def _parser() -> argparse.ArgumentParser:
    parser = cli.Parser(
        prog="python -m cxr_jax.probe",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--workdir", required=True, type=pathlib.Path, help="of the run")
    parser.add_argument("--data", default="", help="a set with diagnoses; default: the run's own")
    return parser


if __name__ == "__main__":
    cli.run_command(main)
