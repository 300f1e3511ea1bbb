"""Routing replay for the MoE models of transformers: their routers go where the records say, and nothing else
changes.

    replay = waybill.hf.replay_for(model, dump.model)       # a RouterReplay with the model's router
    attached = waybill.hf.attach(model, replay)
    with replay.step("rollout", 1):
        attached.plan(0, rids, input_ids, attention_mask)   # or replay.plan, for packed sequences
        with attached.micro_batch(0):
            loss = model(input_ids, attention_mask=attention_mask, labels=labels).loss
        loss.backward()                                     # also with gradient_checkpointing_enable()

Families: qwen2_moe, qwen3_moe, qwen3_next, qwen3_5_moe, olmoe, mixtral, gpt_oss, deepseek_v2, deepseek_v3,
deepseek_v4, glm4_moe; others are refused by name. What experts get is read where they get it, so that a
kernel that routes by itself fails the step instead of training other experts.
"""

from __future__ import annotations

import functools
import re
from typing import Any, Callable, Sequence

import torch

from ._attached import Attachment, segments_of
from ._errors import Mismatch, Unsupported, check_type
from ._model import RouteModel, check_model
from .torch import Router, RouterReplay

__all__ = ["Attached", "attach", "replay_for"]


def _softmax(router: Any, config: Any) -> Router:
    return Router("softmax_norm" if getattr(router, "norm_topk_prob", True) else "softmax")


def _topk_softmax(router: Any, config: Any) -> Router:
    return Router("topk_softmax")


def _deepseek_v2(router: Any, config: Any) -> Router:
    groups = {}
    if router.topk_method == "group_limited_greedy":
        groups = {"n_group": router.num_group, "topk_group": router.topk_group}
    elif router.topk_method != "greedy":
        raise Unsupported(f"deepseek_v2: topk_method {router.topk_method!r}")
    return Router("softmax", scale=router.routed_scaling_factor, **groups)


def _sigmoid(router: Any, config: Any) -> Router:
    return Router(
        "sigmoid",
        normalize=router.norm_topk_prob,
        scale=router.routed_scaling_factor,
        n_group=router.num_group,
        topk_group=router.topk_group,
    )


def _deepseek_v4(router: Any, config: Any) -> Router:
    if config.scoring_func != "sqrtsoftplus":
        raise Unsupported(f"deepseek_v4: scoring_func {config.scoring_func!r}")
    return Router("sqrtsoftplus", scale=router.routed_scaling_factor)


_ROUTERS: dict[str, Callable[[Any, Any], Router]] = {
    "Qwen2MoeTopKRouter": _softmax,
    "Qwen3MoeTopKRouter": _softmax,
    "Qwen3NextTopKRouter": _softmax,
    "Qwen3_5MoeTopKRouter": _softmax,
    "OlmoeTopKRouter": _softmax,
    "MixtralTopKRouter": _softmax,
    "GptOssTopKRouter": _topk_softmax,
    "DeepseekV2TopkRouter": _deepseek_v2,
    "DeepseekV3TopkRouter": _sigmoid,
    "Glm4MoeTopkRouter": _sigmoid,
    "DeepseekV4TopKRouter": _deepseek_v4,
    "DeepseekV4HashRouter": _deepseek_v4,
}


class _Layer:
    """A MoE layer: the router and the experts that take what it returns. number: of the hidden layer."""

    def __init__(self, name: str, router: Any, experts: Any) -> None:
        numbers = re.findall(r"\blayers\.(\d+)\.", name)
        if len(numbers) != 1:
            raise Unsupported(f"{name}: expected a router below layers.<number>, once")
        self.name, self.router, self.experts, self.number = name, router, experts, int(numbers[0])


def _layers(model: torch.nn.Module) -> list[_Layer]:
    check_type("model", model, torch.nn.Module, "torch.nn.Module")
    found = []
    for name, module in model.named_modules():
        kind = type(module).__name__
        if not kind.endswith("Router"):
            continue
        if kind not in _ROUTERS:
            raise Unsupported(f"{name}: a router of class {kind}, which this package does not know")
        block = model.get_submodule(name.rpartition(".")[0])
        found.append(_Layer(name, module, block.experts))
    if not found:
        raise Unsupported(
            f"{type(model).__name__}: expected routers of a MoE model of transformers 5, found none"
        )
    return sorted(found, key=lambda layer: layer.number)


def _config(model: Any) -> Any:
    return getattr(model.config, "text_config", None) or model.config


def _router(model: Any, layers: Sequence[_Layer]) -> Router:
    routers = {_ROUTERS[type(layer.router).__name__](layer.router, _config(model)) for layer in layers}
    if len(routers) != 1:
        raise Unsupported(
            f"{type(model).__name__}: expected one kind of router in all layers, found {routers}"
        )
    return routers.pop()


