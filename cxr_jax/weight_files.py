"""Files of weights, as name -> array: .pth without PyTorch, .safetensors, a ViT's .npz.

Nothing that a file holds is ever run. A .pth is a pickle, a program for a small machine; the
machine here knows only what tensors need (dicts, lists, numbers, strings and a few names of torch)
and never looks a name up, so a file that asks for anything else is refused. Memory is bounded by
the file's own size: every length is checked against it before anything is read.
"""

import dataclasses
import io
import itertools
import math
import os
import pathlib
import pickletools
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
import safetensors.numpy

from cxr_jax.errors import InputError

Arrays = dict[str, np.ndarray]

WEIGHTS = "weights.safetensors"  # in a folder that `cxr_jax.weights import` wrote
MAX_BYTES = 2**32  # of a file and of the arrays in it; no network here has a quarter of it
_MAX_PICKLE_BYTES = 2**26
_MAX_OPCODES = 2_000_000  # a checkpoint of ResNet-152 with its optimizer's state has 150,000
# Tied parameters lie in a file once; more than this is a small file that fills the memory.
_MAX_SHARING = 4
_MAX_UNPACKING = 64  # of an .npz; trained numbers hardly shrink when they are packed

_ZIP_MAGIC = b"PK\x03\x04"
# What Python's zip and npy readers raise on damaged files, beside their own error: names that are
# no UTF-8, offsets outside the file, unknown or encrypted packing, a header that is no literal.
_ZIP_ERRORS = (
    *(zipfile.BadZipFile, zlib.error, struct.error, tokenize.TokenError),
    *(EOFError, OSError, OverflowError, RuntimeError, SyntaxError, UnicodeDecodeError),
)
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


class _Malformed(ValueError):
    """What is wrong with a file, for the reader that knows its name."""


class _Forbidden(Exception):
    """The name of something that is no part of a tensor."""


def read_file(path: str | os.PathLike) -> Arrays:
    """Reads a file of weights of any kind; its content says which, not its name.

    Returns:
      Name -> array in the file's own layout and dtype, in its order. Arrays may share memory and
      be read-only.

    Raises:
      InputError: there is no such file, it is none of weights, it is truncated or malformed, it
        holds anything but tensors, or it is larger than MAX_BYTES.
    """
    path = pathlib.Path(path)
    _check_size(path)
    with path.open("rb") as file:
        start = file.read(9)
    if start.startswith(_ZIP_MAGIC):
        return read_vit_npz(path) if _zip_has(path, ".npy") else read_pth(path)
    if start.startswith(b"\x80") or path.suffix in (".pth", ".pt"):
        return read_pth(path)
    if start[8:] == b"{" or path.suffix == ".safetensors":
        return read_safetensors(path)
    raise InputError(
        f"{path} holds no weights: it is neither a .pth, nor a .safetensors, nor an .npz file"
    )


def read_pth(path: str | os.PathLike) -> Arrays:
    """The tensors of a PyTorch state dict, of either format (zip, or the one before torch 1.6).

    A dict that has the state under 'state_dict' or 'model' is opened, and a 'module.' in front of
    every name (from DataParallel) is taken off.

    Raises:
      InputError: as `read_file`.
    """
    path = pathlib.Path(path)
    _check_size(path)
    try:
        with path.open("rb") as file:
            is_zip = file.read(4) == _ZIP_MAGIC
            file.seek(0)
            tree, read_storage = (_open_zip if is_zip else _open_legacy)(file)
            return _read_tensors(_state_dict(tree), read_storage, path.stat().st_size)
    except _Forbidden as error:
        raise InputError(
            f"{path} holds code ({error}), which was not run; only tensors are read. Where you "
            "trust the file, save its state_dict() alone with PyTorch"
        ) from error
    except (ValueError, *_ZIP_ERRORS) as error:  # _Malformed is a ValueError
        raise InputError(
            f"{path} is no state dict, or it is damaged ({error}); fetch it again, or save the "
            "model's state_dict() with torch.save"
        ) from error


