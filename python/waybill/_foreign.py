"""Routes of other systems: answers of their engines and batches of their trainers, read and written."""

from __future__ import annotations

import contextlib
import ctypes
import mmap
import os
import warnings
from typing import Any, Callable

import numpy as np

from . import _abi
from ._dump import Dump, check_dump
from ._errors import Error, InputOutput, OutOfMemory
from ._model import RouteModel, check_model, model_of_folder
from ._record import Record

_Write = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
_Skip = ctypes.CFUNCTYPE(ctypes.c_bool, ctypes.c_void_p, ctypes.c_int)


def _layout(finder: Any, system: str) -> int:
    out = ctypes.c_int()
    finder(_abi.text(system, "system"), ctypes.byref(out))
    return out.value


def _mapped(path: Any) -> np.ndarray:
    """The bytes of a file, without reading them where it can be mapped: not a pipe, and not an empty one."""
    try:
        with open(path, "rb") as file:
            try:
                return np.frombuffer(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ), np.uint8)
            except (OSError, ValueError):
                return np.frombuffer(file.read(), np.uint8)
    except OSError as error:
        raise InputOutput(f"{os.fsdecode(path)}: {error.strerror}") from None


def _octets(source: Any) -> np.ndarray:
    try:
        return np.frombuffer(source, np.uint8)
    except TypeError:
        raise TypeError(f"source: expected a path or bytes, found {type(source).__name__}") from None


class Import:
    """An iterator of the records that answers hold. See waybill.import_."""

    def __init__(
        self,
        source: Any,
        layout: int,
        model: RouteModel,
        vocab_size: int,
        refused: Callable[[Error], Any] | None,
    ) -> None:
        self.model = model
        self._refused = refused
        self._address: int | None = None
        self._warned = False
        is_path = isinstance(source, (str, os.PathLike))
        self._bytes = _mapped(source) if is_path else _octets(source)
        name = os.fsencode(source) if is_path else b"answers"
        self._address = _abi.handle(
            _abi.functions["wb_import_open"], name, _abi.pointer(self._bytes), len(self._bytes), layout,
            model._struct,
        )  # fmt: skip
        _abi.functions["wb_import_set_vocab_size"](self._address, vocab_size)
        self.has_tokens: bool = _abi.functions["wb_import_has_tokens"](self._address)

    def __iter__(self) -> Import:
        return self

    def __next__(self) -> Record:
        raw, found = _abi.structs["wb_record"](), ctypes.c_bool(self._address is not None)
        while found.value:
            try:
                _abi.functions["wb_import_next"](self._address, ctypes.byref(raw), ctypes.byref(found))
            except (OutOfMemory, InputOutput):  # what is wrong with the machine is wrong with all requests
                raise
            except Error as error:
                if self._refused is None:
                    raise
                self._refused(error)
            else:
                if found.value:
                    self._warn_of_indexers()
                    return Record(self.model, **Record._of(self.model, raw, self)._fields())
        self.close()
        raise StopIteration

    def _warn_of_indexers(self) -> None:
        if not self._warned and _abi.functions["wb_import_indexers_left_out"](self._address):
            self._warned = True
            warnings.warn("what indexers chose is left out: the model has none", stacklevel=3)

    def close(self) -> None:
        """Ends the iteration and forgets the answers. Records that were read stay."""
        address, self._address = self._address, None
        _abi.functions["wb_import_close"](address)
        self._bytes = np.empty(0, np.uint8)

    def __enter__(self) -> Import:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def __del__(self, close: Any = _abi.functions["wb_import_close"]) -> None:
        if getattr(self, "_address", None):
            close(self._address)


def import_(
    source: str | os.PathLike[str] | bytes | Any,
    system: str,
    model: RouteModel | str | os.PathLike[str] | Any,
    *,
    refused: Callable[[Error], Any] | None = None,
) -> Import:
    """Reads answers of another system as records, one at a time, each with arrays of its own.

    source: a file, or the bytes themselves (json.dumps(answers).encode()): JSON lines, a list of answers,
    the events of a stream, msgpack, .npz or .npy, as the system writes them. system: "vllm", "sglang",
    "nemo-rl", "slime", "verl", "trtllm", "prime-rl", "megatron" or "dynamo". model: whose routes they are, a
    waybill.RouteModel, what has one (a dump), or the folder of a config.json, which says which tokens there
    are too.

    An answer whose routes cannot be (all zeros, no experts of this model, more rows than tokens) raises an
    Error that names the request, and the next call of `next` goes on with the request after it. refused:
    called with each such error instead, so that a loop keeps the rest. A .npy file has routes alone: a
    warning says that tokens are zeros, which no replay takes. Another one says that answers tell what
    indexers chose and the model has none.
    """
    layout = _layout(_abi.functions["wb_import_layout_find"], system)
    by_folder = isinstance(model, (str, os.PathLike))
    whose, vocab_size = model_of_folder(model) if by_folder else (check_model(model), 0)
    made = Import(source, layout, whose, vocab_size, refused)
    if not made.has_tokens:
        warnings.warn("the answers have routes without tokens: those of the records are zero", stacklevel=2)
    return made


def export(
    dump: Dump,
    system: str,
    path: str | os.PathLike[str],
    *,
    refused: Callable[[Error], Any] | None = None,
) -> None:
    """Writes all records of a dump as another system reads them: "npz" (arrays of numpy), "sglang" or "vllm"
    (answers, a line a record), "verl" or "slime" (a batch, .npz). The file at `path` is replaced once the new
    one is whole. Unsupported, naming the record, where the layout has no place for it; nothing is left then.
    refused: called with each such error instead, and the others are written.
    """
    finder = _abi.functions["wb_export_layout_find"]
    handle, layout = check_dump(dump)._open(), _layout(finder, system)
    if dump.model.indexer and not _abi.functions["wb_export_keeps_indexer"](layout):
        if any(record.indexer for record in dump):
            warnings.warn(f"what indexers chose is left out: {system} has no place for it", stacklevel=2)
    temporary = f"{os.fsdecode(path)}.{os.getpid()}.tmp"
    faults: list[BaseException] = []

    def write(_: Any, address: int, size: int) -> int:
        try:
            file.write((ctypes.c_char * size).from_address(address))
        except BaseException as error:  # raised again below; what leaves a callback would be lost
            faults.append(error)
            return _abi.statuses["IO"]
        return _abi.enums["WB_OK"]

    def skip(_: Any, status: int) -> bool:
        try:
            refused(_abi.error_of(status))  # type: ignore[misc]
        except BaseException as error:
            faults.append(error)
        return not faults

    try:
        with open(temporary, "wb") as file, handle.lock:
            try:
                _abi.functions["wb_export_dump"](
                    handle.address, layout, _Write(write), None, _Skip(skip) if refused else None, None, None
                )
            except Error:
                if faults:
                    raise faults[0] from None
                raise
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and not isinstance(error, Error):
            raise InputOutput(f"{os.fsdecode(path)}: {error.strerror}") from None
        raise
