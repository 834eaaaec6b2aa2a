"""Configs as they resolve, field by field; what their fields mean; those of older runs."""

import dataclasses
import json
import pathlib
import re
import subprocess
import sys

import numpy as np
import pytest

from configs import common
from cxr_jax import config_files, main, meanings, migrations, sweep_rows, train, workdir
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from tests import golden_configs
from tests.conftest import ROOT

OLD = sorted((ROOT / "tests" / "fixtures" / "old_configs").glob("*.json"))
ALL = [(name, v) for name in golden_configs.NAMES for v in golden_configs.variants(name)]


def show(*args: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "cxr_jax.main", "--mode=show", *args]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def shown(*args: str) -> dict[str, str]:
    """Path -> value, as text, of `--mode=show`."""
    done = show(*args)
    assert done.returncode == 0, done.stderr
    rows = (re.split(r"\s+=\s", line, maxsplit=1) for line in done.stdout.splitlines())
    return {path: re.split(r" {3}", rest, maxsplit=1)[0].strip() for path, rest in rows}


# What they resolve to.


@pytest.mark.parametrize("name, variant", ALL)
def test_a_config_resolves_as_it_did(name, variant):
    """If the change is meant: python -m tests.golden_configs, and read the difference."""
    golden = golden_configs.path_of(name, variant)
    assert golden_configs.text_of(name, variant) == golden.read_text(), golden.name


def test_every_config_is_golden_and_no_file_is_left_over():
    assert {p.stem for p in (ROOT / "configs").glob("[a-z]*.py")} == {
        *golden_configs.NAMES,
        "common",
    }
    assert set(golden_configs.WITH_OPTIONS) <= set(golden_configs.NAMES)
    files = {golden_configs.path_of(*config) for config in ALL}
    assert len(files) == len(ALL)
    assert files == set(golden_configs.FOLDER.iterdir())


@pytest.mark.parametrize("name", golden_configs.NAMES)
def test_the_table_of_variants_is_the_docstrings(name):
    module = golden_configs.module(name)
    table = module.__doc__.partition("| variant |")[2].partition("\n\n")[0]
    named = re.findall(r"^\| (\w+|\(none\)) \|", table, flags=re.MULTILINE)
    assert [v.replace("(none)", "") for v in named] == list(module.VARIANTS)
    with pytest.raises(InputError, match="variant 'nonsense'; expected one of quick"):
        module.get_config("nonsense")


@pytest.mark.parametrize("name", golden_configs.NAMES)
def test_a_value_that_an_option_has_not_is_told_with_those_it_has(name):
    module = golden_configs.module(name)
    for option, values in getattr(module, "KNOWN", {}).items():
        numbers = all(isinstance(value, int) for value in values)
        wrong = 99 if numbers else "nonsense"
        told = re.escape(f"{option}={wrong!r}; expected one of ")
        with pytest.raises(InputError, match=told + ".*" + re.escape(str(list(values)[-1]))):
            module.get_config(f"{next(iter(module.VARIANTS))},{option}={wrong}".lstrip(","))


def test_configs_do_not_share_what_they_change():
    first, second = (golden_configs.module("severity").get_config("") for _ in range(2))
    first.model.vit.width = 1
    first.optimizer.lr = 9.0
    assert second.model.vit.width == 768
    assert common.get_config().optimizer.lr == 0.0


# What their fields mean.


@pytest.mark.parametrize("name", golden_configs.NAMES)
def test_every_field_has_a_meaning_and_no_meaning_is_left_over(name):
    module, seen = golden_configs.module(name), set()
    for variant in golden_configs.variants(name):
        config = module.get_config(variant)
        known = module.meanings() | meanings.of_data(config)
        missing = [path for path in meanings.fields(config) if not known.get(path)]
        assert not missing, (name, variant)
        seen |= set(meanings.fields(config))
    assert not set(module.MEANINGS) - seen
    assert not set(common.MEANINGS) - seen


@pytest.mark.parametrize("name", sources.DATASETS)
def test_every_option_of_a_data_set_has_a_default_and_a_meaning(name):
    options = sources.find(name).Options
    defaults = dataclasses.asdict(options())
    assert meanings.attributes(options).keys() == defaults.keys()
    assert all(meanings.attributes(options).values())
    assert not {*sources.NOT_OPTIONS} & defaults.keys()
    assert sources.block(name).to_dict() == {"name": name} | defaults
    assert callable(sources.find(name).open_split)
    assert callable(sources.find(name).builder) if sources.DATASETS[name].source else True


