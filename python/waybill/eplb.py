"""Where experts live: loads, placements with redundant experts, dispatch tables, move plans.

    dump = waybill.open("dump")
    topology = eplb.Topology(n_ranks=8, n_slots=144)
    loads = eplb.loads(dump)                       # [M, L, E]
    placement = eplb.solve(topology, loads)        # which expert each slot holds
    placement.balancedness(loads)                  # [L], 1 is perfect
    plan = eplb.move_plan(current, placement)      # what is copied to get there

Letters: R ranks, S physical slots, E logical experts, L MoE layers, M micro-batches (or passes).
"""

from __future__ import annotations

import ctypes
import os
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Sequence

import numpy as np

from . import _abi
from ._dump import Dump, check_dump
from ._placement import Placement, Topology

MOVE = _abi.dtype("wb_move")
NO_SLOT = 2**32 - 1
MOVE_KINDS = tuple(name[len("WB_MOVE_") :].lower() for name in _abi.enums if name.startswith("WB_MOVE_"))


@dataclass
class CostModel:
    """Seconds and bytes of one pass of a MoE layer on one rank. See eplb.cost_model."""

    seconds_per_token: float
    seconds_per_expert: float
    bytes_per_token: float
    expert_bytes: float
    node_bytes_per_second: float
    network_bytes_per_second: float
    local_bytes_per_second: float
    seconds_per_group: float

    @property
    def _value(self) -> Any:
        return _abi.struct("wb_cost_model", **asdict(self))


def cost_model(hidden: int, expert_width: int) -> CostModel:
    """Of an expert of three matrices hidden x expert_width in bf16 on an H200."""
    raw = _abi.functions["wb_cost_model_of"](hidden, expert_width)
    return CostModel(**{name: getattr(raw, name) for name in CostModel.__dataclass_fields__})


class Counts(NamedTuple):
    """Tokens of each expert from files. loads: [M, L, E] f8. layers: [L] the hidden layer of each. informed:
    [L] bool, whether it has a count. layout: what was recognised."""

    loads: np.ndarray
    layers: np.ndarray
    informed: np.ndarray
    layout: str


def loads(
    dump: Dump, n_batches: int = 1, topology: Topology | None = None, records: Sequence[int] | None = None
) -> np.ndarray:
    """[M, L, E] f8: how often the valid rows of a dump's records chose each expert, in n_batches
    micro-batches.

    topology: whose live ranks the records are dealt to (None: one rank). records: their numbers (None: all).
    Records are checked, ids too.
    """
    model = check_dump(dump).model
    topology = topology or Topology(1, model.weighted)
    numbers = None if records is None else _abi.array(records, np.uint64, (-1,), "records")
    handle = dump._open()
    with handle.lock:
        opened = _abi.handle(
            _abi.functions["wb_dump_counts_open"], handle.address, _abi.pointer(numbers),
            len(dump) if numbers is None else len(numbers), n_batches, topology._struct, None, None,
        )  # fmt: skip
    shape = (n_batches, model.n_moe_layers, model.weighted)
    try:
        return _abi.copied(_abi.functions["wb_dump_counts_loads"](opened), shape, np.float64)
    finally:
        _abi.functions["wb_dump_counts_close"](opened)


def read_counts(
    paths: str | os.PathLike[str] | Sequence[Any], moe_layers: Sequence[int] | None = None, n_hidden: int = 0
) -> Counts:
    """Counts of other engines, files summed: {"logical_count": [L, E] or [M, L, E]} as JSON or msgpack,
    SGLang's recorder files (.pt). moe_layers: which of the model's n_hidden layers (0: not known) have
    experts, where the files have rows for all."""
    several = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
    names = (ctypes.c_char_p * len(several))(*(os.fsencode(path) for path in several))
    layers = None if moe_layers is None else _abi.array(moe_layers, np.uint32, (-1,), "moe_layers")
    known = None
    if layers is not None:
        known = _abi.struct(
            "wb_moe_layers", n_hidden=n_hidden, n_moe=len(layers), layers=_abi.pointer(layers)
        )
    opened = _abi.handle(
        _abi.functions["wb_counts_read"], len(several), names, None if known is None else ctypes.byref(known)
    )
    try:
        info = _abi.functions["wb_counts_get_info"](opened)
        shape = (info.n_passes, info.n_layers, info.n_experts)
        return Counts(
            _abi.copied(_abi.functions["wb_counts_loads"](opened), shape, np.float64),
            _abi.copied(info.layers, shape[1:2], np.uint32),
            _abi.copied(info.informed, shape[1:2], np.uint8).astype(bool),
            info.layout.decode(),
        )
    finally:
        _abi.functions["wb_counts_close"](opened)


def _solver(algorithm: str, current: Placement | None, cost: CostModel | None, **numbers: Any) -> Any:
    made = _abi.options("wb_eplb_options", algorithm=_abi.enum_of("WB_EPLB_", algorithm, "algorithm"))
    if current is not None:
        made.current = current._address
    if cost is not None:
        made.cost = cost._value
    return _abi.fill(made, **{name: value for name, value in numbers.items() if value is not None})


