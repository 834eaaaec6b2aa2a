"""Lesion space: elbow, clusters, types, files; from lesions by hand and from a run."""

import csv
import dataclasses
import json

import numpy as np
import pytest

from configs import lesions as config_file
from cxr_jax import train
from cxr_jax.errors import InputError
from cxr_jax.lesion_space import __main__ as command
from cxr_jax.lesion_space import collected, pictures, space, written
from cxr_jax.lesion_space.collected import Found


class Slices:
    """Grey slices, ten of a patient."""

    name, split = "slices", "test"

    def __len__(self):
        return 30

    def __getitem__(self, index):
        return {"image": np.full((40, 40), index, np.uint8), "group": f"p{index // 10}"}


def lesions(features, types=None, masked=True):
    count = len(features)
    numbers = np.arange(count) % 30
    return Found(
        source=Slices(),
        slices=numbers,
        ids=np.array([f"s{k}" for k in numbers], object),
        boxes=np.tile(np.array([5, 6, 15, 20], np.float32), (count, 1)),
        points=np.tile(np.array([8, 9], np.float32), (count, 1)),
        heat=np.ones(count, np.float32),
        probs=np.full(count, 0.75, np.float32),
        features=np.asarray(features, np.float32),
        brightness=np.linspace(50, 200, count, dtype=np.float32),
        types=np.full(count, -1) if types is None else np.asarray(types),
        masked=np.full(count, masked),
        on_lesion=np.zeros(count, bool) if types is None else np.asarray(types) > 0,
    )


@pytest.fixture(scope="module")
def three():
    """Three groups of lesions, far apart; the first two are of known types."""
    rng = np.random.default_rng(0)
    centres = np.array([[0.0] * 6, [9.0] * 6, [-9.0] * 6])
    features = np.concatenate([centre + rng.normal(size=(12, 6)) for centre in centres])
    return lesions(features, types=[2] * 12 + [1] * 12 + [-1] * 12)


def test_the_elbow_of_curves_by_hand():
    assert space.elbow(np.array([100.0, 20.0, 10.0, 8.0, 7.0])) == 2
    assert space.elbow(np.array([100.0, 60.0, 20.0, 15.0, 12.0, 10.0])) == 3
    assert space.elbow(np.array([3.0, 2.0, 1.0])) == 1  # a straight line
    assert space.elbow(np.array([5.0, 5.0, 5.0])) == 1
    assert space.elbow(np.array([5.0])) == space.elbow(np.array([5.0, 1.0])) == 1


def test_k_by_the_elbow_and_the_types_of_clusters(three):
    fitted = space.fit(three, network="n", clusters=0, seed=0)
    assert len(fitted) == 3
    assert len(fitted.distances) == space.MOST_CLUSTERS
    placed = fitted.place(three.features)
    groups = placed["cluster"].reshape(3, 12)
    assert (groups == groups[:, :1]).all()
    assert len(set(groups[:, 0])) == 3
    assert [int(fitted.types[c]) for c in groups[:, 0]] == [2, 1, -1]
    again = space.fit(three, network="n", clusters=3, seed=0)
    np.testing.assert_allclose(again.centres, fitted.centres, rtol=1e-6)
    assert not len(again.distances)


def test_more_clusters_than_lesions_is_one_line(three):
    with pytest.raises(InputError, match="--clusters=37: there are 36 lesions on the 30 slices"):
        space.fit(three, network="n", clusters=37, seed=0)


def test_equal_lesions_are_one_cluster():
    same = lesions(np.ones((5, 4)))
    fitted = space.fit(same, network="n", clusters=0, seed=0)
    assert len(fitted) == 1
    assert len(space.fit(same, network="n", clusters=2, seed=0)) == 2
    assert np.isfinite(space.in_two_dimensions(same.features, 0)).all()


@pytest.mark.parametrize("count", [0, 1, 3, 4, 40])
def test_two_dimensions_of_any_number(count):
    features = np.random.default_rng(1).normal(size=(count, 60))
    places = space.in_two_dimensions(features, 0)
    assert places.shape == (count, 2)
    assert np.isfinite(places).all()


def test_a_space_is_saved_read_and_held_to_its_network(three, tmp_path):
    fitted = space.fit(three, network="abc", clusters=3, seed=0)
    fitted.save(tmp_path / "space.npz")
    back = space.read(tmp_path / "space.npz", network="abc")
    np.testing.assert_array_equal(back.centres, fitted.centres)
    np.testing.assert_array_equal(back.types, fitted.types)
    with pytest.raises(InputError, match="made with another network"):
        space.read(tmp_path / "space.npz", network="abd")
    with pytest.raises(InputError, match="is no file"):
        space.read(tmp_path / "none.npz", network="abc")
    np.savez(tmp_path / "other.npz", centres=np.zeros((2, 3)))
    with pytest.raises(InputError, match="is no lesion space"):
        space.read(tmp_path / "other.npz", network="abc")
    np.savez(
        tmp_path / "broken.npz",
        centres=np.full((2, 3), np.nan),
        types=np.zeros(2, int),
        distances=np.zeros(0),
        network=np.array("abc"),
    )
    with pytest.raises(InputError, match="damaged lesion space"):
        space.read(tmp_path / "broken.npz", network="abc")
    np.save(tmp_path / "pickle.npz", np.array([{}], object), allow_pickle=True)
    with pytest.raises(InputError):
        space.read(tmp_path / "pickle.npz", network="abc")


