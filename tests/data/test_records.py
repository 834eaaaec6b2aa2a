"""The record's schema: what it accepts, what it refuses, and that storage keeps all of it."""

import pathlib

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from cxr_jax.data import records
from cxr_jax.data.augment import EXAMPLE_FIELDS
from cxr_jax.data.bags import Bags, WithNeighbours
from cxr_jax.data.phantoms import phantom
from cxr_jax.data.phantoms.ct import ct_slice
from cxr_jax.data.records import SCHEMA
from cxr_jax.data.sources import prepared
from cxr_jax.data.sources.phantom_ct import PhantomCT
from cxr_jax.errors import InputError

KINDS = {
    *(records.IMAGE, records.MASK, records.BOXES, records.ZONE_TABLE, records.REGION_TABLE),
    *(records.TEXT, records.NUMBER, records.SLICES),
}
STORED = sorted(records.FIELDS)


def film(index=1):
    """A phantom with every field of a film."""
    record = phantom(0, index, 128)
    return record | {"severity_second": record["severity"][::-1].copy()}


def ct(position=5):
    return ct_slice(0, 0, position, size=64, slices=12, positive=True)


def everything(index=1):
    """A film that has the fields of a slice too, so that every field is there."""
    slice_fields = {name: ct()[name] for name in records.CT_FIELDS}
    return film(index) | slice_fields


# --- the schema


def test_every_field_has_a_kind_and_a_meaning_of_one_line():
    for name, field in (SCHEMA | EXAMPLE_FIELDS).items():
        assert field.kind in KINDS, name
        assert field.meaning, name
        assert "\n" not in field.meaning, name
        assert not field.boxes or SCHEMA[field.boxes].kind == records.BOXES
    assert not SCHEMA.keys() & EXAMPLE_FIELDS.keys()


def test_film_and_slice_fields_are_as_they_were():
    assert sorted(records.CT_FIELDS) == ["pixel_area", "slice", "slice_label", "volume"]
    assert sorted(records.FILM_FIELDS) == [
        *("box_label", "boxes", "diagnosis", "findings", "group", "id", "image", "lesion"),
        *("lesion_type", "lungs", "region_findings", "region_present", "regions", "severity"),
        *("severity_second", "severity_valid", "view"),
    ]
    bags = {"slices", "bag_label", "instance_valid"}
    assert SCHEMA.keys() == records.FIELDS | bags


def test_phantoms_and_slices_are_records():
    for index in range(10):
        records.check(film(index))
    for position in range(12):
        records.check(ct(position))
    records.check(ct() | {"slices": [ct(4), ct(5), ct(6)]})


def test_python_numbers_will_do_for_a_slice():
    records.check(ct() | {"slice": 5, "slice_label": float("nan"), "pixel_area": 1})


def test_bags_and_slices_with_neighbours_are_records():
    source = PhantomCT(split="train", count=2, seed=0, size=64, slices=8, positive=0.5)
    for bags in (Bags(source, 3), WithNeighbours(source)):
        for index in range(0, len(bags), 3):
            records.check({**bags[index], "image": bags[index]["slices"][1]["image"]})


OTHERS = ("mass", "nodule", "scoliosis")


def test_a_set_may_name_findings_of_its_own():
    record = film() | {
        "findings": np.array([1, 0, np.nan], np.float32),
        "region_findings": np.full((29, 3), np.nan, np.float32),
        "boxes": np.array([[0, 0, 1, 1]], np.float32),
        "box_label": np.array([2], np.int32),
    }
    records.check(record, findings=OTHERS)
    with pytest.raises(InputError, match=r"'findings' is float32 \[3\]; expected float32 \[10\]"):
        records.check(record)
    record["box_label"][:] = 3
    with pytest.raises(InputError, match="'box_label' has 3; expected -1, 0, 1, 2"):
        records.check(record, findings=OTHERS)
    assert records.blank({"findings"}, findings=OTHERS)["findings"].shape == (3,)


def test_a_record_that_has_none_of_a_field_is_fine():
    for name in records.FIELDS - {"image"}:
        record = everything()
        del record[name]
        records.check(record)


# --- what is refused


def wrong_type(field, value):
    if field.kind == records.TEXT:
        return 3
    if not field.shape:
        return "3"
    return value.astype(np.float64)


WRONG_VALUES = {
    "view": "lateral",
    "lungs": 3,
    "severity": 4,
    "severity_second": -1,
    "diagnosis": 3,
    "findings": 0.5,
    "lesion": 2,
    "lesion_type": 3,
    "regions": np.inf,
    "region_findings": 2,
    "boxes": np.inf,
    "box_label": 10,
    "slice_label": 0.5,
    "pixel_area": 0.0,
}


