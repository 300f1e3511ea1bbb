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
With --mtp also mtp.logits [B, S - 1, V] of the first MTP layer, with transformers' own layers: row p has what the decoder
  leaves at position p and the token at p + 1.
grads.safetensors: gradient of forced.loss for every parameter, experts one by one.
meta.json: the options that made it, router names and classes, smallest margins (null: one expert, no choice), parameters
  without gradient.
"""
import argparse
import json
import os
import shutil
import sys
import tempfile

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers.modeling_layers import MtpModel

PROMPT, NEW = 7, 12
LAYOUT = "router/forced rows are batch-major flattened tokens [B*S, ...]"
TINY = dict(vocab_size=128, hidden_size=32, num_hidden_layers=3, num_attention_heads=4, num_key_value_heads=2, num_experts=16,
            num_experts_per_tok=4, max_position_embeddings=512, pad_token_id=0, bos_token_id=None, eos_token_id=None)
LATENT = dict(kv_lora_rank=16, qk_nope_head_dim=16, qk_rope_head_dim=8, v_head_dim=16, moe_intermediate_size=16,
              intermediate_size=48, n_routed_experts=16, n_group=4, topk_group=2, first_k_dense_replace=1)
TINY_OF = {
    "deepseek_v2": LATENT | dict(q_lora_rank=None, n_shared_experts=2),
    "deepseek_v3": LATENT | dict(q_lora_rank=16, n_shared_experts=1, routed_scaling_factor=2.5, num_nextn_predict_layers=0),
    "qwen3_moe": dict(head_dim=16, intermediate_size=48, moe_intermediate_size=16, norm_topk_prob=True),
    "olmoe": dict(intermediate_size=16),
}
# --small, in place of some of these: less than 100 kB, so that there is room for one of every shape.
SMALL = dict(vocab_size=32, hidden_size=16, num_hidden_layers=2, num_experts=8, num_experts_per_tok=2)
SMALL_LATENT = dict(kv_lora_rank=6, qk_nope_head_dim=5, qk_rope_head_dim=4, v_head_dim=3, moe_intermediate_size=3,
                    intermediate_size=12, n_routed_experts=8)
SMALL_OF = {
    "deepseek_v2": SMALL_LATENT | dict(qk_nope_head_dim=6),
    "deepseek_v3": SMALL_LATENT | dict(q_lora_rank=7),
    "qwen3_moe": dict(head_dim=6, intermediate_size=12, moe_intermediate_size=3),
    "olmoe": dict(intermediate_size=3),
}


def weights_of(module, logits, ids):
    """Of forced ids, as the family's router weighs its own."""
    name, normalizes = type(module).__name__, getattr(module, "norm_topk_prob", True)
    if name.startswith(("DeepseekV3", "Glm4Moe")):
        weights = logits.sigmoid().gather(1, ids)
        weights = weights / (weights.sum(dim=-1, keepdim=True) + 1e-20) if normalizes else weights
        return weights * module.routed_scaling_factor
    weights = torch.softmax(logits, dim=-1, dtype=torch.float32).gather(1, ids)
    if name.startswith("DeepseekV2"):
        return weights * module.routed_scaling_factor
    return weights / weights.sum(dim=-1, keepdim=True) if normalizes else weights


def gap_behind(keys, k):
    """Smallest difference of the k-th largest key of a row and the next one."""
    top = keys.topk(min(k + 1, keys.shape[1]), dim=-1).values
    return (top[:, k - 1] - top[:, k]).min().item() if top.shape[1] > k else float("inf")


def set_margin(module, logits, k):
    """How close a router that asks for a set of experts, perhaps of some groups alone, is to another one."""
    name = type(module).__name__
    if name.startswith("DeepseekV2"):
        keys, best = torch.softmax(logits, dim=-1, dtype=torch.float32), 1
        limited = module.topk_method == "group_limited_greedy"
    else:
        keys, best, limited = logits.sigmoid() + module.e_score_correction_bias, 2, module.num_group > 1
    if not limited:
        return gap_behind(keys, k)
    groups = keys.view(keys.shape[0], module.num_group, -1)
    scores = groups.topk(best, dim=-1).values.sum(dim=-1)
    kept = torch.zeros_like(scores).scatter(1, scores.topk(module.topk_group, dim=-1).indices, 1)
    keys = groups.masked_fill(kept[:, :, None] == 0, -1e9).flatten(1)
    return min(gap_behind(scores, module.topk_group), gap_behind(keys, k))