def test_attributes_are_read_from_a_docstring_and_its_bases():
    class Base:
        """A base.

        Attributes:
          depth: of the base: 1, or
            more.
        """

    class Kind(Base):
        """A kind.

        Attributes:
          low, high: the ends.
          depth: another.

        Raises:
          InputError: never.
        """

    assert meanings.attributes(Base) == {"depth": "of the base: 1, or more"}
    assert meanings.attributes(Kind) == {"depth": "another", "low": "the ends", "high": "the ends"}


def test_show_is_one_aligned_line_a_field():
    config = golden_configs.module("severity").get_config("cohen")
    known = golden_configs.module("severity").meanings()
    lines = meanings.show(config, known).splitlines()
    assert len(lines) == len(meanings.fields(config))
    assert len({line.index(" = ") for line in lines if " = " in line}) == 1
    (line,) = (line for line in lines if line.startswith("data.fold "))
    assert re.fullmatch(r"data\.fold +=\s-1 {3,}0, 1, \.\.\.: this fold .* validates; .*", line)


def test_the_command_shows_a_config_and_a_work_directory(tmp_path):
    texts = {}
    config = golden_configs.module("severity").get_config("cohen")
    for line in golden_configs.text_of("severity", "cohen").splitlines():
        path, _, value = line.partition(" = ")
        texts[path] = value
    assert shown("--config=configs/severity.py:cohen") == texts
    (tmp_path / "config.json").write_text(config.to_json())
    assert shown(f"--workdir={tmp_path}") == texts
    assert "least global score" in show(f"--workdir={tmp_path}").stdout


# Blocks of data sets, and the command line.


def test_a_block_has_its_data_sets_options_and_no_others():
    block = sources.block("manifest", path="films.csv")
    assert block.to_dict() == {"name": "manifest", "path": "films.csv", "classes": ""}
    words = "data set 'manifest' has no option 'fold'; its options are path"
    with pytest.raises(InputError, match=words):
        sources.block("manifest", fold=1)
    with pytest.raises(InputError, match=words):
        sources.open_source({"name": "manifest", "path": "", "fold": 1}, "train")
    with pytest.raises(InputError, match="data set 'manifest': option 'path' is missing"):
        sources.open_source({"name": "manifest"}, "train")
    with pytest.raises(InputError, match=r"data\.name='cohen'; expected one of phantom_cxr"):
        sources.block("cohen")


def test_a_second_block():
    assert sources.second_block().to_dict() == {"name": "", "labels": "hidden"}
    phantoms = sources.second_block("phantom_cxr", labels="given")
    assert (phantoms.seed, phantoms.labels) == (1_000_000, "given")  # other films than seed 0
    assert sources.second_block("phantom_cxr", seed=3).seed == 3
    graded = sources.second_block("brixia", fold=2)
    assert graded.to_dict() == sources.block("brixia", fold=2).to_dict() | {"labels": "hidden"}


def test_another_data_set_keeps_the_options_both_have():
    data = sources.block("phantom_cxr", size=128, train=7, appearance="mixed")
    volumes = sources.switched(data, "phantom_ct")
    assert volumes.to_dict() == sources.block("phantom_ct", size=128, train=7).to_dict()
    assert sources.switched(data, "phantom_cxr").to_dict() == data.to_dict()
    second = sources.second_block(labels="given")
    films = sources.switched(second, "brixia", "second.name")
    assert films.to_dict() == sources.second_block("brixia", labels="given").to_dict()
    assert sources.switched(films, "", "second.name").to_dict() == second.to_dict()
    for block in (data, second):
        with pytest.raises(InputError, match=r"second\.name='x'; expected one of"):
            sources.switched(block, "x", "second.name")


@pytest.mark.parametrize(
    "args",
    [
        ["--config.data.name=manifest", "--config.data.path=films.csv"],
        ["--config.data.path", "films.csv", "--config.data.name", "manifest"],
    ],
    ids=["equals", "spaces, the other way round"],
)
def test_the_command_line_chooses_a_data_set(args):
    values = shown("--config=configs/severity.py:quick", *args, "--config.optimizer.lr=0.5")
    data = {path: value for path, value in values.items() if path.startswith("data.")}
    assert data == {"data.name": "'manifest'", "data.path": "'films.csv'", "data.classes": "''"}
    assert values["optimizer.lr"] == "0.5"