def refused(record, name, *words):
    with pytest.raises(InputError) as error:
        records.check(record)
    message = str(error.value)
    for word in (repr(record["id"]), f"field {name!r}", "expected", *words):
        assert word in message, message


@pytest.mark.parametrize("name", STORED)
def test_another_type_is_refused_by_name(name):
    record = everything()
    record[name] = wrong_type(SCHEMA[name], record[name])
    refused(record, name)


@pytest.mark.parametrize("name", [name for name in STORED if SCHEMA[name].shape])
def test_another_shape_is_refused_by_name(name):
    record = everything()
    value = record[name]
    record[name] = np.zeros((1, *value.shape), value.dtype)
    found = f"{value.dtype} {list(record[name].shape)}"
    refused(record, name, f"is {found}; expected {value.dtype} [")


@pytest.mark.parametrize("name", [name for name in STORED if SCHEMA[name].kind == "mask"])
def test_a_mask_of_another_size_than_the_film_is_refused(name):
    record = everything()
    record[name] = record[name][:-1]
    refused(record, name, "is uint8 [127, 128]; expected uint8 [128, 128]")


@pytest.mark.parametrize("name", WRONG_VALUES)
def test_a_value_that_means_nothing_is_refused_by_name(name):
    record = everything()
    wrong = WRONG_VALUES[name]
    if SCHEMA[name].shape:
        record[name] = record[name].copy()
        record[name].flat[0] = wrong
    else:
        record[name] = wrong
    refused(record, name, f"has {wrong!r}" if isinstance(wrong, str) else "has ")


def test_every_field_with_a_rule_for_its_values_has_a_wrong_one_above():
    ruled = {name for name in STORED if SCHEMA[name].values or SCHEMA[name].positive}
    assert ruled <= WRONG_VALUES.keys()


@pytest.mark.parametrize("box", [[5, 2, 4, 8], [5, 2, 8, 2], [np.nan, 2, 8, 9]])
def test_a_box_that_is_no_box_is_refused(box):
    record = everything()
    record["boxes"] = np.array([[0, 0, 1, 1], box], np.float32)
    record["box_label"] = np.array([1, 1], np.int32)
    refused(record, "boxes", "in row 1", "x0 < x1 and y0 < y1")


def test_boxes_and_their_labels_belong_together():
    one, missing = [0, 0, 1, 1], [np.nan] * 4
    record = film() | {"boxes": np.array([one, missing], np.float32)}
    records.check(record | {"box_label": np.array([1, -1], np.int32)})
    record["box_label"] = np.array([1, 1], np.int32)
    refused(record, "box_label", "has 1 in row 1; expected -1 exactly where boxes is NaN")
    record["box_label"] = np.array([1, -1, -1], np.int32)
    refused(record, "box_label", "is int32 [3]; expected int32 [2]")
    record = film()
    record["region_present"] = ~record["region_present"]
    refused(record, "region_present", "False exactly where regions is NaN")


def test_a_field_that_no_record_has_is_refused():
    with pytest.raises(InputError, match="no record has a field 'lesions'"):
        records.check(film() | {"lesions": film()["lesion"]})


def test_a_slice_among_neighbours_is_checked_too():
    wrong = ct() | {"lesion": np.full((64, 64), 7, np.uint8)}
    with pytest.raises(InputError, match="field 'lesion' has 7"):
        records.check(ct() | {"slices": [ct(4), wrong, ct(6)]})
    refused(ct() | {"slices": ct()}, "slices", "a list of records")


# --- blank records


def test_a_blank_film_has_two_rectangles_as_lungs():
    lungs = np.zeros((64, 64), np.uint8)
    lungs[16:48, 8:28], lungs[16:48, 36:56] = 1, 2
    blank = records.blank({"lungs"})
    assert blank.keys() == {"image", "lungs", "id", "group"}
    np.testing.assert_array_equal(blank["lungs"], lungs)
    np.testing.assert_array_equal(blank["image"], lungs * 60)
    assert blank["id"] == blank["group"] == "blank"
    np.testing.assert_array_equal(records.blank({"image"})["image"], lungs * 60)


def test_a_blank_slice_has_black_neighbours():
    blank = records.blank({"image", "slices"})
    assert blank.keys() == {"image", "slices", "id", "group"}
    assert not blank["image"].any()
    assert blank["image"].shape == (64, 64)
    assert len(blank["slices"]) == 3
    assert all(s.keys() == {"image"} and not s["image"].any() for s in blank["slices"])


