#!/usr/bin/env python3
"""A second peer of bench_model: vLLM's CPU build on the checkpoint that `bench_model --save DIR` wrote.

    vllm_model.py DIR [--threads N] [--cpu-time] [--compiled]

Reads cases from standard input, a line each (prefill, decode_1, decode_16, decode_64), and answers each with a line
"CASE TOKENS_PER_SECOND CHECK", as hf_model.py does. f32, a process of its own, steps driven by hand, so that decoding is timed
from the step on in which all requests have their first token. CHECK of prefill is not the logit that the others give: 0.
Needs vllm (its CPU build).
"""
import argparse
import os
import sys
import time

os.environ.update(VLLM_USE_V2_MODEL_RUNNER="0", VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_CPU_KVCACHE_SPACE="2", HF_HUB_OFFLINE="1",
                  VLLM_LOGGING_LEVEL="ERROR")
now = time.perf_counter
CONTEXT, NEW_TOKENS, PREFILL = 128, 16, 1024
CASES = {"prefill": (1, PREFILL, 1), "decode_1": (1, CONTEXT, 1 + NEW_TOKENS), "decode_16": (16, CONTEXT, 1 + NEW_TOKENS),
         "decode_64": (64, CONTEXT, 1 + NEW_TOKENS)}


def tokens(vocab, sequence, length):
    """The same ones as bench_model's."""
    return [((sequence * 4096 + t + 1) * 2654435761 % 2**32 >> 16) % vocab for t in range(length)]


def run(llm, params, case, serial):
    """Tokens a second of one case, and its check."""
    n, length, new_tokens = CASES[case]
    engine, check, have = llm.llm_engine, 0.0, {}
    vocab = llm.model_config.get_vocab_size()
    sampling = params(temperature=0, max_tokens=new_tokens, ignore_eos=True, detokenize=False,
                      logprobs=None if case == "prefill" else 0)
    begin = now()
    for i in range(n):
        engine.add_request(f"{serial}-{i}", {"prompt_token_ids": tokens(vocab, i, length)}, sampling)
    started = 0 if case == "prefill" else None
    while engine.has_unfinished_requests():
        for out in engine.step():
            first = out.outputs[0]
            have[out.request_id] = len(first.token_ids)
            if out.request_id == f"{serial}-0" and first.logprobs:
                check = first.logprobs[0][first.token_ids[0]].logprob
        if started is None and len(have) == n:
            started, begin = sum(have.values()), now()
    elapsed = now() - begin
    return (length if case == "prefill" else sum(have.values()) - started) / elapsed, check


def main():
    global now
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("checkpoint")
    parser.add_argument("--threads", type=int, default=0)
    parser.add_argument("--cpu-time", action="store_true", help="divide by CPU time, not the wall's")
    parser.add_argument("--compiled", action="store_true", help="torch.compile, a minute and more at the start")
    args = parser.parse_args()
    if args.threads > 0:
        os.environ["VLLM_CPU_OMP_THREADS_BIND"] = f"0-{args.threads - 1}" if args.threads > 1 else "0"
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what vLLM prints is no answer
    import vllm

    if args.cpu_time:
        now = time.process_time
    llm = vllm.LLM(model=args.checkpoint, skip_tokenizer_init=True, dtype="float32", enforce_eager=not args.compiled,
                   enable_prefix_caching=False, max_num_seqs=64, max_num_batched_tokens=8192, max_model_len=2048)
    print(f"vllm {vllm.__version__}, {'compiled' if args.compiled else 'eager'}", file=sys.stderr)
    for serial, line in enumerate(sys.stdin):
        case = line.strip()
        if case not in CASES:
            sys.exit(f"vllm_model.py: no case {case}; there are {' '.join(CASES)}")
        rate, check = run(llm, vllm.SamplingParams, case, serial)
        print(f"{case} {rate:.2f} {check:.6f}", file=answers, flush=True)


if __name__ == "__main__":
    main()