def test_the_command_line_chooses_a_second_set():
    changes = ["--config.second.name=phantom_cxr", "--config.second.disease_extent=1"]
    values = shown("--config", "configs/severity.py:quick,regime=progressive", *changes)
    assert values["second.disease_extent"] == "1.0"
    assert values["second.seed"] == "1000000"
    assert values["second.labels"] == "'hidden'"
    assert values["data.disease_extent"] == "0.0"
    assert "second.fold" not in values


@pytest.mark.parametrize(
    "args, words",
    [
        (
            ["--config.data.fold=0"],
            "--config.data.fold: data set 'phantom_cxr' has no option 'fold'; its options are seed",
        ),
        (
            ["--config.data.name=manifest", "--config.data.size", "64"],
            "--config.data.size: data set 'manifest' has no option 'size'; its options are path",
        ),
        (["--config.second.seed=1"], "there is no second data set; give --config.second.name"),
        (["--config.second.name=imagenet"], "config.second.name='imagenet'; expected one of"),
        (["--config.data.name"], "--config.data.name needs a value"),
        (["--config.data.size=large"], "--config.data.size=large"),
    ],
)
def test_an_option_of_another_data_set_is_one_line(args, words):
    done = show("--config=configs/severity.py:smoke", *args)
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert words in line


# Older runs.

# Old config -> the fields that its variant sets otherwise since.
SINCE = {
    "seam-quick-method=cam": {
        "model.stride": 8,
        "model.dilations": (2, 4, 4),
        "model.pcm_width": 1 / 16,
        "small_scale": 0.5,
        "normalize_map": False,
        "gate": "slice",
        "tune": False,
        "optimizer.lr": 5e-4,
        "total_steps": 400,
        "checkpoint_every": 200,
    },
    "severity-fewlabels-regime=progressive": {
        "second.train": 1024,
        "model.train_backbone": True,
        "total_steps": 600,
        "regime.stage_steps": 100,
        "eval_steps": (550, 575, 600),
        "checkpoint_every": 25,
    },
}


@pytest.mark.parametrize("path", OLD, ids=lambda path: path.stem)
def test_the_config_of_an_old_run_is_todays(path, tmp_path):
    """Written before each data set had its own options; an old run resumes."""
    name, _, variant = path.stem.partition("-")
    config = golden_configs.module(name).get_config(
        variant.removesuffix("-manifest").replace("-", ",")
    )
    if variant.endswith("-manifest"):
        config.data = sources.block("manifest", path="films.csv")
    config.update_from_flattened_dict(SINCE.get(path.stem, {}))
    (tmp_path / "config.json").write_text(path.read_text())
    (tmp_path / "checkpoints" / "1").mkdir(parents=True)
    workdir.check_config(config, tmp_path)
    config.keep_last = 1  # 2 since: how a run is kept, not what it computes
    read = workdir.read_config(tmp_path)
    assert workdir.flatten(read) == workdir.flatten(config)
    assert json.loads(read.to_json()) == json.loads(config.to_json())
    workdir.check_config(config, tmp_path)


def test_there_are_old_configs():
    tasks = {json.loads(path.read_text())["task"] for path in OLD}
    assert tasks == {"findings", "lungs", "seam", "severity"}
    assert all("extra" in json.loads(path.read_text()) for path in OLD)


def test_a_config_of_today_is_left_as_it_is():
    saved = json.loads(golden_configs.module("lungs").get_config("cohen,method=semi").to_json())
    assert migrations.migrate(saved) == saved


