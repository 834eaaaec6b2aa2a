"""External tests: a label of their own, and no patient that was trained on."""

import json

import cv2
import pytest

from configs import severity as severity_config
from cxr_jax import workdir as workdirs
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from cxr_jax.inputs import external
from tests.data import fake_sets
from tests.data.dicom_films import grey_film


def write_table(folder, rows, *, first=0):
    """A CSV of films drawn for it: `rows` are (patient, split)."""
    folder.mkdir()
    lines = ["image,group,split"]
    for k, (patient, split) in enumerate(rows):
        cv2.imwrite(str(folder / f"{k}.png"), grey_film(first + k, 40))
        lines.append(f"{k}.png,{patient},{split}")
    (folder / "films.csv").write_text("\n".join(lines))
    return folder / "films.csv"


OWN = [("p0", "train"), ("p1", "train"), ("p2", "test")]


def config_of(path):
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    config.data = sources.block("manifest", path=str(path))
    return config


@pytest.fixture
def run(tmp_path):
    """(folder, its config) of a run that was trained on the table OWN."""
    workdir = tmp_path / "run"
    workdir.mkdir()
    config = config_of(write_table(tmp_path / "own", OWN))
    (workdir / "config.json").write_text(config.to_json())
    source = sources.open_source(config.data, "train")
    data = {"name": source.name, "version": source.version, "train": len(source)}
    (workdir / "data.json").write_text(json.dumps(data))
    return workdir, config


def label(config, workdir, split="test", earlier=()):
    return external.label(config, workdir, split=split, earlier=dict(earlier))


def evaluation(config, split="test"):
    return {"source": external.described(config, split)}


def test_the_runs_own_data_keep_their_label_where_they_are_moved_to(run, tmp_path):
    workdir, config = run
    assert label(config, workdir) == "test"
    assert label(config, workdir, "train") == "train"
    (tmp_path / "own").rename(tmp_path / "moved")
    moved = config_of(tmp_path / "moved" / "films.csv")
    assert label(moved, workdir) == "test"
    assert label(moved, workdir, earlier={"test": evaluation(moved)}) == "test"


@pytest.mark.parametrize("evaluated", [False, True])
def test_another_table_never_gets_the_label_of_the_runs_own(run, tmp_path, evaluated):
    workdir, config = run
    earlier = {"test": evaluation(config)} if evaluated else {}
    other = config_of(write_table(tmp_path / "b", [("q", "test"), ("r", "train")], first=5))
    assert label(other, workdir, earlier=earlier).startswith("manifest-")
    tested = config_of(write_table(tmp_path / "c", [("q", "test")], first=8))  # nothing to train on
    assert label(tested, workdir, earlier=earlier).startswith("manifest-")
    assert label(tested, workdir, earlier=earlier) != label(other, workdir, earlier=earlier)
    # Nor the same table, once it is changed.
    path = tmp_path / "own" / "films.csv"
    path.write_text(path.read_text().replace("p2", "p3"))
    assert label(config, workdir, earlier=earlier).startswith("manifest-")


def test_other_options_of_one_set_are_other_data(run):
    workdir, _ = run
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    (workdir / "config.json").write_text(config.to_json())
    source = sources.open_source(config.data, "train")
    data = {"name": source.name, "version": source.version, "train": len(source)}
    (workdir / "data.json").write_text(json.dumps(data))
    assert label(config, workdir) == "test"
    fewer = config.copy_and_resolve_references()
    fewer.data.test = 2
    assert label(fewer, workdir).startswith("phantom_cxr-")
    assert label(fewer, workdir, earlier={"test": evaluation(config)}).startswith("phantom_cxr-")
    # An evaluation of an older run says less.
    older = {"test": {"data": {"version": source.version}}}
    assert label(config, workdir, earlier=older) == "test"
    fewer.data.seed += 1
    assert label(fewer, workdir, earlier=older).startswith("phantom_cxr-")


def test_two_external_tables_do_not_share_a_label(run, tmp_path):
    workdir, _ = run
    phantoms = severity_config.get_config("smoke")
    (workdir / "config.json").write_text(phantoms.to_json())
    one = config_of(write_table(tmp_path / "a", [("q", "test")]))
    two = config_of(write_table(tmp_path / "b", [("r", "test")], first=5))
    assert label(one, workdir) == label(two, workdir) == "manifest-test"
    earlier = {"manifest-test": evaluation(one)}
    assert label(one, workdir, earlier=earlier) == "manifest-test"
    assert label(two, workdir, earlier=earlier) not in ("manifest-test", "test")


