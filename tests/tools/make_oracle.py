#!/usr/bin/env python3
"""Writes a directory of reference data with Hugging Face transformers, for hf_oracle: a random tiny checkpoint and what
transformers computes with it (float32, CPU, eager attention and experts).

Needs torch, transformers 5 and safetensors; the tests themselves only read what was written.

    make_oracle.py OUT --family qwen3_moe --set num_experts=300 --set num_experts_per_tok=10
    hf_oracle --ranks 3 OUT
    make_oracle.py tests/golden/oracles/qwen3_moe_tied --family qwen3_moe --small --set tie_word_embeddings=true

A directory under tests/golden/oracles is a test of its own after the next cmake, and its meta.json has the options that made it.

Keys of --set are those of config.json, values JSON. Seeds are tried from --seed on until no choice is so close that float32
rounding may decide it (--min-margin). Writes into OUT, which must not exist:

config.json, model.safetensors (or shards and an index), generation_config.json: the checkpoint.
ref.safetensors: input_ids [B, S], logits [B, S, V]; of the i-th router router.i.logits [B*S, E], .topk_ids, .topk_weights
  [B*S, K]; forced routing, where 30 % of the rows have random distinct ids: forced.i.topk_ids, .topk_weights, forced.logits,
  forced.logprobs [B, S-1], forced.loss [1] = mean of -logprob; greedy_ids [B, 7+12], a greedy continuation of each row's first
  7 tokens, and greedy.i.topk_ids of all its positions.
With --mtp also of the first MTP layer, with transformers' own layers: mtp.logits [B, S - 1, V], whose row p has what the decoder
  leaves at position p and the token at p + 1; mtp.further [B, S - 3, 2, V], the two that the layer gives behind row p when it goes on
  from its own output, fed the tokens at p + 2 and p + 3.
grads.safetensors: gradient of forced.loss for every parameter, experts as the family's checkpoints have them; a buffer has its value there.
meta.json: the options that made it, router names and classes, smallest margins (null: one expert, no choice), parameters
  without gradient.
"""
import argparse
import copy
import json
import os
import shutil
import sys

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel

PROMPT, NEW = 7, 12
LAYOUT = "router/forced rows are batch-major flattened tokens [B*S, ...]"
TINY = dict(vocab_size=128, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, num_experts=16,
            num_experts_per_tok=4, max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=None)
LATENT = dict(kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, moe_intermediate_size=16, num_key_value_heads=4,
              intermediate_size=48, num_experts=None, n_routed_experts=16, n_group=4, topk_group=2, first_k_dense_replace=1)
DELTA = dict(head_dim=16, moe_intermediate_size=16, shared_expert_intermediate_size=24, linear_num_key_heads=2, linear_num_value_heads=4,
             linear_key_head_dim=8, linear_value_head_dim=8, full_attention_interval=2)
# None: a key that the family does not have.
TINY_OF = {
    "deepseek_v2": LATENT | dict(q_lora_rank=None, n_shared_experts=2),
    "deepseek_v3": LATENT | dict(q_lora_rank=16, n_shared_experts=1, routed_scaling_factor=2.5, num_nextn_predict_layers=0),
    "qwen3_moe": dict(head_dim=16, intermediate_size=48, moe_intermediate_size=16, norm_topk_prob=True),
    "olmoe": dict(intermediate_size=16),
    "mixtral": dict(head_dim=16, intermediate_size=16, rope_theta=1e6),
    "qwen2_moe": dict(intermediate_size=48, moe_intermediate_size=16, shared_expert_intermediate_size=32),
    "glm4_moe": dict(head_dim=16, intermediate_size=48, moe_intermediate_size=16, attention_bias=True, num_experts=None, n_routed_experts=16,
                     n_shared_experts=1, routed_scaling_factor=1.5, first_k_dense_replace=1, num_nextn_predict_layers=0),
    "gpt_oss": dict(head_dim=16, intermediate_size=16, sliding_window=8),
    "qwen3_next": DELTA | dict(intermediate_size=48),
    "qwen3_5_moe": DELTA,
    "deepseek_v4": dict(head_dim=32, num_key_value_heads=1, num_experts=None, n_routed_experts=16, moe_intermediate_size=16, q_lora_rank=16,
                        o_groups=2, o_lora_rank=8, index_n_heads=8, index_head_dim=16, index_topk=64, partial_rotary_factor=0.25,
                        sliding_window=8, hc_mult=4,
                        layer_types=["sliding_attention", "compressed_sparse_attention", "heavily_compressed_attention"],
                        mlp_layer_types=["hash_moe", "moe", "moe"],
                        compress_rates=dict(compressed_sparse_attention=4, heavily_compressed_attention=8)),
}
# The class of the configuration of a model of text, where that is not the family's own.
TYPE_OF = {"qwen3_5_moe": "qwen3_5_moe_text"}
# --small, in place of some of these: less than 100 kB, so that there is room for one of every shape.
SMALL = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_experts=8, num_experts_per_tok=2)
SMALL_LATENT = dict(kv_lora_rank=6, qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=3, moe_intermediate_size=3, num_experts=None,
                    intermediate_size=12, n_routed_experts=8)
