"""Routing replay in TRL's GRPOTrainer: a batch carries which record each of its sequences has, and every
forward of the policy is planned from that.

    trainer = waybill.trl.GRPOTrainer(
        model, reward, args=config, train_dataset=dataset, processing_class=tokenizer, recorded=route_model,
        rollout_func=rollout,          # what TRL's trainer takes, and whose records they are
    )
    trainer.train()

    def rollout(prompts, trainer):
        return {"prompt_ids": .., "completion_ids": .., "logprobs": .., "routed_experts": ..}

`routed_experts` is a list of what the rollout engine returned for each sequence, integers [n - 1, L, K] of
its MoE layers, n the tokens of prompt and completion. They become records, which are checked; what TRL
computes under the weights of the rollout (old log-probabilities) and each loss follow them, in whatever order
TRL shuffles and splits the batch. A reference model is not attached, and goes by its own choice. Of a rollout
func that generates with the policy itself the forwards belong into `with trainer.attached.native():`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
import trl

from . import hf
from ._errors import InvalidArgument, Unsupported
from ._record import Record

__all__ = ["GRPOTrainer"]


class GRPOTrainer(trl.GRPOTrainer):
    """trl.GRPOTrainer whose policy is forced down the routes of its rollout. See the module's text.

    recorded: the waybill.RouteModel of the records, or what has one. mode: "rollout", or "off", which
    measures only. replay: options of waybill.Replay. Metrics: replay/token_differ and the others of
    ReplayMetrics.
    """

    def __init__(
        self, *args: Any, recorded: Any, mode: str = "rollout", replay: Any = None, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        if mode not in ("rollout", "off"):
            raise InvalidArgument(f"mode: expected rollout or off, found {mode}")
        if self.rollout_func is None:
            raise Unsupported("a GRPOTrainer without a rollout_func: nothing returns routes of its rollout")
        if hasattr(self.model, "peft_config") and self.beta != 0:
            raise Unsupported("beta > 0 with adapters: the reference is the policy's own module, and forced")
        policy = self.accelerator.unwrap_model(self.model)
        self.replay_mode = mode
        self.replay = hf.replay_for(policy, recorded, **(replay or {}))
        self.attached = hf.attach(policy, self.replay)
        self._rids: list[str] | None = None
        self._sequences = 0
        self._is_open = False

    # ---- what a batch carries ------------------------------------------------------------------------------

    def _generate(self, prompts: list[Any]) -> Any:
        output = list(super()._generate(prompts))
        prompt_ids, completion_ids, logprobs, extra = output[0], output[1], output[4], output[5]
        routes = extra.pop("routed_experts", None)
        if routes is None:
            raise InvalidArgument("rollout_func: expected routed_experts [B] of [n - 1, L, K], found none")
        if len(routes) != len(prompt_ids):
            raise InvalidArgument(
                f"rollout_func: routed_experts: expected one of each of {len(prompt_ids)} sequences, "
                f"found {len(routes)}"
            )
        # An evaluation comes between batches of a rollout that are still to be trained on.
        if self.model.training:
            self.replay.clear()
        self._rids = []
        for i, rows in enumerate(routes):
            self._rids.append(f"sequence-{self._sequences}")
            self.replay.add(
                Record(
                    self.replay.model,
                    self._rids[i],
                    np.concatenate([prompt_ids[i], completion_ids[i]]).astype(np.uint32),
                    len(prompt_ids[i]),
                    routes=np.asarray(rows),
                    logprobs=None if logprobs is None else np.asarray(logprobs[i], np.float32),
                    group=self._sequences // self.num_generations,
                    sample=self._sequences % self.num_generations,
                )
            )
            self._sequences += 1
        return tuple(output)

    def _generate_and_score_completions(self, inputs: Any) -> Any:
        batch = super()._generate_and_score_completions(inputs)
        numbers = [int(rid.rpartition("-")[2]) for rid in self._rids or ()]
        # A tensor [B], so that it is shuffled and split as the others are.
        batch["waybill_sequence"] = torch.tensor(numbers, device=batch["prompt_ids"].device)
        self._rids = None
        return batch

    # ---- forwards ------------------------------------------------------------------------------------------

    def _compute_loss(self, model: Any, inputs: Any) -> Any:
        self._rids = [f"sequence-{number}" for number in inputs["waybill_sequence"].tolist()]
        try:
            return super()._compute_loss(model, inputs)
        finally:
            self._rids = None

    def _get_per_token_logps_and_entropies(
        self, model: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor, *args: Any, **kwargs: Any
    ) -> Any:
        forward = super()._get_per_token_logps_and_entropies
        if self.accelerator.unwrap_model(model) is not self.attached.model:
            return forward(model, input_ids, attention_mask, *args, **kwargs)
        # Of several parts a plan would have to know which forward has which.
        size = kwargs.pop("batch_size", None) or len(input_ids)
        found = []
        for at in range(0, len(input_ids), size):
            part = slice(at, at + size)
            self._begin(self._rids[part], input_ids[part], attention_mask[part])
            with self.attached.micro_batch(0):
                found.append(forward(model, input_ids[part], attention_mask[part], *args, **kwargs))
            if not torch.is_grad_enabled():
                self._end()
        whole = [None if part[0] is None else torch.cat(part) for part in list(zip(*found))[:2]]
        auxiliary = [part[2] for part in found if part[2] is not None]
        return *whole, torch.stack(auxiliary).mean() if auxiliary else None

    def training_step(self, model: Any, inputs: Any, num_items_in_batch: Any) -> Any:
        try:
            loss = super().training_step(model, inputs, num_items_in_batch)
        except BaseException:
            self.replay.abort()
            self._is_open = False
            raise
        self._end("train")
        return loss

    def _begin(self, rids: Any, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> None:
        if self._is_open:
            raise Unsupported("a second forward with gradients in a step: its batch is to be one part")
        self.replay.begin(self.replay_mode, 1)
        self._is_open = True
        self.attached.plan(0, rids, input_ids, attention_mask)

    def _end(self, metrics: str | None = None) -> None:
        found = self.replay.end()
        self._is_open = False
        for name in ("token_differ", "decision_differ", "forced_rows", "fallback_share") if metrics else ():
            self._metrics[metrics][f"replay/{name}"].append(getattr(found, name))
