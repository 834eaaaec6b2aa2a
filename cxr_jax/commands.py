"""One name for every command: `cxr main ...` is `python -m cxr_jax.main ...`.

cxr main --config=severity.py:quick     train and evaluate; --help after a name has its options
"""

import importlib.metadata
import runpy
import sys

from cxr_jax.cli import run_command
from cxr_jax.errors import InputError

COMMANDS = {
    "main": ("cxr_jax.main", "train and evaluate"),
    "predict": ("cxr_jax.predict", "run a trained model on films or CT volumes"),
    "report": ("cxr_jax.report", "compare runs"),
    "sweep": ("cxr_jax.sweep", "many variants and seeds, and their table"),
    "probe": ("cxr_jax.probe", "what a pre-trained network's features tell"),
    "lesion_space": ("cxr_jax.lesion_space", "the lesions that a network finds, in clusters"),
    "weights": ("cxr_jax.weights", "look into weights, bring them in and out"),
    "prepare": ("cxr_jax.data.prepare", "a downloaded data set to records, once"),
    "audit": ("cxr_jax.data.audit", "what tells a set's classes without the lungs"),
    "ct_lungs": ("cxr_jax.data.ct_lungs", "how well CT lungs are found without a network"),
}


def main() -> None:
    """The console script `cxr`."""
    run_command(_main)


def _main() -> int:
    name, *rest = sys.argv[1:] or ["--help"]
    if name in ("-h", "--help", "help"):
        lines = [f"  cxr {name:<13} {what}" for name, (_, what) in COMMANDS.items()]
        print("\n".join([__doc__.strip(), "", *lines]))
        return 0
    if name == "--version":
        print(importlib.metadata.version("cxr_jax"))
        return 0
    if name not in COMMANDS:
        raise InputError(f"there is no command {name!r}; they are {', '.join(COMMANDS)}")
    module, _ = COMMANDS[name]
    sys.argv = [module, *rest]
    runpy.run_module(module, run_name="__main__", alter_sys=True)
    return 0


if __name__ == "__main__":
    main()