def read_safetensors(path: str | os.PathLike) -> Arrays:
    """The arrays of a .safetensors file.

    Raises:
      InputError: as `read_file`.
    """
    _check_size(path)
    try:
        return safetensors.numpy.load_file(path)
    except (safetensors.SafetensorError, KeyError, AttributeError, TypeError) as error:
        # Beside its own error: KeyError and the like for a dtype that NumPy lacks.
        raise InputError(
            f"{path} is no .safetensors file, or it is damaged ({error}); fetch it again"
        ) from error


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """The metadata of a .safetensors file.

    Raises:
      InputError: as `read_file`.
    """
    _check_size(path)
    try:
        with safetensors.safe_open(path, "np") as file:
            return dict(file.metadata() or {})
    except safetensors.SafetensorError as error:
        raise InputError(
            f"{path} is no .safetensors file, or it is damaged ({error}); fetch it again"
        ) from error


def write_safetensors(
    path: str | os.PathLike, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes arrays and text about them; a reader sees the whole file or the one before."""
    path = pathlib.Path(path)
    content = safetensors.numpy.save(
        {name: np.ascontiguousarray(array).reshape(array.shape) for name, array in arrays.items()},
        metadata=dict(metadata),
    )
    temporary = path.with_name(path.name + ".part")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_vit_npz(path: str | os.PathLike) -> Arrays:
    """The arrays of an .npz, such as the published vision transformers'; never a pickle in it.

    Raises:
      InputError: as `read_file`.
    """
    path = pathlib.Path(path)
    _check_size(path)
    try:
        with zipfile.ZipFile(path) as archive:
            total = sum(_npy_bytes(archive, info) for info in archive.infolist())
        if total > min(MAX_BYTES, _MAX_UNPACKING * path.stat().st_size):
            raise _Malformed(f"it unpacks to {total:,} bytes")
        with np.load(path, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays.files}
    except (ValueError, *_ZIP_ERRORS) as error:
        raise InputError(
            f"{path} is no .npz of arrays, or it is damaged ({error}); fetch it again"
        ) from error


def _npy_bytes(archive: zipfile.ZipFile, info: zipfile.ZipInfo) -> int:
    """The size of one member, after its header has been held against it."""
    with archive.open(info) as file:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0)):
            raise _Malformed(f"{info.filename} is of version {version}")
        read = np.lib.format.read_array_header_1_0
        read = read if version == (1, 0) else np.lib.format.read_array_header_2_0
        shape, _, dtype = read(file)
        if dtype.hasobject:
            raise _Malformed(f"{info.filename} is a pickle, which was not run")
        if file.tell() + math.prod(shape) * dtype.itemsize != info.file_size:
            raise _Malformed(f"{info.filename} says it has the shape {shape}, which does not fit")
    return info.file_size


def _check_size(path: str | os.PathLike) -> None:
    path = pathlib.Path(path)
    if not path.is_file():
        raise InputError(f"{path} is no file; give a .pth, .safetensors or .npz file of weights")
    size = path.stat().st_size
    if size > MAX_BYTES:
        raise InputError(
            f"{path} has {size:,} bytes; files of weights of up to {MAX_BYTES:,} are read"
        )


def _zip_has(path: pathlib.Path, suffix: str) -> bool:
    try:
        with zipfile.ZipFile(path) as archive:
            return any(name.endswith(suffix) for name in archive.namelist())
    except _ZIP_ERRORS as error:
        raise InputError(
            f"{path} is damaged ({error}): it begins as a .pth or .npz and does not end as one; "
            "fetch it again"
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
        raise _Malformed(f"a zip with {len(roots)} entries .../data.pkl")
    packed = [name for name, info in entries.items() if info.compress_type != zipfile.ZIP_STORED]
    if packed:
        raise _Malformed(f"its entry {packed[0]!r} is compressed, which torch.save does not do")
    (root,) = roots
    order = entries.get(f"{root}byteorder")
    if order is not None and _read_entry(archive, order, 64) != b"little":
        raise _Malformed("it was written on a big-endian machine")
    left = os.fstat(file.fileno()).st_size  # entries that overlap could be more than the file

    def read_storage(storage: _Storage) -> np.ndarray:
        nonlocal left
        info = entries.get(f"{root}data/{storage.key}")
        if info is None:
            raise _Malformed(f"there is no entry {root}data/{storage.key}")
        wanted = storage.total * storage.dtype.itemsize
        if info.file_size != wanted:
            raise _Malformed(f"{info.filename} has {info.file_size} bytes, not {wanted}")
        left -= wanted
        if left < 0:
            raise _Malformed("its entries overlap")
        return np.frombuffer(_read_entry(archive, info, wanted), storage.dtype)

    tree, _ = _unpickle(_read_entry(archive, entries[f"{root}data.pkl"], _MAX_PICKLE_BYTES))
    return tree, read_storage


def _read_entry(archive: zipfile.ZipFile, info: zipfile.ZipInfo, limit: int) -> bytes:
    if info.file_size > limit or info.flag_bits & 1:
        raise _Malformed(f"its entry {info.filename!r} is encrypted or larger than {limit:,} bytes")
    if info.compress_size != info.file_size:  # stored: zipfile would return the fewer
        raise _Malformed(f"its entry {info.filename!r} has two sizes")
    return archive.read(info)


def _open_legacy(file: BinaryIO) -> tuple[Any, _ReadStorage]:
    """torch < 1.6: five pickles (magic, protocol, machine, state, keys), then the storages."""
    size = os.fstat(file.fileno()).st_size
    head = file.read(_MAX_PICKLE_BYTES)
    magic, end = _unpickle(head)
    if magic != _LEGACY_MAGIC:
        raise _Malformed("it does not begin as torch.save begins")
    protocol, end = _unpickle(head, end)
    if protocol != _LEGACY_PROTOCOL:
        raise _Malformed("it is of an unknown version of torch.save")
    machine, end = _unpickle(head, end)
    if not isinstance(machine, dict) or machine.get("little_endian") is not True:
        raise _Malformed("it was written on a big-endian machine")
    storages: dict[str, _Storage] = {}
    tree, end = _unpickle(head, end, storages)
    keys, end = _unpickle(head, end)
    if not isinstance(keys, list):
        raise _Malformed("its list of storages is none")
    places = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        if storage is None or key in places:
            raise _Malformed("its list of storages does not fit its tensors")
        file.seek(end)
        if int.from_bytes(file.read(8), "little") != storage.total:
            raise _Malformed(f"storage {key} is not of {storage.total} numbers, or is cut off")
        places[key] = end + 8
        end = places[key] + storage.total * storage.dtype.itemsize
        if end > size:
            raise _Malformed(f"it ends after {size:,} bytes and storage {key} after {end:,}")

    def read_storage(storage: _Storage) -> np.ndarray:
        if storage.key not in places:
            raise _Malformed(f"it lacks storage {storage.key}")
        file.seek(places[storage.key])
        return np.frombuffer(file.read(storage.total * storage.dtype.itemsize), storage.dtype)

    return tree, read_storage


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
        if isinstance(error, _Malformed):
            raise
        raise _Malformed(f"its pickle cannot be read: {error}") from error
    raise _Malformed(f"its pickle has more than {_MAX_OPCODES:,} instructions")


class _Machine:
    """The part of pickle's machine that tensors need. It builds values and calls nothing."""

    def __init__(self, storages: dict[str, _Storage]):
        self.stack: list[Any] = []
        self.below: list[list[Any]] = []  # the stacks below each mark
        self.memo: dict[int, Any] = {}
        self.storages = storages

    def pop(self) -> Any:
        """Takes the top value off."""
        return self.stack.pop()

    def _pop_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.below.pop()
        return items

    def step(self, opcode: str, argument: Any) -> None:
        """Carries one instruction out.

        Raises:
          _Forbidden: a name that is no part of a tensor.
          _Malformed: an instruction that no state dict needs.
        """
        stack = self.stack
        match opcode:
            case "PROTO" | "FRAME":
                pass
            case "MARK":
                self.below.append(stack)
                self.stack = []
            case "NONE" | "NEWTRUE" | "NEWFALSE":
                stack.append({"NONE": None, "NEWTRUE": True, "NEWFALSE": False}[opcode])
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE":
                items = self._pop_mark()
                self.stack.append(tuple(items))
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(opcode[-1]))]
                stack.append(tuple(items[::-1]))
            case "APPEND":
                item = stack.pop()
                _check_kind(stack[-1], list).append(item)
            case "APPENDS":
                items = self._pop_mark()
                _check_kind(self.stack[-1], list).extend(items)
            case "SETITEM":
                item, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [(key, item)])
            case "SETITEMS":
                items = self._pop_mark()
                _set_items(self.stack[-1], list(zip(items[::2], items[1::2], strict=True)))
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "GLOBAL" | "INST":
                stack.append(_name(*argument.split(" ", 1)))
            case "STACK_GLOBAL":
                name, module = stack.pop(), stack.pop()
                stack.append(_name(_check_kind(module, str), _check_kind(name, str)))
            case "BINPERSID":
                stack.append(self._storage(stack.pop()))
            case "REDUCE":
                arguments, name = stack.pop(), stack.pop()
                stack.append(_build(_check_kind(name, _Name), _check_kind(arguments, tuple)))
            case "BUILD":
                stack.pop()  # attributes, such as a state dict's _metadata: nothing here has any
            case _ if isinstance(argument, (int, float, str, bytes)) and opcode in _LITERALS:
                stack.append(argument)
            case _:
                raise _Malformed(f"its pickle has the instruction {opcode}")

    def _storage(self, reference: Any) -> _Storage:
        """("storage", type, key, device, numel[, view]) -> the storage, or a part of it."""
        match reference:
            case ("storage", _Name(kind), str(key), _, int(numel), *rest):
                pass
            case ("module", *_):
                raise _Malformed("it holds a whole model, not its state dict")
            case _:
                raise _Malformed("its pickle refers to something that is no storage")
        dtype = _STORAGES.get(kind.rpartition(".")[2])
        if dtype is None or not 0 <= numel <= MAX_BYTES:
            raise _Malformed(f"its storage {key[:60]!r} of {kind} has an impossible length")
        whole = _Storage(key, dtype, numel, 0, numel)
        if self.storages.setdefault(key, whole) != whole:
            raise _Malformed(f"its storage {key} is described twice, each time otherwise")
        match rest:
            case [] | [None]:
                return whole
            case [(str(), int(first), int(length))] if 0 <= first <= first + length <= numel:
                return dataclasses.replace(whole, first=first, numel=length)
        # `rest` is not printed: tuples that hold each other would fill the memory.
        raise _Malformed(f"its storage {key[:60]!r} is seen through something that is no view")


