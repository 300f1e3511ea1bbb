"""The peer of bench_recurrent_cuda.cu: the gated delta rule of transformers on this GPU, the torch functions of
qwen3_next, which run where there is no flash-linear-attention, on the same sizes in bf16: a line a figure,
`name<TAB>milliseconds`, medians of single calls.

usage: delta_peer_cuda.py
"""

import torch
from transformers.models.qwen3_next.modeling_qwen3_next import (
    torch_chunk_gated_delta_rule as chunked,
    torch_recurrent_gated_delta_rule as recurrent,
)

HEADS, DIM, CALLS = 32, 128, 7


def milliseconds(call):
    times = []
    for i in range(2 + CALLS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= 2:
            times.append(begin.elapsed_time(end))
    return sorted(times)[CALLS // 2]


def inputs(n, length):
    q, k, v = (torch.randn(n, length, HEADS, DIM, device="cuda", dtype=torch.bfloat16) for _ in range(3))
    return q, k, v, -torch.rand(n, length, HEADS, device="cuda"), torch.rand(n, length, HEADS, device="cuda")


def rule(function, x, **options):
    q, k, v, g, beta = x
    return function(q, k, v, g=g, beta=beta, use_qk_l2norm_in_kernel=True, **options)


with torch.no_grad():
    for name, n in (("delta prompt, 1 x 4096", 1), ("delta prompts, 4 x 4096", 4)):
        x = inputs(n, 4096)
        print(f"{name}\t{milliseconds(lambda: rule(chunked, x)):.3f}", flush=True)
    for n in (64, 256):
        x, state = inputs(n, 1), torch.zeros(n, HEADS, DIM, DIM, device="cuda")
        ms = milliseconds(lambda: rule(recurrent, x, initial_state=state, output_final_state=True))
        print(f"delta decode, {n} sequences\t{ms:.3f}", flush=True)
x = [y.requires_grad_() for y in inputs(4, 4096)]
out = rule(chunked, x)[0]
gradient = torch.randn_like(out)
ms = milliseconds(lambda: torch.autograd.grad(out, x, gradient, retain_graph=True))
print(f"delta training backward, 4 x 4096\t{ms:.3f}", flush=True)
