"""What works without a checkout: the packaged configs, and `cxr` for `python -m cxr_jax`."""

import importlib.util
import pathlib
import subprocess
import sys

import pytest

from cxr_jax import commands, config_files
from cxr_jax.errors import InputError

ROOT = pathlib.Path(__file__).resolve().parents[1]


def test_the_packaged_configs_are_those_of_the_checkout():
    assert config_files.PACKAGED.resolve() == ROOT / "configs"


@pytest.mark.parametrize("file", ["severity.py", "configs/severity.py"])
def test_a_packaged_config_is_found_from_any_folder(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = config_files.resolved(f"{file}:quick", ["--config.seed=7"])
    assert (config.task, config.seed) == ("severity", 7)


def test_a_file_of_the_users_own_comes_first(tmp_path, monkeypatch):
    (tmp_path / "severity.py").write_text("raise ValueError('mine')\n")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="mine"):
        config_files.resolved("severity.py", [])


@pytest.mark.parametrize("file", ["sevrity.py", "elsewhere/severity.py", "common.p"])
def test_no_such_config_is_one_line_with_those_there_are(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=r"no such file; packaged are adpd\.py.*, severity\.py"):
        config_files.resolved(file, [])


def cxr(*args):
    command = [sys.executable, "-m", "cxr_jax.commands", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_cxr_names_its_commands_and_every_one_is_there():
    told = cxr()
    assert told.returncode == 0
    for name, (module, what) in commands.COMMANDS.items():
        assert importlib.util.find_spec(module), module
        assert f"cxr {name} " in told.stdout
        assert what in told.stdout


def test_an_unknown_command_is_one_line():
    told = cxr("man")
    assert told.returncode == 2
    assert (
        told.stderr
        == f"error: there is no command 'man'; they are {', '.join(commands.COMMANDS)}\n"
    )


def test_a_command_gets_its_own_flags(tmp_path):
    told = cxr("sweep", "--config=severity.py", "--variants=smoke", f"--output={tmp_path}", "--dry")
    assert told.returncode == 0, told.stderr
    assert "--config=severity.py:smoke --config.seed=0" in told.stdout
