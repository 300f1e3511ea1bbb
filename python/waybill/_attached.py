"""What attachments of a replay to somebody's model share: which micro-batch a forward is of, rows of a padded
batch."""

from __future__ import annotations

import contextlib
import weakref
from typing import Any, Callable, Iterator, Sequence

import numpy as np
import torch

from ._errors import InvalidArgument, check_type
from ._replay import Padding, Rows, Segment

# Routers that ask a replay: a second one would be asked after the first, and nobody would know whom experts
# follow.
_routers: weakref.WeakSet[Any] = weakref.WeakSet()


class Attachment:
    """A model whose routers ask a replay. replay: the replay that they ask."""

    def __init__(self, model: Any, replay: Any, routers: Sequence[Any]) -> None:
        self.model, self.replay = model, replay
        self._now: int | None = None
        self._native = False
        self._undo: list[Callable[[], Any]] = []
        self._own_routers = list(routers)
        if any(router in _routers for router in routers):
            raise InvalidArgument(f"{type(model).__name__} is attached to a replay already: detach it first")
        _routers.update(routers)

    def _micro_batch(self, name: str) -> int | None:
        if self._native:
            return None
        if self._now is None:
            raise InvalidArgument(
                f"{name}: a forward outside of Attached.micro_batch: nobody knows which rows it has; for one "
                "without replay there is Attached.native"
            )
        return self._now

    @contextlib.contextmanager
    def micro_batch(self, number: int) -> Iterator[None]:
        """Forwards within are those of this micro-batch, and so are recomputes of their checkpoints later
        on."""
        self._follow_checkpoints()
        with self._in(number, False):
            yield

    @contextlib.contextmanager
    def native(self) -> Iterator[None]:
        """Forwards within, of an evaluation or a generation, go by the model's own choice, and so do
        recomputes."""
        self._follow_checkpoints()
        with self._in(None, True):
            yield

    @contextlib.contextmanager
    def _in(self, number: int | None, native: bool) -> Iterator[None]:
        before = self._now, self._native
        self._now, self._native = number, native
        try:
            yield
        finally:
            self._now, self._native = before

    def _follow_checkpoints(self) -> None:
        raise NotImplementedError

    def _keyed(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """`function`, which is of the micro-batch that is current now, whenever it is called: a checkpoint is
        recomputed in a backward, when another micro-batch may be current."""
        now = self._now, self._native

        def again(*args: Any, **kwargs: Any) -> Any:
            with self._in(*now):
                return function(*args, **kwargs)

        return again

    def detach(self) -> None:
        """The model is as it was."""
        while self._undo:
            self._undo.pop()()
        _routers.difference_update(self._own_routers)


def segments_of(
    rids: Sequence[str | None],
    input_ids: Any,
    attention_mask: Any = None,
    starts: Sequence[int] | None = None,
    order: np.ndarray | None = None,
) -> list[Segment]:
    """The rows of a padded batch as a plan has them. input_ids [B, S]; where attention_mask [B, S] is 0 a row
    is padding. starts: [B] the position of each sequence's first token in its record (None: 0). order: [T]
    which (sequence * S + place) each row is (None: one sequence after the other)."""
    check_type("plan: input_ids", input_ids, torch.Tensor, "torch.Tensor")
    if attention_mask is not None:
        check_type("plan: attention_mask", attention_mask, torch.Tensor, "torch.Tensor")
    tokens = input_ids.cpu().numpy()
    kept = np.ones(tokens.shape, bool) if attention_mask is None else attention_mask.cpu().numpy() != 0
    if len(rids) != len(tokens) or kept.shape != tokens.shape:
        raise InvalidArgument(
            f"plan: expected rids [B] and attention_mask [B, S] of input_ids {list(tokens.shape)}, found "
            f"{len(rids)} and {list(kept.shape)}"
        )
    for b, rid in enumerate(rids):
        at = kept[b].nonzero()[0]
        if len(at) and at[-1] - at[0] + 1 != len(at):
            raise InvalidArgument(f"plan: request {rid}: attention_mask has a hole")
    S = tokens.shape[1]
    order = np.arange(tokens.size) if order is None else order
    b, kept, tokens, first = order // S, kept.ravel()[order], tokens.ravel()[order], kept.argmax(1)
    # A run ends where the sequence, or whether there is a token, changes, or a place is left out.
    ends = (np.diff(b) != 0) | (np.diff(kept) != 0) | (kept[1:] & (np.diff(order) != 1))
    segments: list[Segment] = []
    for run in np.split(np.arange(len(order)), ends.nonzero()[0] + 1) if len(order) else ():
        at, i = int(run[0]), int(b[run[0]])
        start = int(order[at] - i * S - first[i]) + (starts[i] if starts else 0)
        segments.append(Rows(rids[i], tokens[run], start) if kept[at] else Padding(len(run)))
    return segments
