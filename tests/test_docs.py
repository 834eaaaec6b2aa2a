"""What a reader is promised: docstrings, and documents whose commands, paths and links exist."""

import ast
import importlib
import re

import pytest

from tests.conftest import ROOT

DOCUMENTS = [ROOT / "README.md", ROOT / "RESULTS.md", *sorted((ROOT / "docs").glob("*.md"))]
PAPERS = ROOT / "docs" / "papers.md"
MODULES = sorted((ROOT / "cxr_jax").rglob("*.py"))
# Methods that a base class or a protocol documents.
INHERITED = {"data", "frozen", "init", "loss", "predict", "score", "evaluation", "figure"}
INHERITED |= {"describe", "mask", "describe_volume", "report", "paired_values", "figures"}
INHERITED |= {"fit", "with_fit", "from_config", "main"}


def _modules(text):
    """The modules of this package that a text runs: 'cxr_jax.data.prepare'."""
    return set(re.findall(r"python -m (cxr_jax[\w.]*\w)", text))


def _file(module):
    """The file of a module that is run, from the root; of a package its __main__."""
    path = module.replace(".", "/")
    return f"{path}/__main__.py" if (ROOT / path).is_dir() else f"{path}.py"


def _commands():
    """Every indented command of the documents that runs a module of this package, each once."""
    found = {}
    for document in DOCUMENTS:
        text = document.read_text(encoding="utf-8").replace("\\\n", " ")
        for line in re.findall(r"^ {4,}.*python -m cxr_jax.*$", text, re.M):
            found[re.sub(r"\s+#.*", "", line).strip()] = None
    return list(found)


COMMANDS = _commands()


def _anchors(text):
    """The anchors of a document's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", text, re.M)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in headings}


def _has(config, field):
    """Whether a config has a field; of a data set's options only that there is a data set, for they
    depend on its name."""
    first, _, rest = field.partition(".")
    if first not in config:
        return False
    return not rest or first in ("data", "second") or _has(config[first], rest)


def _names(path):
    """What a module defines: functions, classes, and 'Class.method'."""
    if not path.is_file():
        return set()
    names = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        if isinstance(node, ast.ClassDef):
            inside = [item for item in node.body if isinstance(item, ast.FunctionDef)]
            names |= {f"{node.name}.{item.name}" for item in inside}
    return names


def _papers():
    return PAPERS.read_text(encoding="utf-8")


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


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").splitlines()) <= 120


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_only_what_exists(document):
    text = document.read_text(encoding="utf-8")
    modules = {_file(module) for module in _modules(text)}
    paths = set(re.findall(r"\b(?:configs|docs|benchmarks|cxr_jax|tests)/[\w/.-]+", text))
    scripts = set(re.findall(r"[\w./-]+\.py\b", text))
    named = {path.rstrip(".") for path in modules | paths | scripts if "NAME" not in path}
    missing = sorted(path for path in named if not (ROOT / path).exists())
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_between_documents_resolve(document):
    for link in re.findall(r"\]\(([^)\s]+)\)", document.read_text(encoding="utf-8")):
        path, _, anchor = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        assert target.is_file(), link
        if anchor:
            assert anchor in _anchors(target.read_text(encoding="utf-8")), link


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c.split())[:80])
def test_the_commands_have_their_flags(command):
    (module,) = _modules(command)
    paths = [ROOT / _file(module)]
    if module == "cxr_jax.predict":  # its doors add their own
        paths += (ROOT / "cxr_jax" / "inputs").glob("*.py")
    source = "".join(path.read_text(encoding="utf-8") for path in paths)
    flags = set(re.findall(r"\s--(\w+)", command))
    # argparse says "--split", absl "split".
    assert not [flag for flag in flags if not re.search(rf'"(?:--)?{flag}"', source)]


@pytest.mark.parametrize(
    "command", [c for c in COMMANDS if "--config=" in c], ids=lambda c: " ".join(c.split())[:80]
)
def test_the_commands_set_fields_that_exist(command):
    file, variant = re.search(r"--config=configs/(\w+)\.py(?::([\w=,]*))?", command).groups()
    # A loop's variable, as in `regime=$regime`, stands for several values.
    options = [option for option in (variant or "").split(",") if not option.endswith("=")]
    config = importlib.import_module(f"configs.{file}").get_config(",".join(options))
    missing = [f for f in re.findall(r"--config\.([\w.]+)", command) if not _has(config, f)]
    assert not missing


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: str(p.relative_to(ROOT)))
def test_documents_name_fields_of_some_config(document):
    configs = [
        importlib.import_module(f"configs.{path.stem}").get_config()
        for path in (ROOT / "configs").glob("*.py")
        if path.stem not in ("__init__", "common")
    ]
    fields = re.findall(r"--config\.([a-z_.]+)\b", document.read_text(encoding="utf-8"))
    named = {field.rstrip(".") for field in fields}
    assert not sorted(f for f in named if not any(_has(config, f) for config in configs))


def test_the_functions_of_the_equations_exist():
    named = re.findall(r"`(cxr_jax/[\w/]+\.py): ([\w.]+)`", _papers())
    assert len(named) > 40
    missing = [f"{path}: {name}" for path, name in named if name not in _names(ROOT / path)]
    assert not missing


def test_every_equation_has_its_function_or_is_to_come():
    rows = re.findall(r"^\| (?:Eq\.|Sec\.|Fig\.) [^|]*\|[^|]*\|([^|]*)\|$", _papers(), re.M)
    assert len(rows) > 30
    assert all("to come" in row or re.search(r"\.py: [\w.]+`", row) for row in rows)


def test_the_marks_in_the_code_resolve():
    """`[PAPERS, n]` and `PAPERS section n` are headings of docs/papers.md."""
    headings = re.findall(r"^## (.+)$", _papers(), re.M)
    found = 0
    for folder in ("cxr_jax", "configs", "benchmarks"):
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text(encoding="utf-8")
            marks = re.findall(r"\[PAPERS, ([^\];:]+)|\bPAPERS section (\w+)", text)
            for mark in ("".join(pair) for pair in marks):
                start = f"{mark}. " if mark.isdigit() else mark
                assert any(h.startswith(start) for h in headings), f"{path}: [PAPERS, {mark}]"
                found += 1
    assert found


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
