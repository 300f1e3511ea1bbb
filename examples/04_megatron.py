#!/usr/bin/env python3
"""Routing replay in a model of Megatron-Core, and what it costs: a small GPT with experts records the routes
of its own sequences, its weights then move, and it trains on those sequences by the recorded routes, with
every layer recomputed and the backwards in another order than a list of routes, first in first out, could
follow.

usage: 04_megatron.py [--steps 5] [--micro-batches 4] [--length 64] [--experts 16]

Needs the Python package (README.md, From Python), torch and megatron-core. Without a GPU Megatron-Core's own
modules run on the CPU, with stand-ins for the three things that it asks of CUDA even there.
"""

import argparse
import os
import statistics
import time
import warnings

import torch

warnings.filterwarnings("ignore")
from megatron.core import parallel_state, tensor_parallel  # noqa: E402
from megatron.core.models.gpt import GPTModel  # noqa: E402
from megatron.core.models.gpt.gpt_layer_specs import get_gpt_decoder_block_spec  # noqa: E402
from megatron.core.transformer.transformer_config import TransformerConfig  # noqa: E402

import waybill  # noqa: E402
import waybill.megatron  # noqa: E402

VOCABULARY, MAX_LENGTH = 128, 512


def start():
    """One process, on its GPU or on the CPU. Returns the device."""
    os.environ.setdefault("MASTER_ADDR", "127.0.0.1")
    os.environ.setdefault("MASTER_PORT", "29571")
    cuda = torch.cuda.is_available()
    torch.distributed.init_process_group("nccl" if cuda else "gloo", rank=0, world_size=1)
    parallel_state.initialize_model_parallel()
    if cuda:
        tensor_parallel.model_parallel_cuda_manual_seed(1)
        return "cuda"
    # Buffers and the router's weights go to the "current device", and states of random numbers are CUDA's.
    random = tensor_parallel.random
    torch.cuda.current_device = lambda: "cpu"
    random._get_cuda_rng_state = lambda *args, **kwargs: torch.get_rng_state()
    random._set_cuda_rng_state = lambda state, *args, **kwargs: torch.set_rng_state(state)
    states = random.get_cuda_rng_tracker().get_states()
    for name in ("model-parallel-rng", "expert-parallel-rng", "data-parallel-rng"):
        states[name] = torch.get_rng_state()
    random.get_cuda_rng_tracker().set_states(states)
    return "cpu"


def build(device="cpu", **settings):
    """A GPT whose first layer is dense and whose others have experts."""
    given = dict(
        num_layers=4,
        hidden_size=64,
        num_attention_heads=4,
        ffn_hidden_size=128,
        num_moe_experts=16,
        moe_router_topk=4,
        moe_ffn_hidden_size=32,
        moe_router_dtype="fp32",
        moe_token_dispatcher_type="allgather",
        moe_router_load_balancing_type="none",
        moe_aux_loss_coeff=0.0,
        use_cpu_initialization=device == "cpu",
        attention_dropout=0.0,
        hidden_dropout=0.0,
        add_bias_linear=False,
        gradient_accumulation_fusion=False,
    )
    given.update(settings)
    given.setdefault("moe_layer_freq", [0] + [1] * (given["num_layers"] - 1))
    config = TransformerConfig(**given)
    spec = get_gpt_decoder_block_spec(config, use_transformer_engine=False)
    model = GPTModel(
        config=config, transformer_layer_spec=spec, vocab_size=VOCABULARY, max_sequence_length=MAX_LENGTH
    )
    return model.to(device)


def routes_of(config):
    """The model as records know it."""
    layers = tuple(i for i, moe in enumerate(config.moe_layer_freq) if moe)
    fingerprint = "0" * 32
    return waybill.RouteModel(
        "megatron_example", fingerprint, "softmax_norm", config.num_layers, layers, config.num_moe_experts,
        config.moe_router_topk,
    )  # fmt: skip


def forward(model, tokens):
    """[B, S] log-probabilities of tokens [B, S], of the first one zero."""
    B, S = tokens.shape
    places = torch.arange(S, device=tokens.device).expand(B, S)
    mask = torch.triu(torch.ones(1, 1, S, S, dtype=torch.bool, device=tokens.device), 1)
    logprobs = torch.log_softmax(model(tokens, places, mask)[:, :-1].float(), -1)
    return torch.nn.functional.pad(logprobs.gather(-1, tokens[:, 1:, None])[..., 0], (1, 0))


