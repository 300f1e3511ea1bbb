"""Ranks, nodes and slots, and which expert each slot holds. Seen by users as waybill.eplb."""

from __future__ import annotations

import ctypes
import os
from dataclasses import dataclass, field
from typing import Any, Sequence

import numpy as np

from . import _abi
from ._errors import InvalidArgument

_RANK_ARRAYS = ("slots_of_rank", "node_of_rank")


@dataclass(frozen=True)
class Topology:
    """R ranks on N nodes with S slots in all, numbered by rank.

    slots_of_rank: [R], summing to S (None: S / R each). node_of_rank: [R] ascending (None: R / N each). dead:
    [R] bool, ranks that hold no expert (None: none).
    """

    n_ranks: int
    n_slots: int
    n_nodes: int = 1
    slots_of_rank: Sequence[int] | None = None
    node_of_rank: Sequence[int] | None = None
    dead: Sequence[bool] | None = None
    _kept: Any = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        shape = (self.n_ranks,)
        dead = None if self.dead is None else np.asarray(self.dead, bool)
        given = {"slots_of_rank": self.slots_of_rank, "node_of_rank": self.node_of_rank, "dead": dead}
        arrays = {
            name: None
            if values is None
            else _abi.array(values, np.uint8 if name == "dead" else np.uint32, shape, name)
            for name, values in given.items()
        }
        struct = _abi.struct(
            "wb_topology",
            n_ranks=self.n_ranks,
            n_nodes=self.n_nodes,
            n_slots=self.n_slots,
            **{name: _abi.pointer(values) for name, values in arrays.items()},
        )
        object.__setattr__(self, "_kept", (struct, arrays))

    @property
    def _struct(self) -> Any:
        return ctypes.byref(self._kept[0])


