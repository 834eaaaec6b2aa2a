"""The audit: planted shortcuts and copies are found, and nothing where there is none."""

import json
import pathlib

import cv2
import numpy as np
import pytest
from fake_sets import brixia_config, make_prepared, run_prepare, write_csv

from cxr_jax.data import sources
from cxr_jax.data.audit import __main__ as command
from cxr_jax.data.audit import duplicates, features, films, quick, report, shortcuts, stored, tables
from cxr_jax.data.phantoms import phantom
from cxr_jax.data.phantoms.ct import ct_slice
from cxr_jax.errors import InputError

COUNT = 60
# Drawn once without a look at the films.
CLASS = np.random.default_rng(1).permutation(COUNT) % 2


@pytest.fixture(scope="module")
def chests():
    """One film each of 60 phantom patients."""
    return [phantom(3, 2 * i, 128)["image"] for i in range(COUNT)]


@pytest.fixture(autouse=True)
def _small_forests(monkeypatch):
    monkeypatch.setattr(report, "TREES", 20)
    monkeypatch.setattr(report, "QUICK_TREES", 20)


class InMemory:
    """A source of given records."""

    name, version = "memory", "1"

    def __init__(self, records, split="train"):
        self.records, self.split = records, split
        self.fields, self.partial = frozenset(records[0]), frozenset()

    def __len__(self):
        return len(self.records)

    def __getitem__(self, index):
        return self.records[index]


def source_of(pictures, diagnoses, split="train", start=0):
    return InMemory(
        [
            {"image": picture, "id": f"{split}{i}", "group": f"p{start + i}", "diagnosis": int(k)}
            for i, (picture, k) in enumerate(zip(pictures, diagnoses))
        ],
        split,
    )


def audited(*opened, prints=False, most=1000):
    return report.audit(films.collect(opened, most=most, prints=prints), quick=True)


# What is told from trivial features.


def test_a_set_without_shortcuts_is_at_chance(chests):
    found = audited(source_of(chests, CLASS))
    label = found["labels"]["diagnosis"]
    assert label["chance"] == {"accuracy": 0.5, "balanced_accuracy": 0.5, "auc": 0.5}
    measured = {by: scores for by, scores in label["told"].items() if scores}
    assert measured.keys() == {*features.GROUPS, "all"} - {"size"}
    for scores in measured.values():
        balanced = scores["balanced_accuracy"]
        # Three standard errors: with six groups, one 95% interval in four tests leaves chance out.
        assert abs(balanced["value"] - 0.5) < 3 / 3.92 * (balanced["high"] - balanced["low"])
    assert label["told"]["size"] is None  # all of one size
    assert found["warnings"] == []


def written(film):
    marked = film.copy()
    cv2.putText(marked, "AP 12", (4, 16), cv2.FONT_HERSHEY_SIMPLEX, 0.45, 255, 1)
    return marked


def only_at_the_edges(film, changed):
    inside = slice(26, -26)  # of 128 px: all but the outer fifth
    changed[inside, inside] = film[inside, inside]
    return changed


PLANTED = {
    "size": lambda film: cv2.resize(film, (120, 128)),
    "brightness": lambda film: cv2.add(film, 40),
    "borders": lambda film: cv2.copyMakeBorder(film[4:-4], 4, 4, 0, 0, cv2.BORDER_CONSTANT),
    "text": written,
    "file": lambda film: cv2.GaussianBlur(film, (5, 5), 0),
    "texture": lambda film: only_at_the_edges(film, cv2.GaussianBlur(film, (5, 5), 0)),
}


@pytest.mark.parametrize("group", features.GROUPS)
def test_a_planted_shortcut_is_found_in_its_group(chests, group):
    pictures = [PLANTED[group](f) if k else f for f, k in zip(chests, CLASS)]
    found = audited(source_of(pictures, CLASS))
    scores = found["labels"]["diagnosis"]["told"][group]
    assert scores["balanced_accuracy"]["value"] > 0.85
    assert scores["balanced_accuracy"]["low"] > 0.7
    assert scores["auc"]["value"] > 0.9
    (warning,) = found["warnings"]
    assert warning.startswith("diagnosis: classes can be told apart from ")
    assert group in warning
    assert "(chance 0.50" in warning


