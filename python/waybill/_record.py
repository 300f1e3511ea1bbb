"""The record: one request with what it generated and the experts that its tokens went through."""

from __future__ import annotations

import ctypes
from functools import partial
from typing import Any, NamedTuple, Sequence

import numpy as np

from . import _abi
from ._errors import InvalidArgument
from ._model import RouteModel, check_model

SPAN = _abi.dtype("wb_span")


class Run(NamedTuple):
    """Consecutive rows: row r is of the token at position start + r.

    ids: [rows, L, K] of the model's id_dtype, logical expert ids in the order in which the router chose them;
    where layers differ in their K, [rows, the sum of them], one layer after the other.
    valid: [(rows + 7) // 8] u1, bit r % 8 of byte r // 8 for row r; None: all rows are valid.
    """

    start: int
    ids: np.ndarray
    valid: np.ndarray | None


class Sampling(NamedTuple):
    """How tokens were sampled. temperature 0: greedy; top_k 0 and top_p 1: no limit."""

    temperature: float
    top_k: int = 0
    top_p: float = 1.0


class IndexerRows(NamedTuple):
    """What indexers chose, of the tokens at positions start and on. Column s is that of layer
    `model.indexer.columns[s]`."""

    start: int
    counts: np.ndarray
    """[rows, S] u4: how many positions were chosen."""
    ends: np.ndarray
    """[rows, S] u8: where a choice ends in `positions`, and the next one's begins. One that is all of the
    first positions has none there."""
    positions: np.ndarray
    """[n] u4, ascending in each choice."""

    def chosen(self, row: int, column: int) -> np.ndarray:
        """The positions of one choice, u4."""
        cell, count = row * self.counts.shape[1] + column, int(self.counts[row, column])
        end, begin = int(self.ends.flat[cell]), int(self.ends.flat[cell - 1]) if cell else 0
        return self.positions[begin:end] if end > begin else np.arange(count, dtype="<u4")


class Mask(NamedTuple):
    """The tokens that top-k and top-p kept when sampled token i was drawn: ids[ends[i - 1]:ends[i]], or
    ids[:ends[0]] for the first."""

    ids: np.ndarray
    ends: np.ndarray


