"""Which sequences share a micro-batch, decided from the routes that will be replayed."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple, Sequence

import numpy as np

from . import _abi
from ._errors import InvalidArgument
from ._record import Record, check_record


class Pack(NamedTuple):
    """micro_batches: for each, (index, rows) of the sequences that it feeds, the first `rows` tokens of
    records[index]. first: [U + 1] the first micro-batch of each update, and M. loads: [M, L, weighted] f8, how
    often each micro-batch will choose each expert that has weights, as waybill.eplb.solve takes them."""

    micro_batches: list[list[tuple[int, int]]]
    first: list[int]
    loads: np.ndarray


def pack(
    records: Sequence[Record],
    max_rows: int = 4096,
    *,
    rows: Sequence[int] | None = None,
    update: Sequence[int] | None = None,
    n_updates: int = 1,
    cost: tuple[float, float, float] | None = None,
) -> Pack:
    """Packs sequences into micro-batches of at most max_rows rows, as few as were found, of even work.

    rows: how many tokens of each record are fed (None: all); update: which of n_updates each belongs to
    (None: the first). cost: what a row, a (query, key) pair and a (row, expert) choice take, in any unit
    (None: a model of 235 billion parameters'). The result depends on the arguments alone.
    """
    if not records:
        raise InvalidArgument("pack: expected one record or more, found none")
    for name, given in (("rows", rows), ("update", update)):
        if given is not None and len(given) != len(records):
            raise InvalidArgument(f"pack: {name}: expected {len(records)}, one a record, found {len(given)}")
    model = check_record(records[0]).model
    made = _abi.options("wb_pack_options", max_rows=max_rows, n_updates=n_updates)
    if cost is not None:
        per_row, per_pair, per_choice = cost
        made.cost = _abi.struct("wb_pack_cost", per_row=per_row, per_pair=per_pair, per_choice=per_choice)
    sequences = (_abi.structs["wb_pack_sequence"] * len(records))()
    for i, record in enumerate(records):
        model.match(check_record(record).model)
        _abi.fill(
            sequences[i],
            record=ctypes.addressof(record._raw),
            rows=len(record) if rows is None else rows[i],
            update=0 if update is None else update[i],
        )
    comm = _abi.handle(_abi.functions["wb_comm_open_self"])
    try:
        opened = _abi.handle(
            _abi.functions["wb_pack_open"], comm, model._struct, ctypes.byref(made), len(records), sequences
        )
    finally:
        _abi.functions["wb_comm_close"](comm)
    try:
        return _read(opened, model, n_updates)
    finally:
        _abi.functions["wb_pack_close"](opened)


def _read(opened: Any, model: Any, n_updates: int) -> Pack:
    n, M = ctypes.c_uint32(), _abi.functions["wb_pack_micro_batches"](opened)
    places = _abi.functions["wb_pack_places"](opened, ctypes.byref(n))
    micro_batches: list[list[tuple[int, int]]] = [[] for _ in range(M)]
    for place in (_abi.structs["wb_pack_place"] * n.value).from_address(places) if n.value else ():
        micro_batches[place.micro_batch].append((place.index, place.rows))
    first = [_abi.functions["wb_pack_first"](opened, u) for u in range(n_updates + 1)]
    shape = (M, model.n_moe_layers, model.weighted)
    return Pack(micro_batches, first, _abi.copied(_abi.functions["wb_pack_loads"](opened), shape, np.float64))
