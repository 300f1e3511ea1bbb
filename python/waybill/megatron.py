"""Routing replay for Megatron-Core: what its list of RouterReplay does, by (micro-batch, layer) instead of
first in, first out.

    replay = waybill.megatron.replay_for(model, dump.model)  # the layers of this pipeline stage
    attached = waybill.megatron.attach(model, replay)
    with replay.step("rollout", n_micro_batches):
        attached.plan(m, rids, input_ids, attention_mask)    # or replay.plan, for packed sequences
        ...
        with attached.micro_batch(m):                        # in forward_step, around the model's forward
            output = model(input_ids, position_ids, mask)

Schedules may run forwards, backwards and the recomputes of Megatron-Core's own checkpoints in any order. A
stage of a virtual pipeline is a model and has a replay of its own. What a router chooses by itself, and how
weights are made of the choice, stays Megatron-Core's; routers of MTP layers, of which no record has rows, are
left alone. Nothing is asked of moe_enable_routing_replay: its list is put aside until `detach`.

Where a router would not ask, or would not be obeyed, it is refused by name: moe_router_fusion, sinkhorn and
quantile balancing, capacity factors, forced balance, CUDA graphs. What is dispatched is read where the token
dispatcher takes it, so that a router that went its own way all the same fails the step. Checkpoints of
Transformer Engine (fp8) are not followed: their recompute is refused.
"""

from __future__ import annotations

import weakref
from typing import Any, Sequence

import numpy as np
import torch
from megatron.core.tensor_parallel.random import CheckpointFunction
from megatron.core.transformer.moe.moe_layer import MoELayer

from ._attached import Attachment, segments_of
from ._errors import InvalidArgument, Mismatch, Unsupported, check_type
from ._model import RouteModel, check_model
from ._replay import Replay, Slice

__all__ = ["Attached", "attach", "positions", "replay_for"]

_NATIVE, _PADDING = 0, 2

# Under another value of these the router does not ask who is to choose, or is not obeyed.
_REFUSED = {
    "moe_router_fusion": (False, "a fused router chooses inside of its kernel"),
    "moe_expert_capacity_factor": (None, "choices over the capacity are dropped"),
    "moe_router_force_load_balancing": (False, "logits are random"),
    "moe_router_force_biased": (None, "logits are random"),
    "cuda_graph_impl": ("none", "a graph repeats the routes that it was captured with"),
    "enable_cuda_graph": (False, "a graph repeats the routes that it was captured with"),
    "external_cuda_graph": (False, "a graph repeats the routes that it was captured with"),
}
# Which router of a recording has the weights of (moe_router_score_function, moe_router_pre_softmax).
_ROUTERS = {
    ("softmax", True): ("softmax",),
    ("softmax", False): ("softmax_norm", "topk_softmax"),
    ("sigmoid", False): ("sigmoid",),
    ("sigmoid", True): ("sigmoid",),
    ("sqrtsoftplus", False): ("sqrtsoftplus",),
    ("sqrtsoftplus", True): ("sqrtsoftplus",),
}


class _Layer:
    """A MoE layer. number: of the hidden layer, from 0 on. asked: what its router was told last and nobody
    has dispatched yet: (micro-batch, ids used, native ids, slice)."""

    def __init__(self, name: str, module: Any) -> None:
        self.name, self.module, self.router = name, module, module.router
        self.number = module.router.layer_number - 1
        self.asked: tuple[int, torch.Tensor, torch.Tensor, Slice] | None = None


def _layers(model: Any) -> list[_Layer]:
    check_type("model", model, torch.nn.Module, "torch.nn.Module")
    found = []
    for name, module in model.named_modules():
        if isinstance(module, MoELayer) and "mtp" not in name.split("."):
            found.append(_Layer(name, module))
    if not found:
        raise Unsupported(f"{type(model).__name__}: expected MoE layers of Megatron-Core, found none")
    return sorted(found, key=lambda layer: layer.number)


def _refuse(layer: _Layer) -> None:
    config = layer.router.config
    for name, (allowed, why) in _REFUSED.items():
        found = getattr(config, name, allowed)
        if found != allowed:
            raise Unsupported(
                f"{layer.name}: {name}: expected {allowed} under replay, found {found!r}: {why}"
            )
    kind = config.moe_router_load_balancing_type
    for chooser in ("sinkhorn", "quantile_balancing"):
        if chooser == kind or (not isinstance(kind, str) and chooser in kind):
            raise Unsupported(f"{layer.name}: moe_router_load_balancing_type {chooser}: it chooses by itself")


