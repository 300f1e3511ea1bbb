"""From records to the routes that each micro-batch and layer of a training step is forced down."""

from __future__ import annotations

import contextlib
import ctypes
import math
from typing import Any, Iterator, NamedTuple, Sequence, Union

import numpy as np

from . import _abi
from ._errors import InvalidArgument
from ._model import RouteModel, check_model
from ._record import Record, check_record
from ._replay_indexer import IndexerCalls

ALL_LAYERS = -1
LAYER_METRICS = _abi.dtype("wb_replay_layer_metrics")


class Rows(NamedTuple):
    """Rows of a micro-batch that are tokens: those of request `rid` from position `start` on.

    tokens: [rows] ids that will be fed, which are compared with the record's. rid None: they have no record;
    the first pass of the step chooses their experts, and later passes are forced to that choice. Mode
    "record" treats all rows so.
    """

    rid: str | None
    tokens: Any
    start: int = 0


class Padding(NamedTuple):
    """Rows of a micro-batch that are no tokens: they have weight zero and are spread evenly over the
    experts."""

    rows: int


class ReplayMetrics(NamedTuple):
    """Of a step. rows: of the plan; forced_rows have a record's routes, fallback_rows were missing and chose.

    token_differ: share of forced rows that would have gone elsewhere in at least one layer; decision_differ:
    the same of (row, layer) pairs. kl_k1, kl_k3: KL(rollout || trainer) of `logprobs` tokens that were
    observed; ratio_outside: the share with a ratio outside [0.5, 2]. forced_balancedness, native_balancedness:
    mean over maximum of the experts' load, by the routes in the plan and by what the gate chose itself.
    """

    rows: float
    forced_rows: float
    fallback_rows: float
    padding_rows: float
    fallback_share: float
    token_differ: float
    decision_differ: float
    logprobs: float
    kl_k1: float
    kl_k3: float
    ratio_outside: float
    forced_balancedness: float
    native_balancedness: float


class Slice(NamedTuple):
    """How rows of a micro-batch are to be routed, a copy.

    ids: [T, K] of one layer or [T, L, K] of all, undefined where a row chooses; None without a plan.
    direction: [T] u1, 0 chooses by its own logits, 1 is forced to its ids, 2 is padding; None: all rows
    choose. undecided: some row chooses now and is forced to that choice afterwards. want_chosen, want_used,
    want_native: what Replay.store is still to be told.
    """

    ids: np.ndarray | None
    direction: np.ndarray | None
    any_forced: bool
    any_native: bool
    undecided: bool
    want_chosen: bool
    want_used: bool
    want_native: bool


Segment = Union[Rows, Padding]


def metrics_of(raw: Any) -> ReplayMetrics:
    return ReplayMetrics(*(getattr(raw, name) for name in ReplayMetrics._fields))


