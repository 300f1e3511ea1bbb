"""The library beside this file, as it describes itself (python/python_abi.h): enums, structs, functions,
errors.

Owns: loading, and every crossing into C. Nothing of the C interface is typed here: layouts and signatures are
read from the library, whose compiler has checked them. Refuses: a library that is not of this package.
"""

from __future__ import annotations

import ctypes
import os
import re
from typing import Any

import numpy as np

from ._errors import STATUS_ERRORS, Error

_NUMBERS = {
    "bool": ctypes.c_bool,
    "char": ctypes.c_char,
    "int": ctypes.c_int,
    "long long": ctypes.c_longlong,
    "float": ctypes.c_float,
    "double": ctypes.c_double,
    "size_t": ctypes.c_size_t,
    "uint8_t": ctypes.c_uint8,
    "uint16_t": ctypes.c_uint16,
    "int32_t": ctypes.c_int32,
    "uint32_t": ctypes.c_uint32,
    "int64_t": ctypes.c_int64,
    "uint64_t": ctypes.c_uint64,
}

_WHOLE_NUMBERS = {kind for name, kind in _NUMBERS.items() if name not in ("bool", "char", "float", "double")}


def _load() -> ctypes.CDLL:
    path = os.path.join(os.path.dirname(os.path.abspath(__file__)), "libwaybill_python.so")
    try:
        return ctypes.CDLL(path)
    except OSError as error:
        raise ImportError(f"waybill: the package's library cannot be loaded: {error}") from None


class _Names(dict):
    """What the library has by name; one that it has not is of another version than these files."""

    def __missing__(self, name: str) -> Any:
        raise ImportError(f"waybill: the package's library has no {name}: it is of another version")


class _Described:
    """What the library says of itself: `enums`, `statuses`, `structs` and `functions` by name."""

    def __init__(self, library: ctypes.CDLL) -> None:
        self.enums: dict[str, int] = _Names()
        self.statuses: dict[str, int] = {}
        self.structs: dict[str, type[ctypes.Structure]] = _Names()
        self.functions: dict[str, Any] = _Names()
        self._library = library
        self._types: dict[str, Any] = dict(_NUMBERS)
        self._fields: dict[str, list[tuple[str, str, int, int]]] = {}
        self._bytes: dict[str, int] = {}
        signatures = []
        for kind, name, text, first, second in self._lines():
            if kind == "status":
                self.statuses[name] = first
            elif kind == "enum":
                self.enums[name] = first
                self._types[text] = ctypes.c_int
            elif kind == "struct":
                self._bytes[name], self._fields[name] = first, []
            elif kind == "field":
                struct, field = name.split(".")
                self._fields[struct].append((field, text, first, second))
            else:
                signatures.append((name, text))
        for name in self._bytes:
            self._struct(name)
        for name, text in signatures:
            self.functions[name] = self._function(name, text)

    def _lines(self):
        line = self._library.wb_python_abi_line
        texts, numbers = [ctypes.c_char_p() for _ in range(3)], [ctypes.c_longlong() for _ in range(2)]
        line.restype = ctypes.c_bool
        i = 0
        while line(ctypes.c_int(i), *map(ctypes.byref, texts), *map(ctypes.byref, numbers)):
            yield *(t.value.decode() for t in texts), *(n.value for n in numbers)
            i += 1

    def _type(self, text: str) -> Any:
        """The ctypes type of a C type: pointers are addresses, but for strings."""
        text = re.sub(r"\s+", " ", text).strip()
        if text.endswith("*") or "(*" in text:
            return ctypes.c_char_p if text.replace(" ", "") == "constchar*" else ctypes.c_void_p
        array = re.fullmatch(r"(\w+)\[(\d+)\]", text)
        if array:
            return self._type(array[1]) * int(array[2])
        if text in self._bytes:
            return self._struct(text)
        if text not in self._types:
            raise ImportError(
                f"waybill: the library speaks of a type that this package does not know: {text}"
            )
        return self._types[text]

    def _struct(self, name: str) -> type[ctypes.Structure]:
        """Fields where the library has them, and bytes in between for those that are not described."""
        if name in self.structs:
            return self.structs[name]
        fields: list[tuple[str, Any]] = []
        at = 0
        for field, text, offset, size in self._fields[name]:
            if offset > at:
                fields.append((f"_{at}", ctypes.c_uint8 * (offset - at)))
            fields.append((field, self._type(text)))
            at = offset + size
        if self._bytes[name] > at:
            fields.append((f"_{at}", ctypes.c_uint8 * (self._bytes[name] - at)))
        made = type(name, (ctypes.Structure,), {"_fields_": fields})
        found = [(f, getattr(made, f).offset, getattr(made, f).size) for f, _, _, _ in self._fields[name]]
        expected = [(f, offset, size) for f, _, offset, size in self._fields[name]]
        if found != expected or ctypes.sizeof(made) != self._bytes[name]:
            raise ImportError(f"waybill: struct {name}: expected {expected}, found {found}")
        self.structs[name] = made
        return made

    def _function(self, name: str, text: str) -> Any:
        result, parameters = text.split("|")
        function = getattr(self._library, name)
        parts = [part for part in _split(parameters) if part != "void"]
        function.argtypes = [self._parameter(part) for part in parts]
        function.restype = None if result == "void" else self._type(result)
        whole = [
            (i, number, parts[i]) for i, number in enumerate(function.argtypes) if number in _WHOLE_NUMBERS
        ]
        return _called(function, whole, result == "wb_status")

    def _parameter(self, text: str) -> Any:
        """`const wb_record *record` without its name."""
        return ctypes.c_void_p if "(*" in text else self._type(re.sub(r"\w+$", "", text.strip()))


