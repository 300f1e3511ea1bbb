"""The ops of waybill.torch, as torch knows them: waybill::gate with its gradient, and waybill::dispatched.

They are pure as torch sees it: calling one again, or not calling one whose output nobody uses, changes no
result.
"""

import weakref
from typing import Any

import torch

from ._errors import InvalidArgument

# Ops take numbers and tensors: a replay is known to them by its number. Numbers are not given twice.
_replays: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()
_next = [1]


def remember(replay: Any) -> int:
    """The number that ops know a RouterReplay by while it lives."""
    number = _next[0]
    _next[0] += 1
    _replays[number] = replay
    return number


def _known(number: int) -> Any:
    found = _replays.get(number)
    if found is None:
        raise InvalidArgument("the RouterReplay of this graph is gone")
    return found


_WHERE = "int replay, SymInt micro_batch, SymInt layer, SymInt row"


@torch.library.custom_op(
    "waybill::gate", mutates_args=(), schema=f"(Tensor logits, Tensor? table, {_WHERE}) -> (Tensor, Tensor)"
)
def _gate(logits, table, replay, micro_batch, layer, row):
    return _known(replay)._gate_forward(logits, table, micro_batch, layer, row)


@_gate.register_fake
def _(logits, table, replay, micro_batch, layer, row):
    shape = (logits.shape[0], _known(replay).model.layer_k(layer))
    return logits.new_empty(shape, dtype=torch.float32), logits.new_empty(shape, dtype=torch.int64)


@torch.library.custom_op(
    "waybill::gate_backward", mutates_args=(), schema=f"(Tensor logits, Tensor dweights, {_WHERE}) -> Tensor"
)
def _gate_backward(logits, dweights, replay, micro_batch, layer, row):
    return _known(replay)._gate_backward(logits, dweights, micro_batch, layer, row)


@_gate_backward.register_fake
def _(logits, dweights, replay, micro_batch, layer, row):
    return torch.empty_like(logits)


def _keep(ctx, inputs, output):
    logits, _, *ctx.where = inputs
    ctx.save_for_backward(logits)


def _flow_back(ctx, dweights, _):
    (logits,) = ctx.saved_tensors
    return torch.ops.waybill.gate_backward(logits, dweights, *ctx.where), None, None, None, None, None


_gate.register_autograd(_flow_back, setup_context=_keep)


@torch.library.custom_op("waybill::dispatched", mutates_args=(), schema=f"(Tensor ids, {_WHERE}) -> Tensor")
def _dispatched(ids, replay, micro_batch, layer, row):
    _known(replay)._told(ids, micro_batch, layer, row)
    # An op returns memory of its own; whoever uses it uses what was told.
    return ids.clone()


@_dispatched.register_fake
def _(ids, replay, micro_batch, layer, row):
    return torch.empty_like(ids)