def _check_same(model: Any, layers: Sequence[_Layer], replay: Replay) -> None:
    recorded, config = replay.model, layers[0].router.config
    score = config.moe_router_score_function
    routers = _ROUTERS.get((score, bool(config.moe_router_pre_softmax)), ())
    stage = recorded.moe_layers[replay.first_layer :][: replay.n_layers or None]
    for what, expected, found in (
        ("MoE layers", list(stage), [layer.number for layer in layers]),
        ("experts", recorded.num_experts, config.num_moe_experts),
        ("experts of a token", recorded.layer_top_k or recorded.top_k, config.moe_router_topk),
        ("router", recorded.router, recorded.router if recorded.router in routers else " or ".join(routers)),
    ):
        if expected != found:
            raise Mismatch(f"{what}: the records have {expected}, {type(model).__name__} has {found}")


def replay_for(model: Any, recorded: RouteModel | Any, **options: Any) -> Replay:
    """A Replay of the MoE layers that a model of Megatron-Core, or its chunk on this rank, has.

    recorded: whose records will be replayed, a RouteModel or what has one. options: as of waybill.Replay.
    """
    numbers = [layer.number for layer in _layers(model)]
    moe_layers = check_model(recorded).moe_layers
    if numbers[0] not in moe_layers:
        raise Mismatch(
            f"MoE layers: the records have {list(moe_layers)}, {type(model).__name__} has {numbers}"
        )
    return Replay(recorded, first_layer=moe_layers.index(numbers[0]), n_layers=len(numbers), **options)


