"""Dumps: files of records, read and written."""

from __future__ import annotations

import ctypes
import operator
import os
import threading
import warnings
from typing import Any, Iterator, NamedTuple, overload

from . import _abi
from ._errors import Corrupt, InvalidArgument, NotFound
from ._model import RouteModel, check_model, from_struct
from ._record import Record, check_record


class DumpInfo(NamedTuple):
    """What opening found out about the files' integrity: lost_bytes after the last whole object of files that
    were cut or are still being written, the first such place in lost_where ("" for none)."""

    files: int
    records: int
    bytes: int
    files_without_index: int
    lost_bytes: int
    lost_where: str
    files_cut: int


def _info(raw: Any) -> DumpInfo:
    values = {name: getattr(raw, name) for name in DumpInfo._fields}
    return DumpInfo(**{**values, "lost_where": raw.lost_where.decode(errors="replace")})


def _loss(info: DumpInfo) -> str:
    return (
        f"{info.files_cut} of {info.files} files cut: {info.lost_bytes} bytes after the last whole record are "
        f"lost, first in {info.lost_where}"
    )


class _Handle:
    """An open dump, closed when neither it nor a record of it is known any more.

    A record may be forgotten by any thread, while another one reads: calls take turns.
    """

    def __init__(self, path: Any) -> None:
        self.lock = threading.RLock()
        self.address: int | None = _abi.handle(_abi.functions["wb_dump_open"], os.fsencode(path))

    def __del__(self, close: Any = _abi.functions["wb_dump_close"]) -> None:
        # Where both are garbage of one cycle, as at exit, the dump may go before its records.
        address, self.address = getattr(self, "address", None), None
        if address:
            close(address)


class _Hold:
    """One wb_dump_record, given back when this goes."""

    __slots__ = ("handle", "index", "raw")

    def __init__(self, handle: _Handle, index: int) -> None:
        self.raw = _abi.structs["wb_record"]()
        with handle.lock:
            _abi.functions["wb_dump_record"](handle.address, index, ctypes.byref(self.raw))
        self.handle, self.index = handle, index

    def __del__(self, release: Any = _abi.functions["wb_dump_release"]) -> None:
        handle = getattr(self, "handle", None)
        if handle is not None:
            with handle.lock:
                if handle.address:
                    release(handle.address, self.index)


class Dump:
    """An open dump: a sequence of records in file order. See waybill.open."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self._handle: _Handle | None = _Handle(path)
        address = self._handle.address
        model = _abi.functions["wb_dump_model"](address)
        self._model = from_struct(_abi.structs["wb_route_model"].from_address(model))
        self._info = _info(_abi.functions["wb_dump_get_info"](address))

    @property
    def model(self) -> RouteModel:
        """The model of all files."""
        return self._model

    @property
    def info(self) -> DumpInfo:
        """Of the files, when the dump was opened."""
        return self._info

    def __len__(self) -> int:
        return self._info.records

    def __iter__(self) -> Iterator[Record]:
        for i in range(len(self)):
            yield self[i]

    @overload
    def __getitem__(self, which: int | str) -> Record: ...

    @overload
    def __getitem__(self, which: slice) -> list[Record]: ...

    def __getitem__(self, which: int | str | slice) -> Record | list[Record]:
        """Record number `which`, from the end where negative, or the one of this request id: NotFound without
        one. A slice is a list of records."""
        if isinstance(which, slice):
            return [self._at(i) for i in range(*which.indices(len(self)))]
        if isinstance(which, str):
            return self._at(self._index(which))
        if not hasattr(which, "__index__"):
            raise TypeError(f"a dump is asked by number, rid or slice, found {type(which).__name__}")
        return self._at(operator.index(which))

    def _at(self, which: int) -> Record:
        i = which + len(self) if which < 0 else which
        if not 0 <= i < len(self):
            raise IndexError(f"record {which}: the dump has {len(self)}")
        hold = _Hold(self._open(), i)
        return Record._of(self._model, hold.raw, hold)

    def __contains__(self, rid: object) -> bool:
        try:
            self._index(rid)
        except NotFound:
            return False
        return True

    def close(self) -> None:
        """Forgets the dump. Records that were read stay, and the files with them, until the last of these is
        gone."""
        self._handle = None

    def __enter__(self) -> Dump:
        return self

    def __exit__(self, *unused: Any) -> None:
        self.close()

    def _open(self) -> _Handle:
        if self._handle is None:
            raise InvalidArgument("the dump is closed")
        return self._handle

    def _index(self, rid: object) -> int:
        handle, out = self._open(), ctypes.c_uint64()
        if not isinstance(rid, str) or "\0" in rid:
            raise NotFound(f"the dump has no record {rid!r}")
        with handle.lock:
            _abi.functions["wb_dump_index"](handle.address, rid.encode(), ctypes.byref(out))
        return out.value


def open(path: str | os.PathLike[str]) -> Dump:
    """Opens a dump file, or all *.wbr files of a folder in the order of their names.

    A file that was cut yields every whole record before the cut: a warning and `info` say what was lost.
    Raises Corrupt for damaged bytes, Mismatch for files of different models, NotFound for a folder without
    such files, InputOutput for what cannot be read.
    """
    dump = Dump(path)
    if dump.info.files_cut:
        warnings.warn(_loss(dump.info), RuntimeWarning, stacklevel=2)
    return dump


def check_dump(dump: Any) -> Dump:
    """`dump`, or a TypeError."""
    if not isinstance(dump, Dump):
        raise TypeError(f"expected a waybill.Dump, as waybill.open returns it, found {type(dump).__name__}")
    return dump


def verify(path: str | os.PathLike[str]) -> DumpInfo:
    """Checks every checksum, shape and id of a dump, and raises what it finds first. Corrupt also for a file
    that was cut, whose bytes are lost; one that only has no index yet is whole. Whether it is of the model
    in a directory, and its hash-routed rows are of that one's tables: `waybill verify --model DIR`."""
    raw = _abi.structs["wb_dump_info"]()
    _abi.functions["wb_dump_verify"](os.fsencode(path), None, None, ctypes.byref(raw))
    info = _info(raw)
    if info.files_cut:
        raise Corrupt(_loss(info))
    return info


