"""Which model routes belong to."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field, fields
from typing import Any, NamedTuple

import numpy as np

from . import _abi
from ._errors import InvalidArgument


class Indexer(NamedTuple):
    """Which attention layers an indexer chooses up to `k` positions for, by their indices among all layers,
    and for each of them the layer whose indexer it uses. rate: how many tokens a position stands for; 0: not
    known, else every choice is held against what a token sees."""

    layers: tuple[int, ...]
    source: tuple[int, ...]
    k: int
    rate: int = 0

    @property
    def columns(self) -> tuple[int, ...]:
        """[columns] the layers that use an indexer of their own, which are the columns of a record's rows."""
        return tuple(layer for layer, source in zip(self.layers, self.source) if layer == source)


@dataclass(frozen=True)
class RouteModel:
    """The model that routes were recorded with; a dump, a replay and a record have one. Another model's are
    refused.

    name: model_type of its config.json. fingerprint: 32 hex digits, made from the architecture. router: how
    it weighs its choices, "softmax_norm" and others. moe_layers [L]: which of the hidden layers have experts,
    ascending. num_experts: E, experts of a layer. top_k: K, experts chosen for a token in a layer.
    layer_top_k [L]: where layers differ, the K of each, of which top_k is the largest. weightless: how many
    of the E, the last ones, have no weights. indexer: None where no layer has one. hash_layers: ascending
    places in moe_layers of those whose choices are a table by token id.
    """

    name: str
    fingerprint: str
    router: str
    num_hidden_layers: int
    moe_layers: tuple[int, ...]
    num_experts: int
    top_k: int
    layer_top_k: tuple[int, ...] | None = None
    weightless: int = 0
    indexer: Indexer | None = None
    hash_layers: tuple[int, ...] = ()
    _kept: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        layers = _abi.array(self.moe_layers, np.uint32, (-1,), "model moe_layers")
        object.__setattr__(self, "moe_layers", tuple(int(layer) for layer in layers))
        lists = [self.layer_top_k or (), *(self.indexer[:2] if self.indexer else ((), ())), self.hash_layers]
        counts = (len(layers) if self.layer_top_k else 0, len(lists[1]), len(lists[1]), -1)
        names = ("model layer_top_k", "indexer layers", "indexer source", "model hash_layers")
        top_k, indexed, source, hashed = (
            _abi.array(values, np.uint32, (n,), what) for values, n, what in zip(lists, counts, names)
        )
        if self.layer_top_k:
            object.__setattr__(self, "layer_top_k", tuple(int(k) for k in top_k))
        object.__setattr__(self, "hash_layers", tuple(int(layer) for layer in hashed))
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
            layer_top_k=_abi.pointer(top_k) if self.layer_top_k else None,
            n_weightless=self.weightless,
            n_hash_layers=len(hashed),
            hash_layers=_abi.pointer(hashed) if len(hashed) else None,
            n_indexer_layers=len(indexed),
            indexer_k=self.indexer.k if self.indexer else 0,
            indexer_rate=self.indexer.rate if self.indexer else 0,
            indexer_layers=_abi.pointer(indexed) if self.indexer else None,
            indexer_source=_abi.pointer(source) if self.indexer else None,
        )
        narrow = _abi.functions["wb_route_dtype"](struct.num_experts) == _abi.enums["WB_U8"]
        dtype = np.dtype("<u1" if narrow else "<u2")
        object.__setattr__(self, "_kept", (struct, layers, dtype, top_k, indexed, source, hashed))
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
    def row_shape(self) -> tuple[int, ...]:
        """Of the ids of one token: (L, K); where layers differ in their K, (the sum of them,)."""
        return (sum(self.layer_top_k),) if self.layer_top_k else (self.n_moe_layers, self.top_k)

    def layer_k(self, layer: int) -> int:
        """K of MoE layer `layer`, 0..L-1."""
        if not self.layer_top_k:
            return self.top_k
        if not 0 <= layer < self.n_moe_layers:
            raise InvalidArgument(f"layer: expected 0..{self.n_moe_layers - 1}, found {layer}")
        return self.layer_top_k[layer]

    @property
    def weighted(self) -> int:
        """Experts of a layer that have weights, of which placements and loads are."""
        return self.num_experts - self.weightless

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
        layer_top_k=_listed(struct.layer_top_k, struct.n_moe_layers) if struct.layer_top_k else None,
        weightless=struct.n_weightless,
        indexer=_indexer_of(struct),
        hash_layers=_listed(struct.hash_layers, struct.n_hash_layers) if struct.n_hash_layers else (),
    )


def _listed(address: Any, n: int) -> tuple[int, ...]:
    return tuple(int(value) for value in _abi.copied(address, (n,), "<u4"))


def _indexer_of(struct: Any) -> Indexer | None:
    n = struct.n_indexer_layers
    if n == 0:
        return None
    layers, source = _listed(struct.indexer_layers, n), _listed(struct.indexer_source, n)
    return Indexer(layers, source, struct.indexer_k, struct.indexer_rate)


def model_of_folder(folder: str | os.PathLike[str]) -> tuple[RouteModel, int]:
    """The model whose config.json lies there, and the size of its vocabulary."""
    found, vocab_size = _abi.structs["wb_route_model"](), ctypes.c_uint32()
    layers = np.zeros(_abi.enums["WB_ROUTE_LISTS_MAX"], np.uint32)
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
