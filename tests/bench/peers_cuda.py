#!/usr/bin/env python3
"""What PyTorch reaches on this GPU, for the table of tests/gpu.sh: a line a figure, `name<TAB>value`.

Dense products and attention in TFLOP/s (bf16; attention causal, 4 x 4096 tokens, 32 heads of 128, keys and values of
all heads), top-k and gate of the router in microseconds, a copy in GB/s read and written, and the products of
bench_products_cuda in microseconds, by cuBLAS with the order of sums that it likes best. Where transformers is there, its Qwen3-MoE layer with
experts by grouped_mm, in the shapes of bench_layer_cuda: TFLOP/s of the experts' products, gradients of bf16. Medians of
single calls; `steady` is the mean under a load of half a second, when the clock has come down to what the power limit
allows.
"""
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

CALLS = 11
STEADY_MS = 500
# tokens, hidden, width, experts, choices
LAYERS = ((16384, 2048, 768, 128, 8), (32768, 2048, 768, 128, 8), (16384, 2048, 1024, 64, 8), (4096, 1024, 512, 32, 4),
          (16384, 7168, 2048, 256, 8))


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


def steady_milliseconds(call):
    """Of a call behind others that took as long as those that are timed."""
    count = max(2, int(STEADY_MS / milliseconds(call)))
    begin, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    for _ in range(count):
        call()
    begin.record()
    for _ in range(count):
        call()
    end.record()
    end.synchronize()
    return begin.elapsed_time(end) / count


def random(*shape, **options):
    return torch.randn(*shape, device="cuda", dtype=torch.bfloat16, **options)


def dense():
    a, b = random(8192, 8192), random(8192, 8192)
    print(f"dense\t{2 * 8192**3 / milliseconds(lambda: a @ b) / 1e9:.1f}")
    print(f"dense steady\t{2 * 8192**3 / steady_milliseconds(lambda: a @ b) / 1e9:.1f}")


def layer(tokens, hidden, width, experts, choices):
    import transformers
    from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeSparseMoeBlock

    config = transformers.Qwen3MoeConfig(
        hidden_size=hidden, moe_intermediate_size=width, num_experts=experts, num_experts_per_tok=choices, norm_topk_prob=True)
    config._experts_implementation = "grouped_mm"
    with torch.device("cuda"):
        block = Qwen3MoeSparseMoeBlock(config).to(torch.bfloat16)
    for parameter in block.parameters():
        torch.nn.init.normal_(parameter, std=0.02)
    x, gradient = random(1, tokens, hidden, requires_grad=True), random(1, tokens, hidden)

    def both():
        block.zero_grad(set_to_none=True)
        x.grad = None
        block(x).backward(gradient)

    product = 2 * tokens * choices * hidden * width / 1e9
    with torch.no_grad():
        forward = milliseconds(lambda: block(x))
    name = f"{tokens} {hidden} {width} {experts} {choices}"
    print(f"layer forward {name}\t{3 * product / forward:.1f}")
    print(f"layer both {name}\t{9 * product / milliseconds(both):.1f}")
    print(f"layer both steady {name}\t{9 * product / steady_milliseconds(both):.1f}", flush=True)


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


def gate():
    """The gate of a replayed router in eager PyTorch, forward and backward: logits at the ids, softmax over these, and a map of
    all experts, dense as Megatron-Core has it."""
    logits = torch.randn(262144, 128, device="cuda", requires_grad=True)
    ids = torch.topk(logits.detach(), 8).indices
    gradient = torch.randn(262144, 128, device="cuda")

    def both():
        logits.grad = None
        weights = torch.softmax(logits.gather(1, ids), 1)
        torch.zeros_like(logits).scatter(1, ids, weights).backward(gradient)

    print(f"gate\t{1000 * milliseconds(both):.1f}")


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
    for sizes in LAYERS:
        try:
            layer(*sizes)
        except (ImportError, RuntimeError) as error:  # no transformers; memory, of which the last one needs most
            print(f"# layer {sizes}: {str(error).splitlines()[0]}")
        torch.cuda.empty_cache()
    for name, backend in (("flash", SDPBackend.FLASH_ATTENTION), ("cudnn", SDPBackend.CUDNN_ATTENTION)):
        try:
            attention(name, backend)
        except RuntimeError as error:  # a backend that this build of PyTorch does not have
            print(f"# {name}: {str(error).splitlines()[0]}")
    topk()
    gate()
    copy()
    products()


if __name__ == "__main__":
    main()