SMALL_DELTA = dict(head_dim=8, moe_intermediate_size=3, shared_expert_intermediate_size=5, linear_num_key_heads=1, linear_num_value_heads=2,
                   linear_key_head_dim=6, linear_value_head_dim=5)
SMALL_OF = {
    "deepseek_v2": SMALL_LATENT | dict(qk_nope_head_dim=6),
    "deepseek_v3": SMALL_LATENT | dict(q_lora_rank=7),
    "qwen3_moe": dict(head_dim=6, intermediate_size=12, moe_intermediate_size=3),
    "olmoe": dict(intermediate_size=3),
    "mixtral": dict(head_dim=6, intermediate_size=3),
    "qwen2_moe": dict(intermediate_size=12, moe_intermediate_size=3, shared_expert_intermediate_size=5),
    "glm4_moe": dict(head_dim=8, intermediate_size=12, moe_intermediate_size=3, num_experts=None, n_routed_experts=8),
    "gpt_oss": dict(head_dim=6, intermediate_size=3, sliding_window=4),
    "qwen3_next": SMALL_DELTA | dict(intermediate_size=12),
    "qwen3_5_moe": SMALL_DELTA,
    "deepseek_v4": dict(num_hidden_layers=3, head_dim=8, num_experts=None, n_routed_experts=8, moe_intermediate_size=3, q_lora_rank=5,
                        o_lora_rank=3, index_head_dim=4, partial_rotary_factor=0.5, sliding_window=4, hc_mult=2,
                        compress_rates=dict(compressed_sparse_attention=4, heavily_compressed_attention=6)),
}


def weights_of(router, logits, ids):
    """The weights of choices that were not the router's own, from its logits, by the class of the router."""
    kind = type(router).__name__
    if kind in ("Glm4MoeTopkRouter", "DeepseekV3TopkRouter"):
        weights = logits.float().sigmoid().gather(1, ids)
        if router.norm_topk_prob:
            weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20)
        return weights * router.routed_scaling_factor
    if kind in ("DeepseekV4TopKRouter", "DeepseekV4HashRouter"):
        weights = router.score_fn(logits).gather(1, ids)
        return weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) * router.routed_scaling_factor
    if kind == "GptOssTopKRouter":
        return torch.softmax(logits.gather(1, ids), dim=-1)
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).gather(1, ids)
    if kind == "DeepseekV2TopkRouter":
        return weights * router.routed_scaling_factor
    if kind in ("MixtralTopKRouter", "Qwen3_5MoeTopKRouter") or getattr(router, "norm_topk_prob", False):
        weights = weights / weights.sum(dim=-1, keepdim=True)
    return weights


def keys_of(router, logits):
    """What experts are chosen by, as large as logits; of other groups than the best ones -inf. And how far apart the last group that is
    kept and the first one that is not are."""
    if type(router).__name__ == "DeepseekV2TopkRouter":
        limited = router.topk_method == "group_limited_greedy"
        keys, n, n_best = torch.softmax(logits, dim=-1), router.num_group if limited else 1, 1
    elif type(router).__name__ == "DeepseekV4TopKRouter":
        keys, n, n_best = 3 * (router.score_fn(logits) + router.e_score_correction_bias), 1, 1
    elif hasattr(router, "e_score_correction_bias"):
        keys, n, n_best = 4 * (logits.sigmoid() + router.e_score_correction_bias), router.num_group, 2
    else:
        return logits, float("inf")
    if n == 1:
        return keys, float("inf")
    grouped = keys.view(len(keys), n, -1)
    scores = grouped.topk(n_best, dim=-1).values.sum(dim=-1)
    best = scores.topk(router.topk_group + 1, dim=-1).values
    kept = scores > (best[:, -1:] + best[:, -2:-1]) / 2
    return grouped.masked_fill(~kept[:, :, None], float("-inf")).flatten(1), (best[:, -2] - best[:, -1]).min().item()



