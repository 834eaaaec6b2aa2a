"""Weights in and out: files of PyTorch and others, hostile ones, and the command."""

import io
import json
import os
import pathlib
import pickle
import struct
import subprocess
import sys
import zipfile

import jax
import numpy as np
import pytest
from flax import traverse_util

from cxr_jax import initialise, weight_files, weights
from cxr_jax.errors import InputError
from cxr_jax.models import densenet, pcam, resnet, vit
from cxr_jax.models.convert import to_torch, to_vit_npz
from cxr_jax.models.resnet38 import ResNet38
from cxr_jax.models.seam import SEAM
from tests.conftest import ROOT
from tests.models.test_convert import random_variables, weights_from_names

FIXTURES = ROOT / "tests" / "fixtures"


class Opcodes:
    """Pickles written by hand, instruction by instruction, as torch.save writes them."""

    @staticmethod
    def text(value: str) -> bytes:
        return b"X" + struct.pack("<I", len(value.encode())) + value.encode()

    @staticmethod
    def number(value: int) -> bytes:
        return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)

    @classmethod
    def numbers(cls, values) -> bytes:
        return b"(" + b"".join(map(cls.number, values)) + b"t"

    @classmethod
    def tensor(cls, key, numel, shape, strides, *, offset=0, kind="FloatStorage") -> bytes:
        storage = b"(" + cls.text("storage") + f"ctorch\n{kind}\n".encode() + cls.text(key)
        storage += cls.text("cpu") + cls.number(numel) + b"tQ"
        arguments = storage + cls.number(offset) + cls.numbers(shape) + cls.numbers(strides)
        hooks = b"ccollections\nOrderedDict\n)R"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + arguments + b"\x89" + hooks + b"tR"

    @classmethod
    def state(cls, tensors: dict[str, bytes]) -> bytes:
        items = b"".join(cls.text(name) + tensor for name, tensor in tensors.items())
        return b"\x80\x02}(" + items + b"u."


def write_pth(path, pickled: bytes, storages: dict[str, bytes], compression=zipfile.ZIP_STORED):
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("net/data.pkl", pickled)
        archive.writestr("net/byteorder", "little")
        for key, content in storages.items():
            archive.writestr(f"net/data/{key}", content)


