#!/usr/bin/env python3
"""The peer of bench_model: transformers on the checkpoint that `bench_model --save DIR` wrote.

    hf_model.py DIR [--threads N] [--cpu-time]

Reads cases from standard input, a line each (prefill, decode_1, decode_16, decode_64, train, train_kept), and answers each with
a line "CASE TOKENS_PER_SECOND CHECK", as bench_model does with "-". f32, or bf16 in cases that end with _bf16; sdpa attention, the
default experts implementation.
Needs torch, transformers 5 and safetensors.
"""
import argparse
import sys
import time

import torch
import transformers

now = time.perf_counter
CONTEXT, NEW_TOKENS, PREFILL, SEQS, SEQ_LEN = 128, 16, 1024, 4, 256


def tokens(model, n_seqs, length):
    """The same ones as bench_model's."""
    vocab = model.config.vocab_size
    return torch.tensor([[((s * 4096 + t + 1) * 2654435761 % 2**32 >> 16) % vocab for t in range(length)] for s in range(n_seqs)])


@torch.inference_mode()
def prefill(model, _):
    ids = tokens(model, 1, PREFILL)
    begin = now()
    logits = model(input_ids=ids, use_cache=True, logits_to_keep=1).logits
    return PREFILL / (now() - begin), logits.max().item()


@torch.inference_mode()
def decode(model, batch):
    out = model(input_ids=tokens(model, batch, CONTEXT), use_cache=True, logits_to_keep=1)
    check = torch.log_softmax(out.logits[0, -1], -1).max().item()
    begin = now()
    for _ in range(NEW_TOKENS):
        last = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(input_ids=last, past_key_values=out.past_key_values, use_cache=True)
    out.logits[:, -1].argmax(-1)
    return batch * NEW_TOKENS / (now() - begin), check


def train(model, _):
    ids = tokens(model, SEQS, SEQ_LEN)
    begin = now()
    model.zero_grad()
    logits = model(input_ids=ids, use_cache=False).logits[:, :-1]
    logprobs = torch.log_softmax(logits, -1).gather(-1, ids[:, 1:, None])
    (-logprobs.sum() / ids.numel()).backward()
    return ids.numel() / (now() - begin), logprobs.mean().item()


CASES = {"prefill": (prefill, 1), "decode_1": (decode, 1), "decode_16": (decode, 16), "decode_64": (decode, 64), "train": (train, 4), "train_kept": (train, 4)}


def load(checkpoint, dtype):
    model = transformers.AutoModelForCausalLM.from_pretrained(checkpoint, dtype=dtype, attn_implementation="sdpa", local_files_only=True)
    print(f"transformers {transformers.__version__}, torch {torch.__version__}, {torch.get_num_threads()} threads, {dtype}, "
          f"experts {model.config._experts_implementation}, attention {model.config._attn_implementation}, "
          f"{sum(p.numel() for p in model.parameters()) * 1e-6:.1f}M parameters", file=sys.stderr)
    return model


def main():
    global now
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="divide by CPU time, not the wall's")
    args = parser.parse_args()
    if args.cpu_time:
        now = time.process_time
    if args.threads > 0:
        torch.set_num_threads(args.threads)
    models = {}  # by dtype, each loaded by the first case that needs it
    for line in sys.stdin:
        case = line.strip()
        name = case.removesuffix("_bf16")
        if name not in CASES:
            sys.exit(f"hf_model.py: no case {name}; there are {' '.join(CASES)}, and each with _bf16 behind it")
        run, batch = CASES[name]
        dtype = torch.bfloat16 if name != case else torch.float32
        if dtype not in models:
            models[dtype] = load(args.checkpoint, dtype)
        rate, check = run(models[dtype], batch)
        print(f"{case} {rate:.2f} {check:.6f}", flush=True)


if __name__ == "__main__":
    main()