def _split(parameters: str) -> list[str]:
    """The parts between the commas that stand outside of inner parentheses."""
    parts, depth, part = [], 0, ""
    for letter in parameters.strip()[1:-1]:
        depth += (letter == "(") - (letter == ")")
        if letter == "," and depth == 0:
            parts.append(part)
            part = ""
        else:
            part += letter
    return [p.strip() for p in (*parts, part)]


def _called(function: Any, whole: list[tuple[int, Any, str]], checked: bool) -> Any:
    """`function`, which refuses whole numbers that their parameter does not hold, where ctypes would wrap
    them.

    checked: it returns a wb_status, which becomes nothing, or the exception of that status.
    """

    def call(*arguments: Any) -> Any:
        for i, number, what in whole:
            if number(arguments[i]).value != arguments[i]:
                raise STATUS_ERRORS["INVALID_ARGUMENT"](f"{what}: {arguments[i]} does not fit")
        result = function(*arguments)
        if not checked:
            return result
        if result:
            raise error_of(result)
        return None

    return call


def error_of(status: int) -> Error:
    """The exception of a status other than ok, with this thread's latest message."""
    return _errors[status](functions["wb_error_message"]().decode(errors="replace"))


# A `__del__` has the function that frees as a default of a parameter: when the interpreter ends, modules are
# emptied before the last objects go, and a name looked up then is None.
_described = _Described(_load())
enums, statuses = _described.enums, _described.statuses
structs, functions = _described.structs, _described.functions
_errors = {}
for _name, _value in statuses.items():
    if _name != "OK" and _name not in STATUS_ERRORS:
        raise ImportError(f"waybill: the library has a status that this package does not know: {_name}")
    _errors[_value] = STATUS_ERRORS.get(_name, Error)


def enum_of(prefix: str, name: str, what: str) -> int:
    """The value of a constant by the end of its name in lower case: ("WB_MISSING_", "native") is
    WB_MISSING_NATIVE."""
    known = {key[len(prefix) :].lower(): value for key, value in enums.items() if key.startswith(prefix)}
    if name not in known:
        raise STATUS_ERRORS["INVALID_ARGUMENT"](f"{what}: expected one of {', '.join(known)}, found {name!r}")
    return known[name]


def handle(opener: Any, *arguments: Any) -> int:
    """The address that a function writes into its last parameter."""
    out = ctypes.c_void_p()
    opener(*arguments, ctypes.byref(out))
    return out.value


def options(name: str, /, **fields: Any) -> ctypes.Structure:
    """An options struct from its initialiser, which writes its size and defaults, with these fields set."""
    made = structs[name]()
    functions[name + "_init"](ctypes.byref(made), ctypes.sizeof(made))
    return fill(made, **fields)


def struct(name: str, /, **fields: Any) -> ctypes.Structure:
    """A struct that is zero but for these fields."""
    return fill(structs[name](), **fields)


def dtype(name: str) -> np.dtype:
    """A struct as elements of an array; a field that is a struct of one number is that number."""
    made = structs[name]
    known = [(field, kind) for field, kind in made._fields_ if not field.startswith("_")]
    formats = [np.dtype(getattr(kind, "_fields_", [("", kind)])[0][1]) for _, kind in known]
    names = [field for field, _ in known]
    offsets = [getattr(made, field).offset for field in names]
    return np.dtype({"names": names, "formats": formats, "offsets": offsets, "itemsize": ctypes.sizeof(made)})