def record(model, attached, batches):
    """Lets the model choose, and makes a record of each sequence of the batches."""
    replay, records = attached.replay, []
    with torch.no_grad(), replay.step("record", len(batches)):
        for m, tokens in enumerate(batches):
            B, S = tokens.shape
            attached.plan(m, [None] * B, tokens)
            with attached.micro_batch(m):
                logprobs = forward(model, tokens).cpu().numpy()
            # The rows of a place lie beside each other: [S, B].
            routes = replay.rows(m, waybill.ALL_LAYERS).ids
            routes = routes.reshape(S, B, *routes.shape[1:])
            for b in range(B):
                records.append(
                    waybill.Record(
                        replay.model,
                        f"{m}-{b}",
                        tokens[b].cpu().numpy(),
                        1,
                        finish="length",
                        logprobs=logprobs[b, 1:],
                        routes=routes[:-1, b],
                    )  # fmt: skip
                )
    return records


def train(model, attached, mode, batches, observe=None):
    """One step's gradients: all forwards, then the backwards from the last to the first."""
    model.zero_grad()
    with attached.replay.step(mode, len(batches)):
        losses = []
        for m, tokens in enumerate(batches):
            rids = [f"{m}-{b}" for b in range(len(tokens))]
            attached.plan(m, rids, tokens)
            with attached.micro_batch(m):
                logprobs = forward(model, tokens)
            if observe:
                observe(rids, logprobs)
            losses.append(-logprobs.mean())
        for loss in reversed(losses):
            loss.backward()
    return torch.stack([loss.detach() for loss in losses])


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--micro-batches", type=int, default=4)
    parser.add_argument("--length", type=int, default=64)
    parser.add_argument("--experts", type=int, default=16)
    options = parser.parse_args()
    bounds = {
        "steps": (1, 10**6),
        "micro_batches": (1, 10**6),
        "length": (1, MAX_LENGTH),
        "experts": (4, 65536),
    }
    for name, (least, most) in bounds.items():
        if not least <= getattr(options, name) <= most:
            parser.error(
                f"--{name.replace('_', '-')}: expected {least}..{most}, found {getattr(options, name)}"
            )

    device = start()
    torch.manual_seed(1)
    recompute = dict(recompute_granularity="full", recompute_method="uniform", recompute_num_layers=1)
    model = build(device, num_moe_experts=options.experts, **recompute)
    replay = waybill.megatron.replay_for(model, routes_of(model.config))
    attached = waybill.megatron.attach(model, replay)
    batches = torch.randint(0, VOCABULARY, (options.micro_batches, 2, options.length), device=device)
    for made in record(model, attached, batches):
        replay.add(made)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter += (0.01 if "router" in name else 0.0001) * torch.randn_like(parameter)

    def observe(rids, logprobs):
        for rid, now in zip(rids, logprobs.detach().cpu()):
            replay.observe_logprobs(replay[rid].logprobs, now[1:].numpy())

    for mode in ("off", "rollout"):
        train(model, attached, mode, batches, observe)
        found = replay.metrics()
        print(
            f"replay {mode}: {found.token_differ:.1%} of {int(found.rows)} rows would go elsewhere than "
            f"recorded, KL(recorded || model) {found.kl_k3:.3g}"
        )
    # On the CPU, which others may use too, processor time: that of one thread where OMP_NUM_THREADS is 1.
    clock = time.perf_counter if device == "cuda" else time.process_time
    seconds = {"without": [], "rollout": []}
    for _ in range(options.steps):
        for mode, times in seconds.items():
            began = clock()
            if mode == "without":
                with attached.native():
                    model.zero_grad()
                    losses = [-forward(model, tokens).mean() for tokens in batches]
                    for loss in reversed(losses):
                        loss.backward()
            else:
                train(model, attached, mode, batches)
            if device == "cuda":
                torch.cuda.synchronize()
            times.append(clock() - began)
    without, under = (statistics.median(times) for times in seconds.values())
    pairs = sorted(b / a for a, b in zip(*seconds.values()))
    print(
        f"a step without replay {1e3 * without:.1f} ms, under it {1e3 * under:.1f} ms; ratio of a pair "
        f"{statistics.median(pairs):.2f} ({pairs[0]:.2f} - {pairs[-1]:.2f})"
    )
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