def _check_same(model: Any, layers: Sequence[_Layer], replay: RouterReplay) -> None:
    """Names and shapes; weights change with every step, and nobody can compare them."""
    recorded, router = replay.model, layers[0].router
    # The language model of a model of text and images is the same model under another name.
    names = {model.config.model_type, _config(model).model_type}
    names |= {name.removesuffix("_text") for name in names}
    stage = recorded.moe_layers[replay.first_layer :][: replay.n_layers or None]
    for what, expected, found in (
        (
            "model_type",
            recorded.name,
            recorded.name if recorded.name in names else " or ".join(sorted(names)),
        ),
        ("MoE layers", list(stage), [layer.number for layer in layers]),
        ("experts", recorded.num_experts, router.num_experts),
        ("experts of a token", recorded.layer_top_k or recorded.top_k, router.top_k),
    ):
        if expected != found:
            raise Mismatch(f"{what}: the records have {expected}, {type(model).__name__} has {found}")
    if replay.router != _router(model, layers):
        raise Mismatch(
            f"router: the replay has {replay.router}, {type(model).__name__} has {_router(model, layers)}"
        )


def replay_for(model: torch.nn.Module, recorded: RouteModel | Any, **options: Any) -> RouterReplay:
    """A RouterReplay with the router, the selection biases and the device of a model of transformers.

    recorded: whose records will be replayed, a RouteModel or what has one. options: as of waybill.Replay, but for
    `indexer`: modules of transformers have no place where what indexers chose could be forced.
    """
    if options.get("indexer"):
        raise Unsupported(
            "replay_for: expected no option indexer, since what indexers chose is not forced in a model of "
            "transformers, found it set"
        )
    layers = _layers(model)
    bias = [getattr(layer.router, "e_score_correction_bias", None) for layer in layers]
    L, E = check_model(recorded).n_moe_layers, check_model(recorded).num_experts
    if any(tensor is not None for tensor in bias):
        device = next(tensor.device for tensor in bias if tensor is not None)
        first = options.get("first_layer", 0)
        whole = [torch.zeros(E, device=device)] * L
        for i, tensor in enumerate(bias):
            if tensor is not None and first + i < L:
                whole[first + i] = tensor
        options["bias"] = whole
    device = layers[0].router.weight.device
    return RouterReplay(recorded, router=_router(model, layers), device=device, **options)


def _put_back(module: torch.nn.Module, followed: Any, checkpoint: Any) -> None:
    """A checkpoint function that somebody set since stays."""
    if getattr(module, "_gradient_checkpointing_func", None) is followed:
        module._gradient_checkpointing_func = checkpoint


class Attached(Attachment):
    """A model whose routers ask a replay. See waybill.hf.attach."""

    def __init__(self, model: torch.nn.Module, replay: RouterReplay) -> None:
        check_type("replay", replay, RouterReplay, "waybill.torch.RouterReplay")
        layers = _layers(model)
        _check_same(model, layers, replay)
        super().__init__(model, replay, [layer.router for layer in layers])
        for i, layer in enumerate(layers):
            self._attach(layer, replay.first_layer + i)

    def _attach(self, layer: _Layer, index: int) -> None:
        hash_router = hasattr(layer.router, "tid2eid")

        def route(module: Any, args: Any, output: Any) -> Any:
            m = self._micro_batch(layer.name)
            if m is None or (hash_router and self.replay._mode == "off"):
                return None
            logits, weights, ids = output
            table = ids if hash_router else None
            forced, made = self.replay.gate(logits, m, index, table=table)
            return logits, made.to(weights.dtype), forced

        def tell(module: Any, args: Any) -> Any:
            m = self._micro_batch(layer.name)
            if m is None:
                return None
            hidden, ids, *rest = args
            return hidden, self.replay.dispatched(ids, m, index), *rest

        self._undo.append(layer.router.register_forward_hook(route).remove)
        self._undo.append(layer.experts.register_forward_pre_hook(tell).remove)

    def _follow_checkpoints(self) -> None:
        for module in self.model.modules():
            checkpoint = getattr(module, "_gradient_checkpointing_func", None)
            if checkpoint is not None and getattr(checkpoint, "_waybill", None) is not self:
                followed = module._gradient_checkpointing_func = self._with_micro_batch(checkpoint)
                self._undo.append(functools.partial(_put_back, module, followed, checkpoint))

    def _with_micro_batch(self, checkpoint: Any) -> Any:
        def run(function: Any, *args: Any, **kwargs: Any) -> Any:
            return checkpoint(self._keyed(function), *args, **kwargs)

        run._waybill = self
        return run

    def plan(
        self,
        micro_batch: int,
        rids: Sequence[str | None],
        input_ids: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
        starts: Sequence[int] | None = None,
    ) -> None:
        """Plans a padded batch, input_ids [B, S] of requests rids [B]: where attention_mask [B, S] is 0 a row
        is padding, on the left, the right or both. starts: [B] the position of each sequence's first token in
        its record (None: 0).
        """
        self.replay.plan(micro_batch, segments_of(rids, input_ids, attention_mask, starts))


def attach(model: torch.nn.Module, replay: RouterReplay) -> Attached:
    """Lets the routers of a model of transformers ask `replay`, by hooks on its router and expert modules.

    Mismatch, naming what differs, where model_type, MoE layers, experts or router are not those of the
    records.
    """
    return Attached(model, replay)