def write_state(path, state: dict[str, np.ndarray]) -> None:
    """A .pth of float32 arrays."""
    tensors, storages = {}, {}
    for key, (name, array) in enumerate(state.items()):
        strides = [s // 4 for s in np.array(array, "<f4", order="C").strides]
        tensors[name] = Opcodes.tensor(str(key), array.size, array.shape, strides)
        storages[str(key)] = array.astype("<f4").tobytes()
    write_pth(path, Opcodes.state(tensors), storages)


def command(*args):
    return subprocess.run(
        [sys.executable, "-m", "cxr_jax.weights", *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


# Files that PyTorch wrote (tests/fixtures/make_pth.py).


@pytest.mark.parametrize("name", ["zip", "legacy"])
def test_what_torch_wrote_is_read_to_the_bit(name):
    got = weight_files.read_file(FIXTURES / f"{name}.pth")
    with np.load(FIXTURES / "state.npz") as want:
        assert list(got) == want.files
        for key in want.files:
            if key == "bfloat16":
                assert got[key].dtype.name == "bfloat16"
                np.testing.assert_array_equal(got[key].astype(np.float32), want[key])
                continue
            assert got[key].dtype == want[key].dtype, key
            assert got[key].shape == want[key].shape, key
            assert got[key].tobytes() == want[key].tobytes(), key
    assert got["1.num_batches_tracked"] == 1
    assert got["1.num_batches_tracked"].shape == ()
    assert np.shares_memory(got["whole"], got["transposed"])  # one storage is read once


@pytest.mark.parametrize("name", ["checkpoint_zip", "checkpoint_legacy"])
def test_a_checkpoints_state_is_found_under_its_key_and_without_module(name):
    got = weight_files.read_file(FIXTURES / f"{name}.pth")
    with np.load(FIXTURES / f"{name}.npz") as want:
        assert list(got) == want.files
        for key in want.files:
            np.testing.assert_array_equal(got[key], want[key], err_msg=key)


def test_content_and_not_the_name_says_what_a_file_is(tmp_path):
    for source, name in (("zip.pth", "a.npz"), ("legacy.pth", "b.bin"), ("state.npz", "c.pth")):
        (tmp_path / name).write_bytes((FIXTURES / source).read_bytes())
        assert "whole" in weight_files.read_file(tmp_path / name)


# Hostile and damaged files.


def evil(kind: str, marker: pathlib.Path) -> bytes:
    touch = f"touch {marker}"
    code = f"open({str(marker)!r}, 'w')"
    match kind:
        case "os.system":
            return b"\x80\x02cposix\nsystem\n" + Opcodes.text(touch) + b"\x85R."
        case "eval":
            return b"\x80\x02c__builtin__\neval\n" + Opcodes.text(code) + b"\x85R."
        case "builtins.exec":  # protocol 4: the name comes from the stack
            name = Opcodes.text("builtins") + Opcodes.text("exec")
            return b"\x80\x04" + name + b"\x93" + Opcodes.text(code) + b"\x85R."
        case "torch.load":
            return b"\x80\x02ctorch\nload\n" + Opcodes.text(str(marker)) + b"\x85R."
        case "instance":
            return b"\x80\x02(" + Opcodes.text(touch) + b"iposix\nsystem\n."
        case "getattr":  # torch's own machine once let this through
            return b"\x80\x02c__builtin__\ngetattr\n."
        case "pickled":

            class Evil:
                def __reduce__(self):
                    return (exec, (code,))

            return pickle.dumps({"conv1.weight": Evil()}, protocol=2)
    raise AssertionError(kind)


EVIL = ["os.system", "eval", "builtins.exec", "torch.load", "instance", "getattr", "pickled"]


@pytest.mark.parametrize("wrapping", ["zip", "legacy", "bare"])
@pytest.mark.parametrize("kind", EVIL)
def test_code_in_a_file_is_not_run(kind, wrapping, tmp_path):
    marker, file = tmp_path / "it-ran", tmp_path / "evil.pth"
    pickled = evil(kind, marker)
    if wrapping == "zip":
        write_pth(file, pickled, {})
    elif wrapping == "legacy":
        whole = (FIXTURES / "legacy.pth").read_bytes()
        file.write_bytes(whole[:137] + pickled)  # after torch's three small pickles
        assert whole[:137].endswith(b"uu.")
    else:
        file.write_bytes(pickled)
    with pytest.raises(InputError, match=r"holds code \([\w.]+\), which was not run") as error:
        weight_files.read_file(file)
    assert "\n" not in str(error.value)
    assert str(file) in str(error.value)
    assert not marker.exists()


def test_the_evil_pickles_would_run(tmp_path):
    """Else the test above shows nothing."""
    for kind in ("os.system", "eval", "builtins.exec", "instance", "pickled"):
        marker = tmp_path / kind
        pickle.load(io.BytesIO(evil(kind, marker)))
        assert marker.exists(), kind


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "state.npz", "x.safetensors"])
def test_a_truncated_file_is_one_line(name, tmp_path):
    if name == "x.safetensors":
        arrays = {"a": np.zeros(100, np.float32)}
        weight_files.write_safetensors(tmp_path / "whole", arrays, {})
        whole = (tmp_path / "whole").read_bytes()
    else:
        whole = (FIXTURES / name).read_bytes()
    for length in (len(whole) - 1, len(whole) // 2, 300, 140, 20, 9, 4, 1, 0):
        file = tmp_path / f"{length}-{name}"
        file.write_bytes(whole[:length])
        with pytest.raises(InputError, match=f"{length}-{name}"):
            weight_files.read_file(file)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "state.npz"])
