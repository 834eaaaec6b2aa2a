"""What the benchmarks share: a config by its flag, a result printed and kept."""

import importlib
import json
import pathlib
from typing import Any

import ml_collections


def load_config(flag: str) -> ml_collections.ConfigDict:
    """'configs/severity.py:quick' -> its config, unlocked."""
    path, _, variant = flag.partition(":")
    module = importlib.import_module(f"configs.{pathlib.Path(path).stem}")
    return module.get_config(variant).copy_and_resolve_references()


def write_result(result: dict[str, Any], output: pathlib.Path | None) -> None:
    """Prints a result as JSON, and writes it where --output says."""
    text = json.dumps(result, indent=2)
    print(text)
    if output:
        output.write_text(text + "\n")
