"""What a split leaves out is told, where records are opened."""

import types

import ml_collections

from cxr_jax.data import bags, sources
from cxr_jax.data.sources import base
from cxr_jax.inputs import splits
from cxr_jax.tasks.base import Data


class Source:
    """Ten records, every third of them without lungs."""

    name, version = "films", "1"
    fields, partial = frozenset({"image", "lungs"}), frozenset({"lungs"})
    notes = ("columns that are not known and not used: lesoin (meant is lesion?)",)

    def __init__(self, split):
        self.split = split

    def __len__(self):
        return 10

    def __getitem__(self, index):
        return {"image": index, **({} if index % 3 == 0 else {"lungs": 1})}


def test_films_without_a_needed_field_are_counted(monkeypatch, tmp_path, capsys):
    """Once a process, as training and evaluation open the same data."""
    monkeypatch.setattr(sources, "open_source", lambda data, split: Source(split))
    data = Data(
        fields=frozenset({"image", "lungs"}),
        inputs=frozenset({"image", "lungs"}),
        transforms=None,
    )
    task = types.SimpleNamespace(data=data)
    config = ml_collections.ConfigDict({"data": {}, "lungs": {"masks": "record", "workdir": ""}})
    for _ in range(2):
        assert len(splits.open_split(task, config, "train", workdir=tmp_path)) == 6
    assert capsys.readouterr().out.splitlines() == [
        "films (train): columns that are not known and not used: lesoin (meant is lesion?)",
        "films (train): left out: 4 of 10 records, which have no lungs",
    ]


def test_slices_without_a_needed_mask_are_counted():
    source = sources.open_source(sources.block("phantom_ct", train=4, size=64), "train")
    count = int((source.slice_table().label == 1).sum())
    source.partial = frozenset({"lesion"})
    first = int((source.slice_table().label == 1).argmax())
    source.has = lambda index, field: index != first
    (note,) = bags.Bags(source, 1, needed="lesion").notes
    assert note == f"left out: 1 of {count} positive slices, which have no lesion"
    assert bags.Bags(source, 1).notes == ()


def test_films_that_were_stored_too_small_are_told(capsys):
    """Equalised and blurred before the resize, they would have been so at another size."""
    source = Source("val")
    source.max_side = 512
    part = base.Subset(source, [1, 2], partial=frozenset())
    config = ml_collections.ConfigDict({"preprocess": {"size": 512, "order": ("resize", "blur")}})
    splits.tell_reduced(part, config)
    config.preprocess.order = ("equalize", "blur", "resize")
    splits.tell_reduced(Source("train"), config)  # not stored by `prepare`
    config.preprocess.size = 256
    splits.tell_reduced(part, config)
    assert not capsys.readouterr().out
    config.preprocess.size = 512
    splits.tell_reduced(part, config)
    told = capsys.readouterr().out
    assert "films (val): warning: its films were reduced to 512 px" in told
    assert "has equalize, blur before the resize to 512 px" in told
    assert "--max_side=1024 or more" in told