class Routers:
    """Every router module of a model; records what each returns, and forces ids where they are set."""

    def __init__(self, model):
        named = [(name, module) for name, module in model.named_modules() if type(module).__name__.endswith("Router")]
        self.names = [name for name, _ in named]
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

    def margin(self):
        """Of the latest forward the smallest difference of neighbouring logits among the first K + 1, which decide ids and
        their order, or where a router asks for a set, of what decides that."""
        gaps = [float("inf")]
        for module, (logits, _, ids) in zip(self.modules, self.seen):
            if type(module).__name__.startswith(("Deepseek", "Glm4Moe")):
                gaps.append(set_margin(module, logits, ids.shape[1]))
                continue
            top = logits.topk(min(ids.shape[1] + 1, logits.shape[1]), dim=-1).values
            if top.shape[1] > 1:
                gaps.append((top[:, :-1] - top[:, 1:]).min().item())
        return min(gaps)


def make_model(config, std, generator):
    """Random weights that hide nothing: matrices N(0, std), routers twice that, norms around 1, biases around 0."""
    model = transformers.AutoModelForCausalLM.from_config(config, attn_implementation="eager", experts_implementation="eager",
                                                          dtype=torch.float32)
    for name, param in model.named_parameters():
        noise = torch.randn(param.shape, generator=generator)
        if name.endswith("norm.weight"):
            param.data = 1 + 0.05 * noise
        elif name.endswith(".bias"):
            param.data = 0.1 * noise
        else:
            param.data = noise * (2 * std if name.endswith("mlp.gate.weight") else std)
    for name, buffer in model.named_buffers():
        if name.endswith("e_score_correction_bias"):
            buffer.data = 0.3 * torch.randn(buffer.shape, generator=generator)
    model.tie_weights()
    return model.eval()


# ---- layers for multi-token prediction ------------------------------------------------------------------------------


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


@torch.no_grad()
def mtp_data(model, mtp, input_ids):
    """Of the first layer, all positions at once: its token is the next one, at that one's position."""
    hidden = model.model(input_ids=input_ids, use_cache=False).last_hidden_state[:, :-1]
    tokens = input_ids[:, 1:]
    embeds = mtp.embed_tokens(tokens)
    positions = torch.arange(1, input_ids.shape[1])[None].expand(tokens.shape)
    mask = torch.full((tokens.shape[1],) * 2, float("-inf")).triu(1)[None, None]
    rotary = mtp.rotary_emb(embeds, position_ids=positions)
    out = mtp.layers[0](embeds, hidden, position_embeddings=rotary, attention_mask=mask, position_ids=positions,
                        past_key_values=None)
    return {"mtp.logits": mtp._project_to_logits(out)}


def mtp_tensors(model, mtp):
    """As checkpoints have them: layers behind the decoder's, experts one by one, copies of embedding and head."""
    tensors = {}
    for i, layer in enumerate(mtp.layers):
        prefix = f"model.layers.{model.config.num_hidden_layers + i}."
        for name, tensor in list(layer.named_parameters()) + [x for x in layer.named_buffers() if "correction" in x[0]]:
            name = name.removeprefix("mtp_block.").replace("post_norm.", "shared_head.norm.")
            parts = {"experts.gate_up_proj": ("gate_proj", "up_proj"), "experts.down_proj": ("down_proj",)}
            halves = next((parts[end] for end in parts if name.endswith(end)), None)
            if halves is None:
                tensors[prefix + name] = tensor.detach().clone()
                continue
            for half, experts in zip(halves, tensor.chunk(len(halves), dim=1)):
                for e, expert in enumerate(experts):
                    tensors[f"{prefix}mlp.experts.{e}.{half}.weight"] = expert.detach().clone()
        tensors[prefix + "embed_tokens.weight"] = model.get_input_embeddings().weight.detach().clone()
        tensors[prefix + "shared_head.head.weight"] = model.lm_head.weight.detach().clone()
    return tensors


# ---- weights of 8 bits ----------------------------------------------------------------------------------------------

BLOCK = 128


