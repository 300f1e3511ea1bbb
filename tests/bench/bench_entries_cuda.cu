/* bench_entries_cuda.cu - time of attention over a window and compressed entries on CUDA in bf16, at the
 * heads of DeepSeek-V4-Flash: 64 heads that share a row of 512, a window of 128, and entries of every 4
 * positions, of which a token sees 512, or of every 128, of which it sees all. A prompt, decoding and a
 * backward, each beside the least time that memory and f32 arithmetic of the card allow.
 *
 *     bench_entries_cuda
 *
 * FLOP are 4 for each element of a head's key that is seen, in a backward 10. Bytes are those of the rows
 * that exist, and in decoding of the rows that are seen. Refuses: results (test_ops_entries). */
#include "bench_cuda.h"
#include "bench_floor_cuda.h"
#include "support/usage.h"

namespace {

enum { HEADS = 64, DIM = 512, WINDOW = 128, LISTED = 512, PAGE = 128 };

/* The last `tokens` of `context` positions of n sequences; entries of `ratio` positions. */
struct call {
    const char *what;
    int32_t n, context, tokens, ratio;
};

struct problem {
    wb_entry_attention args;
    wb_rows dq, dk, dentries, dout;
    double keys, rows; /* that all queries see together, and that there are */
};

int32_t *upload(const std::vector<int32_t> &host) {
    int32_t *p = static_cast<int32_t *>(memory(static_cast<int64_t>(host.size()) * 4));
    must(dev->to_device(dev, p, host.data(), host.size() * 4), "upload");
    return p;
}

/* So many of the entries 0 .. seen - 1 as there is room for, ascending and spread at random. */
void append_list(int32_t seen, std::vector<int32_t> &lists) {
    int32_t left = std::min<int32_t>(seen, LISTED);
    const size_t end = lists.size() + LISTED;
    for (int32_t w = 0; w < seen && left > 0; w++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        if (static_cast<int64_t>(state % static_cast<uint64_t>(seen - w)) < left) lists.push_back(w), left--;
    }
    lists.resize(end, -1);
}

problem make_problem(const call &c) {
    const int32_t pages = (c.context + PAGE - 1) / PAGE;
    const int64_t rows = static_cast<int64_t>(c.n) * pages * PAGE, entries = rows / c.ratio;
    std::vector<int32_t> seq, pos, blocks, lists;
    problem p = {};
    for (int32_t i = 0; i < c.n; i++)
        for (int32_t t = c.context - c.tokens; t < c.context; t++) {
            const int32_t seen = (t + 1) / c.ratio,
                          listed = c.ratio > 4 ? seen : std::min<int32_t>(seen, LISTED);
            seq.push_back(i), pos.push_back(t);
            if (c.ratio == 4) append_list(seen, lists);
            p.keys += std::min<int32_t>(t + 1, WINDOW) + listed;
        }
    for (int32_t i = 0; i < c.n * pages; i++) blocks.push_back(i);
    wb_attention &raw = p.args.raw;
    raw.T = static_cast<int64_t>(seq.size()), raw.n_heads = HEADS, raw.n_kv_heads = 1;
    raw.head_dim = raw.value_dim = DIM, raw.window = WINDOW,
    raw.scale = 1 / std::sqrt(static_cast<float>(DIM));
    raw.q = random_rows(raw.T * HEADS * DIM, 1), raw.k = random_rows(rows * DIM, 1), raw.v = raw.k;
    raw.sinks = random_floats(HEADS, 1);
    raw.seq = upload(seq), raw.pos = upload(pos), raw.blocks = upload(blocks);
    raw.max_blocks = pages, raw.block_size = PAGE;
    p.args.entries = {c.ratio, random_rows(entries * DIM, 1), DIM};
    if (c.ratio == 4) p.args.listed = upload(lists), p.args.max_listed = LISTED;
    p.dq = random_rows(raw.T * HEADS * DIM, 1), p.dout = random_rows(raw.T * HEADS * DIM, 1);
    p.dk = random_rows(rows * DIM, 1), p.dentries = random_rows(entries * DIM, 1);
    p.rows = static_cast<double>(rows + entries);
    return p;
}

void close_problem(const problem &p) {
    const wb_attention &raw = p.args.raw;
    for (const void *x :
         {static_cast<const void *>(raw.q.data), static_cast<const void *>(raw.k.data),
          static_cast<const void *>(raw.sinks), static_cast<const void *>(raw.seq),
          static_cast<const void *>(raw.pos), static_cast<const void *>(raw.blocks),
          static_cast<const void *>(p.args.entries.rows.data), static_cast<const void *>(p.args.listed),
          static_cast<const void *>(p.dq.data), static_cast<const void *>(p.dout.data),
          static_cast<const void *>(p.dk.data), static_cast<const void *>(p.dentries.data)})
        dev->mem_free(dev, const_cast<void *>(x));
}

void time_forward(const call &c, const card_rates &rates) {
    const problem p = make_problem(c);
    const double queries = static_cast<double>(p.args.raw.T) * HEADS * DIM;
    const double seen = std::min(p.keys, p.rows) * DIM;
    const double ms = median_ms([&] { must(dev->entry_attention_forward(dev, &p.args, p.dq), "forward"); });
    print_time(c.what, ms, 2 * (2 * queries + seen), 4.0 * HEADS * DIM * p.keys, rates);
    close_problem(p);
}

void time_backward(const call &c, const card_rates &rates) {
    const problem p = make_problem(c);
    const double queries = static_cast<double>(p.args.raw.T) * HEADS * DIM;
    float *const dsinks = random_floats(HEADS, 1);
    const double ms = median_ms([&] {
        must(dev->entry_attention_backward(dev, &p.args, p.dout, p.dq, p.dk, p.dentries, dsinks), "backward");
    });
    print_time(c.what, ms, 2 * (3 * queries + 3 * p.rows * DIM), 10.0 * HEADS * DIM * p.keys, rates);
    dev->mem_free(dev, dsinks);
    close_problem(p);
}

} // namespace

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 1, "usage: bench_entries_cuda [LENGTH of the prompt, 4096]\n", &code))
        return code;
    if (!open_device()) return 77;
    const int32_t length = argc > 1 ? atoi(argv[1]) : 4096;
    const card_rates rates = measure_card();
    time_forward({"entry attention prompt, entries of 4", 1, length, length, 4}, rates);
    time_forward({"entry attention prompt, entries of 128", 1, length, length, 128}, rates);
    time_forward({"entry attention decode of 64, entries of 4", 64, 8192, 1, 4}, rates);
    time_forward({"entry attention decode of 64, entries of 128", 64, 8192, 1, 128}, rates);
    time_backward({"entry attention backward, entries of 4", 1, length, length, 4}, rates);
    time_backward({"entry attention backward, entries of 128", 1, length, length, 128}, rates);
    wb_device_close(dev);
    return 0;
}
