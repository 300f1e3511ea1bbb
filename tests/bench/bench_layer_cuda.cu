/* bench_layer_cuda.cu - time of a MoE layer's ops on CUDA in bf16, forward and backward, in TFLOP/s beside a
 * dense product of 8192^3 of the same device.
 *
 *     bench_layer_cuda [TOKENS [HIDDEN WIDTH EXPERTS CHOICES [SKEW]]]
 *
 * Owns: random operands, the routing of random tokens, or skewed by 1 / rank^SKEW; times of single calls that
 * follow a pause, and of the layer and the dense product under steady load, when the clock has come down to
 * what the power limit allows: each is compared with the dense product in the same state; gradients of
 * weights added to, and overwritten as in the first micro-batch of an update, in turns. Refuses: peers
 * (compare them in the same call: README.md), results (test_products_cuda). Only work on rows that there are
 * counts as FLOP. */
#include "bench_cuda.h"
#include "support/usage.h"

#include <unistd.h>

namespace {

enum { PAUSES = 5, PAUSE_MICROSECONDS = 20000, AFTER_A_PAUSE = 3, LOAD_MS = 300 };

/* The median of single calls, some of them after each pause, behind one that wakes the GPU up. */
double burst_ms(const std::function<void()> &op) {
    std::vector<double> times;
    for (int i = 0; i < PAUSES; i++) {
        time_ms(1, op);
        usleep(PAUSE_MICROSECONDS);
        time_ms(1, op);
        for (int j = 0; j < AFTER_A_PAUSE; j++) times.push_back(time_ms(1, op));
    }
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

/* The mean of calls behind others of the same length in time. */
double steady_ms(const std::function<void()> &op) {
    const int calls = std::max(2, static_cast<int>(LOAD_MS / time_ms(1, op)));
    time_ms(calls, op);
    return time_ms(calls, op);
}

/* ---- a layer ----------------------------------------------------------------------------------- */

struct layer {
    int64_t T, H, F, E, K, rows;
    wb_router router;
    wb_rows x, up, down, router_w, gate_up, act, y, out, dout, dy, dact, dx, gathered;
    float *logits, *weights, *dweights, *dlogits, *dup, *ddown;
    int32_t *pair_row, *row_token, *offsets, *rule;
    wb_ids ids;

    wb_grouped group_up() const {
        wb_grouped g = {};
        g.n_groups = static_cast<int32_t>(E), g.offsets = offsets, g.max_rows = rows;
        g.w = {up.data, WB_BF16, 2 * F, H, false}, g.gather = row_token, g.gathered = gathered;
        return g;
    }
    /* where no backward follows, gate and up are of no use */
    wb_grouped group_up_alone() const {
        wb_grouped g = group_up();
        g.y_is_scratch = true;
        return g;
    }
    wb_grouped group_down() const {
        wb_grouped g = {};
        g.n_groups = static_cast<int32_t>(E), g.offsets = offsets, g.max_rows = rows;
        g.w = {down.data, WB_BF16, H, F, false};
        return g;
    }
    wb_moe_plan plan() const {
        wb_moe_plan p = {};
        p.T = T, p.top_k = static_cast<int32_t>(K), p.n_experts = p.n_slots = static_cast<int32_t>(E);
        p.rule.slot_of_expert = rule;
        p.ids = ids, p.pair_row = pair_row, p.row_token = row_token, p.offsets = offsets;
        return p;
    }
};

/* The router's logits are noise, and a skew that makes expert e as likely as 1 / (e + 1)^skew. */
void make_layer(layer *l, float skew) {
    const int64_t n = l->rows = l->T * l->K;
    std::vector<float> logits(static_cast<size_t>(l->T * l->E));
    std::vector<int32_t> slots(static_cast<size_t>(l->E));
    for (int64_t e = 0; e < l->E; e++) slots[static_cast<size_t>(e)] = static_cast<int32_t>(e);
    for (size_t i = 0; i < logits.size(); i++) {
        state ^= state << 13, state ^= state >> 7, state ^= state << 17;
        const double u = (static_cast<double>(state >> 11) + 0.5) / 9007199254740992.0;
        const double rank = static_cast<double>(static_cast<int64_t>(i) % l->E + 1);
        logits[i] = static_cast<float>(-std::log(-std::log(u)) - static_cast<double>(skew) * std::log(rank));
    }
    l->router = {
        WB_ROUTER_SOFTMAX_NORM, static_cast<int32_t>(l->E), static_cast<int32_t>(l->K), 0, 0, true, 1};
    l->x = random_rows(l->T * l->H, 1), l->dout = random_rows(l->T * l->H, 1),
    l->out = random_rows(l->T * l->H, 1);
    l->up = random_rows(l->E * 2 * l->F * l->H, 1 / std::sqrt(static_cast<float>(l->H)));
    l->down = random_rows(l->E * l->F * l->H, 1 / std::sqrt(static_cast<float>(l->F)));
    l->router_w = random_rows(l->E * l->H, 0.02f);
    l->gate_up = random_rows(n * 2 * l->F, 1), l->act = random_rows(n * l->F, 1),
    l->dact = random_rows(n * l->F, 1);
    l->y = random_rows(n * l->H, 1), l->dx = random_rows(n * l->H, 1), l->gathered = random_rows(n * l->H, 1);
    l->dy = l->y;
    l->logits = static_cast<float *>(memory(4 * l->T * l->E));
    must(dev->to_device(dev, l->logits, logits.data(), logits.size() * 4), "upload");
    l->dlogits = random_floats(l->T * l->E, 1);
    l->weights = random_floats(n, 1), l->dweights = random_floats(n, 1);
    l->dup = static_cast<float *>(memory(4 * l->E * 2 * l->F * l->H));
    l->ddown = static_cast<float *>(memory(4 * l->E * l->F * l->H));
    must(dev->zero(dev, l->dup, static_cast<size_t>(4 * l->E * 2 * l->F * l->H)), "zero");
    must(dev->zero(dev, l->ddown, static_cast<size_t>(4 * l->E * l->F * l->H)), "zero");
    l->pair_row = static_cast<int32_t *>(memory(4 * n)), l->row_token = static_cast<int32_t *>(memory(4 * n));
    l->offsets = static_cast<int32_t *>(memory(4 * (l->E + 1))),
    l->rule = static_cast<int32_t *>(memory(4 * l->E));
    must(dev->to_device(dev, l->rule, slots.data(), slots.size() * 4), "upload");
    l->ids = {memory(n), WB_U8, l->K};
}

/* ---- times ---------------------------------------------------------------------------------------- */

double dense, dense_steady; /* TFLOP/s */

void show(const char *what, double ms, double flop, double beside) {
    printf("%-38s %9.3f ms %8.1f TFLOP/s %6.3f of dense\n", what, ms, flop / ms / 1e9,
           flop / ms / 1e9 / beside);
}

void show_bytes(const char *what, double ms, double bytes) {
    printf("%-38s %9.3f ms %8.2f TB/s\n", what, ms, bytes / ms / 1e9);
}

void time_dense() {
    const int64_t n = 8192;
    wb_rows a = random_rows(n * n, 1), b = random_rows(n * n, 1), c = random_rows(n * n, 1);
    const wb_matmul m = wb_matmul_forward(n, a, {b.data, WB_BF16, n, n, false}, c);
    const double flop = 2.0 * 8192 * 8192 * 8192;
    auto multiply = [&] { must(dev->matmul(dev, 1, &m), "matmul"); };
    const double burst = burst_ms(multiply), steady = steady_ms(multiply);
    dense = flop / burst / 1e9, dense_steady = flop / steady / 1e9;
    show("own matmul 8192^3", burst, flop, dense);
    show("own matmul 8192^3, steady", steady, flop, dense_steady);
    for (void *p : {a.data, b.data, c.data}) dev->mem_free(dev, p);
}

void time_layer(const layer &l) {
    const wb_grouped up_alone = l.group_up_alone();
    wb_grouped up = l.group_up(), down = l.group_down();
    const wb_moe_plan plan = l.plan();
    const wb_rows none = {nullptr, WB_F32};
    const double n = static_cast<double>(l.rows), H = static_cast<double>(l.H), F = static_cast<double>(l.F);
    const double T = static_cast<double>(l.T), E = static_cast<double>(l.E), one = 2 * n * F * H;
    wb_topk topk = {};
    topk.router = l.router, topk.T = l.T, topk.logits = l.logits, topk.ids = l.ids;
    float *logits = static_cast<float *>(memory(4 * l.T * l.E));
    const wb_matmul router =
        wb_matmul_forward(l.T, l.x, {l.router_w.data, WB_BF16, l.E, l.H, false}, wb_f32_rows(logits));
    auto multiply = [&] { must(dev->matmul(dev, 1, &router), "router"); };
    auto select = [&] { must(dev->topk(dev, &topk), "topk"); };
    auto weigh = [&] {
        must(dev->gate_forward(dev, &l.router, l.T, l.logits, nullptr, l.ids, l.weights), "gate");
    };
    auto place = [&] { must(dev->moe_plan(dev, &plan), "plan"); };
    auto choose = [&] { multiply(), select(), weigh(), place(); };
    auto forward_up = [&] { must(dev->grouped_matmul(dev, &up_alone, l.x, l.gate_up, l.act), "up"); };
    auto forward_up_kept = [&] { must(dev->grouped_matmul(dev, &up, l.x, l.gate_up, l.act), "up"); };
    auto forward_down = [&] { must(dev->grouped_matmul(dev, &down, l.act, l.y, none), "down"); };
    auto combine = [&] {
        must(dev->moe_combine(dev, l.T, static_cast<int32_t>(l.K), l.H, l.y, l.pair_row, l.weights, l.out),
             "combine");
    };
    auto combine_back = [&] {
        must(dev->moe_combine_backward(dev, l.T, static_cast<int32_t>(l.K), l.H, l.y, l.pair_row, l.weights,
                                       l.dout, l.dy, l.dweights),
             "combine_backward");
    };
    auto down_back = [&] {
        must(dev->grouped_matmul_backward(dev, &down, l.act, l.dy, l.ddown, l.dact, l.gate_up),
             "down_backward");
    };
    auto up_back = [&] {
        must(dev->grouped_matmul_backward(dev, &up, l.x, l.gate_up, l.dup, l.dx, none), "up_backward");
    };
    auto sum_back = [&] {
        must(dev->moe_combine(dev, l.T, static_cast<int32_t>(l.K), l.H, l.dx, l.pair_row, nullptr, l.out),
             "sum");
        must(dev->gate_backward(dev, &l.router, l.T, l.logits, nullptr, l.ids, l.dweights, l.dlogits),
             "gate_backward");
    };
    auto forward = [&] { choose(), forward_up(), forward_down(), combine(); };
    auto replayed = [&] { multiply(), weigh(), forward_up(), forward_down(), combine(); };
    auto kept = [&] { choose(), forward_up_kept(), forward_down(), combine(); };
    auto both = [&] { kept(), combine_back(), down_back(), up_back(), sum_back(); };
    auto overwrite = [&](bool yes) { up.overwrites = down.overwrites = yes; };
    printf("T %lld, H %lld, F %lld, E %lld, K %lld\n", (long long)l.T, (long long)l.H, (long long)l.F,
           (long long)l.E, (long long)l.K);
    show_bytes("router product", burst_ms(multiply), T * H * 2 + T * E * 4);
    show_bytes("top-k", burst_ms(select), T * E * 4);
    show_bytes("gate", burst_ms(weigh), n * 36);
    show_bytes("plan", burst_ms(place), n * 9);
    show("gate_up + SwiGLU, gathered", burst_ms(forward_up), 2 * one, dense);
    show("the same, gate_up kept", burst_ms(forward_up_kept), 2 * one, dense);
    show("down", burst_ms(forward_down), one, dense);
    show_bytes("combine", burst_ms(combine), (n + T) * H * 2);
    show_bytes("combine backward", burst_ms(combine_back), (2 * n + T) * H * 2);
    kept();
    show("down backward (dw, dx + dSwiGLU)", burst_ms(down_back), 2 * one, dense);
    kept();
    show("gate_up backward (dw, dx)", burst_ms(up_back), 4 * one, dense);
    show_bytes("sum of dx, gate backward", burst_ms(sum_back), (n + T) * H * 2);
    show("layer, forward", burst_ms(forward), 3 * one, dense);
    show("layer, forward, replayed by plan", burst_ms(replayed), 3 * one, dense);
    show("layer, forward, gate_up kept", burst_ms(kept), 3 * one, dense);
    show("layer, forward + backward", burst_ms(both), 9 * one, dense);
    overwrite(true);
    show("layer, both, dw overwritten", burst_ms(both), 9 * one, dense);
    overwrite(false);
    show("layer, forward, steady", steady_ms(forward), 3 * one, dense_steady);
    for (int i = 0; i < 2; i++) {
        overwrite(false);
        show("layer, forward + backward, steady", steady_ms(both), 9 * one, dense_steady);
        overwrite(true);
        show("layer, both, dw overwritten, steady", steady_ms(both), 9 * one, dense_steady);
    }
}

} // namespace

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 0, 6,
                   "usage: bench_layer_cuda [TOKENS [HIDDEN WIDTH EXPERTS CHOICES [SKEW]]]\n", &code))
        return code;
    layer l = {};
    auto argument = [&](int i, int64_t other) { return argc > i ? atoll(argv[i]) : other; };
    l.T = argument(1, 16384), l.H = argument(2, 2048), l.F = argument(3, 768);
    l.E = argument(4, 128), l.K = argument(5, 8);
    if (!open_device()) return 77;
    time_dense();
    make_layer(&l, argc > 6 ? static_cast<float>(atof(argv[6])) : 0.0f);
    time_layer(l);
    wb_device_close(dev);
    return 0;
}