def solve(
    topology: Topology,
    loads: Any,
    algorithm: str = "balanced",
    *,
    current: Placement | None = None,
    n_groups: int | None = None,
    trials: int | None = None,
    max_changes: int | None = None,
    target: float | None = None,
    horizon_steps: float | None = None,
    cost: CostModel | None = None,
    threads: int | None = None,
) -> Placement:
    """The placement that `algorithm` finds for loads [L, E] or [M, L, E], the same wherever the same loads
    are solved.

    "deepseek": the bytes of DeepSeek's eplb.py, with n_groups router groups. "balanced": the smallest maximum
    rank load. "incremental": from `current` by at most max_changes slots a layer, where the gain over
    horizon_steps pays for the move. "microbatch": one placement for M micro-batches. A layer without a count
    keeps its map. None: the default of the library.
    """
    given = np.asarray(loads, np.float64)
    given = given[None] if given.ndim == 2 else given
    given = _abi.array(given, np.float64, (-1, -1, -1), "loads")
    made = _solver(
        algorithm, current, cost, n_groups=n_groups, trials=trials, max_changes=max_changes, target=target,
        horizon_steps=horizon_steps, threads=threads,
    )  # fmt: skip
    M, L, E = given.shape
    solver = _abi.functions["wb_eplb_solve_counts"]
    return Placement(_abi.handle(solver, topology._struct, L, E, M, _abi.pointer(given), ctypes.byref(made)))


def read(
    path: str | os.PathLike[str],
    topology: Topology,
    n_layers: int,
    n_experts: int,
    layers: Sequence[int] | None = None,
    algorithm: str = "balanced",
) -> Placement:
    """The placement that a file describes: a map of SGLang, vLLM, TensorRT-LLM or Ascend, or counts, which
    are solved with `algorithm`. layers: [L] the hidden layer of each MoE layer, for files that number by
    hidden layers."""
    given = None if layers is None else _abi.array(layers, np.uint32, (n_layers,), "layers")
    made, layout = _solver(algorithm, None, None), ctypes.c_char_p()
    address = _abi.handle(
        _abi.functions["wb_placement_read"], os.fsencode(path), topology._struct, n_layers, n_experts,
        _abi.pointer(given), ctypes.byref(made), ctypes.byref(layout),
    )  # fmt: skip
    return Placement(address, (layout.value or b"").decode())


class MovePlan:
    """What turns one placement into another. See eplb.move_plan.

    moves: [n] of layer, expert, kind (an index into MOVE_KINDS), from, to: slots; from is NO_SLOT for a
    reload. groups: (layer, last, begin, end): moves[begin:end] are made together, between two passes. Bytes
    are by kind.
    """

    def __init__(self, address: int) -> None:
        self._address = address
        raw = _abi.structs["wb_move_plan"].from_address(address)
        self.moves = _abi.view(raw.moves, (raw.n_moves,), MOVE, self)
        groups = (
            (_abi.structs["wb_move_group"] * raw.n_groups).from_address(raw.groups) if raw.n_groups else ()
        )
        self.groups = [MoveGroup(g.layer, g.last, g.begin, g.end) for g in groups]
        self.local_bytes, self.node_bytes = raw.local_bytes, raw.node_bytes
        self.network_bytes, self.reload_bytes = raw.network_bytes, raw.reload_bytes
        self.seconds: float = raw.seconds

    def __del__(self, close: Any = _abi.functions["wb_move_plan_close"]) -> None:
        if getattr(self, "_address", None):
            close(self._address)

    def apply(self, group: int, placement: Placement, epoch: int = 1) -> None:
        """Puts the map of the group's layer as it is after the group into `placement`."""
        _abi.functions["wb_move_apply_group"](self._address, group, epoch, placement._address)


class MoveGroup(NamedTuple):
    layer: int
    last: bool
    begin: int
    end: int


def move_plan(
    current: Placement,
    to: Placement,
    layers: Sequence[int] | None = None,
    *,
    n_shadow: int | None = None,
    group_moves: int | None = None,
    cost: CostModel | None = None,
) -> MovePlan:
    """What turns `current` into `to`, up to the order of slots within a rank, for these layers (None: all).

    n_shadow: shadow slots of a rank, 1 or 2. group_moves: most experts that one rank sends in a group.
    """
    made = _abi.options("wb_move_options")
    numbers = {"n_shadow": n_shadow, "group_moves": group_moves}
    _abi.fill(made, **{name: value for name, value in numbers.items() if value is not None})
    if cost is not None:
        made.cost = cost._value
    given = None if layers is None else _abi.array(layers, np.uint32, (-1,), "layers")
    n = to.n_layers if given is None else len(given)
    address = _abi.handle(
        _abi.functions["wb_move_plan_open"],
        current._address,
        to._address,
        n,
        _abi.pointer(given),
        ctypes.byref(made),
    )
    return MovePlan(address)