class Routers:
    """Every router module of a model; records what each returns, and forces ids where they are set."""

    def __init__(self, model):
        named = [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith("Router")]
        self.names = [name for name, _ in named]
        self.indexer_gap = float("inf")  # of all forwards
        for module in model.modules():
            if type(module).__name__ == "DeepseekV4Indexer":
                module.scorer.register_forward_hook(lambda _, inputs, scores, indexer=module: self.see_scores(indexer, scores))
        self.modules = [module for _, module in named]
        self.forced = None  # per router [T, K]
        self.seen = [None] * len(named)  # per router (logits, weights, ids)
        for i, module in enumerate(self.modules):
            module.register_forward_hook(lambda module, _, output, i=i: self.hook(module, i, output))

    def hook(self, module, i, output):
        if self.forced is not None:
            output = (output[0], weights_of(module, output[0], self.forced[i]), self.forced[i])
        self.seen[i] = tuple(x.detach() for x in output)
        return output

    def see_scores(self, indexer, scores):
        """Scores [B, S, entries] of which the first index_topk that a position sees are chosen."""
        for t in range(scores.shape[1]):
            visible = scores[:, t, : (t + 1) // indexer.compress_rate]
            if visible.shape[1] > indexer.index_topk:
                best = visible.topk(indexer.index_topk + 1, dim=-1).values
                self.indexer_gap = min(self.indexer_gap, (best[:, -2] - best[:, -1]).min().item())

    def margin(self):
        """Smallest difference of neighbouring keys among the first K + 1 of the latest forward: ids and their order. Of a router with a
        selection bias, whose choices are a set, that of the last two alone."""
        gaps = [float("inf")]
        for router, (logits, _, ids) in zip(self.modules, self.seen):
            if type(router).__name__ == "DeepseekV4HashRouter":
                continue
            keys, groups = keys_of(router, logits)
            gaps.append(groups)
            top = keys.topk(min(ids.shape[1] + 1, logits.shape[1]), dim=-1).values
            if hasattr(router, "e_score_correction_bias") or type(router).__name__ == "DeepseekV2TopkRouter":
                top = top[:, -2:]
            if top.shape[1] > 1:
                gaps.append((top[:, :-1] - top[:, 1:]).min().item())
        return min(gaps + [self.indexer_gap])


def randomize(name, param, std, generator, centered):
    """Random weights that hide nothing: matrices N(0, std), routers twice that, norms around what multiplies by 1, biases around 0."""
    noise = torch.randn(param.shape, generator=generator)
    if name.endswith("norm.weight") or ".pre_fc_norm" in name:
        param.data = (0 if centered and not name.endswith("linear_attn.norm.weight") else 1) + 0.05 * noise
    elif name.endswith("bias"):
        param.data = 0.1 * noise
    elif name.endswith("sinks"):
        param.data = noise
    elif name.endswith(("_hc.scale", "hc_scale")):
        param.data = 1 + 0.1 * noise
    elif name.endswith(("_hc.base", "hc_base")):
        param.data = 0.5 * noise
    elif name.endswith("A_log"):  # states that last for a while
        param.data = 0.5 * noise - 1
    elif name.endswith("conv1d.weight"):
        param.data = 0.5 * noise
    else:
        param.data = noise * (2 * std if name.endswith(("mlp.gate.weight", "mlp.router.weight")) else std)


def zero_centered(config):
    """Whether norms multiply by 1 + w."""
    return config.model_type.startswith(("qwen3_next", "qwen3_5_moe"))


def make_model(config, std, generator):
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager",
                                                          dtype=torch.float32)
    for name, param in model.named_parameters():
        randomize(name, param, std, generator, zero_centered(config))
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.copy_(0.1 * torch.randn(buffer.shape, generator=generator))
        if name.endswith("tid2eid"):  # distinct experts for each token
            buffer.copy_(torch.rand(len(buffer), config.n_routed_experts, generator=generator).argsort(dim=-1)[:, : buffer.shape[1]])
    model.tie_weights()
    return model.eval()


def force_some(routers, n_experts, generator):
    """The ids that the routers chose, 30 % of the rows replaced by random distinct ones."""
    forced = []
    for _, _, ids in routers.seen:
        random_ids = torch.rand(ids.shape[0], n_experts, generator=generator).argsort(dim=-1)[:, : ids.shape[1]]
        replace = torch.rand(ids.shape[0], 1, generator=generator) < 0.3
        forced.append(torch.where(replace, random_ids, ids).contiguous())
    return forced


def forward(model, ids):
    return model(input_ids=ids, use_cache=False).logits


