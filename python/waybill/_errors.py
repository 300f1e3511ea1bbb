"""One exception for each status of the library; their texts are its messages: what, where, expected, found.

Each is also the built-in exception that a caller may expect, so that `except OSError` finds an unreadable
file.
"""

from __future__ import annotations

from typing import Any


class Error(Exception):
    """What every exception of this package is. `status`: the library's name of it, "IO"."""

    status = ""


class InvalidArgument(Error, ValueError):
    """An argument is not as described."""


class OutOfMemory(Error, MemoryError):
    """Memory was refused."""


class InputOutput(Error, OSError):
    """A file cannot be read or written."""


class Corrupt(Error, ValueError):
    """Bytes are damaged: a checksum, the structure, an id."""


class Unsupported(Error, NotImplementedError):
    """Another format or version, or a device that this build does not have."""


class NotFound(Error, LookupError):
    """No such record, file or key."""


class Mismatch(Error, ValueError):
    """Two things that have to agree do not: another model, other tokens, rows that went elsewhere than
    planned."""


class MissingRoutes(Error, LookupError):
    """A row that is to be replayed is not in the record."""


class Capacity(Error, OverflowError):
    """More than fits."""


class Peer(Error, RuntimeError):
    """Another rank failed or disagrees."""


class Device(Error, RuntimeError):
    """A GPU or its driver failed."""


STATUS_ERRORS: dict[str, type[Error]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "OUT_OF_MEMORY": OutOfMemory,
    "IO": InputOutput,
    "CORRUPT": Corrupt,
    "UNSUPPORTED": Unsupported,
    "NOT_FOUND": NotFound,
    "MISMATCH": Mismatch,
    "MISSING_ROUTES": MissingRoutes,
    "CAPACITY": Capacity,
    "PEER": Peer,
    "DEVICE": Device,
}
for _status, _class in STATUS_ERRORS.items():
    _class.status = _status


def check_type(what: str, value: Any, kind: type, name: str) -> None:
    """A TypeError unless `value` is of `kind`, whose public name is `name`."""
    if not isinstance(value, kind):
        raise TypeError(f"{what}: expected a {name}, found {type(value).__name__}")