class DumpWriter:
    """A dump file that is being written. See waybill.create.

    `with` finishes it at the end of its block. Where the block is left by an exception, and where a writer is
    forgotten unfinished, the file is abandoned: it keeps what was appended and has no index, which `verify`
    and `open` say as info.files_without_index.
    """

    def __init__(self, path: Any, model: RouteModel, options: Any) -> None:
        self.model = model
        self._address: int | None = None
        self._address = _abi.handle(
            _abi.functions["wb_dump_create"], os.fsencode(path), model._struct, ctypes.byref(options)
        )

    def append(self, record: Record) -> None:
        """Writes a record. On return the system has all of its bytes. Raises Mismatch for one of another
        model, InvalidArgument for a rid that the file has, or ids that cannot be; nothing is written then."""
        check_record(record)
        self.model.match(record.model)
        _abi.functions["wb_dump_append"](self._open(), record._struct)

    def finish(self) -> None:
        """Writes the index and closes the file. Without it the file can be read too, by walking its
        records."""
        address, self._address = self._open(), None
        _abi.functions["wb_dump_finish"](address)

    def abandon(self) -> None:
        """Closes the file as it is, without an index, as a crash would leave it; no error after finish."""
        address, self._address = self._address, None
        _abi.functions["wb_dump_abandon"](address)

    def __enter__(self) -> DumpWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, *unused: Any) -> None:
        if kind is not None:
            self.abandon()
        elif self._address:
            self.finish()

    def __del__(self, abandon: Any = _abi.functions["wb_dump_abandon"], warn: Any = warnings.warn) -> None:
        if getattr(self, "_address", None):
            warn("a waybill.DumpWriter was not finished", ResourceWarning, stacklevel=2)
            abandon(self._address)

    def _open(self) -> int:
        if not self._address:
            raise InvalidArgument("the dump is finished")
        return self._address


def create(
    path: str | os.PathLike[str],
    model: RouteModel | Any,
    *,
    codec: str = "raw",
    zstd_level: int | None = None,
    chunk_bytes: int | None = None,
    producer: str = "",
    trust_ids: bool = False,
) -> DumpWriter:
    """Creates a dump file for records of `model`; a path that exists is InputOutput.

    codec: "raw", read in place, "zstd" of zstd_level 1..19, or "packed", the smallest for long records of
    up to 256 experts. chunk_bytes: longer runs of rows are stored in parts. producer: free text for the
    header. trust_ids: append does not look at ids. A folder of files is one dump: one writer a file, named
    part-0.wbr, part-1.wbr and so on.
    """
    set_here = {"zstd_level": zstd_level, "chunk_bytes": chunk_bytes}
    options = _abi.options(
        "wb_dump_options",
        codec=_abi.enum_of("WB_CODEC_", codec, "codec"),
        producer=_abi.text(producer, "producer"),
        trust_ids=trust_ids,
        **{name: value for name, value in set_here.items() if value is not None},
    )
    return DumpWriter(path, check_model(model), options)