def native_data(model, routers, input_ids):
    ref = {"input_ids": input_ids, "logits": forward(model, input_ids).detach()}
    for i, (logits, weights, ids) in enumerate(routers.seen):
        ref |= {f"router.{i}.logits": logits, f"router.{i}.topk_weights": weights, f"router.{i}.topk_ids": ids}
    return ref


def forced_data(model, routers, input_ids, forced):
    """Leaves the gradients in the model's parameters."""
    routers.forced = forced
    logits = forward(model, input_ids)
    routers.forced = None
    logprobs = torch.log_softmax(logits[:, :-1], dim=-1).gather(2, input_ids[:, 1:, None])[:, :, 0]
    loss = -logprobs.mean()
    loss.backward()
    ref = {"forced.logits": logits.detach(), "forced.logprobs": logprobs.detach(), "forced.loss": loss.detach().reshape(1)}
    for i, (_, weights, ids) in enumerate(routers.seen):
        ref |= {f"forced.{i}.topk_ids": ids, f"forced.{i}.topk_weights": weights}
    return ref


@torch.no_grad()
def greedy_data(model, routers, input_ids):
    """Also the smallest difference of the best two logits."""
    ids, margin = input_ids[:, :PROMPT], float("inf")
    for _ in range(NEW):
        best = forward(model, ids)[:, -1].topk(2, dim=-1)
        margin = min(margin, (best.values[:, 0] - best.values[:, 1]).min().item())
        ids = torch.cat([ids, best.indices[:, :1]], dim=1)
    forward(model, ids)
    ref = {"greedy_ids": ids} | {f"greedy.{i}.topk_ids": seen[2] for i, seen in enumerate(routers.seen)}
    return ref, margin


# ---- quantized weights: rounded before anything is computed, and packed when the checkpoint has been written ----

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6])


def power_of_two(largest, of):
    """The smallest power of two that `largest` is at most `of` times of."""
    return torch.exp2(torch.ceil(torch.log2(largest.clamp(min=1e-30) / of)))


def fp8_blocks(weight, block):
    """(f8_e4m3 weight, scale of each block) of a matrix; exact for one that was rounded by it."""
    rows, columns = -(-weight.shape[0] // block), -(-weight.shape[1] // block)
    padded = torch.zeros(rows * block, columns * block)
    padded[: weight.shape[0], : weight.shape[1]] = weight
    scale = power_of_two(padded.view(rows, block, columns, block).abs().amax(dim=(1, 3)), 448)
    wide = scale.repeat_interleave(block, 0).repeat_interleave(block, 1)[: weight.shape[0], : weight.shape[1]]
    return (weight / wide).to(torch.float8_e4m3fn), scale, wide


def in_fp8(name, weight):
    """Not what DeepSeek-V4's compressors and indexers are made of, but the query of an indexer, which it is for."""
    others = (".compressor.kv_proj.", ".compressor.gate_proj.", ".indexer.kv_proj.", ".indexer.gate_proj.", ".weights_proj.")
    return weight.dim() >= 2 and "_proj" in name and not any(part in name for part in others)


def round_to_fp8(model, block, also=lambda name: True):
    for name, param in model.named_parameters():
        if not (in_fp8(name, param) and also(name)):
            continue
        for matrix in param.data.view(-1, *param.shape[-2:]):
            halves = matrix.chunk(2) if "gate_up" in name else [matrix]
            for half in halves:
                packed, _, wide = fp8_blocks(half, block)
                half.copy_(packed.float() * wide)


def round_to_fp4(model):
    """Experts whose rows are outputs."""
    for name, param in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            codes, _, scale = mxfp4_groups(param.data)
            param.data = (torch.cat([FP4, -FP4])[codes] * scale).flatten(-2).contiguous()


def round_weights(args, module):
    for tensor in module.state_dict().values():  # what a checkpoint of that dtype holds; the rotary frequencies stay as they are
        if tensor.is_floating_point():
            tensor.copy_(tensor.to(getattr(torch, args.dtype)))
    if args.released:
        round_to_fp4(module)
        round_to_fp8(module, args.released, lambda name: ".experts." not in name)
    elif args.fp8:
        round_to_fp8(module, args.fp8)


def mxfp4_groups(weight):
    """(4-bit codes, exponents) of [..., inputs], 32 inputs a group; exact for one that was rounded by it."""
    groups = weight.unflatten(-1, (-1, 32))
    scale = power_of_two(groups.abs().amax(dim=-1, keepdim=True), 6)
    codes = (groups.abs() / scale).unsqueeze(-1).sub(FP4).abs().argmin(dim=-1)
    return codes + 8 * (groups < 0), torch.log2(scale).squeeze(-1).int(), scale


def round_to_mxfp4(model):
    for name, param in model.named_parameters():
        if name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            codes, _, scale = mxfp4_groups(param.data.mT)
            values = torch.cat([FP4, -FP4])[codes] * scale
            param.data = values.flatten(-2).mT.contiguous()


def pack(args, tensors):
    packed = {}
    for name, tensor in tensors.items():
        if args.fp8 and in_fp8(name, tensor):
            packed[name], packed[name + "_scale_inv"], _ = fp8_blocks(tensor.float(), args.fp8)
        elif args.mxfp4 and name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            codes, exponents, _ = mxfp4_groups(tensor.float().mT)
            packed[name + "_blocks"] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8)
            packed[name + "_scales"] = (exponents + 127).to(torch.uint8)
        else:
            packed[name] = tensor
    return {name: tensor.contiguous() for name, tensor in packed.items()}


