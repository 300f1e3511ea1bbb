"""Which model routes belong to."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np

from . import _abi
from ._errors import InvalidArgument


@dataclass(frozen=True)
class RouteModel:
    """The model that routes were recorded with; a dump, a replay and a record have one. Another model's are
    refused.

    name: model_type of its config.json. fingerprint: 32 hex digits, made from the architecture. router: how
    it weighs its choices, "softmax_norm" and others. moe_layers [L]: which of the hidden layers have experts,
    ascending. num_experts: E, experts of a layer. top_k: K, experts chosen for a token in a layer.
    """

    name: str
    fingerprint: str
    router: str
    num_hidden_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    _kept: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        layers = _abi.array(self.moe_layers, np.uint32, (-1,), "model moe_layers")
        object.__setattr__(self, "moe_layers", tuple(int(layer) for layer in layers))
        struct = _abi.struct(
            "wb_route_model",
            name=_abi.text(self.name, "model name"),
            fingerprint=_abi.text(self.fingerprint, "model fingerprint"),
            router=_abi.text(self.router, "model router"),
            num_hidden_layers=self.num_hidden_layers,
            n_moe_layers=len(layers),
            moe_layers=_abi.pointer(layers),
            num_experts=self.num_experts,
            top_k=self.top_k,
        )
        narrow = _abi.functions["wb_route_dtype"](struct.num_experts) == _abi.enums["WB_U8"]
        object.__setattr__(self, "_kept", (struct, layers, np.dtype("<u1" if narrow else "<u2")))
        _abi.functions["wb_route_model_check"](self._struct)

    @classmethod
    def from_config(cls, folder: str | os.PathLike[str]) -> RouteModel:
        """Of the model whose config.json lies in this folder, as the engine and `waybill convert` have it: of
        eleven families of transformers, those that the engine does not run among them."""
        return model_of_folder(folder)[0]

    def __reduce__(self) -> Any:
        # A pickle has what the constructor takes; the struct for the library is made anew.
        return RouteModel, tuple(getattr(self, name) for name in _FIELDS)

    @property
    def n_moe_layers(self) -> int:
        """L."""
        return len(self.moe_layers)

    @property
    def id_dtype(self) -> np.dtype:
        """Of an expert id: u1 where E <= 256, else u2."""
        return self._kept[2]

    def match(self, found: RouteModel) -> None:
        """Raises Mismatch, naming the first field that differs, unless `found` is the same model."""
        _abi.functions["wb_route_model_match"](self._struct, found._struct)

    @property
    def _struct(self) -> Any:
        return ctypes.byref(self._kept[0])


_FIELDS = [f.name for f in fields(RouteModel) if f.init]


def from_struct(struct: Any) -> RouteModel:
    """A copy of the library's own."""
    layers = _abi.copied(struct.moe_layers, (struct.n_moe_layers,), "<u4")
    return RouteModel(
        name=struct.name.decode(),
        fingerprint=struct.fingerprint.decode(),
        router=struct.router.decode(),
        num_hidden_layers=struct.num_hidden_layers,
        moe_layers=tuple(int(layer) for layer in layers),
        num_experts=struct.num_experts,
        top_k=struct.top_k,
    )


def model_of_folder(folder: str | os.PathLike[str]) -> tuple[RouteModel, int]:
    """The model whose config.json lies there, and the size of its vocabulary."""
    found, layers, vocab_size = _abi.structs["wb_route_model"](), np.zeros(2048, np.uint32), ctypes.c_uint32()
    _abi.functions["wb_routes_of_folder"](
        os.fsencode(folder), _abi.pointer(layers), ctypes.byref(found), ctypes.byref(vocab_size)
    )
    return from_struct(found), vocab_size.value


def check_model(model: Any) -> RouteModel:
    """`model`, or what an object that has one (a dump, a replay, a record) says."""
    if isinstance(model, RouteModel):
        return model
    if isinstance(getattr(model, "model", None), RouteModel):
        return model.model
    raise InvalidArgument(f"model: expected a waybill.RouteModel, found {type(model).__name__}")