def test_what_a_network_sees_keeps_the_texture_but_not_size_file_and_brightness(chests):
    def changed(film):
        wide = cv2.copyMakeBorder(cv2.add(film, 40), 0, 0, 10, 10, cv2.BORDER_CONSTANT)
        return cv2.GaussianBlur(wide, (9, 9), 0)

    pictures = [changed(f) if k else f for f, k in zip(chests, CLASS)]
    seen = films.collect([source_of(pictures, CLASS)], most=1000, seen=films.Seen(128))
    found = report.audit(seen, quick=True)
    told = found["labels"]["diagnosis"]["told"]
    assert told["size"] is None
    assert told["texture"]["balanced_accuracy"]["value"] > 0.9
    assert films.SEEN in report.text(found)
    assert films.Seen(128)(pictures[0]).std() > 60  # equalised


def test_of_a_ct_slice_the_network_sees_the_lungs(tmp_path, capsys):
    drawn = ct_slice(3, 1, 14, size=128)
    lungs = films.SeenLungs(64)(drawn["image"])
    assert lungs.shape == (64, 64)
    # Every corner is outside the lungs, and all of both lungs is there.
    assert not lungs[[0, 0, -1, -1], [0, -1, 0, -1]].any()
    assert 0.3 < (lungs > 0).mean() < 0.9
    options = [f"--{name}=2" for name in ("train", "test", "val")]
    sizes = ["--size=64", "--slices=8", "--label_every=1"]
    command.main(["phantom_ct", *options, *sizes, "--seen=64"])
    text = capsys.readouterr().out
    assert f"size, file: {films.SEEN_LUNGS}" in text
    assert "48 of 48 films looked at" in text


