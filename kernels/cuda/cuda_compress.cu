/* cuda_compress.cu - the entries that a compressor makes of a sequence's positions, and the backward.
 *
 * A thread a channel of the entry that ends at a token, which it makes by itself from the entry's positions,
 * or, where these began before the call, from what the state has of them: the same chain as one that goes
 * over all positions (compress_rules.h). States are renewed behind all entries. Refuses: the norm and the
 * rotation of entries (cuda_rows.cu), and where they lie. */
#include "compress_check.h"
#include "compress_rules.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_recurrent.h"
#include "cuda/cuda_scratch.h"

namespace {

/* The gate and the value of a token's channel. */
struct slot {
    float gate, value;
};

__device__ __forceinline__ slot load_slot(const wb_compress &args, int64_t t, int64_t channel) {
    const int64_t C = compress_channels(&args), at = t * C + channel;
    const float bias = args.bias[args.pos[t] % args.ratio * C + channel];
    return {wb_add(load_element(args.gates, at), bias), load_element(args.values, at)};
}

__device__ __forceinline__ compress_sum load_sum(const wb_compress &args, const wb_sequence_run &run, int of,
                                                 int64_t d) {
    if (!args.of.states) return {0.0f, 0.0f, 0.0f};
    const float *state = run_state(args.of, run);
    return {state[compress_state_at(&args, of, 0, d)], state[compress_state_at(&args, of, 1, d)],
            state[compress_state_at(&args, of, 2, d)]};
}

/* Channel d of entry w as far as the positions before `end` go, which are the run's or lie before it. */
__device__ __forceinline__ compress_sum sum_positions(const wb_compress &args, const wb_sequence_run &run,
                                                      int32_t w, int32_t end, int64_t d) {
    const int32_t first = args.pos[run.start],
                  current = first / args.ratio; /* the entry that is to end next */
    const int32_t own = w * args.ratio, begin = args.overlaps ? own - args.ratio : own;
    compress_sum sum = {0.0f, 0.0f, 0.0f};
    if (w == current) sum = load_sum(args, run, 0, d);
    if (w == current + 1 && args.overlaps) sum = load_sum(args, run, 1, d);
    for (int32_t pos = max(begin, first); pos < min(end, own + args.ratio); pos++) {
        const slot s = load_slot(args, run.start + pos - first, compress_channel(&args, pos >= own, d));
        sum = compress_add(sum, s.gate, s.value);
    }
    return sum;
}

__global__ void __launch_bounds__(BLOCK) make_entries(wb_compress args, wb_rows entries) {
    const int64_t place = thread_number(), t = place / args.width, d = place % args.width;
    if (t >= args.of.T) return;
    const wb_sequence_run run = find_run(args.of, t);
    const int32_t pos = args.pos[t];
    float entry = 0.0f;
    if (run.n > 0 && (pos + 1) % args.ratio == 0)
        entry = compress_entry(sum_positions(args, run, pos / args.ratio, pos + 1, d));
    store_element(entries, place, entry);
}

__device__ __forceinline__ void store_sum(const wb_compress &args, const wb_sequence_run &run, int of,
                                          int64_t d, const compress_sum &sum) {
    float *state = run_state(args.of, run);
    state[compress_state_at(&args, of, 0, d)] = sum.largest;
    state[compress_state_at(&args, of, 1, d)] = sum.weights;
    state[compress_state_at(&args, of, 2, d)] = sum.values;
}

/* A thread a channel of a run's state, of which it reads all before it writes any. */
__global__ void __launch_bounds__(BLOCK) leave_states(wb_compress args) {
    const int64_t place = thread_number(), d = place % args.width;
    if (place / args.width >= args.of.n_runs) return;
    const wb_sequence_run run = args.of.runs[place / args.width];
    if (run.n == 0) return;
    const int32_t end = args.pos[run.start] + run.n, w = end / args.ratio;
    const compress_sum next = sum_positions(args, run, w, end, d);
    if (!args.overlaps) {
        store_sum(args, run, 0, d, next);
        return;
    }
    const compress_sum behind = sum_positions(args, run, w + 1, end, d);
    store_sum(args, run, 0, d, next);
    store_sum(args, run, 1, d, behind);
}

/* A thread a channel of the entry that ends at a token: its positions' gradients, which no other one has.
 * exact: those of the gates as they are before they are rounded, or NULL where dgates is f32. */
__global__ void __launch_bounds__(BLOCK)
    entries_back(wb_compress args, wb_rows dentries, wb_rows dvalues, wb_rows dgates, float *exact) {
    const int64_t place = thread_number(), t = place / args.width, d = place % args.width;
    if (t >= args.of.T) return;
    const wb_sequence_run run = find_run(args.of, t);
    const int32_t end = args.pos[t] + 1, w = args.pos[t] / args.ratio, own = w * args.ratio;
    if (run.n == 0 || end % args.ratio != 0) return;
    const compress_sum sum = sum_positions(args, run, w, end, d);
    const float entry = compress_entry(sum), gradient = load_element(dentries, place);
    for (int32_t pos = max(args.overlaps ? own - args.ratio : own, 0); pos < end; pos++) {
        const int64_t u = t - (end - 1 - pos), channel = compress_channel(&args, pos >= own, d);
        const slot s = load_slot(args, u, channel);
        float dgate, dvalue;
        compress_gradient(sum, entry, s.gate, s.value, gradient, &dgate, &dvalue);
        if (exact) exact[u * compress_channels(&args) + channel] = dgate;
        store_element(dgates, u * compress_channels(&args) + channel, dgate);
        store_element(dvalues, u * compress_channels(&args) + channel, dvalue);
    }
}

/* A thread a channel of a place in the entry, over ascending tokens. Runs begin at position 0. */
__global__ void __launch_bounds__(BLOCK) bias_back(wb_compress args, const float *dgates, float *dbias) {
    const int64_t place = thread_number(), C = compress_channels(&args), channel = place % C;
    if (place / C >= args.ratio) return;
    float sum = dbias[place];
    for (int64_t i = 0; i < args.of.n_runs; i++) {
        const wb_sequence_run run = args.of.runs[i];
        for (int64_t t = run.start + place / C; t < run.start + run.n; t += args.ratio)
            sum = wb_add(sum, dgates[t * C + channel]);
    }
    dbias[place] = sum;
}

wb_status launch_states(wb_device *dev, const wb_compress *args) {
    LAUNCH(dev, "compress_forward", args->of.n_runs * args->width, 1, leave_states, *args);
}

wb_status launch_entries_back(wb_device *dev, const wb_compress *args, wb_rows dentries, wb_rows dvalues,
                              wb_rows dgates, float *exact) {
    LAUNCH(dev, "compress_backward", args->of.T * args->width, 1, entries_back, *args, dentries, dvalues,
           dgates, exact);
}

wb_status launch_entries(wb_device *dev, const wb_compress *args, wb_rows entries) {
    LAUNCH(dev, "compress_forward", args->of.T * args->width, 1, make_entries, *args, entries);
}

} // namespace