def quantize(weight):
    """(float8, scales, float32 of both): a scale for each block of 128 x 128, so that its largest is 448."""
    rows, columns = weight.shape
    scales = torch.empty(-(-rows // BLOCK), -(-columns // BLOCK))
    stored, widened = torch.empty(weight.shape, dtype=torch.float8_e4m3fn), torch.empty(weight.shape)
    for i in range(scales.shape[0]):
        for j in range(scales.shape[1]):
            part = (slice(i * BLOCK, (i + 1) * BLOCK), slice(j * BLOCK, (j + 1) * BLOCK))
            scales[i, j] = weight[part].abs().max() / 448
            stored[part] = (weight[part] / scales[i, j]).to(torch.float8_e4m3fn)
            widened[part] = stored[part].float() * scales[i, j]
    return stored, scales, widened


def through_fp8(args, model):
    """The model of what a checkpoint of 8 bits holds, and its tensors: matrices of layers, but for the routers."""
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch)
        path = os.path.join(scratch, "model.safetensors")
        tensors, stored = load_file(path), {}
        for name, tensor in tensors.items():
            if name.endswith("_proj.weight"):
                stored[name], stored[name + "_scale_inv"], tensors[name] = quantize(tensor)
        save_file(tensors, path, metadata={"format": "pt"})
        widened = type(model).from_pretrained(scratch, attn_implementation="eager", experts_implementation="eager",
                                              dtype=torch.float32)
    return widened.eval(), stored


def rewrite(out, tensors, config_keys):
    """Puts tensors into the checkpoint in `out`, in place of those of their names, and keys into its config.json."""
    path = os.path.join(out, "model.safetensors")
    save_file({k: v.contiguous() for k, v in (load_file(path) | tensors).items()}, path, metadata={"format": "pt"})
    path = os.path.join(out, "config.json")
    with open(path) as file:
        config = json.load(file)
    with open(path, "w") as file:
        json.dump(config | config_keys, file, indent=2, sort_keys=True)


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


def compute(args, config, seed):
    """(model with gradients, tensors of ref.safetensors, meta.json)"""
    generator = torch.Generator().manual_seed(seed)
    model = make_model(config, args.std, generator)
    stored = {}
    if args.fp8:
        model, stored = through_fp8(args, model)
    for param in model.parameters():  # what a checkpoint of that dtype holds; the rotary frequencies stay as they are
        param.data = param.data.to(getattr(torch, args.dtype)).float()
    routers = Routers(model)
    # Not token 0: as pad_token_id, its embedding gets no gradient.
    input_ids = torch.randint(1, config.vocab_size, (args.batch, args.length), generator=generator)
    ref = native_data(model, routers, input_ids)
    margin = routers.margin()
    forced = force_some(routers, ref["router.0.logits"].shape[1], generator)
    greedy, greedy_margin = greedy_data(model, routers, input_ids)
    margin = min(margin, routers.margin())
    ref |= forced_data(model, routers, input_ids, forced) | greedy
    if args.mtp:
        mtp = make_mtp(model, args.mtp, args.std, generator)
        ref |= mtp_data(model, mtp, input_ids)
        stored |= mtp_tensors(model, mtp)
    meta = dict(options=args.options, family=args.family, transformers=transformers.__version__, torch=torch.__version__, dtype=args.dtype, seed=seed,
                routers=routers.names, router_classes=[type(module).__name__ for module in routers.modules],
                min_topk_logit_margin=margin, min_greedy_logit_margin=greedy_margin,
                params_without_grad=[name for name, param in model.named_parameters() if param.grad is None], layout=LAYOUT)
    return model, ref, meta, stored


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


def save(args, model, ref, meta, stored):
    out = args.out
    os.makedirs(out)
    save_grads(model, out)
    model.to(getattr(torch, args.dtype))
    if args.fused:
        save_fused(model, out)
    else:
        model.save_pretrained(out, max_shard_size=args.max_shard_size)
    if args.old_config:
        respell_config(out)
    if stored:
        fp8 = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[BLOCK, BLOCK])
        rewrite(out, stored, ({"quantization_config": fp8} if args.fp8 else {}) | ({"num_nextn_predict_layers": args.mtp} if args.mtp else {}))
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
    parser.add_argument("--mtp", type=int, default=0, help="layers for multi-token prediction (0)")
    parser.add_argument("--fp8", action="store_true", help="matrices of layers in 8 bits with a scale a block")
    parser.add_argument("--old-config", action="store_true", help="config.json as transformers 4 wrote it")
    args = parser.parse_args()
    if args.length < PROMPT:
        parser.error(f"--length: expected at least {PROMPT}")
    if (args.mtp or args.fp8) and (args.fused or args.max_shard_size != "100GB"):
        parser.error("--mtp and --fp8: expected one file with experts one by one")
    args.options = [option for option in sys.argv[1:] if option != args.out]
    return args


def settings_of(args):
    settings = TINY | TINY_OF[args.family]
    if args.small:
        settings |= SMALL | SMALL_OF[args.family]
    if "n_routed_experts" in settings:
        del settings["num_experts"]
    if args.family.startswith("deepseek"):
        settings["num_key_value_heads"] = settings["num_attention_heads"]
    return settings | {key: json.loads(value) for key, value in (s.split("=", 1) for s in args.set)}


def main():
    args = read_args()
    if os.path.exists(args.out):
        sys.exit(f"{args.out}: exists")
    for seed in range(args.seed, args.seed + args.tries):
        config = transformers.AutoConfig.for_model(args.family, **settings_of(args))
        model, ref, meta, stored = compute(args, config, seed)
        margin = min(meta["min_topk_logit_margin"], meta["min_greedy_logit_margin"])
        if margin >= args.min_margin:
            save(args, model, ref, meta, stored)
            print(f"{args.out}: seed {seed}, smallest margin {margin:.3g}")
            return
    sys.exit(f"{args.out}: no seed of {args.tries} has margins of at least {args.min_margin}; the last had {margin:.3g}")


if __name__ == "__main__":
    main()