@hypothesis.given(fields=st.sets(st.sampled_from(sorted(SCHEMA))), side=st.integers(16, 70))
@hypothesis.settings(deadline=None)
def test_a_blank_record_has_the_fields_asked_for_and_fits(fields, side):
    blank = records.blank(fields, side)
    records.check(blank)
    assert blank.keys() == fields | {"image", "id", "group"}
    assert blank["image"].shape == (side, side)


# --- storage


class Films(prepared.RecordBuilder, skip_registration=True):
    """Writes the records it is given."""

    name = "films"


class CodedFilms(Films, skip_registration=True):
    """Writes findings in codes of its own."""

    coded = frozenset({"findings"})


def store(folder, given, *, fields=None, partial=frozenset(), kind=Films):
    """The records, written and opened again."""
    builder = kind(
        data_dir=folder,
        fields=frozenset(fields or given[0].keys()),
        partial=frozenset(partial),
        films={"train": [lambda record=record: record for record in given]},
        film_fold={"train": [-1] * len(given)},
        metadata={"fingerprint": "0", "max_side": 128},
    )
    prepared.build(builder)
    folder = pathlib.Path(builder.data_dir)
    opened = prepared.Prepared(folder, name=kind.name, split="train", prepare="")
    assert opened.max_side == 128
    return [opened[i] for i in range(len(opened))]


def assert_equal(got, want):
    assert got.keys() == want.keys()
    for name, value in want.items():
        np.testing.assert_array_equal(got[name], value, err_msg=name)
        assert np.asarray(got[name]).dtype == np.asarray(value).dtype, name
        if not SCHEMA[name].shape:
            assert type(got[name]) is SCHEMA[name].dtype, name


def test_every_field_survives_storage(tmp_path):
    given = [everything(index) for index in range(4)]
    assert given[0].keys() == records.FIELDS
    for got, want in zip(store(tmp_path, given), given, strict=True):
        assert_equal(got, want)
        records.check(got)


def test_any_field_may_be_absent_from_a_stored_record(tmp_path):
    always = {"image", "id", "group"}
    optional = sorted(records.FIELDS - always)
    whole = everything()
    given = [whole]
    given += [{k: v for k, v in whole.items() if k != name} for name in optional]
    given += [{name: whole[name] for name in always}]
    read = store(tmp_path, given, fields=records.FIELDS, partial=optional)
    for got, want in zip(read, given, strict=True):
        assert_equal(got, want)


def test_boxes_lie_on_their_masks_when_read_again(tmp_path):
    rng = np.random.default_rng(0)
    given = []
    for k in range(12):
        height, width = (int(side) for side in rng.integers(40, 120, 2))
        x0, y0 = int(rng.integers(0, width - 8)), int(rng.integers(0, height - 8))
        x1, y1 = int(rng.integers(x0 + 1, width)), int(rng.integers(y0 + 1, height))
        lesion = np.zeros((height, width), np.uint8)
        lesion[y0:y1, x0:x1] = 1
        given.append(
            {
                **{"image": lesion * 200, "id": str(k), "group": str(k), "lesion": lesion},
                "boxes": np.array([[x0, y0, x1, y1]] * (k % 3), np.float32).reshape(-1, 4),
                "box_label": np.full(k % 3, 2, np.int32),
            }
        )
    for got, want in zip(store(tmp_path, given), given, strict=True):
        assert_equal(got, want)
        rows, columns = np.nonzero(got["lesion"])
        for box in got["boxes"]:
            around = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
            np.testing.assert_array_equal(box, around)


@pytest.mark.parametrize("name", ["lungs", "severity", "findings", "diagnosis", "regions"])
def test_a_record_that_breaks_the_schema_is_not_stored(tmp_path, name):
    record = everything()
    record[name] = wrong_type(SCHEMA[name], record[name])
    with pytest.raises(InputError, match=f"field '{name}' is"):
        store(tmp_path, [record])


def test_a_field_that_must_be_there_is_missed_by_name(tmp_path):
    record = everything()
    del record["severity"]
    with pytest.raises(InputError, match="field 'severity' is absent; only lungs may be"):
        store(tmp_path, [record], fields=records.FIELDS, partial={"lungs"})


def test_codes_of_a_set_are_stored_where_it_says_so(tmp_path):
    record = film()
    record["findings"] = np.where(record["findings"] == 1, -1, np.nan).astype(np.float32)
    with pytest.raises(InputError, match=r"field 'findings' has -1\.0"):
        store(tmp_path / "a", [record])
    (read,) = store(tmp_path / "b", [record], kind=CodedFilms)
    assert_equal(read, record)
    with pytest.raises(InputError, match="field 'findings' is float64"):
        store(tmp_path / "c", [record | {"findings": np.zeros(10)}], kind=CodedFilms)