extern "C" {

/* Gradients of gates of bf16 as they are before they are rounded. */
size_t wb_cuda_compress_bytes(int64_t T, int64_t channels) {
    return static_cast<size_t>(T * channels) * sizeof(float);
}

wb_status wb_cuda_compress_forward(wb_device *dev, const wb_compress *args, wb_rows entries) {
    WB_TRY(compress_check("compress_forward", args, "entries", entries));
    WB_TRY(launch_entries(dev, args, entries));
    return args->of.states ? launch_states(dev, args) : WB_OK;
}

wb_status wb_cuda_compress_backward(wb_device *dev, const wb_compress *args, wb_rows dentries,
                                    wb_rows dvalues, wb_rows dgates, float *dbias) {
    WB_TRY(compress_back_check(args, dentries, dvalues, dgates));
    const int64_t C = compress_channels(args);
    const size_t bytes = static_cast<size_t>(args->of.T * C) * wb_dtype_size(args->values.dtype);
    if (args->of.T == 0) return WB_OK;
    WB_TRY(dev->zero(dev, dvalues.data, bytes));
    WB_TRY(dev->zero(dev, dgates.data, bytes));
    float *exact = NULL;
    if (dgates.dtype == WB_BF16) {
        WB_TRY(reserve_scratch(dev, wb_cuda_compress_bytes(args->of.T, C), &exact));
        WB_TRY(dev->zero(dev, exact, wb_cuda_compress_bytes(args->of.T, C)));
    }
    WB_TRY(launch_entries_back(dev, args, dentries, dvalues, dgates, exact));
    const float *sums_of = exact ? exact : static_cast<const float *>(dgates.data);
    LAUNCH(dev, "compress_backward", args->ratio * C, 1, bias_back, *args, sums_of, dbias);
}
}
