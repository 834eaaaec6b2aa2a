"""What may stand in one table: runs of one config, data of one version, starts of one kind."""

import json

import numpy as np
import pytest

from configs import severity as severity_config
from cxr_jax import comparable, report, workdir
from cxr_jax.data import sources
from cxr_jax.errors import InputError
from tests.test_report import rows


def made(folder, *, scored="1", trained="", **fields):
    """A run that is as good as trained and evaluated."""
    config = severity_config.get_config("smoke").copy_and_resolve_references()
    config.update_from_flattened_dict(fields)
    workdir.claim(config, folder, sources.open_source(config.data, "train"))
    if trained:
        data = json.loads((folder / "data.json").read_text()) | {"version": trained}
        (folder / "data.json").write_text(json.dumps(data))
    evaluation = {"data": {"name": "films", "version": scored}}
    (folder / "results.json").write_text(json.dumps({"evaluations": {"test": evaluation}}))
    np.savez(folder / "rows-test.npz", **rows(0.5, ids="abc"))
    return folder


def pooled(*folders):
    return report.report(list(folders), "test", pool=False, resamples=0)


def test_repetitions_of_one_start_are_pooled_and_their_starts_named(tmp_path):
    starts = [made(tmp_path / f"start-{seed}", seed=seed) for seed in (0, 1)]
    runs = [
        made(tmp_path / f"run-{seed}", seed=seed, init_from=str(start))
        for seed, start in enumerate(starts)
    ]
    text = pooled(*runs)
    assert f"began with {starts[0]}, {starts[1]}: repetitions of one another." in text
    text = report.compare({"A": runs, "B": runs[:1]}, "test")
    assert f"The runs of A began with {starts[0]}, {starts[1]}" in text
    assert "The runs of B" not in text


def test_starts_of_two_kinds_are_refused_and_the_field_is_named(tmp_path):
    starts = [made(tmp_path / "a"), made(tmp_path / "b", **{"augment.rotate_deg": 9.0})]
    runs = [made(tmp_path / f"r{i}", init_from=str(start)) for i, start in enumerate(starts)]
    with pytest.raises(InputError, match=r"r1 began otherwise.*config\.augment\.rotate_deg"):
        pooled(*runs)
    with pytest.raises(InputError, match="with a start and without one are two kinds"):
        pooled(runs[0], made(tmp_path / "none"))
    older = made(tmp_path / "older", trained="0.9")
    with pytest.raises(InputError, match=r"began otherwise.*older on phantom_cxr 0\.9, 8 rec"):
        pooled(runs[0], made(tmp_path / "r2", init_from=str(older)))


def test_starts_that_cannot_be_compared_are_said_to_be_so(tmp_path):
    runs = [made(tmp_path / name, init_from=f"{name}.pth") for name in "ab"]
    assert "began with a.pth, b.pth: NOT COMPARED" in pooled(*runs)


def test_other_versions_of_the_data_are_refused(tmp_path):
    run = made(tmp_path / "run")
    scored, trained = made(tmp_path / "scored", scored="2"), made(tmp_path / "old", trained="0.9")
    with pytest.raises(InputError, match=r"run was scored on films 1, and .* on films 2"):
        pooled(run, scored)
    with pytest.raises(InputError, match=r"scored on films 1, and .* on films 2"):
        report.compare({"A": [run], "B": [scored]}, "test")
    comparable.check_scored([run, scored], "test", pooled=True)  # folds are parts of one set
    with pytest.raises(InputError, match=r"old on phantom_cxr 0\.9, 8 records"):
        pooled(run, trained)


def test_kinds_that_were_trained_on_other_films_are_told_apart(tmp_path):
    run, more = made(tmp_path / "run"), made(tmp_path / "more", **{"data.train": 12})
    text = report.compare({"A": [run], "B": [more]}, "test")
    assert "Not trained on the same films. A: phantom_cxr" in text
    assert "12 records" in text
    assert "Not trained" not in report.compare({"A": [run], "B": [run]}, "test")


def test_labelled_phantoms_are_part_of_the_seed(tmp_path):
    runs = [made(tmp_path / f"{first}", **{"data.first": first}) for first in (0, 8)]
    assert "2 runs" in pooled(*runs)
