"""The tensors of a .pth file, without PyTorch and without running anything that it holds.

A .pth is a pickle, a program for a small machine. The machine here knows only what tensors need
(dicts, lists, numbers, strings and a few names of torch) and never looks a name up, so a file that
asks for anything else is refused. Memory is bounded by the file's own size: every length is checked
against it before anything is read.
"""

import dataclasses
import functools
import io
import itertools
import math
import os
import pathlib
import pickletools
import zipfile
from collections.abc import Callable
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from cxr_jax.errors import InputError
from cxr_jax.small_files import ZIP_ERRORS, Malformed, reason
from cxr_jax.weight_files.base import MAX_BYTES, ZIP_MAGIC, Arrays, check_size

_MAX_PICKLE_BYTES = 2**26
_MAX_OPCODES = 2_000_000  # a checkpoint of ResNet-152 with its optimizer's state has 150,000
# Tied parameters lie in a file once; more than this is a small file that fills the memory.
_MAX_SHARING = 4

_LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
_LEGACY_PROTOCOL = 1001
_STORAGES = {
    "FloatStorage": np.dtype("<f4"),
    "DoubleStorage": np.dtype("<f8"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_CALLS = {
    "collections.OrderedDict",
    "torch.Size",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_tensor_v2",
}


class _Forbidden(Exception):
    """The name of something that is no part of a tensor."""


def read_pth(path: str | os.PathLike) -> Arrays:
    """The tensors of a PyTorch state dict, of either format (zip, or the one before torch 1.6).

    A dict that has the state under 'state_dict' or 'model' is opened, and a 'module.' in front of
    every name (from DataParallel) is taken off.

    Raises:
      InputError: as `read_file`.
    """
    path = pathlib.Path(path)
    check_size(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == ZIP_MAGIC
            file.seek(0)
            tree, read_storage = (_open_zip if is_zip else _open_legacy)(file)
            return _read_tensors(_state_dict(tree), read_storage, path.stat().st_size)
    except _Forbidden as error:
        raise InputError(
            f"{path} holds code ({error}), which was not run; only tensors are read. Where you "
            "trust the file, save its state_dict() alone with PyTorch"
        ) from error
    except ZIP_ERRORS as error:  # Malformed is a ValueError
        raise InputError(
            f"{path} is no state dict, or it is damaged ({reason(error)}); fetch it again, or save "
            "the model's state_dict() with torch.save"
        ) from error


@dataclasses.dataclass(frozen=True)
class _Name:
    """A name of Python that the file refers to. It is only ever compared."""

    text: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    """A run of numbers in the file: `numel` of them from `first`, in the storage `key`."""

    key: str
    dtype: np.dtype
    total: int  # numbers in the whole storage
    first: int
    numel: int


@dataclasses.dataclass(frozen=True)
class _Tensor:
    """A view of a storage; offset and strides count numbers, not bytes."""

    storage: _Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


# Reads the numbers of a whole storage, [total].
_ReadStorage = Callable[[_Storage], np.ndarray]


def _open_zip(file: BinaryIO) -> tuple[Any, _ReadStorage]:
    """torch >= 1.6: NAME/data.pkl, and each storage as the stored file NAME/data/KEY."""
    archive = zipfile.ZipFile(file)
    entries = {info.filename: info for info in archive.infolist()}
    roots = [name.removesuffix("data.pkl") for name in entries if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise Malformed(f"a zip with {len(roots)} entries .../data.pkl")
    packed = [name for name, info in entries.items() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise Malformed(f"its entry {packed[0]!r} is compressed, which torch.save does not do")
    (root,) = roots
    order = entries.get(f"{root}byteorder")
    if order is not None and _read_entry(archive, order, 64) != b"little":
        raise Malformed("it was written on a big-endian machine")
    left = os.fstat(file.fileno()).st_size  # entries that overlap could be more than the file

    def read_storage(storage: _Storage) -> np.ndarray:
        nonlocal left
        info = entries.get(f"{root}data/{storage.key}")
        if info is None:
            raise Malformed(f"there is no entry {root}data/{storage.key}")
        wanted = storage.total * storage.dtype.itemsize
        if info.file_size != wanted:
            raise Malformed(f"{info.filename} has {info.file_size} bytes, not {wanted}")
        left -= wanted
        if left < 0:
            raise Malformed("its entries overlap")
        return np.frombuffer(_read_entry(archive, info, wanted), storage.dtype)

    tree, _ = _unpickle(_read_entry(archive, entries[f"{root}data.pkl"], _MAX_PICKLE_BYTES))
    return tree, read_storage


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.file_size > limit or info.flag_bits & 1:
        raise Malformed(f"its entry {info.filename!r} is encrypted or larger than {limit:,} bytes")
    if info.compress_size != info.file_size:  # stored: zipfile would return the fewer
        raise Malformed(f"its entry {info.filename!r} has two sizes")
    return archive.read(info)


def _open_legacy(file: BinaryIO) -> tuple[Any, _ReadStorage]:
    """torch < 1.6: five pickles (magic, protocol, machine, state, keys), then the storages."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(_MAX_PICKLE_BYTES)
    storages: dict[str, _Storage] = {}
    tree, end = _unpickle(head, _legacy_state_start(head), storages)
    keys, end = _unpickle(head, end)
    if not isinstance(keys, list):
        raise Malformed("its list of storages is none")
    places = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in places:
            raise Malformed("its list of storages does not fit its tensors")
        file.seek(end)
        if int.from_bytes(file.read(8), "little") != storage.total:
            raise Malformed(f"storage {key} is not of {storage.total} numbers, or is cut off")
        places[key] = end + 8
        end = places[key] + storage.total * storage.dtype.itemsize
        if end > size:
            raise Malformed(f"it ends after {size:,} bytes and storage {key} after {end:,}")

    def read_storage(storage: _Storage) -> np.ndarray:
        if storage.key not in places:
            raise Malformed(f"it lacks storage {storage.key}")
        file.seek(places[storage.key])
        return np.frombuffer(file.read(storage.total * storage.dtype.itemsize), storage.dtype)

    return tree, read_storage


def _legacy_state_start(head: bytes) -> int:
    """Where the fourth pickle begins, once the three before it are what they must be."""
    magic, end = _unpickle(head)
    if magic != _LEGACY_MAGIC:
        raise Malformed("it does not begin as torch.save begins")
    protocol, end = _unpickle(head, end)
    if protocol != _LEGACY_PROTOCOL:
        raise Malformed("it is of an unknown version of torch.save")
    machine, end = _unpickle(head, end)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise Malformed("it was written on a big-endian machine")
    return end


def _unpickle(
    data: bytes, start: int = 0, storages: dict[str, _Storage] | None = None
) -> tuple[Any, int]:
    """(what the pickle at `start` describes, where it ends).

    Args:
      storages: collects the storages it refers to, by key.
    """
    storages = {} if storages is None else storages
    stream = io.BytesIO(data)
    stream.seek(start)
    machine = _Machine(storages)
    try:
        for opcode, argument, _ in itertools.islice(pickletools.genops(stream), _MAX_OPCODES):
            if opcode.name == "STOP":
                return machine.pop(), stream.tell()
            machine.step(opcode.name, argument)
    except (ValueError, IndexError, KeyError, TypeError, OverflowError) as error:
        # What is no pickle fails in `genops`; one that makes no sense, on the stack or the memo.
        if isinstance(error, Malformed):
            raise
        raise Malformed(f"its pickle cannot be read: {type(error).__name__}") from error
    raise Malformed(f"its pickle has more than {_MAX_OPCODES:,} instructions")


class _Machine:
    """The part of pickle's machine that tensors need. It builds values and calls nothing."""

    def __init__(self, storages: dict[str, _Storage]):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def step(self, opcode: str, argument: Any) -> None:
        """Carries one instruction out.

        Raises:
          _Forbidden: a name that is no part of a tensor.
          Malformed: an instruction that no state dict needs.
        """
        if opcode in _LITERALS and isinstance(argument, (int, float, str, bytes)):
            self.stack.append(argument)
        elif opcode in _CONSTANTS:
            self.stack.append(_CONSTANTS[opcode])
        elif opcode in _STEPS:
            _STEPS[opcode](self, argument)
        else:
            raise Malformed(f"its pickle has the instruction {opcode}")

    def pop(self) -> Any:
        """Takes the top value off."""
        return self.stack.pop()

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    # One instruction each, as `_STEPS` lists them; `_` stands for an argument that it lacks.

    def skip(self, _: Any) -> None:
        pass

    def mark(self, _: None) -> None:
        self.below.append(self.stack)
        self.stack = []

    def empty_dict(self, _: None) -> None:
        self.stack.append({})

    def empty_list(self, _: None) -> None:
        self.stack.append([])

    def tuple_from_mark(self, _: None) -> None:
        items = self._pop_mark()
        self.stack.append(tuple(items))

    def tuple_of_top(self, _: None, *, count: int) -> None:
        items = [self.stack.pop() for _ in range(count)]
        self.stack.append(tuple(items[::-1]))

    def append(self, _: None) -> None:
        item = self.stack.pop()
        _check_kind(self.stack[-1], list).append(item)

    def extend_from_mark(self, _: None) -> None:
        items = self._pop_mark()
        _check_kind(self.stack[-1], list).extend(items)

    def set_item(self, _: None) -> None:
        item, key = self.stack.pop(), self.stack.pop()
        _set_items(self.stack[-1], [(key, item)])

    def set_items_from_mark(self, _: None) -> None:
        items = self._pop_mark()
        _set_items(self.stack[-1], list(zip(items[::2], items[1::2], strict=True)))

    def put(self, key: int) -> None:
        self.memo[key] = self.stack[-1]

    def memoize(self, _: None) -> None:
        self.memo[len(self.memo)] = self.stack[-1]

    def get(self, key: int) -> None:
        self.stack.append(self.memo[key])

    def push_name(self, module_and_name: str) -> None:
        self.stack.append(_name(*module_and_name.split(" ", 1)))

    def push_name_from_stack(self, _: None) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        self.stack.append(_name(_check_kind(module, str), _check_kind(name, str)))

    def push_storage(self, _: None) -> None:
        self.stack.append(self._storage(self.stack.pop()))

    def reduce(self, _: None) -> None:
        arguments, name = self.stack.pop(), self.stack.pop()
        self.stack.append(_build(_check_kind(name, _Name), _check_kind(arguments, tuple)))

    def drop_attributes(self, _: None) -> None:
        self.stack.pop()  # such as a state dict's _metadata: nothing here has any

    def _storage(self, reference: Any) -> _Storage:
        """("storage", type, key, device, numel[, view]) -> the storage, or a part of it."""
        match reference:
            case ("storage", _Name(kind), str(key), _, int(numel), *rest):
                pass
            case ("module", *_):
                raise Malformed("it holds a whole model, not its state dict")
            case _:
                raise Malformed("its pickle refers to something that is no storage")
        dtype = _STORAGES.get(kind.rpartition(".")[2])
        if dtype is None or not 0 <= numel <= MAX_BYTES:
            raise Malformed(f"its storage {key[:60]!r} of {kind} has an impossible length")
        whole = _Storage(key=key, dtype=dtype, total=numel, first=0, numel=numel)
        if self.storages.setdefault(key, whole) != whole:
            raise Malformed(f"its storage {key} is described twice, each time otherwise")
        match rest:
            case [] | [None]:
                return whole
            case [(str(), int(first), int(length))] if 0 <= first <= first + length <= numel:
                return dataclasses.replace(whole, first=first, numel=length)
        # `rest` is not printed: tuples that hold each other would fill the memory.
        raise Malformed(f"its storage {key[:60]!r} is seen through something that is no view")


# Instructions by pickletools' names. What is in none of the three tables is refused.
_LITERALS = {  # they push what they carry
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
_STEPS: dict[str, Callable[[_Machine, Any], None]] = {
    "PROTO": _Machine.skip,
    "FRAME": _Machine.skip,
    "MARK": _Machine.mark,
    "EMPTY_DICT": _Machine.empty_dict,
    "EMPTY_LIST": _Machine.empty_list,
    "TUPLE": _Machine.tuple_from_mark,
    "TUPLE1": functools.partial(_Machine.tuple_of_top, count=1),
    "TUPLE2": functools.partial(_Machine.tuple_of_top, count=2),
    "TUPLE3": functools.partial(_Machine.tuple_of_top, count=3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend_from_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items_from_mark,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "GLOBAL": _Machine.push_name,
    "INST": _Machine.push_name,
    "STACK_GLOBAL": _Machine.push_name_from_stack,
    "BINPERSID": _Machine.push_storage,
    "REDUCE": _Machine.reduce,
    "BUILD": _Machine.drop_attributes,
}


def _name(module: str, name: str) -> _Name:
    """A name, if it is one that tensors need."""
    full = f"{module}.{name}"
    if full in _CALLS or (module in ("torch", "torch.cuda") and name in _STORAGES):
        return _Name(full)
    raise _Forbidden(full[:100])


def _build(name: _Name, arguments: tuple) -> Any:
    """What a call would give."""
    match name.text.rpartition(".")[2], arguments:
        case "OrderedDict", ():
            return {}
        case "OrderedDict", (list(pairs),):  # as Python 2 writes it
            made = {}
            _set_items(made, [tuple(pair) for pair in pairs])
            return made
        case "Size", (tuple(shape),):
            return shape
        case "_rebuild_parameter", (_Tensor() as tensor, *_):
            return tensor
        case "_rebuild_tensor" | "_rebuild_tensor_v2", (
            _Storage() as storage,
            int(offset),
            tuple(shape),
            tuple(strides),
            *_,
        ):
            return _Tensor(storage, offset, shape, strides)
    raise Malformed(f"it calls {name.text} with other arguments than torch.save writes")


def _check_kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise Malformed(f"its pickle has a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _set_items(target: Any, items: list[tuple[Any, Any]]) -> None:
    for key, value in items:
        # No tuples: the hash of a few that hold each other twice takes for ever.
        if not isinstance(key, (str, int)):
            raise Malformed(f"its pickle has a {type(key).__name__} as a key")
        _check_kind(target, dict)[key] = value


def _state_dict(tree: Any) -> dict[str, _Tensor]:
    """The dict of tensors in what a file holds."""
    for key in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
            break
    if not isinstance(tree, dict) or not tree:
        raise Malformed("it holds no dict of tensors")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise Malformed(
                f"its entry {str(name)[:60]!r} is a {type(value).__name__.strip('_')}, no tensor; "
                "expected a state dict, or a dict with one under 'state_dict' or 'model'"
            )
    if all(name.startswith("module.") for name in tree):
        tree = {name.removeprefix("module."): tensor for name, tensor in tree.items()}
    return tree


def _read_tensors(state: dict[str, _Tensor], read: _ReadStorage, file_size: int) -> Arrays:
    """Checks every view, then reads each storage once."""
    total = 0
    for name, tensor in state.items():
        _check_view(name, tensor)
        total += math.prod(tensor.shape) * tensor.storage.dtype.itemsize
    if total > _MAX_SHARING * file_size:
        raise Malformed(f"its tensors have {total:,} bytes and the file {file_size:,}")
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in state.items():
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = read(storage)
            if len(storages[storage.key]) != storage.total:  # as_strided would read beyond it
                raise Malformed(f"storage {storage.key[:60]!r} is cut off")
        numbers = storages[storage.key][storage.first : storage.first + storage.numel]
        arrays[name] = np.lib.stride_tricks.as_strided(
            numbers[tensor.offset :],
            tensor.shape,
            [stride * storage.dtype.itemsize for stride in tensor.strides],
            writeable=False,
        )
    return arrays


def _check_view(name: str, tensor: _Tensor) -> None:
    """as_strided believes what it is told, so nothing may lie outside the storage."""
    shape, strides = tensor.shape, tensor.strides
    numbers = (tensor.offset, *shape, *strides)
    if not all(type(n) is int and 0 <= n <= MAX_BYTES for n in numbers):
        raise Malformed(f"the shape, strides or offset of {name!r} are no numbers of a tensor")
    if len(shape) != len(strides) or len(shape) > 8:
        raise Malformed(f"{name!r} has {len(shape)} sides and {len(strides)} strides")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if math.prod(max(n, 1) for n in shape) > MAX_BYTES:  # an empty one may still be too wide
        raise Malformed(f"{name!r} has the shape {shape}")
    if 0 not in shape and last >= tensor.storage.numel:
        raise Malformed(f"{name!r} reaches to number {last} of a storage of {tensor.storage.numel}")
