/* bench_recurrent_cuda.cu - time of the gated delta rule on CUDA in bf16 at the heads of Qwen3-Next-80B-A3B,
 * 16 key heads and 32 value heads of 128: prompts, decoding and training, each beside the least time that
 * memory and f32 arithmetic of the card allow.
 *
 *     bench_recurrent_cuda
 *
 * Bytes are those of a call's operands and states, once; FLOP 7 and, in a backward, 20 for each element of a
 * head's state and token. Refuses: peers (delta_peer_cuda.py), results (test_ops_recurrent). */
#include "bench_cuda.h"
#include "bench_floor_cuda.h"
#include "support/usage.h"

namespace {

const wb_delta_heads heads = {16, 32, 128, 128};

/* n sequences of `length` tokens, with states or as in training. */
struct call {
    const char *what;
    int32_t n, length;
    bool has_states;
};

/* What the op works on. */
struct problem {
    wb_gated_delta args;
    wb_rows o, dqkv, db, da;
    float *of_heads; /* A_log, dt_bias and their gradients */
};

const int64_t state_floats = static_cast<int64_t>(heads.n_value) * heads.key_dim * heads.value_dim;

void *uploaded(const void *host, size_t bytes) {
    void *p = memory(static_cast<int64_t>(bytes));
    must(dev->to_device(dev, p, host, bytes), "upload");
    return p;
}

problem make_problem(const call &c, bool backward) {
    const int64_t T = static_cast<int64_t>(c.n) * c.length, width = wb_delta_width(heads),
                  gates = T * heads.n_value;
    std::vector<wb_sequence_run> runs;
    for (int32_t i = 0; i < c.n; i++) runs.push_back({i * c.length, c.length, c.has_states ? i : -1});
    problem p = {};
    p.args.of.T = T, p.args.of.n_runs = c.n;
    p.args.of.runs =
        static_cast<const wb_sequence_run *>(uploaded(runs.data(), runs.size() * sizeof(wb_sequence_run)));
    p.args.of.state_stride = 4 * state_floats;
    if (c.has_states) p.args.of.states = reinterpret_cast<char *>(random_floats(c.n * state_floats, 0.1f));
    p.args.heads = heads;
    p.args.qkv = random_rows(T * width, 1), p.o = random_rows(gates * heads.value_dim, 1);
    p.args.b = random_rows(gates, 1), p.args.a = random_rows(gates, 1);
    p.of_heads = random_floats(4 * heads.n_value, 1);
    p.args.A_log = p.of_heads, p.args.dt_bias = p.of_heads + heads.n_value;
    if (!c.has_states)
        p.args.checkpoints = static_cast<float *>(memory(4 * wb_delta_checkpoint_floats(T, heads)));
    if (!backward) return p;
    p.dqkv = random_rows(T * width, 1), p.db = random_rows(gates, 1), p.da = random_rows(gates, 1);
    return p;
}

void close_problem(const problem &p) {
    for (const void *x :
         {static_cast<const void *>(p.args.of.runs), static_cast<const void *>(p.args.of.states),
          static_cast<const void *>(p.args.qkv.data), static_cast<const void *>(p.o.data),
          static_cast<const void *>(p.args.b.data), static_cast<const void *>(p.args.a.data),
          static_cast<const void *>(p.of_heads), static_cast<const void *>(p.args.checkpoints),
          static_cast<const void *>(p.dqkv.data), static_cast<const void *>(p.db.data),
          static_cast<const void *>(p.da.data)})
        dev->mem_free(dev, const_cast<void *>(x));
}

void time_forward(const call &c, const card_rates &rates) {
    const problem p = make_problem(c, false);
    const double T = static_cast<double>(p.args.of.T), state = static_cast<double>(state_floats);
    const double token =
        2.0 * static_cast<double>(wb_delta_width(heads) + heads.n_value * (heads.value_dim + 2));
    const double kept = c.has_states ? 8.0 * c.n * state : 4.0 * T / WB_DELTA_CHUNK * state;
    const double ms = median_ms([&] { must(dev->gated_delta_forward(dev, &p.args, p.o), "forward"); });
    print_time(c.what, ms, T * token + kept, 7.0 * T * state, rates);
    close_problem(p);
}

void time_backward(const call &c, const card_rates &rates) {
    const problem p = make_problem(c, true);
    const double T = static_cast<double>(p.args.of.T), state = static_cast<double>(state_floats);
    const double token =
        2.0 * static_cast<double>(2 * wb_delta_width(heads) + heads.n_value * (heads.value_dim + 4));
    float *const gradients = p.of_heads + 2 * heads.n_value;
    must(dev->gated_delta_forward(dev, &p.args, p.o), "forward");
    const double ms = median_ms([&] {
        must(dev->gated_delta_backward(dev, &p.args, p.o, p.dqkv, p.db, p.da, gradients,
                                       gradients + heads.n_value),
             "backward");
    });
    print_time(c.what, ms, T * token + 4.0 * T / WB_DELTA_CHUNK * state, 20.0 * T * state, rates);
    close_problem(p);
}

} // namespace

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 0, "usage: bench_recurrent_cuda\n", &code)) return code;
    if (!open_device()) return 77;
    const card_rates rates = measure_card();
    const call prompts[] = {{"delta prompt, 1 x 4096", 1, 4096, true},
                            {"delta prompts, 4 x 4096", 4, 4096, true}};
    const call steps[] = {{"delta decode, 64 sequences", 64, 1, true},
                          {"delta decode, 256 sequences", 256, 1, true}};
    for (const call &c : prompts) time_forward(c, rates);
    for (const call &c : steps) time_forward(c, rates);
    time_forward({"delta training forward, 4 x 4096", 4, 4096, false}, rates);
    time_backward({"delta training backward, 4 x 4096", 4, 4096, false}, rates);
    wb_device_close(dev);
    return 0;
}