def test_a_flipped_byte_never_gives_more_than_an_error_or_other_numbers(name, tmp_path):
    """No crash, no other exception, whatever byte it is (a sample of them, to be quick)."""
    whole, file = (FIXTURES / name).read_bytes(), tmp_path / name
    rng = np.random.default_rng(0)
    refused = 0
    for position in rng.choice(len(whole), 250, replace=False):
        broken = bytearray(whole)
        broken[position] ^= 1 << rng.integers(8)
        file.write_bytes(broken)
        try:
            weight_files.read_file(file)
        except InputError as error:
            assert "\n" not in str(error)  # noqa: PT017
            refused += 1
    assert refused > 50


def tensor_file(path, tensor: bytes, content: bytes = b"\0" * 24) -> pathlib.Path:
    write_pth(path, Opcodes.state({"w": tensor}), {"0": content})
    return path


BAD_TENSORS = {
    "outside": Opcodes.tensor("0", 6, (3, 3), (3, 1)),
    "offset": Opcodes.tensor("0", 6, (2,), (1,), offset=5),
    "negative offset": Opcodes.tensor("0", 6, (2,), (1,), offset=-1),
    "negative stride": Opcodes.tensor("0", 6, (2,), (-1,), offset=3),
    "huge stride": Opcodes.tensor("0", 6, (2,), (2**61,)),
    "huge expansion": Opcodes.tensor("0", 6, (2**15, 2**15), (0, 0)),
    "huge and empty": Opcodes.tensor("0", 6, (0, 2**32, 2**32), (0, 0, 0)),
    "sides": Opcodes.tensor("0", 6, (2, 3), (1,)),
    "many sides": Opcodes.tensor("0", 6, (1,) * 60, (1,) * 60),
    "length": Opcodes.tensor("0", 7, (7,), (1,)),
    "huge storage": Opcodes.tensor("0", 2**40, (6,), (1,)),
    "no such storage": Opcodes.tensor("1", 6, (6,), (1,)),
    "climbs out": Opcodes.tensor("../byteorder", 6, (6,), (1,)),
    "a number": Opcodes.number(3),
    "unhashable key": b"}(" + b"]" + Opcodes.number(1) + b"u",
}