def test_renamed_fields_keep_their_values_and_the_dict_that_was_read_stays():
    old = json.loads(OLD[0].read_text())
    old["data"] |= {"name": "phantom_ct", "heavy": 0.3, "test_heavy": 0.7}
    old["extra"] |= {"name": "phantom_cxr", "heavy": 0.2, "test_heavy": 0.1, "labels": "given"}
    old |= {"regime": {"extra_fraction": 0.4}, "teaching": {"extra_fraction": 0.6}}
    before = json.dumps(old)
    new = migrations.migrate(old)
    assert json.dumps(old) == before
    assert (new["data"]["disease_extent"], new["data"]["test_disease_extent"]) == (0.3, 0.7)
    assert (new["second"]["disease_extent"], new["second"]["labels"]) == (0.2, "given")
    assert new["second"]["test_disease_extent"] == 0.1
    added = {"refresh_batches": 0, "teacher_decay": 0.0}
    assert new["regime"] == {"second_fraction": 0.4, **added}
    assert new["teaching"] == {"second_fraction": 0.6}
    assert "extra" not in new
    assert "diseased" not in new["data"]
    unknown = migrations.migrate({"extra": {"name": ""}, "data": {"name": "gone", "a": 1}})
    added = {name: value for name, value in migrations.ADDED.items() if "." not in name}
    assert unknown == {"second": {"name": ""}, "data": {"name": "gone", "a": 1}} | added


def test_a_run_of_before_its_exponents_were_fields_had_those_of_the_paper():
    saved = json.loads(golden_configs.module("adpd").get_config("quick").to_json())
    old = {name: value for name, value in saved.items() if name not in ("asl", "mil_sharpness")}
    assert migrations.migrate(old) == saved


@pytest.mark.parametrize("method, today", [("adain", "pairs"), ("semi", "semi")])
def test_what_is_pairs_today_was_called_adain(method, today):
    block = {"code_size": 16, "normalise_weight": 1.0, "distil_weight": 1.0}
    new = migrations.migrate({"task": "lungs", "method": method, "adain": block, "data": {}})
    assert new["method"] == today
    assert new.get("pairs") == (block if today == "pairs" else None)
    assert "adain" not in new


@pytest.mark.parametrize(
    "name, options, version",
    [
        ("phantom_cxr", {}, "1.0.0+seed0,256px,standard,heavy0"),
        (
            "phantom_cxr",
            {"disease_extent": 0.4, "appearance": "mixed", "diseased": 0.5, "first": 2},
            "1.0.0+seed0,256px,mixed,heavy0.4,diseased0.5,from2",
        ),
        ("phantom_ct", {"size": 64}, "1.0.0+seed0,64px,32slices,positive0.6,label4"),
        (
            "phantom_ct",
            {"size": 64, "disease_extent": 1.0, "label_every": 1},
            "1.0.0+seed0,64px,32slices,positive0.6,heavy1",
        ),
    ],
)
def test_the_versions_that_old_work_directories_compare_stay(name, options, version):
    assert sources.open_source(sources.block(name, **options), "train").version == version


def test_what_is_renamed_or_added_later_is_read_in_todays_configs_too(monkeypatch):
    saved = json.loads(golden_configs.module("severity").get_config("smoke").to_json())
    monkeypatch.setitem(migrations.RENAMED, "optimizer.lr", "optimizer.learning_rate")
    monkeypatch.setitem(migrations.ADDED, "optimizer.ema", 0.5)
    monkeypatch.setitem(migrations.ADDED, "seed", 99)  # is there: stays
    new = migrations.migrate(saved)
    assert new["optimizer"]["learning_rate"] == saved["optimizer"]["lr"]
    assert "lr" not in new["optimizer"]
    assert new["optimizer"]["ema"] == 0.5
    assert new["seed"] == saved["seed"]
    assert new["data"] == saved["data"]


def test_an_option_that_came_later_is_what_it_was_in_the_block_of_its_set():
    saved = json.loads(golden_configs.module("findings").get_config("cxr3").to_json())
    assert saved["data"].pop("test_fold") == 4
    saved["second"] = {"name": "cxr_3class", "labels": "given", "test_fold": 2}
    new = migrations.migrate(saved)
    assert (new["data"]["test_fold"], new["second"]["test_fold"]) == (4, 2)
    other = json.loads(golden_configs.module("severity").get_config("smoke").to_json())
    assert migrations.migrate(other) == other


def test_the_corpus_papers_severity_model_is_frozen_unless_it_is_said():
    get = golden_configs.module("severity").get_config
    assert not get("paper=corpus").model.train_backbone
    assert get("paper=corpus,trained=1").model.train_backbone
    assert get("paper=corpus,backbone=resnet50_hybrid").model.train_backbone  # has no corpus
    with pytest.raises(InputError, match="trained=1 is an option of paper=corpus"):
        get("trained=1")