def fill(made: Any, /, **fields: Any) -> Any:
    """`made` with these fields set; a whole number that a field does not hold is refused."""
    for field, value in fields.items():
        try:
            setattr(made, field, value)
        except ValueError as error:  # a text that is longer than its field
            raise STATUS_ERRORS["INVALID_ARGUMENT"](f"{type(made).__name__}.{field}: {error}") from None
        if (
            isinstance(value, int)
            and not isinstance(value, bool)
            and getattr(made, field) not in (value, None)
        ):
            raise STATUS_ERRORS["INVALID_ARGUMENT"](f"{type(made).__name__}.{field}: {value} does not fit")
    return made


def text(value: str, what: str) -> bytes:
    """UTF-8 as the library takes it; a NUL, at which it would end, is refused."""
    if not isinstance(value, str) or "\0" in value:
        raise STATUS_ERRORS["INVALID_ARGUMENT"](f"{what}: expected text without NUL, found {value!r}")
    try:
        return value.encode(errors="surrogateescape")
    except UnicodeEncodeError:
        raise STATUS_ERRORS["INVALID_ARGUMENT"](
            f"{what}: expected text, found half a pair in {value!r}"
        ) from None


class _Memory:
    """Memory of the library as numpy wants to see it; an array of it keeps `owner` alive."""

    def __init__(
        self, address: int, shape: Any, dtype: np.dtype, owner: Any, strides: Any, writable: bool
    ) -> None:
        self.owner = owner
        self.__array_interface__ = {
            "version": 3,
            "data": (address, not writable),
            "shape": shape,
            "typestr": dtype.str,
            "strides": strides,
        }


def view(
    address: int | None,
    shape: tuple[int, ...],
    dtype: Any,
    owner: Any,
    strides: Any = None,
    writable: bool = False,
) -> np.ndarray:
    """An array [shape] of the library's memory, without a copy; `owner` lives as long as any view of it."""
    dtype = np.dtype(dtype)
    if not address or 0 in shape:
        return np.empty(shape, dtype)
    plain = dtype if dtype.fields is None else np.dtype(f"V{dtype.itemsize}")
    return np.asarray(_Memory(address, shape, plain, owner, strides, writable)).view(dtype)


def copied(address: int | None, shape: tuple[int, ...], dtype: Any) -> np.ndarray:
    """The same memory as an array of its own."""
    return view(address, shape, dtype, None).copy()


def array(values: Any, dtype: Any, shape: tuple[int, ...] | None, what: str) -> np.ndarray:
    """`values` as the library takes them, [shape] of `dtype` in C order; the same array where it is that
    already.

    A number that `dtype` does not hold is refused rather than wrapped. shape: -1 for any length; None: any.
    """
    try:
        given = np.asarray(values)
    except (TypeError, ValueError) as error:  # lists of several lengths
        raise STATUS_ERRORS["INVALID_ARGUMENT"](f"{what}: {error}") from None
    if given.dtype.kind == "O":  # Python's numbers, as tables have them; None is NaN where there is one
        try:
            given = np.array(given.tolist(), "f8" if np.dtype(dtype).kind == "f" else None)
        except (TypeError, ValueError, OverflowError):
            pass
    if given.dtype.kind not in "biufV":
        odd = (type(one).__name__ for one in given.flat if not isinstance(one, (int, float)))
        found = "complex numbers" if given.dtype.kind == "c" else next(odd, "integers beyond 64 bits")
        raise STATUS_ERRORS["INVALID_ARGUMENT"](f"{what}: expected numbers, found {found}")
    if given.size == 0 and shape is not None and -1 in shape and given.ndim != len(shape):
        given = given.reshape([0 if n == -1 else n for n in shape])
    fits = shape is None or (
        given.ndim == len(shape) and all(n in (-1, m) for n, m in zip(shape, given.shape))
    )
    if not fits:
        expected = ", ".join("any" if n == -1 else str(n) for n in shape or ())
        raise STATUS_ERRORS["INVALID_ARGUMENT"](
            f"{what}: expected shape [{expected}], found {list(given.shape)}"
        )
    with np.errstate(invalid="ignore"):  # compared below
        made = np.require(given, dtype, ["C", "A"])
    if np.dtype(dtype).kind in "iu" and given.dtype != made.dtype and not np.array_equal(given, made):
        raise STATUS_ERRORS["INVALID_ARGUMENT"](f"{what}: a value does not fit {np.dtype(dtype)}")
    return made


def pointer(values: np.ndarray | None) -> int | None:
    """The address of an array that `array` has made, or NULL; the caller keeps the array."""
    return None if values is None else values.ctypes.data