@pytest.mark.parametrize(
    "rows, first, words",
    [
        ([("p0", "test"), ("q", "test")], 5, "1 patients, e.g. 'p0' and 0 films"),
        ([("q", "test"), ("r", "test")], 1, "0 patients and 1 films"),  # p1's film, renamed
        ([("p2", "test")], 2, None),  # of the run's test split
        ([("q", "test")], 7, None),
    ],
)
def test_patients_and_films_that_were_trained_on_are_refused(run, tmp_path, rows, first, words):
    workdir, _ = run
    config = config_of(write_table(tmp_path / "other", rows, first=first))
    if words is None:
        seen = external.check_unseen(config, workdir, split="test", allowed=False)
        assert seen == {"patients": 0, "films": 0}
        return
    with pytest.raises(InputError, match=f"{words}.*give --allow_seen"):
        external.check_unseen(config, workdir, split="test", allowed=False)
    seen = external.check_unseen(config, workdir, split="test", allowed=True)
    assert sum(seen.values()) == 1


def test_a_training_set_that_is_gone_is_told(run, tmp_path, capsys):
    workdir, _ = run
    (tmp_path / "own" / "films.csv").unlink()
    config = config_of(write_table(tmp_path / "other", [("p0", "test")]))
    assert external.check_unseen(config, workdir, split="test", allowed=False) == {}
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("not looked whether these patients were trained on: ")
    assert workdirs.trained_on(workdir)


def start_from(config, start, rows, folder):
    """The config of another table, started from the run `start`."""
    config = config_of(write_table(folder, **rows))
    config.init_from = str(start)
    return config


@pytest.mark.parametrize(
    "rows, words",
    [
        (dict(rows=[("p0", "test")], first=50), "1 patients and 0 films"),
        (dict(rows=[("other", "test")], first=1), "0 patients and 1 films"),
    ],
)
def test_no_run_starts_from_one_that_has_seen_its_test_films(run, tmp_path, rows, words):
    workdir, config = run
    other = start_from(config, workdir, rows, tmp_path / "other")
    with pytest.raises(InputError, match=f"init_from=.* was trained on {words} of what this run"):
        external.check_start(other, split="test")


def test_a_start_from_other_patients_is_fine(run, tmp_path):
    workdir, config = run
    rows = dict(rows=[("p7", "test"), ("p0", "train")], first=50)
    external.check_start(start_from(config, workdir, rows, tmp_path / "other"), split="test")
    config.init_from = str(workdir)  # the next step on the same films
    external.check_start(config, split="test")
    config.init_from = str(tmp_path / "weights.safetensors")  # says nothing of its films
    external.check_start(config, split="test")


def test_another_test_fold_than_that_of_the_start_is_refused(tmp_path):
    prepared = tmp_path / "data"
    fake_sets.run_prepare("cxr_3class", fake_sets.make_3class(tmp_path / "set"), prepared)
    config = config_of("")
    config.data = sources.block("cxr_3class", data_dir=str(prepared), test_fold=4, fold=3)
    start = tmp_path / "start"
    start.mkdir()
    (start / "config.json").write_text(config.to_json())
    config.init_from = str(start)
    external.check_start(config, split="test")
    config.data.test_fold, config.data.fold = 1, 0
    with pytest.raises(InputError, match=r"e\.g\. of the same folds"):
        external.check_start(config, split="test")


@pytest.fixture(scope="module")
def overlapping(tmp_path_factory):
    """Where brixia_cohen and cxr_3class are prepared: patient c2, in the test fold of the one, is
    among the training films of the other, there as another file."""
    root = tmp_path_factory.mktemp("overlap")
    cohen = fake_sets.make_prepared(root / "cohen")
    for number in (2, 3):
        fake_sets.edit(cohen / "annotations.csv", number + 2, "group", "c2")
    fake_sets.run_prepare("brixia_cohen", cohen, root / "data")
    fake_sets.run_prepare("cxr_3class", fake_sets.make_3class(root / "three"), root / "data")
    return root / "data"


@pytest.mark.parametrize(
    "data",
    [
        dict(name="brixia_cohen"),
        dict(name="brixia_cohen", min_severity=9, max_severity=12),  # some of the films
        dict(name="films", sets="brixia_cohen"),  # patients under other names there
    ],
    ids=str,
)
def test_a_start_that_has_seen_a_shared_patient_of_another_set_is_refused(
    overlapping, tmp_path, data
):
    def block(name, **options):
        return sources.block(name, data_dir=str(overlapping), **options)

    start = config_of("")
    start.data = block(**data)
    (tmp_path / "config.json").write_text(start.to_json())
    config = config_of("")
    config.init_from = str(tmp_path)
    config.data = block("cxr_3class")
    with pytest.raises(InputError, match="trained on 1 patients and 0 films"):
        external.check_start(config, split="test")
    config.data = block("cxr_3class", test_fold=2, fold=3)  # c2 is in fold 4
    external.check_start(config, split="test")
    config.data = block("cxr_3class", leave_out_overlap=True)
    external.check_start(config, split="test")
