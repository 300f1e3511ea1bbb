#!/usr/bin/env python3
"""What PyTorch reaches on this GPU, for the table of tests/gpu.sh: a line a figure, `name<TAB>value`.

Dense products and attention in TFLOP/s (bf16; attention causal, 4 x 4096 tokens, 32 heads of 128, keys and values of
all heads), top-k of the router in microseconds, a copy in GB/s read and written, and the products of bench_products_cuda in
microseconds, by cuBLAS with the order of sums that it likes best. Medians of single calls; `dense steady` is the mean under
a load of half a second, when the clock has come down to what the power limit allows.
"""
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CALLS = 11
STEADY = 200


def milliseconds(call):
    times = []
    for i in range(3 + CALLS):
        begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        begin.record()
        call()
        end.record()
        end.synchronize()
        if i >= 3:
            times.append(begin.elapsed_time(end))
    return sorted(times)[CALLS // 2]


def random(*shape, **options):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, **options)


def dense():
    a, b = random(8192, 8192), random(8192, 8192)
    print(f"dense\t{2 * 8192**3 / milliseconds(lambda: a @ b) / 1e9:.1f}")

    def many():
        for _ in range(STEADY):
            a @ b

    many()
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    begin.record()
    many()
    end.record()
    end.synchronize()
    print(f"dense steady\t{2 * 8192**3 * STEADY / begin.elapsed_time(end) / 1e9:.1f}")


def attention(name, backend):
    B, L, H, D = 4, 4096, 32, 128
    q, k, v = (random(B, H, L, D, requires_grad=True) for _ in range(3))
    gradient, seen = torch.randn_like(q), B * (L + 1) * L / 2 * H * D
    with sdpa_kernel(backend):
        forward = milliseconds(lambda: F.scaled_dot_product_attention(q.detach(), k.detach(), v.detach(), is_causal=True))
        out = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        backward = milliseconds(lambda: torch.autograd.grad(out, (q, k, v), gradient, retain_graph=True))
    print(f"{name} forward\t{4 * seen / forward / 1e9:.1f}")
    print(f"{name} backward\t{10 * seen / backward / 1e9:.1f}")


def topk():
    logits = torch.randn(16384, 128, device="cuda")
    print(f"topk\t{1000 * milliseconds(lambda: torch.topk(logits, 8)):.1f}")


def copy():
    a = torch.empty(1 << 30, dtype=torch.uint8, device="cuda")
    b = torch.empty_like(a)
    print(f"copy\t{2 * a.numel() / milliseconds(lambda: b.copy_(a)) / 1e6:.0f}")


def products():
    for rows in (64, 256, 2048, 16384):
        for out, width in ((5120, 2048), (2048, 4096), (151936, 2048)):
            if out > 100000 and rows > 2048:
                continue
            x, count = random(rows, width), min((128 << 20) // (2 * out * width) + 1, 16)
            weights = [random(out, width) for _ in range(count)]
            x @ weights[0].T
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph):
                for w in weights:
                    x @ w.T
            print(f"product {rows} {out} {width}\t{1000 * milliseconds(graph.replay) / count:.2f}")


def main():
    dense()
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        try:
            attention(name, backend)
        except RuntimeError as error:  # a backend that this build of PyTorch does not have
            print(f"# {name}: {str(error).splitlines()[0]}")
    topk()
    copy()
    products()


if __name__ == "__main__":
    main()