_LITERALS = {
    *("BININT", "BININT1", "BININT2", "INT", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
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
    raise _Malformed(f"it calls {name.text} with other arguments than torch.save writes")


def _check_kind(value: Any, kind: type) -> Any:
    if not isinstance(value, kind):
        raise _Malformed(f"its pickle has a {type(value).__name__} in place of a {kind.__name__}")
    return value


def _set_items(target: Any, items: list[tuple[Any, Any]]) -> None:
    for key, value in items:
        # No tuples: the hash of a few that hold each other twice takes for ever.
        if not isinstance(key, (str, int)):
            raise _Malformed(f"its pickle has a {type(key).__name__} as a key")
        _check_kind(target, dict)[key] = value


def _state_dict(tree: Any) -> dict[str, _Tensor]:
    """The dict of tensors in what a file holds."""
    for key in ("state_dict", "model"):
        if isinstance(tree, dict) and isinstance(tree.get(key), dict):
            tree = tree[key]
            break
    if not isinstance(tree, dict) or not tree:
        raise _Malformed("it holds no dict of tensors")
    for name, value in tree.items():
        if not isinstance(name, str) or not isinstance(value, _Tensor):
            raise _Malformed(
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
        raise _Malformed(f"its tensors have {total:,} bytes and the file {file_size:,}")
    storages: dict[str, np.ndarray] = {}
    arrays = {}
    for name, tensor in state.items():
        storage = tensor.storage
        if storage.key not in storages:
            storages[storage.key] = read(storage)
            if len(storages[storage.key]) != storage.total:  # as_strided would read beyond it
                raise _Malformed(f"storage {storage.key[:60]!r} is cut off")
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
        raise _Malformed(f"the shape, strides or offset of {name!r} are no numbers of a tensor")
    if len(shape) != len(strides) or len(shape) > 8:
        raise _Malformed(f"{name!r} has {len(shape)} sides and {len(strides)} strides")
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(shape, strides))
    if math.prod(max(n, 1) for n in shape) > MAX_BYTES:  # an empty one may still be too wide
        raise _Malformed(f"{name!r} has the shape {shape}")
    if 0 not in shape and last >= tensor.storage.numel:
        raise _Malformed(
            f"{name!r} reaches to number {last} of a storage of {tensor.storage.numel}"
        )
