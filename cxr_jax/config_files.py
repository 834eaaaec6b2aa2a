"""A config by its file, variant and overrides, as the commands take them.

FILE[:VARIANT] and --config.FIELD=VALUE; --config.data.name chooses another data set, with the
options of that set, and so does --config.second.name.
"""

import ast
import contextlib
import importlib.util
import pathlib
import re
import sys
import types
from collections.abc import Iterable, Iterator, Sequence

import ml_collections
from absl import flags
from ml_collections import config_flags

from cxr_jax.data import sources
from cxr_jax.errors import InputError

HELP = "see python -m cxr_jax.main --help"
PACKAGED = pathlib.Path(__file__).parent / "packaged" / "configs"


def resolved(file: str, overrides: Sequence[str]) -> ml_collections.ConfigDict:
    """The config that `cxr_jax.main` would run, apart from this process's own flags.

    Args:
      file: FILE[:VARIANT].
      overrides: '--config.FIELD=VALUE', each.

    Raises:
      InputError: no such file, variant, field, data set or option, or a value of another kind.
    """
    values = flags.FlagValues()
    with told_in_one_line(overrides):
        config, argv = open_config(file, ["cxr_jax.main", *overrides], values)
        rest = values(argv)
    if len(rest) > 1:
        raise InputError(f"unexpected argument {rest[1]!r}; {HELP}")
    return config


@contextlib.contextmanager
def told_in_one_line(overrides: Iterable[str]) -> Iterator[None]:
    """The errors of `open_config` and of the parsing of its flags as `InputError`.

    config_flags lets the errors of overrides, and of the config file itself, through.
    """
    try:
        yield
    except flags.Error as error:
        raise InputError(f"{error}; {HELP}") from error
    except (AttributeError, KeyError) as error:  # no such field, or a mistake in the config's file
        names = [override.partition("=")[0] for override in overrides]
        raise InputError(_no_field(str(error.args[0] if error.args else error), names)) from error
    except OSError as error:
        raise InputError(f"--config: {error.strerror or error}; {HELP}") from error
    except (TypeError, ValueError) as error:
        words = " ".join(str(error.args[0] if error.args else error).split())
        raise InputError(f"--config: {words}; {HELP}") from error


def take(argv: list[str], flag: str) -> tuple[str | None, list[str]]:
    """The last value of --flag=VALUE or --flag VALUE, None without one; and the other arguments.

    Raises:
      InputError: nothing follows --flag.
    """
    value, rest, waiting = None, [], iter(argv)
    for argument in waiting:
        name, equals, given = argument.partition("=")
        if name not in (f"--{flag}", f"-{flag}"):
            rest.append(argument)
            continue
        value = given if equals else next(waiting, None)
        if value is None:
            raise InputError(f"--{flag} needs a value; {HELP}")
    return value, rest


def open_config(
    file: str, argv: list[str], values: flags.FlagValues = flags.FLAGS
) -> tuple[ml_collections.ConfigDict, list[str]]:
    """The config of FILE[:VARIANT] with the data sets that the arguments name, defined as the flag
    --config, which sets its other fields; and the arguments without those names.

    Raises:
      InputError: no such file, an unknown variant, data set or option of a data set.
    """
    path, _, variant = file.partition(":")
    module = load(pathlib.Path(path))
    config = module.get_config(variant) if variant else module.get_config()
    for block in ("data", "second"):
        name, argv = take(argv, f"config.{block}.name")
        if name is not None:
            config[block] = sources.switched(config[block], name, f"config.{block}.name")
        _check_options(config[block], block, argv)
    config_flags.DEFINE_config_dict("config", config.lock(), flag_values=values, sys_argv=argv)
    return values["config"].value, argv


def _check_options(data: ml_collections.ConfigDict, block: str, argv: Iterable[str]) -> None:
    """Refuses --config.data.OPTION of another data set."""
    for argument in argv:
        flag = argument.partition("=")[0]
        match = re.fullmatch(rf"--?(?:no)?config\.{block}\.(\w+)", flag)
        option = match and match[1]
        if option in (None, *sources.NOT_OPTIONS):
            continue
        if not data.name:
            raise InputError(f"{flag}: there is no second data set; give --config.{block}.name")
        try:
            sources.check_options(data.name, [option])
        except InputError as error:
            raise InputError(f"{flag}: {error}") from error


def find(path: pathlib.Path) -> pathlib.Path:
    """The file, or the packaged one of that name: NAME.py or configs/NAME.py where there is none.

    Raises:
      InputError: there is no such file.
    """
    if path.is_file():
        return path
    own = PACKAGED / path.name
    if path.parent.name in ("", "configs") and own.is_file():
        return own
    names = ", ".join(packaged())
    raise InputError(f"--config={path}: there is no such file; packaged are {names}")


def packaged() -> dict[str, str]:
    """The packaged configs: NAME.py -> the first sentence of what it says of itself. Runs none."""
    found = {}
    for file in sorted(PACKAGED.glob("*.py")):
        if file.name not in ("__init__.py", "common.py"):
            said = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
            found[file.name] = " ".join(said.split("\n\n")[0].split())
    return found


def load(path: pathlib.Path) -> types.ModuleType:
    """The module of a config file, which may import its neighbours as configs.* from anywhere.

    Raises:
      InputError: there is no such file.
    """
    path = find(path)
    root = str(path.resolve().parent.parent)
    if sys.path[0] != root:
        sys.path.insert(0, root)
    spec = importlib.util.spec_from_file_location(f"config_{path.stem}", path)
    assert spec is not None  # of a file that ends in .py
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _no_field(text: str, overrides: list[str]) -> str:
    """config_flags' "'total_step'\\nDid you mean ...?", quoted twice, as a sentence."""
    text = text.replace("\\n", "\n").replace("\\'", "'").strip("'\"")
    name, _, hint = (part.strip("' ") for part in text.partition("\n"))
    flag = next((flag for flag in overrides if name in flag.split(".")), None)
    if flag is None:
        return f"--config: {' '.join(text.split())}; {HELP}"
    return f"{flag}: the config has no such field. {hint}".rstrip()
