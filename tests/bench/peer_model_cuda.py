#!/usr/bin/env python3
"""The peer of bench_train_cuda and bench_engine_cuda: transformers on a Qwen3-30B-A3B with random weights, on one GPU.

    peer_model_cuda.py train [LAYERS [TOKENS]]          8 layers, 16384 tokens in sequences of 4096
    peer_model_cuda.py generate [LAYERS [BATCH...]]     8 layers; 64 and 128 requests with prompts of 1024 tokens

bf16, experts by grouped_mm. A line a figure, `name<TAB>value`. Training: forward, cross entropy over all tokens and backward to
all weights (gradients of bf16, where Waybill's are f32), nothing computed again, no optimizer; attention by sdpa. Generation:
generate_batch (continuous batching over a paged cache, greedy, no capture of routes) and, beside it, generate over a static
batch of prompts of one length, which needs no paging and no mask.
"""
import argparse
import time

import torch
import transformers

SEQUENCE, CONTEXT, NEW_TOKENS, VOCABULARY = 4096, 1024, 40, 151936


def seconds(call):
    torch.cuda.synchronize()
    begin = time.perf_counter()
    call()
    torch.cuda.synchronize()
    return time.perf_counter() - begin


def dense():
    """TFLOP/s of a product of 8192^3, for ratios."""
    a, b = (torch.randn(8192, 8192, device="cuda", dtype=torch.bfloat16) for _ in range(2))
    for _ in range(3):
        a @ b
    print(f"dense\t{2 * 8192**3 / min(seconds(lambda: a @ b) for _ in range(9)) * 1e-12:.1f}")


def make(layers):
    config = transformers.Qwen3MoeConfig(
        vocab_size=VOCABULARY, hidden_size=2048, intermediate_size=6144, moe_intermediate_size=768, num_hidden_layers=layers,
        num_attention_heads=32, num_key_value_heads=4, head_dim=128, num_experts=128, num_experts_per_tok=8, norm_topk_prob=True,
        max_position_embeddings=8192, rms_norm_eps=1e-6, tie_word_embeddings=False, eos_token_id=None, bos_token_id=None,
        pad_token_id=None, use_cache=True)
    config._experts_implementation = "grouped_mm"
    with torch.device("cuda"):
        model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16, attn_implementation="sdpa")
    print(f"# transformers {transformers.__version__}, torch {torch.__version__}, {torch.cuda.get_device_name()}, {layers} layers, "
          f"experts {model.config._experts_implementation}, attention {model.config._attn_implementation}, "
          f"{sum(p.numel() for p in model.parameters()) * 1e-9:.2f}e9 parameters")
    return model


def train(layers, tokens):
    model = make(layers)
    ids = torch.randint(VOCABULARY, (tokens // SEQUENCE, SEQUENCE), device="cuda")

    def step():
        model.zero_grad(set_to_none=True)
        model(input_ids=ids, labels=ids, use_cache=False).loss.backward()

    for _ in range(2):
        step()
    times = sorted(seconds(step) for _ in range(5))
    print(f"train\t{ids.numel() / times[2]:.0f}")
    print(f"train peak GiB\t{torch.cuda.max_memory_allocated() / 2**30:.1f}", flush=True)


def continuous(model, prompts):
    """Decoding: from where the last request has its first token to where the first one has its last."""
    config = transformers.GenerationConfig(do_sample=False, eos_token_id=-1, pad_token_id=0)
    batching = transformers.generation.configuration_utils.ContinuousBatchingConfig(
        allow_block_sharing=False, max_batch_tokens=8192, num_blocks=len(prompts) * 6)
    done = model.generate_batch(prompts, generation_config=config, continuous_batching_config=batching, record_timestamps=True,
                                max_new_tokens=3 * NEW_TOKENS).values()
    begin, decoding = min(o.created_time for o in done), max(o.timestamps[0] for o in done)
    end = min(o.timestamps[-1] for o in done)
    count = sum(decoding < t <= end for o in done for t in o.timestamps)
    print(f"generate_batch prefill {len(prompts)}\t{len(prompts) * CONTEXT / (decoding - begin):.0f}")
    print(f"generate_batch decode {len(prompts)}\t{count / (end - decoding):.0f}", flush=True)


@torch.inference_mode()
def static(model, prompts):
    ids = torch.tensor(prompts, device="cuda")
    out = model(input_ids=ids[:8], use_cache=True, logits_to_keep=1)
    del out
    caches = []

    def prefill():
        caches.append(model(input_ids=ids, use_cache=True, logits_to_keep=1))

    print(f"static prefill {len(prompts)}\t{len(prompts) * CONTEXT / seconds(prefill):.0f}")
    out = caches.pop()

    def decode():
        nonlocal out
        last = out.logits[:, -1].argmax(-1, keepdim=True)
        out = model(input_ids=last, past_key_values=out.past_key_values, use_cache=True)

    for _ in range(4):
        decode()
    times = sorted(seconds(decode) for _ in range(16))
    print(f"static decode {len(prompts)}\t{len(prompts) / times[8]:.0f}", flush=True)


def generate(layers, batches):
    model = make(layers).eval()
    for way in (static, continuous):  # the slower one last, for whoever stops this after a time
        for batch in batches:
            prompts = torch.randint(VOCABULARY, (batch, CONTEXT)).tolist()
            try:
                way(model, prompts)
            except Exception as error:  # memory, or a kernel that this installation lacks
                print(f"# {way.__name__} {batch}: {type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}", flush=True)
            torch.cuda.empty_cache()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=["train", "generate"])
    parser.add_argument("numbers", type=int, nargs="*")
    args = parser.parse_args()
    layers, rest = (args.numbers or [8])[0], args.numbers[1:]
    dense()
    if args.what == "train":
        train(layers, (rest or [16384])[0])
    else:
        generate(layers, rest or [64, 128])


if __name__ == "__main__":
    main()
