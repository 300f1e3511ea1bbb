"""What indexers chose, for the rows of a replay's micro-batches."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np

from . import _abi
from ._errors import InvalidArgument
from ._model import RouteModel

INDEXER_METRICS = _abi.dtype("wb_replay_indexer_metrics")


class IndexerSlice(NamedTuple):
    """What rows of a micro-batch look at in one layer.

    listed: [T, k] i4, of a forced row its positions, ascending, then -1; of any other row -1 throughout.
    direction: [T] u1, 0 chooses for itself, 1 is forced to its positions, 2 is padding. want_used,
    want_native: what Replay.indexer_store is still to be told.
    """

    listed: np.ndarray
    direction: np.ndarray
    any_forced: bool
    any_native: bool
    want_used: bool
    want_native: bool


class IndexerCalls:
    """The calls of waybill.Replay about indexers, of a replay that was opened with indexer=True. `i` is a
    layer of model.indexer.layers, by its place in that list: layers that use one indexer have one plan."""

    model: RouteModel
    _address: int | None

    def indexer_rows(self, micro_batch: int, i: int, row: int = 0, rows: int | None = None) -> IndexerSlice:
        """What rows [row, row + rows) look at in layer i. rows None: to the end."""
        raw = _abi.structs["wb_replay_indexer_slice"]()
        rows = self._to_end(micro_batch, row) if rows is None else rows  # type: ignore[attr-defined]
        listed = np.empty((rows, self._width), np.int32)
        direction = np.empty(rows, np.uint8)
        _abi.functions["wb_replay_indexer_rows"](
            self._address, micro_batch, i, row, rows, _abi.pointer(listed), _abi.pointer(direction),
            ctypes.byref(raw),
        )  # fmt: skip
        return IndexerSlice(listed, direction, raw.any_forced, raw.any_native, raw.want_used, raw.want_native)

    def indexer_store(self, micro_batch: int, i: int, used: Any, native: Any = None, row: int = 0) -> None:
        """Tells what rows from `row` on looked at in layer i, used [T, k] (None: not told), and what each
        would have chosen, native (None: not known): positions ascending, then -1. Mismatch where a row that
        was forced looked elsewhere; nothing is changed then."""
        told = [
            None if listed is None else _abi.array(listed, np.int32, (-1, self._width), what)
            for listed, what in ((used, "used"), (native, "native"))
        ]
        lengths = {len(listed) for listed in told if listed is not None}
        if len(lengths) > 1:
            raise InvalidArgument(
                f"indexer_store: expected as many rows in used and native, found {sorted(lengths)}"
            )
        _abi.functions["wb_replay_indexer_store"](
            self._address, micro_batch, i, row, max(lengths, default=0), _abi.pointer(told[0]),
            _abi.pointer(told[1]),
        )  # fmt: skip

    def indexer_metrics(self) -> tuple[float, np.ndarray]:
        """Since `begin`: how many rows of records lack what indexers chose, and of each layer of
        model.indexer.layers tokens, overlap (mean share of the forced positions among the native ones) and
        differ (share of rows whose native positions are not the forced ones)."""
        missing = ctypes.c_double()
        n = len(self.model.indexer.layers) if self.model.indexer else 0
        out = np.zeros(n, INDEXER_METRICS)
        _abi.functions["wb_replay_get_indexer_metrics"](
            self._address, ctypes.byref(missing), _abi.pointer(out)
        )
        return missing.value, out

    @property
    def _width(self) -> int:
        """k."""
        return self.model.indexer.k if self.model.indexer else 0
