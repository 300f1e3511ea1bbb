"""The peer of bench_delta.c: the gated delta rule of transformers (the torch functions of qwen3_next, which
run where there is no flash-linear-attention) and torch's convolution, one thread, microseconds of processor
time a token.

usage: delta_peer.py [REPEATS]
"""

import sys
import time

import torch
import torch.nn.functional as F
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule as chunked,
    torch_recurrent_gated_delta_rule as recurrent,
)

HEADS, DIM, CHANNELS = 32, 128, 8192
repeats = int(sys.argv[1]) if len(sys.argv) > 1 else 5


def report(what, tokens, run):
    run()
    took = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        took.append(time.process_time() - start)
    print(f"{what:28} {min(took) / tokens * 1e6:8.1f} us a token")


def inputs(n, length):
    q, k, v = (torch.rand(n, length, HEADS, DIM) * 2 - 1 for _ in range(3))
    return q, k, v, -torch.rand(n, length, HEADS), torch.rand(n, length, HEADS)


def rule(function, x, **options):
    q, k, v, g, beta = x
    return function(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True, **options)


torch.set_num_threads(1)
with torch.no_grad():
    for n in (1, 16):
        x, state = inputs(n, 1), torch.zeros(n, HEADS, DIM, DIM)
        report(f"decode, {n}", n, lambda: rule(recurrent, x, initial_state=state, output_final_state=True))
    for n, length in ((1, 512), (4, 128)):
        x = inputs(n, length)
        report(f"forward, {n} of {length}", n * length, lambda: rule(chunked, x))
    u, w = torch.rand(1, CHANNELS, 512), torch.rand(CHANNELS, 1, 4)
    report("convolution, 512", 512, lambda: F.silu(F.conv1d(u, w, padding=3, groups=CHANNELS)[:, :, :512]))
x = [y.requires_grad_() for y in inputs(4, 128)]
report("forward, backward, 4 of 128", 512, lambda: rule(chunked, x)[0].sum().backward())
