/* bench_router_cuda.cu - time of topk, of the gate and of the plan on CUDA, as a share of this device's copy
 * bandwidth; and of a replayed micro-batch beside a native one.
 *
 * Owns: buffers that together exceed the L2 cache, used in turn; CUDA graphs of one call for each, so that
 * no launch gap is timed; CUDA events around a replay, medians. The first rows of a timed output are
 * compared with the CPU's. Refuses: peers. Bytes: what must cross memory at least, each once; of logits
 * gathered at ids, the 32-byte sectors that hold them. Random normal logits. argv[1]: one
 * number of tokens alone.
 */
#include "bench_cuda.h"
#include "support/usage.h"

#include <cinttypes>
#include <cstring>

namespace {

const int64_t K = 8, COPY_BYTES = int64_t(1) << 28, ROTATED_BYTES = int64_t(1) << 28, CHECKED_ROWS = 256;
enum { MAX_SETS = 32, REPLAYS = 31, SECTOR_FLOATS = 8 };

/* Median microseconds of one call of `op(i)`, i going over `sets`. */
double time_us(int sets, const std::function<void(int)> &op) {
    cudaGraph_t graph;
    cudaGraphExec_t replay;
    cudaEvent_t begin, end;
    must_cuda(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal), "begin capture");
    for (int i = 0; i < sets; i++) op(i);
    must_cuda(cudaStreamEndCapture(stream, &graph), "end capture");
    must_cuda(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
    must_cuda(cudaEventCreate(&begin), "event");
    must_cuda(cudaEventCreate(&end), "event");
    std::vector<double> times;
    for (int i = 0; i < WARM_UPS + REPLAYS; i++) {
        float ms = 0.0f;
        must_cuda(cudaEventRecord(begin, stream), "record");
        must_cuda(cudaGraphLaunch(replay, stream), "launch");
        must_cuda(cudaEventRecord(end, stream), "record");
        must_cuda(cudaEventSynchronize(end), "synchronize");
        must_cuda(cudaEventElapsedTime(&ms, begin, end), "elapsed");
        if (i >= WARM_UPS) times.push_back(1000.0 * ms / sets);
    }
    must_cuda(cudaEventDestroy(begin), "event");
    must_cuda(cudaEventDestroy(end), "event");
    must_cuda(cudaGraphExecDestroy(replay), "graph");
    must_cuda(cudaGraphDestroy(graph), "graph");
    std::sort(times.begin(), times.end());
    return times[times.size() / 2];
}

float *device_floats(const std::vector<float> &host) {
    float *p = static_cast<float *>(memory(static_cast<int64_t>(host.size() * sizeof(float))));
    must(dev->to_device(dev, p, host.data(), host.size() * sizeof(float)), "to_device");
    return p;
}

/* The same few million over and over. */
std::vector<float> random_normal(int64_t count) {
    const size_t part = size_t(1) << 22;
    std::vector<float> values(static_cast<size_t>(count));
    for (size_t i = 0; i < values.size(); i++) values[i] = i < part ? 2.0f * normal() : values[i - part];
    return values;
}

/* A set of operands, with a plan of one slot an expert. */
struct buffers {
    float *logits, *weights, *dweights, *dlogits;
    wb_ids ids;
    wb_moe_plan plan;
};

struct workload {
    wb_router router;
    int64_t T;
    float *bias;
    std::vector<buffers> sets;
};

int32_t *device_numbers(int64_t count) {
    return static_cast<int32_t *>(memory(4 * count));
}

wb_moe_plan make_plan(const workload &work, wb_ids ids) {
    const int32_t E = work.router.n_experts;
    wb_moe_plan plan = {};
    std::vector<int32_t> slots(static_cast<size_t>(E));
    for (int32_t e = 0; e < E; e++) slots[static_cast<size_t>(e)] = (e * 5 + 3) % E;
    int32_t *table = device_numbers(E);
    must(dev->to_device(dev, table, slots.data(), slots.size() * 4), "to_device");
    plan.T = work.T, plan.top_k = int32_t(K), plan.n_experts = plan.n_slots = E;
    plan.rule.slot_of_expert = table;
    plan.ids = ids;
    plan.pair_row = device_numbers(work.T * K);
    plan.row_token = device_numbers(work.T * K);
    plan.offsets = device_numbers(E + 1);
    return plan;
}

buffers make_buffers(const workload &work, const std::vector<float> &logits,
                     const std::vector<float> &dweights) {
    buffers set;
    set.ids = wb_ids{memory(work.T * K), WB_U8, K};
    set.logits = device_floats(logits);
    set.dlogits = device_floats(logits);
    set.dweights = device_floats(dweights);
    set.weights = device_floats(dweights);
    set.plan = make_plan(work, set.ids);
    return set;
}

void free_buffers(buffers &set) {
    void *parts[] = {
        set.ids.data,      set.logits,         set.dlogits,
        set.dweights,      set.weights,        const_cast<int32_t *>(set.plan.rule.slot_of_expert),
        set.plan.pair_row, set.plan.row_token, set.plan.offsets};
    for (void *part : parts) dev->mem_free(dev, part);
}

void run_topk(wb_device *on, const workload &work, const buffers &set) {
    wb_topk args = {};
    args.router = work.router;
    args.T = work.T;
    args.logits = set.logits;
    args.bias = work.bias;
    args.ids = set.ids;
    must(on->topk(on, &args), "topk");
}

void run_forward(wb_device *on, const workload &work, const buffers &set) {
    must(on->gate_forward(on, &work.router, work.T, set.logits, NULL, set.ids, set.weights), "gate_forward");
}

void run_backward(wb_device *on, const workload &work, const buffers &set) {
    must(on->gate_backward(on, &work.router, work.T, set.logits, NULL, set.ids, set.dweights, set.dlogits),
         "gate_backward");
}

void run_plan(const buffers &set) {
    must(dev->moe_plan(dev, &set.plan), "moe_plan");
}

template <typename T> std::vector<T> download(const void *device, int64_t count) {
    std::vector<T> host(static_cast<size_t>(count));
    must(dev->to_host(dev, host.data(), device, host.size() * sizeof(T)), "to_host");
    return host;
}

void must_equal(const void *cpu, const void *cuda, size_t bytes, const char *what) {
    if (memcmp(cpu, cuda, bytes) == 0) return;
    fprintf(stderr, "%s: not the CPU's bits\n", what);
    exit(1);
}

/* The first rows of a set's timed outputs against the CPU. */
void check(const workload &work, const buffers &set) {
    const int64_t E = work.router.n_experts, T = std::min(work.T, CHECKED_ROWS);
    std::vector<float> logits = download<float>(set.logits, T * E);
    std::vector<float> dweights = download<float>(set.dweights, T * K);
    std::vector<float> bias(static_cast<size_t>(E)), weights(dweights), dlogits(logits);
    std::vector<uint8_t> ids(static_cast<size_t>(T * K));
    if (work.bias) bias = download<float>(work.bias, E);
    workload host = {work.router, T, work.bias ? bias.data() : nullptr, {}};
    buffers at = {
        logits.data(), weights.data(), dweights.data(), dlogits.data(), wb_ids{ids.data(), WB_U8, K}, {}};
    wb_device *cpu = nullptr;
    must(wb_device_open_cpu(1, &cpu), "wb_device_open_cpu");
    run_topk(cpu, host, at);
    run_forward(cpu, host, at);
    run_backward(cpu, host, at);
    wb_device_close(cpu);
    must_equal(ids.data(), download<uint8_t>(set.ids.data, T * K).data(), ids.size(), "topk");
    must_equal(weights.data(), download<float>(set.weights, T * K).data(), weights.size() * 4,
               "gate_forward");
    must_equal(dlogits.data(), download<float>(set.dlogits, T * E).data(), dlogits.size() * 4,
               "gate_backward");
}

/* Bytes of logits that the gate must read: all for SOFTMAX, else the sectors of the chosen experts. */
double gate_logit_bytes(const workload &work) {
    int64_t E = work.router.n_experts, sectors = 0;
    if (work.router.type == WB_ROUTER_SOFTMAX) return 4.0 * static_cast<double>(work.T * E);
    std::vector<uint8_t> ids = download<uint8_t>(work.sets[0].ids.data, work.T * K);
    for (int64_t t = 0; t < work.T; t++) {
        uint64_t seen = 0; /* E <= 256: at most 32 sectors */
        for (int64_t k = 0; k < K; k++)
            seen |= uint64_t(1) << (ids[static_cast<size_t>(t * K + k)] / SECTOR_FLOATS);
        for (; seen; seen &= seen - 1) sectors++;
    }
    return static_cast<double>(sectors * SECTOR_FLOATS * 4);
}

void print(const workload &work, const char *op, double us, double bytes, double copy) {
    double rate = bytes / us * 1e-3;
    printf("%-14s %-12s T %7" PRId64 " E %4d K %" PRId64
           " groups %d/%d %9.2f us %8.1f MB %7.0f GB/s  %5.1f %% of copy\n",
           op, wb_router_name(work.router.type), work.T, work.router.n_experts, K, work.router.topk_group,
           work.router.n_group, us, bytes * 1e-6, rate, 100.0 * rate / copy);
}

/* Times of one call of `op` over the sets of a workload. */
template <typename F> double time_sets(const workload &work, F op) {
    const int sets = static_cast<int>(work.sets.size());
    return time_us(sets, [&](int i) { op(work.sets[static_cast<size_t>(i)]); });
}

/* What a native micro-batch does between the router's product and its experts, and a replayed one, whose ids
 * are there; and a planned one, whose plan is there too. */
void bench_replay(const workload &work) {
    const double native = time_sets(work, [&](const buffers &set) {
        run_topk(dev, work, set), run_forward(dev, work, set), run_plan(set);
    });
    const double replayed =
        time_sets(work, [&](const buffers &set) { run_forward(dev, work, set), run_plan(set); });
    const double planned = time_sets(work, [&](const buffers &set) { run_forward(dev, work, set); });
    printf("replay         %-12s T %7" PRId64 " E %4d K %" PRId64
           "   native %.2f us, replayed %.2f us: %.2f of it, planned %.2f us: %.2f of it\n",
           wb_router_name(work.router.type), work.T, work.router.n_experts, K, native, replayed,
           replayed / native, planned, planned / native);
}

void bench_ops(const workload &work, double copy) {
    const int64_t E = work.router.n_experts, T = work.T;
    const double all = static_cast<double>(T * E * 4), ids = static_cast<double>(T * K), weights = 4.0 * ids;
    const double topk = time_sets(work, [&](const buffers &set) { run_topk(dev, work, set); });
    const double forward = time_sets(work, [&](const buffers &set) { run_forward(dev, work, set); });
    const double backward = time_sets(work, [&](const buffers &set) { run_backward(dev, work, set); });
    const double plan = time_sets(work, [&](const buffers &set) { run_plan(set); });
    check(work, work.sets.back());
    const double read = gate_logit_bytes(work) + ids + weights;
    print(work, "topk", topk, all + ids, copy);
    print(work, "gate_forward", forward, read, copy);
    print(work, "gate_backward", backward, read + all, copy);
    print(work, "forward+back", forward + backward, 2.0 * read + all, copy);
    print(work, "moe_plan", plan, 9.0 * ids, copy);
}

void bench(const wb_router &router, int64_t T, double copy) {
    const int64_t E = router.n_experts;
    const std::vector<float> logits = random_normal(T * E), dweights = random_normal(T * K);
    const bool biased = router.type == WB_ROUTER_SIGMOID;
    workload work = {router, T, biased ? device_floats(random_normal(E)) : nullptr, {}};
    const int64_t wanted = std::min<int64_t>(MAX_SETS, std::max<int64_t>(2, ROTATED_BYTES / (T * E * 4) + 1));
    for (int64_t i = 0; i < wanted; i++) work.sets.push_back(make_buffers(work, logits, dweights));
    for (const buffers &set : work.sets) run_topk(dev, work, set);
    run_plan(work.sets[0]); /* its memory is there before a graph is captured */
    bench_ops(work, copy);
    bench_replay(work);
    for (buffers &set : work.sets) free_buffers(set);
    dev->mem_free(dev, work.bias);
}

/* GB/s of a device-to-device copy, bytes read plus bytes written. */
double copy_rate() {
    const std::vector<float> values = random_normal(COPY_BYTES / 4);
    float *from = device_floats(values), *to = device_floats(values);
    const double us = time_us(2, [&](int i) {
        must(dev->copy(dev, i ? from : to, i ? to : from, static_cast<size_t>(COPY_BYTES)), "copy");
    });
    dev->mem_free(dev, from);
    dev->mem_free(dev, to);
    return 2.0 * static_cast<double>(COPY_BYTES) / us * 1e-3;
}

} // namespace

int main(int argc, char **argv) {
    int code = 0;
    if (usage_ends(argc, argv, 0, 1, "usage: bench_router_cuda [TOKENS]\n", &code)) return code;
    if (!open_device()) return 77;
    const double copy = copy_rate();
    printf("device-to-device copy %.0f GB/s read + written\n", copy);
    const wb_router routers[] = {
        {WB_ROUTER_SOFTMAX_NORM, 128, int32_t(K), 1, 1, false, 1.0f},
        {WB_ROUTER_SOFTMAX_NORM, 256, int32_t(K), 1, 1, false, 1.0f},
        {WB_ROUTER_SOFTMAX, 128, int32_t(K), 1, 1, false, 1.0f},
        {WB_ROUTER_SIGMOID, 128, int32_t(K), 1, 1, true, 2.5f},
        {WB_ROUTER_SIGMOID, 256, int32_t(K), 8, 4, true, 2.5f},
    };
    for (int64_t T : {int64_t(64), int64_t(512), int64_t(16384), int64_t(32768), int64_t(262144)})
        for (const wb_router &router : routers)
            if (argc < 2 || T == atoll(argv[1])) bench(router, T, copy);
    wb_device_close(dev);
    return 0;
}