class Replay(IndexerCalls):
    """Records of a model, and the plan of one training step at a time.

        replay = waybill.Replay(dump.model)
        replay.add(record)
        replay.begin("rollout", n_micro_batches)
        replay.plan(0, [waybill.Rows(record.rid, tokens), waybill.Padding(3)])
        replay.rows(0, layer).ids              # [T, K]: where the rows of micro-batch 0 go in this MoE layer
        replay.store(0, layer, used, native)   # where they went, and where they would have gone
        replay.end()                           # Mismatch unless every row of every layer followed

    model: the one about to be trained; records of others are refused. missing: what to do about a row that a
    record does not have: "strict" refuses the plan, "native" lets it choose, "drop" does so and reports the
    segment. n_ranks: expert-parallel ranks that padding is spread over. first_layer, n_layers: this pipeline
    stage's MoE layers (0: all). placement: a waybill.eplb.Placement that says where experts are, for padding.
    indexer: what indexers chose is replayed too, by indexer_rows and indexer_store, under the same modes.
    """

    def __init__(
        self,
        model: RouteModel | Any,
        *,
        missing: str = "strict",
        n_ranks: int = 1,
        first_layer: int = 0,
        n_layers: int = 0,
        placement: Any = None,
        indexer: bool = False,
    ) -> None:
        self._address: int | None = None
        self.model = check_model(model)
        self.first_layer, self.n_layers = first_layer, n_layers
        self._placement = placement
        self._planned_rows: dict[int, int] = {}
        self._records: dict[str, Record] = {}
        made = _abi.options(
            "wb_replay_options",
            missing=_abi.enum_of("WB_MISSING_", missing, "missing"),
            n_ranks=n_ranks,
            first_layer=first_layer,
            n_layers=n_layers,
            placement=None if placement is None else placement._address,
            indexer=indexer,
        )
        self._address = _abi.handle(_abi.functions["wb_replay_open"], self.model._struct, ctypes.byref(made))

    def __del__(self, close: Any = _abi.functions["wb_replay_close"]) -> None:
        if getattr(self, "_address", None):
            close(self._address)

    # ---- records -------------------------------------------------------------------------------------------

    def add(self, record: Record) -> None:
        """Makes a record known, which is kept until `clear`. Mismatch unless it is of this model; ids are
        checked."""
        model = check_record(record).model
        _abi.functions["wb_replay_add"](self._address, model._struct, record._struct)
        self._records[record.rid] = record

    def clear(self) -> None:
        """Forgets records, plan and metrics."""
        _abi.functions["wb_replay_clear"](self._address)
        self._records.clear()

    def __getitem__(self, rid: str) -> Record:
        return self._records[rid]

    def __contains__(self, rid: object) -> bool:
        return rid in self._records

    def __len__(self) -> int:
        return len(self._records)

    # ---- a step --------------------------------------------------------------------------------------------

    @contextlib.contextmanager
    def step(self, mode: str, n_micro_batches: int) -> Iterator[Any]:
        """`begin`, then `end` where the block did not raise, else `abort`."""
        self.begin(mode, n_micro_batches)
        try:
            yield self
            self.end()
        except BaseException:
            self.abort()
            raise

    def begin(self, mode: str, n_micro_batches: int) -> None:
        """Opens a step: "rollout" forces rows down their records' routes (R3), "record" lets the first pass
        choose and forces the others to that (R2), "off" forces nothing and measures only."""
        number = _abi.enum_of("WB_REPLAY_", mode, "mode")
        _abi.functions["wb_replay_begin"](self._address, number, n_micro_batches)
        self._planned_rows.clear()

    def plan(self, micro_batch: int, segments: Sequence[Segment]) -> None:
        """Defines a micro-batch as these segments one after the other, T rows in all. Mismatch for other
        tokens than the record's, MissingRoutes under "strict", NotFound for a rid that was not added; nothing
        is changed then."""
        made = (_abi.structs["wb_segment"] * len(segments))()
        kept: list[Any] = []
        for i, segment in enumerate(segments):
            made[i] = self._segment(segment, kept)
        _abi.functions["wb_replay_plan"](self._address, micro_batch, len(segments), made)
        self._planned_rows[micro_batch] = sum(segment.rows for segment in made)

    def _segment(self, segment: Segment, kept: list[Any]) -> Any:
        if isinstance(segment, Padding):
            kind = _abi.enums["WB_SEGMENT_PADDING"]
            return _abi.struct("wb_segment", kind=kind, rows=segment.rows)
        if not isinstance(segment, Rows):
            raise InvalidArgument(f"a segment: expected Rows or Padding, found {type(segment).__name__}")
        tokens = _abi.array(segment.tokens, np.uint32, (-1,), f"tokens of {segment.rid}")
        rid = None if segment.rid is None else _abi.text(segment.rid, "rid of a segment")
        kept.extend((tokens, rid))
        where = (segment.start, len(tokens), _abi.pointer(tokens))
        if rid is None:
            kind = _abi.enums["WB_SEGMENT_RECORD"]
            return _abi.struct("wb_segment", kind=kind, start=where[0], rows=where[1], tokens=where[2])
        return _abi.functions["wb_replay_segment"](self._address, rid, *where)

    def planned(self, micro_batch: int) -> bool:
        return _abi.functions["wb_replay_planned"](self._address, micro_batch)

    def dropped(self, micro_batch: int, segment: int) -> bool:
        """Whether the segment had a missing row under "drop": its loss is to be masked."""
        return _abi.functions["wb_replay_dropped"](self._address, micro_batch, segment)

    def rows(self, micro_batch: int, layer: int, row: int = 0, rows: int | None = None) -> Slice:
        """How rows [row, row + rows) of MoE layer `layer`, 0..L-1 or ALL_LAYERS, go. rows None: to the
        end."""
        raw = _abi.structs["wb_replay_slice"]()
        rows = self._to_end(micro_batch, row) if rows is None else rows
        _abi.functions["wb_replay_rows"](self._address, micro_batch, layer, row, rows, ctypes.byref(raw))
        return self._slice(raw, layer)

    def _slice(self, raw: Any, layer: int) -> Slice:
        dtype = self.model.id_dtype
        inner = self._inner(layer)
        strides = (
            raw.stride * dtype.itemsize,
            *((inner[-1] * dtype.itemsize,) if len(inner) > 1 else ()),
            dtype.itemsize,
        )
        return Slice(
            _abi.view(raw.ids, (raw.rows, *inner), dtype, None, strides).copy() if raw.ids else None,
            _abi.copied(raw.direction, (raw.rows,), np.uint8) if raw.direction else None,
            raw.any_forced,
            raw.any_native,
            raw.undecided,
            raw.want_chosen,
            raw.want_used,
            raw.want_native,
        )

    def _inner(self, layer: int) -> tuple[int, ...]:
        """The shape of a row's ids in a layer or in all."""
        return self.model.row_shape if layer == ALL_LAYERS else (self.model.layer_k(layer),)

    def store(self, micro_batch: int, layer: int, used: Any, native: Any = None, row: int = 0) -> None:
        """Tells where rows from `row` on were sent, used [T, K] or [T, L, K] (None: not told), and what each
        would have chosen (None: not known). Mismatch where a row did not go as planned; nothing is changed
        then."""
        inner = self._inner(layer)
        told = [
            None if ids is None else _abi.array(ids, self.model.id_dtype, (-1, *inner), what)
            for ids, what in ((used, "used"), (native, "native"))
        ]
        lengths = {len(ids) for ids in told if ids is not None}
        if len(lengths) > 1:
            raise InvalidArgument(f"store: expected as many rows in used and native, found {sorted(lengths)}")
        stride = math.prod(inner)
        _abi.functions["wb_replay_store"](
            self._address, micro_batch, layer, row, max(lengths, default=0),
            _abi.pointer(told[0]), stride, _abi.pointer(told[1]), stride,
        )  # fmt: skip

    def counts(self, micro_batch: int, layer: int, row: int = 0, rows: int | None = None) -> np.ndarray:
        """[E] i8: (token, choice) pairs of the forced rows for each expert, known before the step runs."""
        out = np.zeros(self.model.num_experts, np.int64)
        rows = self._to_end(micro_batch, row) if rows is None else rows
        _abi.functions["wb_replay_counts"](self._address, micro_batch, layer, row, rows, out.ctypes.data)
        return out

    def end(self) -> None:
        """Ends the step. Mismatch, naming the first (micro-batch, layer, row) that is not known to have
        followed; the step then stays open."""
        _abi.functions["wb_replay_end"](self._address)

    def abort(self) -> None:
        """Drops the open step on purpose."""
        _abi.functions["wb_replay_abort"](self._address)

    # ---- fidelity ------------------------------------------------------------------------------------------

    def observe_logprobs(self, rollout: Any, trainer: Any, mask: Any = None) -> None:
        """Adds sampled tokens to the metrics: log-probabilities [n] then and now; mask [n] leaves out those
        at 0."""
        then = _abi.array(rollout, np.float32, (-1,), "rollout")
        now = _abi.array(trainer, np.float32, then.shape, "trainer")
        kept = None if mask is None else _abi.array(np.asarray(mask, bool), np.uint8, then.shape, "mask")
        _abi.functions["wb_replay_observe_logprobs"](
            self._address, len(then), _abi.pointer(then), _abi.pointer(now), _abi.pointer(kept)
        )

    def metrics(self) -> ReplayMetrics:
        """Since `begin`."""
        raw = _abi.structs["wb_replay_metrics"]()
        _abi.functions["wb_replay_get_metrics"](self._address, ctypes.byref(raw), None)
        return metrics_of(raw)

    def layer_metrics(self) -> np.ndarray:
        """[L] of tokens, overlap (mean share of the forced ids among the native ones), differ (share of rows
        whose native set is not the forced one), forced_balancedness and native_balancedness."""
        raw = _abi.structs["wb_replay_metrics"]()
        out = np.zeros(self.model.n_moe_layers, LAYER_METRICS)
        _abi.functions["wb_replay_get_metrics"](self._address, ctypes.byref(raw), out.ctypes.data)
        return out

    def load(self, layer: int) -> tuple[np.ndarray, np.ndarray]:
        """[E] f8 each, of one MoE layer: (row, choice) pairs of each expert by the routes in the plan, and by
        what the gate chose itself, of the rows that have both."""
        forced, native = np.empty((2, self.model.num_experts))
        _abi.functions["wb_replay_get_load"](self._address, layer, _abi.pointer(forced), _abi.pointer(native))
        return forced, native

    def metric_sums(self) -> np.ndarray:
        """[n] f8, writable: the sums behind the metrics, to be added up over ranks in place before they are
        read."""
        n = ctypes.c_size_t()
        address = _abi.functions["wb_replay_metric_sums"](self._address, ctypes.byref(n))
        return _abi.view(address, (n.value,), np.float64, self, writable=True)

    def _to_end(self, micro_batch: int, row: int) -> int:
        if not self.planned(micro_batch):
            raise InvalidArgument(f"micro-batch {micro_batch} is not planned: its rows are not known")
        return max(self._planned_rows[micro_batch] - row, 0)