class Placement:
    """Which expert each slot holds, in each of L layers. Made by eplb.solve, eplb.read or
    Placement.trivial."""

    def __init__(self, address: int, layout: str | None = None) -> None:
        self._address = address
        self.layout = layout
        """Of a placement that was read: what the file was recognised as."""
        raw = _abi.structs["wb_topology"].from_address(_abi.functions["wb_placement_topology"](address))
        self.topology = Topology(
            raw.n_ranks,
            raw.n_slots,
            raw.n_nodes,
            *(_abi.copied(getattr(raw, name), (raw.n_ranks,), np.uint32).tolist() for name in _RANK_ARRAYS),
            _abi.copied(raw.dead, (raw.n_ranks,), np.uint8).astype(bool).tolist(),
        )
        self.n_layers: int = _abi.functions["wb_placement_layers"](address)
        self.n_experts: int = _abi.functions["wb_placement_experts"](address)

    def __del__(self, close: Any = _abi.functions["wb_placement_close"]) -> None:
        if getattr(self, "_address", None):
            close(self._address)

    @classmethod
    def trivial(cls, topology: Topology, n_layers: int, n_experts: int) -> Placement:
        """Slots hold experts 0, 1, ... E - 1, 0, 1, ... in turn."""
        return cls(_abi.handle(_abi.functions["wb_placement_open"], topology._struct, n_layers, n_experts))

    def clone(self) -> Placement:
        return Placement(_abi.handle(_abi.functions["wb_placement_clone"], self._address), self.layout)

    @property
    def expert_of_slot(self) -> np.ndarray:
        """[L, S] i4, -1 for an empty slot; a copy."""
        return self._maps("expert_of_slot", np.int32)

    @property
    def replica_of_slot(self) -> np.ndarray:
        """[L, S] u4: which replica of its expert the slot holds; a copy."""
        return self._maps("replica_of_slot", np.uint32)

    def _maps(self, name: str, dtype: Any) -> np.ndarray:
        layers = (
            _abi.functions["wb_placement_layer"](self._address, layer) for layer in range(self.n_layers)
        )
        return np.stack([_abi.copied(getattr(raw, name), (self.topology.n_slots,), dtype) for raw in layers])

    @property
    def hash(self) -> int:
        """Of shape, topology and maps: equal on ranks that hold the same placement."""
        return _abi.functions["wb_placement_hash"](self._address)

    def set_layer(self, layer: int, expert_of_slot: Any, replica_of_slot: Any = None, epoch: int = 0) -> None:
        """Puts a map [S] into a layer. InvalidArgument, naming layer and slot, for one that cannot be."""
        shape = (self.topology.n_slots,)
        experts = _abi.array(expert_of_slot, np.int32, shape, "expert_of_slot")
        replicas = (
            None
            if replica_of_slot is None
            else _abi.array(replica_of_slot, np.uint32, shape, "replica_of_slot")
        )
        _abi.functions["wb_placement_set_layer"](
            self._address, layer, _abi.pointer(experts), _abi.pointer(replicas), epoch
        )

    def rank_loads(self, loads: Any) -> np.ndarray:
        """[L, R] f8: the load of each rank when the experts' loads, [L, E] or [M, L, E], are split over
        replicas."""
        total = self._total(loads)
        out = np.zeros((self.n_layers, self.topology.n_ranks))
        for layer in range(self.n_layers):
            _abi.functions["wb_placement_rank_loads"](
                self._address, layer, total[layer].ctypes.data, out[layer].ctypes.data
            )
        return out

    def balancedness(self, loads: Any) -> np.ndarray:
        """[L] f8: mean / max of the loads of live ranks; 1 is perfect."""
        rows = self.rank_loads(loads)
        return np.array(
            [_abi.functions["wb_placement_balancedness"](self._address, row.ctypes.data) for row in rows]
        )

    def _total(self, loads: Any) -> np.ndarray:
        given = np.asarray(loads, np.float64)
        total = given.sum(0) if given.ndim == 3 else given
        return _abi.array(total, np.float64, (self.n_layers, self.n_experts), "loads")

    def tables(self) -> tuple[np.ndarray, np.ndarray]:
        """In the layout of DeepSeek's eplb.py: log2phy [L, E, X] i4 padded with -1, X the most replicas of an
        expert, and logcnt [L, E] i4."""
        X = _abi.functions["wb_placement_max_replicas"](self._address)
        slots = np.empty((self.n_layers, self.n_experts, X), np.int32)
        replicas = np.empty((self.n_layers, self.n_experts), np.int32)
        _abi.functions["wb_placement_export"](self._address, slots.ctypes.data, replicas.ctypes.data)
        return slots, replicas

    def dispatch_table(self, layer: int, rank: int = 0, policy: str = "static") -> np.ndarray:
        """i4, what tokens of `rank` go by in a layer. static: [E] the slot for each expert. dynamic: [E + 1]
        where each expert's slots begin in what follows, then [S] the slots."""
        number = _abi.enum_of("WB_DISPATCH_", policy, "policy")
        length = ctypes.c_size_t()
        _abi.functions["wb_dispatch_table_length"](self._address, number, ctypes.byref(length))
        out = np.empty(length.value, np.int32)
        _abi.functions["wb_dispatch_fill_table"](self._address, number, rank, layer, out.ctypes.data)
        return out

    def quota(self, layer: int, counts: Any) -> np.ndarray:
        """[S] u4: the tokens for each slot with the smallest possible maximum rank load, of counts [R, E] by
        source."""
        shape = (self.topology.n_ranks, self.n_experts)
        given = _abi.array(counts, np.uint32, shape, "counts")
        out = np.empty(self.topology.n_slots, np.uint32)
        self._check_layer(layer)
        _abi.functions["wb_dispatch_quota"](self._address, layer, _abi.pointer(given), out.ctypes.data)
        return out

    def _check_layer(self, layer: int) -> None:
        if not 0 <= layer < self.n_layers:
            raise InvalidArgument(f"layer: expected 0..{self.n_layers - 1}, found {layer}")

    def save(
        self, path: str | os.PathLike[str], layout: str = "sglang", layers: Sequence[int] | None = None
    ) -> None:
        """Writes a file that eplb.read and the engine of that name read: "sglang", "vllm", "trtllm" or
        "ascend". layers: [L] the hidden layer of each MoE layer, for trtllm."""
        given = None if layers is None else _abi.array(layers, np.uint32, (self.n_layers,), "layers")
        number = _abi.enum_of("WB_MAP_", layout, "layout")
        _abi.functions["wb_placement_save"](self._address, os.fsencode(path), number, _abi.pointer(given))