def test_a_frozen_corpus_is_required(tmp_path):
    config = golden_configs.module("severity").get_config("smoke,paper=corpus")
    config = config.copy_and_resolve_references()
    config.devices, config.model.train_backbone = 1, False  # as without `smoke`
    with pytest.raises(InputError, match="init_from"):
        train.train(config, tmp_path / "run")


def test_few_labels_are_in_the_papers_proportions():
    config = golden_configs.module("severity").get_config("fewlabels,regime=progressive")
    labelled, all_films = config.data.train, config.data.train + config.second.train
    assert labelled / all_films == pytest.approx(452 / 3787, abs=0.001)
    drawn = config.regime.stage_steps * config.batch_size
    assert drawn / labelled == pytest.approx(2000 * 8 / 452, rel=0.03)
    assert drawn / all_films == pytest.approx(2000 * 8 / 3787, rel=0.03)
    assert config.total_steps == (1 + config.regime.shares) * config.regime.stage_steps
    assert not config.model.train_backbone


def test_the_second_hospital_has_a_scanner_and_a_reader_of_its_own():
    config = golden_configs.module("severity").get_config("hospitals,regime=progressive")
    assert (config.data.reader, config.data.appearance) == ("exact", "standard")
    assert (config.second.reader, config.second.appearance) == ("strict", "shifted")
    assert config.data.test_appearance == "shifted"
    first, second = (
        sources.open_source(
            sources.block("phantom_cxr", train=12, size=128, reader=reader), "train"
        )
        for reader in ("exact", "strict")
    )
    assert first.version != second.version
    scores = [[film["severity"] for film in source] for source in (first, second)]
    assert {0, 1, 2} <= set(np.ravel(scores[0]))
    np.testing.assert_array_equal(np.maximum(np.subtract(scores[0], 1), 0), scores[1])
    with pytest.raises(InputError, match=r"data\.reader='kind'; expected one of exact, strict"):
        sources.open_source(sources.block("phantom_cxr", reader="kind"), "train")


def test_the_list_of_self_training_is_what_it_says():
    plan = sweep_rows.read_list(ROOT / "configs" / "sweeps" / "selftraining_phantoms.toml")
    runs = sweep_rows.make_runs(dataclasses.replace(plan, seeds=(3,)), ROOT, split="test")
    found = {run.row.name: run.config for run in runs}
    settings = {
        name.removeprefix("progressive, "): (c.regime.refresh_batches, c.regime.teacher_decay)
        for name, c in found.items()
        if name.startswith("progressive")
    }
    assert settings == {
        "as published": (0, 0.0),
        "refreshed statistics": (40, 0.0),
        "average as teacher": (0, 0.98),
        "both": (40, 0.98),
    }
    del found["corpus"]
    assert {c.data.first for c in found.values()} == {1300}
    assert {c.init_from for c in found.values()} == {str(ROOT / "corpus" / "seed-3")}


@pytest.mark.parametrize("file", sorted(config_files.packaged()))
def test_help_tells_every_config_its_variants_and_every_field(file, monkeypatch, capsys):
    def told(*args):
        monkeypatch.setattr(sys, "argv", ["main", *args, "--help"])
        with pytest.raises(SystemExit) as end:
            main.main()
        assert end.value.code == 0
        return capsys.readouterr().out

    assert f"  {file} " in told()
    text = told(f"--config={file}:quick")
    module = config_files.load(pathlib.Path(file))
    for variant in module.VARIANTS:
        assert not variant or f"| {variant} |" in text, variant
    fields = text.split("Every field")[1]
    for path in meanings.fields(module.get_config("quick")):
        (line,) = [line for line in fields.splitlines() if line.split(" ")[0] == path]
        assert re.search(r" {3}\S", line.split("=", 1)[1]), f"{path} has no meaning"


def test_help_shows_the_fields_as_they_are_overridden(monkeypatch, capsys):
    args = ["--config=severity.py:quick", "--config.data.name=phantom_ct", "--config.seed=7"]
    monkeypatch.setattr(sys, "argv", ["main", *args, "--help"])
    with pytest.raises(SystemExit):
        main.main()
    text = capsys.readouterr().out
    assert re.search(r"^data\.slices +=", text, re.M)
    assert re.search(r"^seed += 7 ", text, re.M)