@pytest.mark.parametrize("tensor", BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_a_tensor_that_cannot_be_is_refused(tensor, tmp_path):
    good = tensor_file(tmp_path / "good.pth", Opcodes.tensor("0", 6, (2, 3), (3, 1)))
    assert weight_files.read_file(good)["w"].shape == (2, 3)
    with pytest.raises(InputError, match=r"bad\.pth is no state dict, or it is damaged"):
        weight_files.read_file(tensor_file(tmp_path / "bad.pth", tensor))


def test_an_entry_that_lies_about_its_size_is_refused(tmp_path):
    """The directory says 1024 bytes, 16 are there: a view of 1024 would read foreign memory."""
    path = tmp_path / "x.pth"
    state = Opcodes.state({"w": Opcodes.tensor("0", 256, (256,), (1,))})
    write_pth(path, state, {"0": b"\0" * 16, "1": b"\0" * 4096})
    content = bytearray(path.read_bytes())
    # In the central directory: signature, ..., compressed size at 20, size at 24, name at 46.
    place = content.rfind(b"PK\x01\x02", 0, content.rfind(b"net/data/0"))
    assert struct.unpack_from("<II", content, place + 20) == (16, 16)
    struct.pack_into("<I", content, place + 24, 1024)
    path.write_bytes(content)
    with pytest.raises(InputError, match="two sizes"):
        weight_files.read_pth(path)


def test_a_strange_storage_is_not_printed_out(tmp_path):
    """Tuples that hold each other, 2**60 times, and a length of 10,000 digits: one short line."""
    nest = b")" + b"".join(b"2\x86" for _ in range(60))
    storage = b"(" + Opcodes.text("storage") + b"ctorch\nFloatStorage\n" + Opcodes.text("0")
    many = b"\x8b" + struct.pack("<i", 4000) + b"\x7f" * 4000
    for rest in (Opcodes.number(6) + nest, many):
        pickled = b"\x80\x02" + storage + Opcodes.text("cpu") + rest + b"tQ."
        write_pth(tmp_path / "x.pth", pickled, {"0": b"\0" * 24})
        with pytest.raises(InputError) as error:
            weight_files.read_pth(tmp_path / "x.pth")
        assert len(str(error.value)) < 500
        assert "\n" not in str(error.value)


def test_a_pickle_that_grows_for_ever_is_refused(tmp_path):
    twice = b"h\x00h\x00\x86q\x00"  # a pair of the pair before: 2^n items when hashed
    nested = b"\x80\x02)q\x00" + twice * 200
    for pickled in (nested + b"}h\x00K\x01s.", b"\x80\x02" + b"}" * 2_100_000 + b"."):
        write_pth(tmp_path / "deep.pth", pickled, {})
        with pytest.raises(InputError, match=r"as a key|more than 2,000,000 instructions"):
            weight_files.read_file(tmp_path / "deep.pth")


def test_packed_entries_are_refused(tmp_path):
    pickled = Opcodes.state({"w": Opcodes.tensor("0", 10**6, (10**6,), (1,))})
    write_pth(tmp_path / "a.pth", pickled, {"0": b"\0" * 4 * 10**6}, zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed"):
        weight_files.read_file(tmp_path / "a.pth")
    np.savez_compressed(tmp_path / "a.npz", w=np.zeros(10**7, np.float32))  # 40 MB in 40 kB
    with pytest.raises(InputError, match="unpacks to 40,0"):
        weight_files.read_file(tmp_path / "a.npz")
    np.savez_compressed(tmp_path / "b.npz", w=np.random.default_rng(0).normal(size=100))
    assert weight_files.read_file(tmp_path / "b.npz")["w"].shape == (100,)


def test_an_npz_that_lies_about_its_size_or_holds_objects_is_refused(tmp_path):
    content = io.BytesIO()
    header = {"descr": "<f4", "fortran_order": False, "shape": (10**12,)}
    np.lib.format.write_array_header_1_0(content, header)
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("w.npy", content.getvalue() + b"\0" * 40)
    with pytest.raises(InputError, match="does not fit"):
        weight_files.read_file(tmp_path / "a.npz")
    np.savez(tmp_path / "b.npz", w=np.array([{}], object))
    with pytest.raises(InputError, match="is a pickle, which was not run"):
        weight_files.read_file(tmp_path / "b.npz")


def test_what_holds_no_weights_is_said(tmp_path):
    with pytest.raises(InputError, match=r"nowhere\.pth is no file"):
        weight_files.read_file(tmp_path / "nowhere.pth")
    (tmp_path / "a.txt").write_text("a text of some length")
    with pytest.raises(InputError, match=r"a\.txt holds no weights"):
        weight_files.read_file(tmp_path / "a.txt")
    write_pth(tmp_path / "whole.pth", b"\x80\x02(" + Opcodes.text("module") + b"tQ.", {})
    with pytest.raises(InputError, match="whole model, not its state dict"):
        weight_files.read_file(tmp_path / "whole.pth")


def test_a_file_that_is_larger_than_any_network_is_refused(tmp_path):
    with (tmp_path / "large.pth").open("wb") as file:
        file.truncate(weight_files.MAX_BYTES + 1)  # sparse: it takes no room
    with pytest.raises(InputError, match=r"4,294,967,297 bytes"):
        weight_files.read_file(tmp_path / "large.pth")


@pytest.mark.parametrize("name", ["a.safetensors", "a"])
def test_a_safetensors_header_of_any_length_is_one(name, tmp_path):
    """One length in 256 begins with the byte that pickles begin with."""
    arrays, file = {"a": np.arange(3.0)}, tmp_path / name
    seen = set()
    for filling in range(0, 260, 4):
        weight_files.write_safetensors(tmp_path / "a.safetensors", arrays, {"note": "x" * filling})
        seen.add((tmp_path / "a.safetensors").read_bytes()[0])
        (tmp_path / "a.safetensors").rename(file)
        np.testing.assert_array_equal(weight_files.read_file(file)["a"], arrays["a"])
    assert 0x80 in seen


def test_safetensors_round_trip_and_half_a_write_leaves_the_old_file(tmp_path, monkeypatch):
    arrays = weight_files.read_file(FIXTURES / "zip.pth")  # every dtype, views, a scalar
    file = tmp_path / "a.safetensors"
    weight_files.write_safetensors(file, arrays, {"source": "zip.pth"})
    again = weight_files.read_file(file)
    assert again.keys() == arrays.keys()
    for name, array in arrays.items():
        assert again[name].dtype == array.dtype, name
        assert again[name].shape == array.shape, name
        assert again[name].tobytes() == array.tobytes(), name
    assert weight_files.read_metadata(file) == {"source": "zip.pth"}
    before = file.read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        weight_files.write_safetensors(file, {"a": np.zeros(3)}, {})
    assert file.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


# Golden vectors, through a file and the import command's function.


def imported(folder: pathlib.Path) -> dict:
    flat = {tuple(name.split("/")): x for name, x in initialise.read_arrays(folder).items()}
    return traverse_util.unflatten_dict(flat)


def test_densenet121_pcam_from_a_pth_matches_reference(golden, assert_golden, tmp_path):
    arrays = golden("densenet121_pcam")
    names = json.loads((golden.folder / "densenet121_pcam.json").read_text())
    unused = {n: np.ones(s, np.float32) for n, s in names["unused_in_this_forward_pass"].items()}
    state = weights_from_names(names["used"])
    write_state(tmp_path / "pcam.pth", state | unused)
    said = weights.import_file(tmp_path / "pcam.pth", tmp_path / "pcam")
    assert "pcam, PCAMNet(backbone=DenseNet(growth_rate=32, block_sizes=(6, 12, 24, 16)" in said
    variables = imported(tmp_path / "pcam")
    assert variables["params"].keys() == {"backbone", "heads"}
    about = json.loads((tmp_path / "pcam" / "weights.json").read_text())
    left = [name for name in unused if not name.endswith("num_batches_tracked")]
    assert sorted(about["unused"]) == sorted(left)
    back = to_torch(variables)
    assert back.keys() == state.keys()
    for name, array in state.items():
        np.testing.assert_array_equal(back[name], array, err_msg=name)

    findings = variables["params"]["heads"]["fc"]["bias"].size
    model = pcam.PCAMNet(densenet.densenet121(), pcam.PCAMHeads(findings))
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, arrays["in_image"])
    out = {name: np.asarray(value) for name, value in out.items()}
    got = {
        "out_stem_slice": out["stem"][..., :2],
        "out_stem_chanmean": out["stem"].mean(axis=(1, 2)),
        "out_block1_chanmean": out["block1"].mean(axis=(1, 2)),
        "out_block1_slice": out["block1"][:, ::2, ::2, ::32],
        "out_block2_chanmean": out["block2"].mean(axis=(1, 2)),
        "out_block2_slice": out["block2"][:, ::2, ::2, ::32],
        "out_block3": out["block3"],
        "out_block4_slice": out["block4"][..., ::32],
        "out_final": out["final"],
        "out_logit_maps": out["logit_maps"],
        "out_logits": out["logits"],
    }
    for name, value in got.items():
        # 1e-4: the README's tolerance; 121 layers of float32 sums in another order.
        assert_golden(value, arrays[name], rtol=1e-4, what=name)


def test_resnet38_from_a_file_matches_reference(golden, assert_golden, tmp_path):
    arrays = golden("resnet38")
    names = json.loads((golden.folder / "resnet38.json").read_text())
    file = tmp_path / "resnet38.safetensors"
    weight_files.write_safetensors(file, weights_from_names(names["used"]), {})
    said = weights.import_file(file, tmp_path / "resnet38")
    assert "resnet38, ResNet38(width=1.0, stride=8, dilations=(2, 4, 4))" in said, said
    file.unlink()  # 400 MB
    variables = imported(tmp_path / "resnet38")
    variables = {collection: tree["backbone"] for collection, tree in variables.items()}
    model = ResNet38()
    out = jax.jit(lambda v, x: model.apply(v, x, train=False))(variables, arrays["in_image"])
    compared = 0
    for tap, value in out.items():
        value = np.asarray(value)
        views = {"": value, "_chanmean": value.mean(axis=(1, 2))}
        for suffix, view in views.items():
            if f"out_{tap}{suffix}" in arrays:
                compared += 1
                # 1e-4: the README's tolerance; 38 layers of float32 sums in another order.
                assert_golden(view, arrays[f"out_{tap}{suffix}"], rtol=1e-4, what=tap + suffix)
    assert compared >= 4
    (tmp_path / "resnet38" / "weights.safetensors").unlink()


# The command.


@pytest.fixture(scope="module")
def small():
    """kind -> (a small model's variables, its state in the published names)."""
    image = (1, 32, 32, 3)
    tiny = densenet.DenseNet(growth_rate=4, block_sizes=(1, 2), init_features=8)
    nets = {
        "densenet": tiny,
        "pcam": pcam.PCAMNet(tiny, pcam.PCAMHeads(3)),
        "resnet": resnet.ResNet((1, 2), bottleneck=True, init_features=4, stop_at="layer2"),
        "resnet38": ResNet38(width=1 / 16),
    }
    found = {}
    for kind, model in nets.items():
        variables = random_variables(model, image)
        found[kind] = variables, to_torch(variables)
    model = vit.ViT(num_layers=2, num_heads=2, width=8, mlp_dim=12, patch_size=8)
    variables = random_variables(model, image)
    found["vit"] = variables, to_vit_npz(variables, model)
    model = SEAM(ResNet38(width=1 / 16), classes=20, neighbourhood=False, width=1 / 16)
    variables = random_variables(model, image)
    found["seam"] = variables, to_torch(variables, strip="backbone.")
    return found


def write_any(path, kind, state):
    if kind == "vit":
        np.savez(path.with_suffix(".npz"), **state)
        return path.with_suffix(".npz")
    write_state(path.with_suffix(".pth"), state)
    return path.with_suffix(".pth")


@pytest.mark.parametrize("kind", ["densenet", "pcam", "resnet", "resnet38", "seam", "vit"])
def test_every_kind_is_told_by_its_names_and_kept_to_the_bit(kind, small, tmp_path):
    variables, state = small[kind]
    extra = {
        "densenet": {"classifier.weight": np.ones((2, 3)), "features.norm0.num_batches_tracked": 1},
        "resnet": {"fc.weight": np.ones((2, 3)), "fc.bias": np.ones(2)},
        "vit": {"head/kernel": np.ones((8, 3)), "pre_logits/bias": np.ones(3)},
    }.get(kind, {})
    state = state | {name: np.asarray(array, np.float32) for name, array in extra.items()}
    file = write_any(tmp_path / "file", kind, state)
    said = weights.import_file(file, tmp_path / "out")
    assert f": {kind}, " in said
    got = traverse_util.flatten_dict(imported(tmp_path / "out"), sep="/")
    top = "vit/" if kind == "vit" else "" if kind in ("pcam", "seam") else "backbone/"
    flat = traverse_util.flatten_dict(variables)
    want = {f"{path[0]}/{top}{'/'.join(path[1:])}": array for path, array in flat.items()}
    assert got.keys() == want.keys()
    for name, array in want.items():
        np.testing.assert_array_equal(got[name], array, err_msg=name)
    about = json.loads((tmp_path / "out" / "weights.json").read_text())
    assert about["kind"] == kind
    assert len(about["sha256"]) == 64
    assert about["arrays"] == len(want)
    # Again is the same; another file or kind is not.
    weights.import_file(file, tmp_path / "out", kind=kind)
    with pytest.raises(InputError, match="which are others"):
        weights.import_file(file, tmp_path / "out", prefix="encoder")
    # Out again, in PyTorch's names: what came in.
    if kind == "pcam":
        weights.export(tmp_path / "out", tmp_path / "t.safetensors", names="torch")
        again = weight_files.read_file(tmp_path / "t.safetensors")
        assert again.keys() == state.keys()
        for name, array in state.items():
            np.testing.assert_array_equal(again[name], array, err_msg=name)


@pytest.mark.parametrize("kind", ["densenet", "pcam", "resnet", "resnet38", "seam", "vit"])
def test_what_is_no_whole_network_is_refused(kind, small, tmp_path):
    _, state = small[kind]
    name = list(state)[len(state) // 2]
    wrong = {
        "missing": {key: array for key, array in state.items() if key != name},
        "extra": state | {"stray.weight": np.zeros(2, np.float32)},
        "shape": state | {name: np.zeros((*state[name].shape, 2), np.float32)},
        "not finite": state | {name: np.full_like(state[name], np.nan)},
    }
    words = {"missing": f"lack '{name}'", "extra": "'stray.weight', which", "shape": f"'{name}' "}
    for what, broken in wrong.items():
        file = write_any(tmp_path / what.replace(" ", "-"), kind, broken)
        with pytest.raises(InputError, match=words.get(what, "is not finite")) as error:
            weights.import_file(file, tmp_path / "out")
        assert str(error.value).startswith(str(file))
        assert not (tmp_path / "out").exists()


def test_a_wrong_kind_and_no_kind_are_said(small, tmp_path):
    file = write_any(tmp_path / "a", "resnet", small["resnet"][1])
    with pytest.raises(InputError, match=r"lack 'features\.conv0\.weight', which every"):
        weights.import_file(file, tmp_path / "out", kind="densenet")
    with pytest.raises(InputError, match="kind 'vgg'; expected auto, vit, pcam"):
        weights.import_file(file, tmp_path / "out", kind="vgg")
    with pytest.raises(InputError, match="of no kind that is known"):
        weights.import_file(FIXTURES / "zip.pth", tmp_path / "out")
    with pytest.raises(InputError, match="--prefix"):
        weights.import_file(file, tmp_path / "out", prefix="../up")


def test_import_leaves_what_is_there_alone(small, tmp_path):
    file = write_any(tmp_path / "a", "resnet", small["resnet"][1])
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "config.json").write_text("{}")
    for folder, words in ((tmp_path / "run", "something else"), (file, "is a file")):
        with pytest.raises(InputError, match=words):
            weights.import_file(file, folder)
    assert [p.name for p in (tmp_path / "run").iterdir()] == ["config.json"]
    weights.import_file(file, tmp_path / "out")
    with pytest.raises(InputError, match="is there already"):
        weights.export(tmp_path / "out", tmp_path / "out" / "weights.safetensors")
    with pytest.raises(InputError, match=r"ends in \.safetensors"):
        weights.export(tmp_path / "out", tmp_path / "b.pth")


def test_the_command_from_file_to_file(small, tmp_path):
    file = write_any(tmp_path / "a", "resnet", small["resnet"][1])
    out, again = tmp_path / "out", tmp_path / "again.safetensors"
    done = command("import", file, out, "--kind=resnet", "--prefix=encoder")
    assert done.returncode == 0, done.stderr
    weights.export(out, again)
    text, same = weights.diff(weights.load(out), weights.load(again), 2)
    assert same, text
    shown = weights.show(weights.load(out), 1)
    assert "params/encoder" in shown
    total = sum(x.size for n, x in weights.load(out).items() if n.startswith("params/"))
    assert f"{total:,} parameters" in shown
    assert f"{total:,} parameters" in weights.show(weights.load(file), 1)  # in torch's names
    write_pth(tmp_path / "evil.pth", evil("os.system", tmp_path / "it-ran"), {})
    done = command("import", tmp_path / "evil.pth", tmp_path / "new")
    assert done.returncode == 2
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("error: ")
    assert "posix.system" in line
    assert not (tmp_path / "it-ran").exists()
    assert not (tmp_path / "new").exists()


def test_norms_and_what_is_unchanged():
    a = {"params/x/kernel": np.array([3.0, 4.0]), "params/y/kernel": np.array([1.0])}
    shown = weights.show(a, 1).splitlines()
    assert shown[1].split()[:4] == ["params/x", "1", "2", "5"]
    text, same = weights.diff(a, a | {"params/x/kernel": np.array([3.0, 4.5])}, 1)
    assert not same
    row = text.splitlines()[1].split()
    # |a| 5, |b| sqrt(29.25) = 5.408, |a - b| / |a| 0.1
    assert row == ["params/x", "0", "1", "5", "5.408", "0.1", "0.5"]
    assert "1 of 2 arrays of parameters are unchanged" in text
