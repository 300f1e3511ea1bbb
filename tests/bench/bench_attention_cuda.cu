/* bench_attention_cuda.cu - time of attention on CUDA in bf16: training of 4 x 4096 tokens, the same from
 * pages of 64, of 16 and from scattered rows, and decoding of one token a sequence from pages of 64, as a
 * graph, beside a copy of device memory; single tokens beside a chunk of a prompt; all three of long
 * sequences with a window; and latent attention as DeepSeek-V3 and V2-Lite have it, in its absorbed form, a
 * forward and decoding.
 *
 *     bench_attention_cuda [HEADS KV_HEADS HEAD_DIM]
 *
 * FLOP are those of the keys that are seen, forward 4 D a key and head, backward 10 D. Refuses: peers, which
 * are compared in the same call (README.md), results (test_attention_cuda). */
#include "bench_cuda.h"
#include "support/usage.h"

namespace {

struct shape {
    int32_t heads, kv_heads, D;
};

/* Rows of the pool, one for all heads, are keys of 576 and the first 512 of them values. */
const int32_t LATENT_KEY = 576, LATENT_VALUE = 512;

/* n sequences of `length`; window 0: none. */
struct sequences {
    int32_t n, length, window;

    /* keys that all queries see together */
    double seen() const {
        const double w = window > 0 && window < length ? window : length;
        return n * (w * (w + 1) / 2 + (length - w) * w);
    }
};

int32_t *upload(const std::vector<int32_t> &host) {
    int32_t *p = static_cast<int32_t *>(memory(static_cast<int64_t>(host.size()) * 4));
    must(dev->to_device(dev, p, host.data(), host.size() * 4), "upload");
    return p;
}

/* n sequences of `context` keys; the last `tokens` of each are fed. Pages lie in order, as a trainer's rows
 * do, or scattered. */
wb_attention make_attention(const shape &s, int32_t n, int32_t context, int32_t tokens, int32_t page,
                            bool in_order = false) {
    const int32_t pages = (context + page - 1) / page;
    const int64_t rows = static_cast<int64_t>(n) * pages * page;
    std::vector<int32_t> seq, pos, blocks;
    wb_attention a = {};
    for (int32_t i = 0; i < n; i++)
        for (int32_t t = context - tokens; t < context; t++) seq.push_back(i), pos.push_back(t);
    for (int32_t i = 0; i < n * pages; i++)
        blocks.push_back(in_order ? i : static_cast<int32_t>(i * int64_t(7919) % (n * pages)));
    a.T = static_cast<int64_t>(seq.size()), a.n_heads = s.heads, a.n_kv_heads = s.kv_heads, a.head_dim = s.D;
    a.value_dim = s.D;
    a.scale = 1 / std::sqrt(static_cast<float>(s.D));
    a.q = random_rows(a.T * s.heads * s.D, 1);
    a.k = random_rows(rows * s.kv_heads * s.D, 1), a.v = random_rows(rows * s.kv_heads * s.D, 1);
    a.seq = upload(seq), a.pos = upload(pos), a.blocks = upload(blocks);
    a.max_blocks = pages, a.block_size = page;
    return a;
}

void free_attention(wb_attention &a) {
    for (const void *p : {static_cast<const void *>(a.q.data), static_cast<const void *>(a.k.data),
                          static_cast<const void *>(a.v.data), static_cast<const void *>(a.seq),
                          static_cast<const void *>(a.pos), static_cast<const void *>(a.blocks)})
        dev->mem_free(dev, const_cast<void *>(p));
}

void time_long(const shape &s, const sequences &of, int32_t page, bool in_order) {
    wb_attention a = make_attention(s, of.n, of.length, of.length, page, in_order);
    a.window = of.window;
    const int64_t wide = a.T * s.heads * s.D;
    wb_rows out = random_rows(wide, 1);
    const double flop = 4 * of.seen() * s.heads * s.D;
    const auto op = [&] { must(dev->attention_forward(dev, &a, out), "forward"); };
    const double burst = median_ms(op), steady = time_ms(50, op);
    printf(
        "forward, %d x %d, window %d, pages of %2d %s, steady %9.3f ms %8.1f TFLOP/s, alone %9.3f ms %8.1f "
        "TFLOP/s\n",
        of.n, of.length, of.window, page, in_order ? "in order " : "scattered", steady, flop / steady / 1e9,
        burst, flop / burst / 1e9);
    dev->mem_free(dev, out.data);
    free_attention(a);
}

/* From what a forward left. */
void time_backward(const shape &s, const sequences &of, bool in_order) {
    wb_attention a = make_attention(s, of.n, of.length, of.length, 1, in_order);
    a.window = of.window;
    const int64_t wide = a.T * s.heads * s.D, narrow = a.T * s.kv_heads * s.D;
    wb_rows out = random_rows(wide, 1), dout = random_rows(wide, 1), dq = random_rows(wide, 1);
    wb_rows dk = random_rows(narrow, 1), dv = random_rows(narrow, 1);
    a.log_sums = static_cast<float *>(memory(a.T * s.heads * 4)), a.out = out;
    const double flop = 10 * of.seen() * s.heads * s.D;
    must(dev->attention_forward(dev, &a, out), "forward");
    const double ms =
        median_ms([&] { must(dev->attention_backward(dev, &a, dout, dq, dk, dv, NULL), "backward"); });
    printf("backward, %d x %d, window %d, rows %s %9.3f ms %8.1f TFLOP/s\n", of.n, of.length, of.window,
           in_order ? "in order " : "scattered", ms, flop / ms / 1e9);
    dev->mem_free(dev, a.log_sums);
    for (wb_rows r : {out, dout, dq, dk, dv}) dev->mem_free(dev, r.data);
    free_attention(a);
}

/* Milliseconds of a call, of graphs of eight. */
double graph_ms(const std::function<void()> &op) {
    void *graph = nullptr;
    const int calls = 8;
    op();
    must(dev->graph_begin(dev), "graph");
    for (int i = 0; i < calls; i++) op();
    must(dev->graph_end(dev, &graph), "graph");
    time_ms(2, [&] { must(dev->graph_launch(dev, graph), "graph"); });
    const double ms = time_ms(10, [&] { must(dev->graph_launch(dev, graph), "graph"); }) / calls;
    dev->graph_free(dev, graph);
    return ms;
}

void time_decode(const shape &s, int32_t n, int32_t context, int32_t window = 0) {
    wb_attention a = make_attention(s, n, context, 1, 64);
    a.window = window;
    a.one_a_sequence = true;
    wb_rows out = random_rows(a.T * s.heads * s.D, 1);
    const double bytes = 2.0 * n * (window > 0 ? window : context) * s.kv_heads * s.D * 2;
    const double ms = graph_ms([&] { must(dev->attention_forward(dev, &a, out), "decode"); });
    printf("decode, batch %4d, context %5d, window %4d %9.1f us %8.0f GB/s of keys and values\n", n, context,
           window, 1000 * ms, bytes / ms / 1e6);
    dev->mem_free(dev, out.data);
    free_attention(a);
}

/* n - 1 single tokens beside a chunk of a prompt, all of the same context. */
void time_mixed(const shape &s, int32_t n, int32_t context, int32_t chunk) {
    wb_attention a = make_attention(s, n, context, 1, 64);
    std::vector<int32_t> seq, pos;
    for (int32_t i = 0; i + 1 < n; i++) seq.push_back(i), pos.push_back(context - 1);
    for (int32_t t = context - chunk; t < context; t++) seq.push_back(n - 1), pos.push_back(t);
    for (const void *p : {static_cast<const void *>(a.q.data), static_cast<const void *>(a.seq),
                          static_cast<const void *>(a.pos)})
        dev->mem_free(dev, const_cast<void *>(p));
    a.T = static_cast<int64_t>(seq.size()), a.seq = upload(seq), a.pos = upload(pos);
    a.q = random_rows(a.T * s.heads * s.D, 1);
    wb_rows out = random_rows(a.T * s.heads * s.D, 1);
    const double ms = graph_ms([&] { must(dev->attention_forward(dev, &a, out), "mixed"); });
    printf("%d single tokens and %d of a prompt, context %5d %9.1f us\n", n - 1, chunk, context, 1000 * ms);
    dev->mem_free(dev, out.data);
    free_attention(a);
}

/* Of a token for each of n sequences, or of one sequence as a whole. */
void time_latent(int32_t heads, int32_t n, int32_t context, int32_t tokens) {
    wb_attention a = make_attention({heads, 1, LATENT_KEY}, n, context, tokens, 64);
    a.value_dim = LATENT_VALUE, a.one_a_sequence = tokens == 1;
    dev->mem_free(dev, a.v.data);
    a.v = a.k;
    wb_rows out = random_rows(a.T * heads * LATENT_VALUE, 1);
    const double pairs = tokens == 1 ? double(n) * context : sequences{n, context, 0}.seen();
    const double flop = 2.0 * pairs * heads * (LATENT_KEY + LATENT_VALUE);
    const double bytes = 2.0 * n * context * LATENT_KEY;
    const double ms = median_ms([&] { must(dev->attention_forward(dev, &a, out), "latent"); });
    printf(
        "latent, %3d heads, batch %3d, context %4d, fed %4d %9.1f us %8.1f TFLOP/s %8.0f GB/s of latents\n",
        heads, n, context, tokens, 1000 * ms, flop / ms / 1e9, bytes / ms / 1e6);
    dev->mem_free(dev, out.data);
    a.v.data = nullptr;
    free_attention(a);
}

void time_copy() {
    const int64_t n = int64_t(1) << 29;
    wb_rows from = random_rows(n, 1), to = random_rows(n, 1);
    const double ms =
        time_ms(20, [&] { must(dev->copy(dev, to.data, from.data, static_cast<size_t>(2 * n)), "copy"); });
    printf("copy of device memory          %9.1f us %8.0f GB/s, read and written\n", 1000 * ms,
           4 * static_cast<double>(n) / ms / 1e6);
    dev->mem_free(dev, from.data), dev->mem_free(dev, to.data);
}

} // namespace

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 3, "usage: bench_attention_cuda [HEADS KV_HEADS HEAD_DIM]\n", &code))
        return code;
    shape s = {32, 4, 128};
    if (argc > 3) s = {atoi(argv[1]), atoi(argv[2]), atoi(argv[3])};
    if (!open_device()) return 77;
    printf("%d heads, %d kv heads of %d\n", s.heads, s.kv_heads, s.D);
    const sequences usual = {4, 4096, 0};
    time_long(s, usual, 1, true);
    time_long(s, usual, 64, false), time_long(s, usual, 16, false), time_long(s, usual, 1, false);
    time_backward(s, usual, true), time_backward(s, usual, false);
    time_copy();
    for (int32_t n : {1, 64, 256})
        for (int32_t context : {1024, 8192}) time_decode(s, n, context);
    time_decode(s, 1, 32768), time_decode(s, 64, 32768);
    time_mixed(s, 64, 4096, 2048);
    for (int32_t heads : {16, 128})
        time_latent(heads, 64, 1024, 1), time_latent(heads, 256, 1024, 1), time_latent(heads, 64, 8192, 1),
            time_latent(heads, 1, 2048, 2048);
    for (int32_t length : {8192, 32768})
        for (int32_t window : {0, 128, 4096}) {
            time_long(s, {1, length, window}, 64, false), time_backward(s, {1, length, window}, true);
            time_decode(s, 64, length, window);
        }
    wb_device_close(dev);
    return 0;
}