class Record:
    """One request: tokens, log-probabilities, routes. Its arrays are read-only views of the library's memory.

    Records come from waybill.open, or are made here of a user's own arrays, which are not copied where they
    have the right type and are then not to be changed. Views keep the record, and that the dump, alive. A
    request of N tokens has at most N - 1 rows of routes: the last sampled token was never fed to the model.
    """

    __slots__ = ("model", "_raw", "_owner", "__weakref__")

    def __init__(
        self,
        model: RouteModel | Any,
        rid: str,
        tokens: Any,
        prompt_len: int,
        *,
        logprobs: Any = None,
        routes: Any = None,
        start: int = 0,
        valid: Any = None,
        runs: Sequence[Run] | None = None,
        group: int = 0,
        sample: int = 0,
        finish: str = "none",
        spans: Any = (),
        sampling: Sampling | Sequence[float] | None = None,
        sampling_logprobs: Any = None,
        mask: Mask | Sequence[Any] | None = None,
        indexer: IndexerRows | Sequence[Any] | None = None,
    ) -> None:
        """A record of one's own, checked by the library when it is appended to a dump or added to a replay.

        tokens [N] ids, prompt included; logprobs and sampling_logprobs [N - prompt_len]; routes [rows, L, K]
        ids of the tokens from position `start` on ([rows, the sum of K] where layers differ in it), valid
        [rows] bool (None: all), or `runs` of them where they are not consecutive; spans: (start, end,
        weight_version) of the tokens that each version of the weights was fed; indexer: (start, counts, ends,
        positions) as IndexerRows has them.
        """
        self.model = check_model(model)
        made = _Builder(self.model)
        made.tokens(rid, tokens, prompt_len, group, sample, finish)
        made.logprobs("logprobs", logprobs)
        made.logprobs("sampling_logprobs", sampling_logprobs)
        if runs is None:
            runs = (
                ()
                if routes is None
                else (Run(start, routes, pack_bits(valid, len(routes), f"record {rid}: valid")),)
            )
        elif routes is not None:
            raise InvalidArgument(f"record {rid}: expected routes or runs, found both")
        made.runs(runs)
        made.spans(spans)
        made.sampling(sampling, mask)
        made.indexer(indexer)
        self._raw, self._owner = made.raw, made.kept

    @classmethod
    def _of(cls, model: RouteModel, raw: Any, owner: Any) -> Record:
        """Of a wb_record whose arrays stay while `owner` lives."""
        record = cls.__new__(cls)
        record.model, record._raw, record._owner = model, raw, owner
        return record

    def _fields(self) -> dict[str, Any]:
        """What the constructor takes besides the model, in arrays of its own."""
        arrays = ("tokens", "logprobs", "sampling_logprobs", "spans")
        others = ("rid", "prompt_len", "group", "sample", "finish", "sampling")
        fields = {name: _copy(getattr(self, name)) for name in arrays + others}
        fields["runs"] = [Run(*map(_copy, run)) for run in self.runs]
        fields["mask"] = self.mask and Mask(*map(_copy, self.mask))
        fields["indexer"] = self.indexer and IndexerRows(*map(_copy, self.indexer))
        return fields

    def __reduce__(self) -> Any:
        # A pickle has copies of the arrays, since views of a dump are of this process alone.
        return partial(Record, **self._fields()), (self.model,)

    @property
    def rid(self) -> str:
        """Request id, unique in a dump."""
        return self._raw.rid.decode()

    @property
    def group(self) -> int:
        """Requests of one prompt have the same number."""
        return self._raw.group

    @property
    def sample(self) -> int:
        """Which of its group's requests this is."""
        return self._raw.sample

    @property
    def prompt_len(self) -> int:
        """tokens[:prompt_len] is the prompt."""
        return self._raw.prompt_len

    @property
    def finish(self) -> str:
        """ "none", "stop", "length" or "abort"."""
        return _abi.functions["wb_finish_name"](self._raw.finish).decode()

    @property
    def tokens(self) -> np.ndarray:
        """[N] u4, prompt and sampled."""
        return _abi.view(self._raw.tokens, (self._raw.n_tokens,), "<u4", self)

    @property
    def logprobs(self) -> np.ndarray | None:
        """[N - prompt_len] f4 of the sampled tokens, at temperature 1; None: not recorded."""
        return self._sampled(self._raw.logprobs, "<f4")

    @property
    def sampling_logprobs(self) -> np.ndarray | None:
        """[N - prompt_len] f4 under the distribution that was sampled from; None: not recorded."""
        return self._sampled(self._raw.sampling_logprobs, "<f4")

    @property
    def sampling(self) -> Sampling | None:
        """None: not known."""
        if not self._raw.sampling:
            return None
        found = _abi.structs["wb_sampling"].from_address(self._raw.sampling)
        return Sampling(found.temperature, found.top_k, found.top_p)

    @property
    def mask(self) -> Mask | None:
        """Kept tokens, ids u4 and ends [N - prompt_len] u4; None: not recorded, or no limit."""
        ends = self._sampled(self._raw.mask_ends, "<u4")
        if ends is None:
            return None
        return Mask(_abi.view(self._raw.mask_ids, (int(ends[-1]) if len(ends) else 0,), "<u4", self), ends)

    @property
    def spans(self) -> np.ndarray:
        """[n] of start u4, end u4, weight_version u8: tokens[start:end] were fed under that version of the
        weights."""
        return _abi.view(self._raw.spans, (self._raw.n_spans,), SPAN, self)

    @property
    def runs(self) -> tuple[Run, ...]:
        """The rows as they lie in memory, each run a view."""
        raw = _abi.structs["wb_route_rows"] * self._raw.n_routes
        found = raw.from_address(self._raw.routes) if self._raw.n_routes else ()
        return tuple(self._run(run) for run in found)

    @property
    def start(self) -> int:
        """The position of row 0 of `routes`; 0 where there are none."""
        runs = self.runs
        return runs[0].start if runs else 0

    @property
    def routes(self) -> np.ndarray:
        """[rows, L, K] of the model's id_dtype: row r is of the token at position start + r. Where layers
        differ in their K, [rows, the sum of them], one layer after the other.

        A view where the rows are one run, as most are. Several are copied into one array, zero where `valid`
        is not.
        """
        runs = self.runs
        if len(runs) == 1:
            return runs[0].ids
        first = runs[0].start if runs else 0
        rows = np.zeros((_end(runs) - first, *self.model.row_shape), self.model.id_dtype)
        for run in runs:
            rows[run.start - first :][: len(run.ids)] = run.ids
        return rows

    @property
    def valid(self) -> np.ndarray:
        """[rows] bool: whether the row of `routes` is there."""
        runs = self.runs
        first = runs[0].start if runs else 0
        there = np.zeros(_end(runs) - first, bool)
        for run in runs:
            there[run.start - first :][: len(run.ids)] = unpack_bits(run.valid, len(run.ids))
        return there

    @property
    def indexer(self) -> IndexerRows | None:
        """Which positions the indexers chose, as views; None: not recorded."""
        if not self._raw.indexer:
            return None
        raw = _abi.structs["wb_indexer_rows"].from_address(self._raw.indexer)
        shape = (raw.rows, len(self.model.indexer.columns) if self.model.indexer else 0)
        counts = _abi.view(raw.counts, shape, "<u4", self)
        ends = _abi.view(raw.ends, shape, "<u8", self)
        stored = int(ends.flat[-1]) if ends.size else 0
        return IndexerRows(raw.start, counts, ends, _abi.view(raw.positions, (stored,), "<u4", self))

    @property
    def digest(self) -> int:
        """xxh3 of the tokens: equal where two records, or a record and what a trainer feeds, have the same
        ones."""
        return _abi.functions["wb_tokens_digest"](self._raw.tokens, self._raw.n_tokens)

    def check(self) -> None:
        """Raises InvalidArgument, naming the place, unless shapes are right and ids in range and distinct."""
        _abi.functions["wb_record_check"](self.model._struct, self._struct, True)

    def counts(self, first: int = 0, end: int | None = None) -> np.ndarray:
        """[L, E] u8: how often each expert was chosen by the tokens at positions first..end-1. The record is
        checked."""
        self.check()
        out = np.zeros((self.model.n_moe_layers, self.model.num_experts), np.uint64)
        end = self._raw.n_tokens if end is None else end
        _abi.functions["wb_record_count"](self.model._struct, self._struct, first, end, out.ctypes.data)
        return out

    def __len__(self) -> int:
        """N."""
        return self._raw.n_tokens

    def __repr__(self) -> str:
        rows = sum(len(run.ids) for run in self.runs)
        return f"<waybill.Record {self.rid!r}: {len(self)} tokens, {rows} rows of {self.model.name}>"

    @property
    def _struct(self) -> Any:
        return ctypes.byref(self._raw)

    def _sampled(self, address: int | None, dtype: str) -> np.ndarray | None:
        if not address:
            return None
        return _abi.view(address, (self._raw.n_tokens - self._raw.prompt_len,), dtype, self)

    def _run(self, run: Any) -> Run:
        shape = (run.rows, *self.model.row_shape)
        bits = _abi.view(run.valid, ((run.rows + 7) // 8,), "u1", self) if run.valid else None
        return Run(run.start, _abi.view(run.ids, shape, self.model.id_dtype, self), bits)


def check_record(record: Any) -> Record:
    """`record`, or a TypeError."""
    if not isinstance(record, Record):
        raise TypeError(f"expected a waybill.Record, found {type(record).__name__}")
    return record


def _copy(value: Any) -> Any:
    return value.copy() if isinstance(value, np.ndarray) else value


def _end(runs: Sequence[Run]) -> int:
    return runs[-1].start + len(runs[-1].ids) if runs else 0


def pack_bits(valid: Any, rows: int, what: str) -> np.ndarray | None:
    """[rows] bool to bits, the first row in the lowest; None stays None."""
    if valid is None:
        return None
    made = _abi.array(valid, "u1", (rows,), what)
    if (made > 1).any():
        raise InvalidArgument(f"{what}: expected 0 or 1 of each row, found {made.max()}")
    return np.packbits(made, bitorder="little")


def unpack_bits(valid: np.ndarray | None, rows: int) -> np.ndarray:
    """The other way round; None: all of them."""
    if valid is None:
        return np.ones(rows, bool)
    return np.unpackbits(valid, count=rows, bitorder="little").view(bool)


class _Builder:
    """A wb_record of a user's arrays, and the arrays that it points to."""

    def __init__(self, model: RouteModel) -> None:
        self.model = model
        self.raw = _abi.structs["wb_record"]()
        self.kept: list[Any] = []

    def keep(self, values: Any, dtype: Any, shape: tuple[int, ...], what: str) -> int | None:
        made = _abi.array(values, dtype, shape, f"record {self.raw.rid.decode()}: {what}")
        self.kept.append(made)
        return _abi.pointer(made)

    def tokens(self, rid: str, tokens: Any, prompt_len: int, group: int, sample: int, finish: str) -> None:
        self.raw.rid = _abi.text(rid, "record rid")
        self.raw.tokens = self.keep(tokens, "<u4", (-1,), "tokens")
        self.raw.n_tokens = len(self.kept[-1])
        if not 0 <= prompt_len <= self.raw.n_tokens:
            raise InvalidArgument(
                f"record {rid}: prompt_len: expected 0..{self.raw.n_tokens}, found {prompt_len}"
            )
        number = _abi.enum_of("WB_FINISH_", finish, f"record {rid}: finish")
        _abi.fill(self.raw, prompt_len=prompt_len, group=group, sample=sample, finish=number)

    def logprobs(self, field: str, values: Any) -> None:
        if values is not None:
            sampled = self.raw.n_tokens - self.raw.prompt_len
            setattr(self.raw, field, self.keep(values, "<f4", (sampled,), field))

    def runs(self, runs: Sequence[Run]) -> None:
        shape = (-1, *self.model.row_shape)
        made = (_abi.structs["wb_route_rows"] * len(runs))()
        for raw, run in zip(made, runs):
            _abi.fill(raw, start=run.start)
            raw.ids = self.keep(run.ids, self.model.id_dtype, shape, "routes")
            raw.rows = len(self.kept[-1])
            if run.valid is not None:
                raw.valid = self.keep(run.valid, "u1", ((raw.rows + 7) // 8,), "bits of valid rows")
        self.kept.append(made)
        self.raw.n_routes = len(runs)
        self.raw.routes = ctypes.addressof(made) if runs else None

    def indexer(self, indexer: Any) -> None:
        if indexer is None:
            return
        start, counts, ends, positions = indexer
        shape = (-1, len(self.model.indexer.columns) if self.model.indexer else 0)
        made = _abi.struct("wb_indexer_rows", start=start)
        made.counts = self.keep(counts, "<u4", shape, "indexer counts")
        made.rows = len(self.kept[-1])
        made.ends = self.keep(ends, "<u8", self.kept[-1].shape, "indexer ends")
        stored = int(self.kept[-1].flat[-1]) if self.kept[-1].size else 0
        made.positions = self.keep(positions, "<u4", (stored,), "indexer positions")
        self.kept.append(made)
        self.raw.indexer = ctypes.addressof(made)

    def spans(self, spans: Any) -> None:
        rows = np.zeros(len(spans), SPAN)
        for i, name in enumerate(SPAN.names or ()):
            rows[name] = self.spans_field(spans, i, name)
        self.raw.n_spans = len(rows)
        self.raw.spans = self.keep(rows, SPAN, (-1,), "spans") if len(rows) else None

    def spans_field(self, spans: Any, i: int, name: str) -> np.ndarray:
        what = f"record {self.raw.rid.decode()}: span {name}"
        try:
            numbers = [int(span[i]) for span in spans]
        except (IndexError, TypeError, ValueError):
            raise InvalidArgument(f"{what}: expected spans of (start, end, weight_version)") from None
        return _abi.array(numbers, SPAN[name], (-1,), what)

    def sampling(self, sampling: Any, mask: Any) -> None:
        if sampling is not None:
            made = _abi.struct("wb_sampling", **Sampling(*sampling)._asdict())
            self.kept.append(made)
            self.raw.sampling = ctypes.addressof(made)
        if mask is not None:
            sampled = self.raw.n_tokens - self.raw.prompt_len
            self.raw.mask_ends = self.keep(mask[1], "<u4", (sampled,), "mask ends")
            n_ids = int(self.kept[-1][-1]) if sampled else 0
            self.raw.mask_ids = self.keep(mask[0], "<u4", (n_ids,), "mask ids")