# What save_pretrained calls otherwise than DeepSeek-V4 is released.
RELEASED = {"model.embed_tokens.weight": "embed.weight", "model.hc_head.hc_fn": "hc_head_fn", "model.hc_head.hc_base": "hc_head_base",
            "model.hc_head.hc_scale": "hc_head_scale"}
FP8_OF_RELEASE = ("wq_a.weight", "wq_b.weight", "wkv.weight", "wo_a.weight", "wo_b.weight")
F32_OF_RELEASE = ("hc_", ".ape", ".attn_sink", ".gate.bias")


def pack_release(block, tensors):
    """DeepSeek-V4: attention and the shared expert in FP8, routed experts in FP4, exponents of a power of two for each block or 32 of a
    row, all beside the weights as "scale"; what weighs little in f32, the rest in bf16."""
    packed = {}
    for name, tensor in tensors.items():
        name = RELEASED.get(name, name.removeprefix("model.")).replace(".attn.norm.", ".attn.kv_norm.")
        scale = name.removesuffix("weight") + "scale"
        if ".ffn.experts." in name:
            codes, exponents, _ = mxfp4_groups(tensor.float())
            codes = codes.flatten(-2)
            packed[name] = (codes[..., 0::2] | codes[..., 1::2] << 4).to(torch.uint8).view(torch.int8)
            packed[scale] = (exponents + 127).to(torch.uint8).view(torch.float8_e8m0fnu)
        elif ".shared_experts." in name or (name.endswith(FP8_OF_RELEASE) and ".compressor." not in name):
            packed[name], scales, _ = fp8_blocks(tensor.float(), block)
            packed[scale] = scales.to(torch.float8_e8m0fnu)
        elif not tensor.is_floating_point():
            packed[name] = tensor
        else:
            packed[name] = tensor.to(torch.float32 if any(part in name for part in F32_OF_RELEASE) else torch.bfloat16)
    return {name: tensor.contiguous() for name, tensor in packed.items()}