def test_files_of_lesions_by_hand(three, tmp_path):
    fitted = space.fit(three, network="n", clusters=3, seed=0)
    report = written.write(tmp_path, None, three, fitted, slices=0, seed=0)
    rows = list(csv.DictReader((tmp_path / "lesions.csv").open()))
    assert len(rows) == 36
    assert tuple(rows[0]) == written.COLUMNS
    assert [row["lesion"] for row in rows if row["slice"] == "s0"] == ["1", "2"]
    assert rows[0]["type"] == "consolidation"
    assert rows[-1]["type"] == ""
    assert (rows[0]["x0"], rows[0]["place_y"]) == ("5.0", "9.0")
    assert report["metrics"]["sensitivity_ground_glass"] == {"value": 1.0, "n": 12}
    assert report["metrics"]["places_on_a_lesion"]["value"] == pytest.approx(2 / 3, abs=1e-4)
    assert report["metrics"]["mean_sensitivity"]["value"] == 1.0
    assert 0.4 < report["metrics"]["chance_mean_sensitivity"]["value"] < 0.9
    # Grey levels rise with the lesions' numbers: the types are two of the three thirds.
    assert report["metrics"]["brightness_mean_sensitivity"]["value"] == 1.0
    assert sum(cluster["lesions"] for cluster in report["clusters"]) == 36
    assert {"space.png", "clusters.png", "space.npz", "report.json"} <= {
        path.name for path in tmp_path.iterdir()
    }
    assert "stands for ground glass" in written.told(report)


def test_a_space_that_is_applied_keeps_what_its_clusters_stand_for(three, tmp_path):
    """Lesions that look like consolidation and are ground glass are mistakes, not another name."""
    fitted = space.fit(three, network="n", clusters=3, seed=0)
    turned = dataclasses.replace(three, types=np.array([1] * 12 + [2] * 12 + [-1] * 12))
    report = written.write(tmp_path, None, turned, fitted, slices=0, seed=0)
    assert report["metrics"]["mean_sensitivity"]["value"] == 0.0


def test_places_on_lesions_of_no_known_type_are_counted(three, tmp_path):
    untyped = dataclasses.replace(
        three, types=np.full(36, -1), on_lesion=np.arange(36) < 27, masked=np.full(36, True)
    )
    fitted = space.fit(untyped, network="n", clusters=3, seed=0)
    report = written.write(tmp_path, None, untyped, fitted, slices=0, seed=0)
    assert report["metrics"]["places_on_a_lesion"] == {"value": 0.75, "n": 36}
    assert report["metrics"]["cluster_accuracy"]["value"] is None
    assert "mean_sensitivity" not in report["metrics"]


def test_no_lesion_at_all_is_an_empty_result(tmp_path):
    none = lesions(np.zeros((0, 6)))
    fitted = space.fit(none, network="n", clusters=3, seed=0)
    report = written.write(tmp_path, None, none, fitted, slices=4, seed=0)
    assert report["lesions"] == 0
    assert report["clusters"] == []
    assert (tmp_path / "lesions.csv").read_text() == ",".join(written.COLUMNS) + "\n"
    assert space.read(tmp_path / "space.npz", network="n").centres.shape == (0, 6)
    assert written.told(report).startswith("0 lesions on 0 of 30 slices")


def test_slices_with_most_lesions_are_drawn_a_patient_each():
    found = lesions(np.zeros((6, 2)))
    object.__setattr__(found, "slices", np.array([3, 3, 4, 4, 12, 25]))
    assert pictures.chosen_slices(found, 4) == [3, 12, 25, 4]


# A run.


@pytest.fixture(scope="module")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("lesions") / "run"
    config = config_file.get_config("smoke").copy_and_resolve_references()
    config.gate, config.figures, config.devices = "none", 1, 1
    assert train.train(config, folder)
    return folder


def test_the_command_writes_a_space_and_applies_it_to_other_slices(run_folder, tmp_path, capsys):
    command.main([f"--workdir={run_folder}", "--clusters=2", "--slices=2"])
    folder = run_folder / "lesion_space" / "test"
    report = json.loads((folder / "report.json").read_text())
    assert report["lesions"] > 2
    assert len(report["clusters"]) == 2
    assert len(list((folder / "slices").iterdir())) == 2
    assert "lesions on" in capsys.readouterr().out
    args = [f"--workdir={run_folder}", "--split=val", f"--output={tmp_path}", "--slices=0"]
    command.main([*args, f"--apply={folder / 'space.npz'}"])
    first = np.load(folder / "space.npz")["centres"]
    np.testing.assert_array_equal(np.load(tmp_path / "space.npz")["centres"], first)
    assert json.loads((tmp_path / "report.json").read_text())["slices"] == 16


def test_features_are_those_of_the_place(run_folder):
    run = collected.load(run_folder)
    found = collected.collect(run, "test")
    assert len(found)
    assert found.features.shape[1] == 4 * 8 * 4  # the last block of three, bottleneck
    name = run.task.maps[0]
    at = int(found.slices[0])
    outputs = run.predict([found.source[at]])[0]
    told = run.task.found(outputs[f"{name}_heat"][None], outputs["probs"][None], name)
    boxes, _ = run.task.on_slices(told, [found.source[at]])
    np.testing.assert_allclose(boxes, found.boxes[found.slices == at], atol=1e-3)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--clusters=-1"], "--clusters=-1; expected at least 1, or 0"),
        (["--clusters=2", "--apply=x.npz"], "exclude each other"),
        (["--slices=-1"], "--slices=-1"),
        (["--apply=x.npz"], "x.npz is no file"),
    ],
)
def test_wrong_arguments_are_one_line(run_folder, args, words):
    with pytest.raises(InputError, match=words):
        command.main([f"--workdir={run_folder}", *args])