def positions(
    length: int, cp_rank: int = 0, cp_size: int = 1, tp_rank: int = 0, tp_size: int = 1
) -> np.ndarray:
    """The places of a padded sequence of `length` whose rows a rank's routers see: of context parallelism the
    zigzag, the cp_rank-th chunk of 2 * cp_size and the one as far from the end; of those, under sequence
    parallelism, the tp_rank-th of tp_size parts."""
    if not (0 <= cp_rank < cp_size and 0 <= tp_rank < tp_size):
        raise InvalidArgument(
            f"ranks: expected cp_rank below {cp_size} and tp_rank below {tp_size}, found {cp_rank} and {tp_rank}"
        )
    if length % (2 * cp_size if cp_size > 1 else 1) or (length // cp_size) % tp_size:
        raise InvalidArgument(
            f"length: expected {2 * cp_size if cp_size > 1 else 1} chunks alike, and {tp_size} parts of a "
            f"rank's, found {length}"
        )
    places = np.arange(length)
    if cp_size > 1:
        chunks = places.reshape(2 * cp_size, -1)
        places = np.concatenate([chunks[cp_rank], chunks[2 * cp_size - 1 - cp_rank]])
    return places.reshape(tp_size, -1)[tp_rank]


class _Keyed:
    """What stands in a router's router_replay."""

    def __init__(self, attached: Attached, layer: _Layer, index: int) -> None:
        self.layer_number = layer.router.layer_number
        self._where = attached, layer, index

    def get_replay_topk(
        self,
        scores: Any,
        topk: int,
        num_groups: Any = None,
        group_topk: Any = None,
        default_compute_topk: Any = None,
    ) -> Any:
        attached, layer, index = self._where
        native = default_compute_topk(scores, topk, num_groups=num_groups, group_topk=group_topk)
        m = attached._micro_batch(layer.name)
        if m is None:
            return native
        ids = attached._choose(layer, index, m, native[1])
        return scores.gather(1, ids), ids


class Attached(Attachment):
    """A model whose routers ask a replay. See waybill.megatron.attach."""

    def __init__(self, model: Any, replay: Replay) -> None:
        check_type("replay", replay, Replay, "waybill.Replay")
        layers = _layers(model)
        for layer in layers:
            _refuse(layer)
        _check_same(model, layers, replay)
        super().__init__(model, replay, [layer.router for layer in layers])
        for i, layer in enumerate(layers):
            self._attach(layer, replay.first_layer + i)
        _alive.add(self)
        self._undo.append(lambda: _alive.discard(self))

    def _attach(self, layer: _Layer, index: int) -> None:
        dispatcher, before = layer.module.token_dispatcher, layer.router.router_replay
        take = dispatcher.dispatch_preprocess

        def dispatch_preprocess(hidden_states: Any, routing_map: Any, probs: Any) -> Any:
            m = self._micro_batch(layer.name)
            if m is not None:
                probs = self._tell(layer, index, m, routing_map, probs)
            return take(hidden_states, routing_map, probs)

        layer.router.router_replay = _Keyed(self, layer, index)
        own = "dispatch_preprocess" in vars(dispatcher)
        dispatcher.dispatch_preprocess = dispatch_preprocess
        self._undo.append(lambda: setattr(layer.router, "router_replay", before))
        self._undo.append(lambda: _put_back(dispatcher, take if own else None))

    def _choose(self, layer: _Layer, index: int, m: int, native: torch.Tensor) -> torch.Tensor:
        planned = self.replay.rows(m, index)
        used = native
        if planned.ids is not None and planned.direction is not None:
            if len(planned.direction) != len(native):
                raise InvalidArgument(
                    f"{layer.name}: micro-batch {m}: expected the {len(planned.direction)} rows of its plan, "
                    f"found {len(native)}"
                )
            ids = torch.from_numpy(planned.ids.astype(np.int64)).to(native.device)
            used = ids
            if planned.any_native:
                chooses = torch.from_numpy(planned.direction == _NATIVE).to(native.device)
                used = torch.where(chooses[:, None], native, ids)
        layer.asked = m, used, native, planned
        return used

    def _tell(self, layer: _Layer, index: int, m: int, routing_map: Any, probs: Any) -> Any:
        """Compares what the dispatcher takes with what the router was told, and tells the replay. Padding
        rows get weights of zero."""
        asked, layer.asked = layer.asked, None
        where = f"{layer.name}: micro-batch {m}"
        if asked is None or asked[0] != m:
            raise Mismatch(f"{where}: its router did not ask the replay, as a fused one does not")
        _, used, native, planned = asked
        if routing_map.dtype != torch.bool or len(routing_map) != len(used):
            raise Unsupported(f"{where}: expected a routing map of bool for {len(used)} rows")
        same = (routing_map.sum(1) == used.shape[1]) & routing_map.gather(1, used).all(1)
        if not bool(same.all()):
            row = int((~same).nonzero()[0])
            raise Mismatch(
                f"{where}, row {row}: expected experts {sorted(used[row].tolist())} to be dispatched to, "
                f"found {routing_map[row].nonzero()[:, 0].tolist()}"
            )
        if planned.want_used or planned.want_native:
            wanted = planned.want_native
            self.replay.store(m, index, _on_host(used), _on_host(native) if wanted else None)
        padding = None if planned.direction is None else planned.direction == _PADDING
        if padding is None or not padding.any():
            return probs
        return probs.masked_fill(torch.from_numpy(padding).to(probs.device)[:, None], 0)

    def _follow_checkpoints(self) -> None:
        if getattr(CheckpointFunction.forward, "_waybill", False):
            return
        original = CheckpointFunction.forward

        def forward(ctx: Any, run_function: Any, *args: Any) -> Any:
            # Of every attached model: nobody knows which of them this is a part of.
            for attached in list(_alive):
                run_function = attached._keyed(run_function)
            return original(ctx, run_function, *args)

        forward._waybill = True
        CheckpointFunction.forward = staticmethod(forward)

    def plan(
        self,
        micro_batch: int,
        rids: Sequence[str | None],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        starts: Sequence[int] | None = None,
        places: Any = None,
    ) -> None:
        """Plans a padded batch, input_ids [B, S] of requests rids [B], whose rows are one place after the
        other: [S, B], as Megatron-Core has them. Where attention_mask [B, S] is 0 a row is padding. starts:
        [B] the position of each sequence's first token in its record (None: 0). places: which of the S this
        rank has, as `positions` says (None: all)."""
        B, S = input_ids.shape
        order = np.asarray(np.arange(S) if places is None else places)[:, None] + np.arange(B) * S
        segments = segments_of(rids, input_ids, attention_mask, starts, order.ravel())
        self.replay.plan(micro_batch, segments)


# Attachments whose checkpoints are followed.
_alive: weakref.WeakSet[Attached] = weakref.WeakSet()


def _put_back(dispatcher: Any, take: Any) -> None:
    """The method of its class, or what stood in for it before."""
    del dispatcher.dispatch_preprocess
    if take is not None:
        dispatcher.dispatch_preprocess = take


def _on_host(ids: torch.Tensor) -> np.ndarray:
    return ids.to(torch.int32).cpu().numpy()


def attach(model: Any, replay: Replay) -> Attached:
    """Lets the routers of a model of Megatron-Core, or of a chunk of a virtual pipeline, ask `replay`.

    Mismatch, naming what differs, where MoE layers, experts or router are not those of the records;
    Unsupported for what is named in the module's text.
    """
    return Attached(model, replay)