def release(args):
    """The checkpoint in args.out, which has one file."""
    path, config_path = os.path.join(args.out, "model.safetensors"), os.path.join(args.out, "config.json")
    save_file(pack_release(args.released, load_file(path)), path, metadata={"format": "pt"})
    with open(config_path) as file:
        config = json.load(file)
    config["expert_dtype"] = "fp4"
    config["quantization_config"] = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", scale_fmt="ue8m0",
                                         weight_block_size=[args.released, args.released])
    with open(config_path, "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)


def quantize(args):
    """The checkpoint in args.out, which has one file."""
    path, config_path = os.path.join(args.out, "model.safetensors"), os.path.join(args.out, "config.json")
    save_file(pack(args, load_file(path)), path, metadata={"format": "pt"})
    with open(config_path) as file:
        config = json.load(file)
    config["quantization_config"] = (
        dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[args.fp8, args.fp8])
        if args.fp8
        else dict(quant_method="mxfp4", modules_to_not_convert=["model.layers.*.self_attn", "model.layers.*.mlp.router"])
    )
    with open(config_path, "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)


# ---- layers for multi-token prediction ------------------------------------------------------------------------------


class NamedMtp(torch.nn.Module):
    """What stands under mtp. in a checkpoint, of transformers' own layers: a layer of full attention behind a product of embedding and
    hidden state."""

    def __init__(self, model, n_layers):
        super().__init__()
        config = copy.deepcopy(model.config)
        config.num_hidden_layers, config.layer_types = n_layers, ["full_attention"] * n_layers
        layer, norm = type(model.model.layers[0]), type(model.model.norm)
        self.pre_fc_norm_embedding = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.pre_fc_norm_hidden = norm(config.hidden_size, eps=config.rms_norm_eps)
        self.fc = torch.nn.Linear(2 * config.hidden_size, config.hidden_size, bias=False)
        self.layers = torch.nn.ModuleList(layer(config, i) for i in range(n_layers))
        self.norm = norm(config.hidden_size, eps=config.rms_norm_eps)


def make_named_mtp(model, n_layers, std, generator):
    mtp = NamedMtp(model, n_layers).float()
    for name, param in mtp.named_parameters():
        randomize(f"mtp.{name}", param, std, generator, True)
    return mtp.eval()


def make_mtp(model, n_layers, std, generator):
    """transformers' own, with weights as random as those of the decoder."""
    mtp = MtpModel(model, n_layers).float()
    for name, param in mtp.layers.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        param.data = 1 + 0.05 * noise if name.endswith("norm.weight") else noise * (2 * std if name.endswith("mlp.gate.weight") else std)
    for name, buffer in mtp.layers.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = 0.3 * torch.randn(buffer.shape, generator=generator)
    return mtp.eval()


def mtp_forward(model, mtp, tokens, hidden):
    """The first layer's output where it is fed tokens [B, n], the first of them at position 1, behind hidden states [B, n, H]."""
    positions = torch.arange(1, tokens.shape[1] + 1)[None].expand(tokens.shape)
    mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    if not isinstance(mtp, NamedMtp):
        embeds = mtp.embed_tokens(tokens)
        rotary = mtp.rotary_emb(embeds, position_ids=positions)
        return mtp.layers[0](embeds, hidden, position_embeddings=rotary, attention_mask=mask, position_ids=positions, past_key_values=None)
    embeds, rotary_emb = model.get_input_embeddings()(tokens), model.model.rotary_emb
    rotary = rotary_emb(embeds, positions.expand(3, -1, -1) if hasattr(rotary_emb, "mrope_section") else positions)
    out = mtp.fc(torch.cat([mtp.pre_fc_norm_embedding(embeds), mtp.pre_fc_norm_hidden(hidden)], dim=-1))
    # What such a layer is fed of its own is behind its norm, as what it is fed of the decoder is (vLLM, SGLang).
    return mtp.norm(mtp.layers[0](out, position_embeddings=rotary, attention_mask=mask, position_ids=positions))


@torch.no_grad()
def mtp_data(model, mtp, input_ids):
    """All positions at once; then, behind each, twice the layer's own last output beside one token more."""
    logits_of = model.lm_head if isinstance(mtp, NamedMtp) else mtp._project_to_logits
    decoder = model.model(input_ids=input_ids, use_cache=False).last_hidden_state
    further = []
    for p in range(input_ids.shape[1] - 3):
        hidden = decoder[:, : p + 1]
        for n in (p + 1, p + 2):
            hidden = torch.cat([hidden, mtp_forward(model, mtp, input_ids[:, 1 : n + 1], hidden)[:, -1:]], dim=1)
        last = mtp_forward(model, mtp, input_ids[:, 1 : p + 4], hidden)[:, -1:]
        further.append(logits_of(torch.cat([hidden[:, -1:], last], dim=1)))
    out = mtp_forward(model, mtp, input_ids[:, 1:], decoder[:, :-1])
    return {"mtp.logits": logits_of(out), "mtp.further": torch.stack(further, dim=1)}


def one_by_one(name, tensor):
    """(name, tensor) of each expert where all of a layer are in one tensor, else the tensor."""
    parts = {"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)}
    halves = next((parts[end] for end in parts if name.endswith(end)), None)
    if halves is None:
        return [(name, tensor.detach().clone())]
    prefix = name.rsplit(".", 1)[0]
    return [(f"{prefix}.{e}.{half}.weight", expert.detach().clone())
            for half, experts in zip(halves, tensor.chunk(len(halves), dim=1)) for e, expert in enumerate(experts)]


def mtp_tensors(model, mtp):
    """As checkpoints have them: experts one by one; layers behind the decoder's with copies of embedding and head, or names of their
    own."""
    tensors = {}
    if isinstance(mtp, NamedMtp):
        return dict(pair for name, tensor in mtp.named_parameters() for pair in one_by_one(f"mtp.{name}", tensor))
    for i, layer in enumerate(mtp.layers):
        prefix = f"model.layers.{model.config.num_hidden_layers + i}."
        for name, tensor in list(layer.named_parameters()) + [x for x in layer.named_buffers() if "correction" in x[0]]:
            name = name.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
            tensors |= dict(one_by_one(prefix + name, tensor))
        tensors[prefix + "embed_tokens.weight"] = model.get_input_embeddings().weight.detach().clone()
        tensors[prefix + "shared_head.head.weight"] = model.lm_head.weight.detach().clone()
    return tensors


def rewrite(out, tensors, config_keys):
    """Puts tensors into the checkpoint in `out`, in place of those of their names, and keys into its config.json."""
    path = os.path.join(out, "model.safetensors")
    save_file({k: v.contiguous() for k, v in (load_file(path) | tensors).items()}, path, metadata={"format": "pt"})
    path = os.path.join(out, "config.json")
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | config_keys, file, indent=2, sort_keys=True)


def nest(out, family):
    """The checkpoint as one of a model of text and images, whose vision tower is a tensor that nobody reads."""
    path, config_path = os.path.join(out, "model.safetensors"), os.path.join(out, "config.json")
    tensors = {"model.language_model." + name.removeprefix("model.") if name.startswith("model.") else name: tensor
               for name, tensor in load_file(path).items()}
    save_file(tensors | {"model.visual.pos_embed.weight": torch.zeros(3, 2)}, path, metadata={"format": "pt"})
    with open(config_path) as file:
        text = json.load(file)
    text["rope_parameters"] |= dict(mrope_section=[1, 1, 0], mrope_interleaved=True)
    config = dict(architectures=["Qwen3_5MoeForConditionalGeneration"], model_type=family, text_config=text, tie_word_embeddings=False,
                  vision_config=dict(model_type=family + "_vision"), image_token_id=1)
    with open(config_path, "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)


def compute(args, config, seed):
    """(model with gradients, tensors of ref.safetensors, meta.json)"""
    generator = torch.Generator().manual_seed(seed)
    model = make_model(config, args.std, generator)
    round_weights(args, model)
    if args.mxfp4:
        round_to_mxfp4(model)
    routers = Routers(model)
    # Not token 0: as pad_token_id, its embedding gets no gradient.
    input_ids = torch.randint(1, config.vocab_size, (args.batch, args.length), generator=generator)
    ref = native_data(model, routers, input_ids)
    margin = routers.margin()
    forced = force_some(routers, routers.seen[0][0].shape[1], generator)
    greedy, greedy_margin = greedy_data(model, routers, input_ids)
    margin = min(margin, routers.margin())
    ref |= forced_data(model, routers, input_ids, forced) | greedy
    margin = min(margin, routers.indexer_gap)  # with forced experts an indexer sees other hidden states
    mtp = {}
    if args.mtp:
        named = zero_centered(config)
        layers = (make_named_mtp if named else make_mtp)(model, args.mtp, args.std, generator)
        round_weights(args, layers if named else layers.layers)
        ref |= mtp_data(model, layers, input_ids)
        mtp = mtp_tensors(model, layers)
    meta = dict(options=args.options, family=args.family, transformers=transformers.__version__, torch=torch.__version__, dtype=args.dtype, seed=seed,
                routers=routers.names, router_classes=[type(module).__name__ for module in routers.modules],
                min_topk_logit_margin=margin, min_greedy_logit_margin=greedy_margin,
                params_without_grad=[name for name, param in model.named_parameters() if param.grad is None], layout=LAYOUT)
    return model, ref, meta, mtp


def save_grads(model, out):
    """Through save_pretrained, which knows the checkpoint's tensor names and takes fused experts apart."""
    weights = {name: param.data for name, param in model.named_parameters()}
    for param in model.parameters():
        param.data = param.grad if param.grad is not None else torch.zeros_like(param)
    scratch = os.path.join(out, "grads.tmp")
    model.save_pretrained(scratch, max_shard_size="100GB")
    os.rename(os.path.join(scratch, "model.safetensors"), os.path.join(out, "grads.safetensors"))
    shutil.rmtree(scratch)
    for name, param in model.named_parameters():
        param.data = weights[name]


def save_fused(model, out):
    """The in-memory tensors, all experts of a layer in one."""
    tensors = {name: param.detach().contiguous() for name, param in model.named_parameters()}
    tensors |= {name: buffer for name, buffer in model.named_buffers() if name.endswith("e_score_correction_bias")}
    save_file(tensors, os.path.join(out, "model.safetensors"), metadata={"format": "pt"})
    model.config.save_pretrained(out)


def respell_config(out):
    """config.json as transformers 4 wrote it."""
    path = os.path.join(out, "config.json")
    with open(path) as file:
        config = json.load(file)
    rope = config.pop("rope_parameters")
    config |= {"rope_theta": rope["rope_theta"], "rope_scaling": None, "torch_dtype": config.pop("dtype")}
    if "num_local_experts" in config:
        config["num_experts"] = config.pop("num_local_experts")
    with open(path, "w") as file:
        json.dump(config, file, indent=2, sort_keys=True)


def check_exact(model, dtype):
    """Everything was computed from values that the checkpoint has, too."""
    for name, tensor in model.state_dict().items():
        if tensor.is_floating_point() and not torch.equal(tensor, tensor.to(dtype).float()):
            sys.exit(f"{name}: has values that {dtype} has not")


def save(args, model, ref, meta, mtp):
    out = args.out
    os.makedirs(out)
    save_grads(model, out)
    check_exact(model, getattr(torch, args.dtype))
    model.to(getattr(torch, args.dtype))
    if args.fused:
        save_fused(model, out)
    else:
        model.save_pretrained(out, max_shard_size=args.max_shard_size)
    if mtp:
        mtp = {name: tensor.to(getattr(torch, args.dtype)) for name, tensor in mtp.items()}
        rewrite(out, mtp, {"mtp_num_hidden_layers" if zero_centered(model.config) else "num_nextn_predict_layers": args.mtp})
    if args.nested:
        nest(out, args.family)
    if args.fp8 or args.mxfp4:
        quantize(args)
    if args.released:
        release(args)
    if args.old_config:
        respell_config(out)
    save_file({name: tensor.contiguous() for name, tensor in ref.items()}, os.path.join(out, "ref.safetensors"))
    meta = {key: None if value == float("inf") else value for key, value in meta.items()}  # JSON has no infinity
    with open(os.path.join(out, "meta.json"), "w") as file:
        json.dump(meta, file, indent=1)


def read_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out")
    parser.add_argument("--family", choices=sorted(TINY_OF), required=True)
    parser.add_argument("--small", action="store_true", help="smaller sizes, for a directory of less than 100 kB")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=JSON", help="a key of config.json")
    parser.add_argument("--batch", type=int, default=2, help="sequences (2)")
    parser.add_argument("--length", type=int, default=24, help="tokens of each (24)")
    parser.add_argument("--std", type=float, default=0.2, help="of the matrices (0.2)")
    parser.add_argument("--seed", type=int, default=0, help="first to try (0)")
    parser.add_argument("--tries", type=int, default=20, help="seeds to try (20)")
    parser.add_argument("--min-margin", type=float, default=2e-4, help="between logits that decide a choice (2e-4)")
    parser.add_argument("--dtype", choices=["float32", "bfloat16", "float16"], default="float32", help="of the checkpoint")
    parser.add_argument("--max-shard-size", default="100GB", help="as save_pretrained takes it")
    parser.add_argument("--fused", action="store_true", help="all experts of a layer in one tensor")
    parser.add_argument("--nested", action="store_true", help="qwen3_5_moe: as a model of text and images has it")
    parser.add_argument("--old-config", action="store_true", help="config.json as transformers 4 wrote it")
    parser.add_argument("--fp8", type=int, metavar="BLOCK", help="projections in FP8, BLOCK x BLOCK elements a scale")
    parser.add_argument("--mxfp4", action="store_true", help="gpt_oss: experts in MXFP4")
    parser.add_argument("--released", type=int, metavar="BLOCK", help="deepseek_v4 as it is released: FP8, BLOCK x BLOCK a scale, and FP4")
    parser.add_argument("--mtp", type=int, default=0, metavar="N", help="layers for multi-token prediction behind the others (0)")
    args = parser.parse_args()
    if args.length < PROMPT:
        parser.error(f"--length: expected at least {PROMPT}")
    args.options = [option for option in sys.argv[1:] if option != args.out]
    return args


def settings_of(args):
    settings = TINY | TINY_OF[args.family]
    if args.small:
        settings |= SMALL | SMALL_OF[args.family]
    settings |= {key: json.loads(value) for key, value in (s.split("=", 1) for s in args.set)}
    return {key: value for key, value in settings.items() if value is not None or key.endswith("token_id") or key == "q_lora_rank"}


def main():
    args = read_args()
    if os.path.exists(args.out):
        sys.exit(f"{args.out}: exists")
    for seed in range(args.seed, args.seed + args.tries):
        config = transformers.AutoConfig.for_model(TYPE_OF.get(args.family, args.family), **settings_of(args))
        model, ref, meta, mtp = compute(args, config, seed)
        margin = min(meta["min_topk_logit_margin"], meta["min_greedy_logit_margin"])
        if margin >= args.min_margin:
            save(args, model, ref, meta, mtp)
            print(f"{args.out}: seed {seed}, smallest margin {margin:.3g}")
            return
    sys.exit(f"{args.out}: no seed of {args.tries} has margins of at least {args.min_margin}; the last had {margin:.3g}")


if __name__ == "__main__":
    main()