def test_a_patient_is_never_on_both_sides_of_a_fold():
    """Films of one patient share a number that tells the patient, and so the class, and no more."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(40), 6)
    told = shortcuts.told_by(
        rng.normal(size=(40, 1))[groups].astype(np.float32),
        (np.arange(40) % 2)[groups],
        groups,
        classes=("a", "b"),
        subsets={"all": [0]},
        trees=30,
    )["told"]["all"]["balanced_accuracy"]
    assert told["value"] < 0.65


@pytest.mark.parametrize(
    "labels, words",
    [
        ([1] * 20, "all films are of one class, 'b'"),
        ([-1] * 20, "no film has this label"),
        ([0] * 17 + [1] * 3, "class 'b' has films of 3 patients; 5 folds by patient need at least"),
    ],
)
def test_what_cannot_be_measured_is_null_with_a_reason(labels, words):
    told = shortcuts.told_by(
        np.ones((20, 1), np.float32),
        np.array(labels),
        range(20),
        classes=("a", "b"),
        subsets={"all": [0]},
        trees=5,
    )
    assert told["told"] is None
    assert told["chance"] is None
    assert words in told["reason"]


def test_numbers_that_are_right_by_hand():
    """Two classes, 30 and 10; all are called the first."""
    labels = np.array([0] * 30 + [1] * 10)
    probs = np.tile([0.9, 0.1], (40, 1))
    halves = [
        (np.arange(1, 40, 2), np.arange(0, 40, 2)),
        (np.arange(0, 40, 2), np.arange(1, 40, 2)),
    ]
    scores = shortcuts._scores(probs, labels, np.arange(40), halves)
    assert scores["accuracy"]["value"] == 0.75
    assert scores["balanced_accuracy"] == {"value": 0.5, "sd": 0.0, "low": 0.5, "high": 0.5}
    assert scores["auc"]["value"] == 0.5
    alone = [(np.arange(30, 40), np.arange(30)), (np.arange(30), np.arange(30, 40))]
    scores = shortcuts._scores(probs, labels, np.arange(40), alone)
    assert scores["auc"] == {"value": None, "sd": None}  # no fold has both classes


@pytest.mark.parametrize("shape", [(1, 300), (300, 1), (2, 2), (64, 64), (2000, 40)])
@pytest.mark.parametrize("grey", [0, 255, None])
def test_any_film_can_be_measured(shape, grey):
    rng = np.random.default_rng(0)
    film = rng.integers(0, 256, shape, np.uint8) if grey is None else np.full(shape, grey, np.uint8)
    row = features.measure(film, b"\xff\xd8")
    assert row.shape == (len(features.NAMES),)
    assert np.isfinite(row).all()
    print_ = duplicates.print_of(film)
    assert np.isfinite(print_.windows).all()
    other = duplicates.print_of(np.full((50, 50), 90, np.uint8))
    assert not any(
        np.isnan(pair.correlation) for pair in duplicates.find([print_, other], ["a", "b"])
    )


def test_features_by_hand():
    film = np.zeros((100, 200), np.uint8)
    film[10:80, 30:] = np.random.default_rng(0).integers(100, 200, (70, 170))
    row = dict(zip(features.NAMES, features.measure(film, b"\x89PNG" + b"0" * 19996).tolist()))
    assert (row["width"], row["height"], row["aspect"]) == (200, 100, 2)
    borders = [row[f"border_{side}"] for side in ("top", "bottom", "left", "right")]
    np.testing.assert_allclose(borders, [0.1, 0.2, 0.15, 0])
    assert row["mean"] == pytest.approx(film.mean())
    assert row["spread"] == pytest.approx(film.std(), rel=1e-5)
    assert row["p50"] == np.median(film)
    assert (row["is_png"], row["is_jpeg"], row["bytes_per_pixel"]) == (1, 0, 1)
    assert row["corner_0"] == 0


# Copies.


def cropped(share, down=0.5):
    def crop(film):
        side = round(len(film) * share)
        top = round((len(film) - side) * down)
        return film[top : top + side, top : top + side]

    return crop


def as_jpeg(film):
    return cv2.imdecode(cv2.imencode(".jpg", film, [cv2.IMWRITE_JPEG_QUALITY, 40])[1], 0)


# Change -> the least share of the copies that must be found; what was found: docs/data_sets.md.
CHANGES = {
    "same": (lambda film: film, 1),
    "brighter": (lambda film: cv2.convertScaleAbs(film, alpha=0.7, beta=60), 1),
    "gamma": (lambda film: (255 * (film / 255) ** 0.6).astype(np.uint8), 1),
    "smaller": (lambda film: cv2.resize(film, (90, 90), interpolation=cv2.INTER_AREA), 1),
    "stretched": (lambda film: cv2.resize(film, (128, 112), interpolation=cv2.INTER_AREA), 1),
    "jpeg": (as_jpeg, 1),
    "padded": (lambda film: cv2.copyMakeBorder(film, 30, 30, 0, 0, cv2.BORDER_CONSTANT), 0.95),
    "cropped to 0.95": (cropped(0.95), 0.9),
    "cropped to 0.8": (cropped(0.8), 0.9),
    "a corner of 0.85": (cropped(0.85, down=0.0), 0.9),
}


@pytest.mark.parametrize("change", CHANGES)
def test_copies_are_found_and_other_films_are_not(chests, change):
    make, least = CHANGES[change]
    some = chests[:30]
    prints = [duplicates.print_of(film) for film in (*some, *map(make, some))]
    pairs = duplicates.find(prints, [str(i) for i in range(60)])
    right = [pair for pair in pairs if pair.b - pair.a == 30]
    assert len(right) / 30 >= least
    assert pairs == right  # no two patients are taken for one
    assert all(pair.exact == (change == "same") for pair in pairs)


def test_films_of_one_patient_in_one_split_are_no_pair(chests):
    prints = [duplicates.print_of(film) for film in [chests[0]] * 3]
    pairs = duplicates.find(prints, ["a", "a", "b"])
    assert {(pair.a, pair.b) for pair in pairs} >= {(0, 2)}
    assert (0, 1) not in {(pair.a, pair.b) for pair in pairs}


def test_pairs_of_few_bits_are_those_of_a_plain_loop():
    """Blocks of 256 must neither lose a pair nor find one twice."""
    rng = np.random.default_rng(0)
    bits = rng.integers(0, 2**63, (700, 4), dtype=np.uint64)
    bits[[650, 3, 255, 301]] = bits[[0, 256, 257, 300]] ^ np.uint64(5)
    found = duplicates._near_bits(bits, np.arange(700))
    assert sorted(found) == [(0, 650), (3, 256), (255, 257), (300, 301)]
    assert duplicates._near_bits(bits, np.zeros(700)) == []


def test_copies_across_splits_are_told_apart_and_drawn(chests):
    train = source_of(chests[:20], CLASS[:20])
    test = source_of([as_jpeg(chests[3]), *chests[20:30], chests[25]], CLASS[:12], "test", start=50)
    kept = films.collect([train, test], most=1000)
    found = report.audit(kept, quick=True)
    copies = found["copies"]
    assert (copies["across_splits"], copies["across_patients"], copies["exact"]) == (1, 1, 1)
    assert copies["pairs"][0]["ids"] == ["train3", "test0"]
    assert copies["pairs"][0]["splits"] == ["train", "test"]
    assert copies["pairs"][1]["groups"] == ["p56", "p61"]
    assert "1 pairs of films in different splits look like copies, e.g. 'train3' (train)" in (
        " ".join(found["warnings"])
    )
    picture = report.sheet(kept, copies)
    assert picture.dtype == np.uint8
    np.testing.assert_array_equal(
        picture[:100, :100],
        cv2.resize(chests[3], (240, 240), interpolation=cv2.INTER_AREA)[:100, :100],
    )
    assert report.sheet(kept, copies | {"pairs": []}) is None


# Tables.


def test_tables_count_and_say_what_goes_together(chests):
    source = source_of(chests, CLASS)
    for i, record in enumerate(source.records):
        record["view"] = ("PA", "AP")[CLASS[i]]
        record["group"] = f"p{i // 2}"
    kept = films.collect([source], most=1000, prints=False)
    table = tables.cross_tables(kept, kept.labels["diagnosis"])
    assert table["view"]["columns"] == ["AP", "PA"]
    assert table["view"]["rows"]["normal"] == [0, 30]
    assert table["view"]["cramers_v"] == pytest.approx(1)
    assert table["split"]["cramers_v"] is None  # there is one
    both = sum(CLASS[i] != CLASS[i + 1] for i in range(0, COUNT, 2))
    counted = tables.patients(kept, kept.labels)
    assert counted["patients_in_several_classes"] == {"diagnosis": both}
    assert counted["films_per_patient"] == {"2": 30}
    warnings = report.audit(kept, quick=True)["warnings"]
    assert any("class and view go together (Cramér's V 1.00)" in text for text in warnings)


def test_labels_are_made_of_scores_and_findings():
    record = {
        "image": np.zeros((40, 40), np.uint8),
        "id": "a",
        "group": "a",
        "severity": np.array([[3, 0], [0, 0], [0, 3]], np.int8),
        "severity_valid": np.array([[False, True], [True, True], [True, True]]),
        "findings": np.array([1, 0, np.nan] + [np.nan] * 7, np.float32),
    }
    healthy = record | {
        "severity": np.zeros((3, 2), np.int8),
        "severity_valid": np.ones((3, 2), bool),
    }
    unscored = healthy | {"severity_valid": np.zeros((3, 2), bool)}
    kept = films.collect([InMemory([record, healthy, unscored])], most=9, prints=False)
    assert kept.labels.keys() == {
        *("severity above 0", "severity above its median", "no finding", "cardiomegaly")
    }
    assert kept.labels["severity above 0"].values.tolist() == [1, 0, -1]
    assert kept.labels["severity above its median"].values.tolist() == [1, 0, -1]
    assert kept.labels["cardiomegaly"].values.tolist() == [0, 0, 0]


def test_labels_that_part_the_films_alike_are_measured_once():
    rng = np.random.default_rng(0)
    columns = np.full((20, 10), np.nan, np.float32)
    columns[:, 0], columns[:, 1] = np.arange(20) % 2, 1 - np.arange(20) % 2
    columns[:, 2] = np.where(np.arange(20) < 4, np.nan, columns[:, 0])
    columns[:, 3] = np.where(np.arange(20) < 4, np.nan, columns[:, 1])
    records = [
        {"image": rng.integers(0, 255, (40, 40), np.uint8), "id": str(i), "group": str(i)}
        | {"findings": row}
        for i, row in enumerate(columns)
    ]
    kept = films.collect([InMemory(records)], most=20, prints=False)
    labels = report.audit(kept)["labels"]
    first, second, third, fourth = labels
    assert labels[first]["told"]
    assert labels[second]["reason"] == f"it parts the films as {first!r} does"
    assert labels[second]["told"] is None
    assert labels[third]["told"]  # fewer films are known
    assert labels[fourth]["reason"] == f"it parts the films as {third!r} does"


def test_a_warning_needs_three_standard_errors():
    assert report._is_clear({"value": 0.7, "low": 0.62}, 0.5)
    assert not report._is_clear({"value": 0.7, "low": 0.55}, 0.5)  # a few films
    assert not report._is_clear({"value": 0.55, "low": 0.54}, 0.5)  # many, but next to nothing


def test_names_of_a_set_cannot_steer_the_terminal():
    source = InMemory(
        [
            {"image": np.zeros((40, 40), np.uint8), "id": str(i), "group": str(i)}
            | {"findings": np.array([i % 2], np.float32)}
            for i in range(12)
        ]
    )
    source.findings = ("\x1b[2J\nedema",)
    printed = report.text(report.audit(films.collect([source], most=20, prints=False)))
    assert "\\x1b[2J edema: absent 6 (6 patients), present 6 (6 patients)" in printed
    assert all(c.isprintable() for c in printed.replace("\n", ""))


# The command.

HOSTILE = ["a\x1b[31mred", "../../up", "$(id)", "x" * 300, "ünï‮code", "<b>", "%s%n", "'q'"]


@pytest.fixture
def manifest(chests, tmp_path):
    """48 films, those of COVID-19 brighter; film 0 is in the test part once more; odd names."""
    rows = [["image", "group", "split", "id", "diagnosis"]]
    for i in range(48):
        film = chests[i] if i < 47 else chests[0]
        ill = i % 2
        cv2.imwrite(str(tmp_path / f"{i}.png"), cv2.add(film, 60) if ill else film)
        name = HOSTILE[i] if i < len(HOSTILE) else f"film {i}"
        split = "test" if i >= 40 else "train"
        rows.append([f"{i}.png", f"g{i}", split, name, "covid-19" if ill else "normal"])
    write_csv(tmp_path / "films.csv", rows)
    return tmp_path / "films.csv"


def test_the_command_writes_what_it_prints(manifest, tmp_path, capsys):
    out = tmp_path / "out"
    command.main(["manifest", f"--path={manifest}", f"--output={out}"])
    printed = capsys.readouterr().out
    assert "diagnosis: normal 24 (24 patients), covid-19 24 (24 patients)" in printed
    assert "| chance | 0.500 | 0.500 | 0.500 |" in printed
    assert "size, file: the films' own files" in printed
    assert "note: no split val: " in printed
    assert all(c.isprintable() for c in printed.replace("\n", ""))
    assert {path.name for path in out.iterdir()} == {"audit.json", "copies.png"}
    found = json.loads((out / "audit.json").read_text())
    assert found.keys() == {
        *("name", "films", "total", "file_features", "labels", "patients", "copies", "notes"),
        "warnings",
    }
    assert (found["films"], found["total"]) == (48, 48)
    told = found["labels"]["diagnosis"]["told"]
    assert told.keys() == {*features.GROUPS, "all"}
    assert told["brightness"].keys() == {"accuracy", "balanced_accuracy", "auc", "folds"}
    assert told["brightness"]["balanced_accuracy"]["value"] > 0.85
    (pair,) = found["copies"]["pairs"]
    assert pair["ids"] == [HOSTILE[0], "film 47"]
    assert pair["splits"] == ["train", "test"]
    assert any("in different splits look like copies" in text for text in found["warnings"])
    assert all(text.isprintable() for text in found["warnings"])
    assert cv2.imread(str(out / "copies.png")) is not None


def test_of_many_films_some_are_drawn(manifest, capsys):
    command.main(["manifest", f"--path={manifest}", "--films=20"])
    assert "manifest: 20 of 48 films looked at" in capsys.readouterr().out


@pytest.mark.parametrize(
    "argv, words",
    [
        (["cohen"], "NAME='cohen'; expected one of phantom_cxr, "),
        (["cxr_3class", "--data_dir={tmp}"], "is not prepared in {tmp}/cxr_3class; run: "),
        (["cxr_3class", "--path={tmp}"], "data set 'cxr_3class' has no option 'path'"),
        (["cxr_3class", "--fold=one"], "--fold=one; expected a whole number"),
        (["cxr_3class", "--leave_out_overlap=1"], "--leave_out_overlap=1; expected true or false"),
        (["phantom_cxr", "here"], "unexpected argument 'here'"),
        (["phantom_cxr", "--films=0"], "--films=0; expected at least 1"),
        (["phantom_cxr", "--train=0", "--val=0", "--test=0"], "'phantom_cxr' has no film"),
        (["manifest", "--path={tmp}/no.csv"], "no.csv: there is no such file"),
        (["phantom_cxr", "--output={tmp}/file"], "--output={tmp}/file is no folder"),
    ],
)
def test_mistakes_are_one_line(tmp_path, argv, words):
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError) as error:
        command.main([a.format(tmp=tmp_path) for a in argv])
    assert words.format(tmp=tmp_path) in str(error.value)


# Beside a prepared set.


def make_shortcut_set(root: pathlib.Path, chests) -> pathlib.Path:
    """A set whose severe films are brighter."""
    header = ["image"] + [f"{r}_{zone}" for r in "SJ" for zone in "ABCDEF"]
    rows = [[*header, "lungs", "group", "split"]]
    (root / "images").mkdir(parents=True)
    for i, film in enumerate(chests):
        score = 3 * (i % 2)
        cv2.imwrite(str(root / "images" / f"{i}.png"), cv2.add(film, 70) if score else film)
        split = "test" if i >= 50 else "train"
        rows.append([f"{i}.png", *[score] * 12, 0, f"p{i}", split])
    write_csv(root / "annotations.csv", rows)
    return root


def test_prepare_ends_with_the_warnings_and_keeps_them(chests, tmp_path, capsys, monkeypatch):
    source = make_shortcut_set(tmp_path / "source", chests)
    run_prepare("brixia_cohen", source, tmp_path / "data")
    first = capsys.readouterr().out
    words = "brixia_cohen: warning: severity above 0: classes can be told apart from brightness"
    assert words in first
    opened = sources.open_source(brixia_config(tmp_path / "data"), "test")
    kept = stored.headline(opened)
    assert (kept["films"], kept["total"], kept["copies"]) == (60, 60, None)
    assert kept["told"]["severity above 0"]["brightness"] > 0.85
    assert kept["chance"]["severity above 0"] == 0.5
    # Again: nothing is measured anew, but it is told again.
    monkeypatch.setattr(films, "collect", None)
    run_prepare("brixia_cohen", source, tmp_path / "data")
    assert words in capsys.readouterr().out


def test_the_command_takes_the_place_of_the_small_audit(tmp_path, capsys):
    run_prepare("brixia_cohen", make_prepared(tmp_path / "source"), tmp_path / "data")
    config = brixia_config(tmp_path / "data")
    assert stored.headline(sources.open_source(config, "train"))["copies"] is None
    data_dir = f"--data_dir={tmp_path / 'data'}"
    # Of some of the films: that is no audit of the set.
    command.main(["brixia_cohen", data_dir, "--min_severity=7"])
    assert stored.headline(sources.open_source(config, "train"))["copies"] is None
    command.main(["brixia_cohen", data_dir])
    assert stored.headline(sources.open_source(config, "train"))["copies"] == 0
    capsys.readouterr()


def test_a_set_that_was_not_audited_and_a_broken_audit(tmp_path):
    run_prepare("brixia_cohen", make_prepared(tmp_path / "source"), tmp_path / "data")
    config = brixia_config(tmp_path / "data")
    source = sources.open_source(config, "train")
    subset = sources.Subset(source, [0, 2], partial=frozenset())
    assert stored.headline(subset) == stored.headline(source)
    file = source.folder / stored.FILE
    for text in ("{", "[]", '{"films": "many"}', '{"films": 1, "total": 1, "told": []}'):
        file.write_text(text)
        with pytest.raises(InputError, match="audit the set again"):
            stored.headline(source)
    file.unlink()
    assert stored.headline(source) is None
    assert stored.headline(InMemory([{"image": None}])) is None
    assert quick.warnings(config) == []
    assert file.is_file()
