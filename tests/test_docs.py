"""What a reader is promised: docstrings, and a README whose commands exist."""

import ast
import re

import pytest

from tests.conftest import ROOT

MODULES = sorted((ROOT / "cxr_jax").rglob("*.py"))
# Methods that a base class or a protocol documents.
INHERITED = {"data", "frozen", "init", "loss", "predict", "score", "evaluation", "figure"}
INHERITED |= {"describe", "mask", "describe_volume", "report", "paired_values", "figures"}
INHERITED |= {"with_best_threshold", "from_config", "main"}


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_public_names_have_docstrings(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    assert ast.get_docstring(tree), "the module says what it is"
    missing = []
    for node in tree.body:
        public_class = isinstance(node, ast.ClassDef) and not node.name.startswith("_")
        nodes = [node, *(node.body if public_class else [])]
        for item in nodes:
            if not isinstance(item, (ast.FunctionDef, ast.ClassDef)):
                continue
            if item.name.startswith("_") or item.name in INHERITED:
                continue
            if not ast.get_docstring(item):
                missing.append(f"{item.name} (line {item.lineno})")
    assert not missing


def test_the_readme_names_only_what_exists():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for module in set(re.findall(r"python -m (cxr_jax[\w.]*)", text)):
        path = ROOT / (module.replace(".", "/") + ".py")
        assert path.is_file(), module
    for path in set(re.findall(r"\b(?:configs|docs|benchmarks|cxr_jax|tests)/[\w/.]+", text)):
        if "NAME" not in path:
            assert (ROOT / path.rstrip(".")).exists(), path


def test_ci_runs_the_readmes_commands():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ci = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    commands = [
        "pip install -e '.[test]' && pytest",
        "pip install -e '.[test]' && python -m cxr_jax.main --config=configs/severity.py:quick",
    ]
    for command in commands:
        assert command in readme
        assert command.replace("install -e", "install -q -e") in ci
