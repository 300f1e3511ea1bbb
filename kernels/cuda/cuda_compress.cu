/* cuda_compress.cu - the entries that a compressor makes of a sequence's positions, and the backward.
 *
 * A thread a channel of the entry that ends at a token, which it makes by itself from the entry's positions,
 * or, where these began before the call, from what the state has of them: the same chain as one that goes
 * over all positions (compress_rules.h). States are renewed behind all entries. Refuses: the norm and the
 * rotation of entries (cuda_rows.cu), and where they lie. */
#include "compress_check.h"
#include "compress_rules.h"
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"

namespace {

/* The run that token t is of; NULL: padding. Where several begin at one token the last one has it. */
__device__ __forceinline__ const wb_sequence_run *run_of(const wb_compress &args, int64_t t) {
    int64_t low = 0, high = args.n_runs;
    while (low < high) {
        const int64_t middle = low + (high - low) / 2;
        if (args.runs[middle].start <= t)
            low = middle + 1;
        else
            high = middle;
    }
    if (low == 0) return NULL;
    const wb_sequence_run *run = args.runs + low - 1;
    return t < run->start + run->n ? run : NULL;
}

__device__ __forceinline__ int64_t channels_of(const wb_compress &args) {
    return args.overlaps ? 2 * args.width : args.width;
}

/* The gate and the value of a token's channel. */
struct slot {
    float gate, value;
};

__device__ __forceinline__ slot load_slot(const wb_compress &args, int64_t t, int64_t channel) {
    const int64_t C = channels_of(args), at = t * C + channel;
    const float bias = args.bias[args.pos[t] % args.ratio * C + channel];
    return {wb_add(load_element(args.gates, at), bias), load_element(args.values, at)};
}

/* What a state has of channel d of entry number `of`: 0, the one that is to end next, or the one behind it.
 * */
__device__ __forceinline__ float *state_at(const wb_compress &args, const wb_sequence_run *run, int of,
                                           int64_t d) {
    char *const state = args.states + run->state * args.state_stride;
    return reinterpret_cast<float *>(state) + of * 3 * args.width + d;
}

__device__ __forceinline__ compress_sum load_sum(const wb_compress &args, const wb_sequence_run *run, int of,
                                                 int64_t d) {
    if (!args.states) return {0.0f, 0.0f, 0.0f};
    const float *at = state_at(args, run, of, d);
    return {at[0], at[args.width], at[2 * args.width]};
}

/* Channel d of entry w as far as the positions before `end` go, which are the run's or lie before it. */
__device__ __forceinline__ compress_sum sum_positions(const wb_compress &args, const wb_sequence_run *run,
                                                      int32_t w, int32_t end, int64_t d) {
    const int32_t first = args.pos[run->start],
                  current = first / args.ratio; /* the entry that is to end next */
    const int32_t own = w * args.ratio, begin = args.overlaps ? own - args.ratio : own;
    compress_sum sum = {0.0f, 0.0f, 0.0f};
    if (w == current) sum = load_sum(args, run, 0, d);
    if (w == current + 1 && args.overlaps) sum = load_sum(args, run, 1, d);
    for (int32_t pos = max(begin, first); pos < min(end, own + args.ratio); pos++) {
        const bool is_own = pos >= own;
        const slot s =
            load_slot(args, run->start + pos - first, args.overlaps && is_own ? args.width + d : d);
        sum = compress_add(sum, s.gate, s.value);
    }
    return sum;
}

__global__ void __launch_bounds__(BLOCK) make_entries(wb_compress args, wb_rows entries) {
    const int64_t place = thread_number(), t = place / args.width, d = place % args.width;
    if (t >= args.T) return;
    const wb_sequence_run *run = run_of(args, t);
    const int32_t pos = args.pos[t];
    float entry = 0.0f;
    if (run && (pos + 1) % args.ratio == 0)
        entry = compress_entry(sum_positions(args, run, pos / args.ratio, pos + 1, d));
    store_element(entries, place, entry);
}

__device__ __forceinline__ void store_sum(const wb_compress &args, const wb_sequence_run *run, int of,
                                          int64_t d, const compress_sum &sum) {
    float *at = state_at(args, run, of, d);
    at[0] = sum.largest;
    at[args.width] = sum.weights;
    at[2 * args.width] = sum.values;
}

/* A thread a channel of a run's state, of which it reads all before it writes any. */
__global__ void __launch_bounds__(BLOCK) leave_states(wb_compress args) {
    const int64_t place = thread_number(), d = place % args.width;
    if (place / args.width >= args.n_runs) return;
    const wb_sequence_run *run = args.runs + place / args.width;
    if (run->n == 0) return;
    const int32_t end = args.pos[run->start] + run->n, w = end / args.ratio;
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
    if (t >= args.T) return;
    const wb_sequence_run *run = run_of(args, t);
    const int32_t end = args.pos[t] + 1, w = args.pos[t] / args.ratio, own = w * args.ratio;
    if (!run || end % args.ratio != 0) return;
    const compress_sum sum = sum_positions(args, run, w, end, d);
    const float entry = compress_entry(sum), gradient = load_element(dentries, place);
    for (int32_t pos = max(args.overlaps ? own - args.ratio : own, 0); pos < end; pos++) {
        const int64_t u = t - (end - 1 - pos), channel = args.overlaps && pos >= own ? args.width + d : d;
        const slot s = load_slot(args, u, channel);
        float dgate, dvalue;
        compress_gradient(sum, entry, s.gate, s.value, gradient, &dgate, &dvalue);
        if (exact) exact[u * channels_of(args) + channel] = dgate;
        store_element(dgates, u * channels_of(args) + channel, dgate);
        store_element(dvalues, u * channels_of(args) + channel, dvalue);
    }
}

/* A thread a channel of a place in the entry, over ascending tokens. Runs begin at position 0. */
__global__ void __launch_bounds__(BLOCK) bias_back(wb_compress args, const float *dgates, float *dbias) {
    const int64_t place = thread_number(), C = channels_of(args), channel = place % C;
    if (place / C >= args.ratio) return;
    float sum = dbias[place];
    for (int64_t i = 0; i < args.n_runs; i++) {
        const wb_sequence_run run = args.runs[i];
        for (int64_t t = run.start + place / C; t < run.start + run.n; t += args.ratio)
            sum = wb_add(sum, dgates[t * C + channel]);
    }
    dbias[place] = sum;
}

wb_status launch_states(wb_device *dev, const wb_compress *args) {
    LAUNCH(dev, "compress_forward", args->n_runs * args->width, 1, leave_states, *args);
}

wb_status launch_entries_back(wb_device *dev, const wb_compress *args, wb_rows dentries, wb_rows dvalues,
                              wb_rows dgates, float *exact) {
    LAUNCH(dev, "compress_backward", args->T * args->width, 1, entries_back, *args, dentries, dvalues, dgates,
           exact);
}

wb_status launch_entries(wb_device *dev, const wb_compress *args, wb_rows entries) {
    LAUNCH(dev, "compress_forward", args->T * args->width, 1, make_entries, *args, entries);
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
    return args->states ? launch_states(dev, args) : WB_OK;
}

wb_status wb_cuda_compress_backward(wb_device *dev, const wb_compress *args, wb_rows dentries,
                                    wb_rows dvalues, wb_rows dgates, float *dbias) {
    WB_TRY(compress_back_check(args, dentries, dvalues, dgates));
    const int64_t C = compress_channels(args);
    const size_t bytes = static_cast<size_t>(args->T * C) * wb_dtype_size(args->values.dtype);
    if (args->T == 0) return WB_OK;
    WB_TRY(dev->zero(dev, dvalues.data, bytes));
    WB_TRY(dev->zero(dev, dgates.data, bytes));
    float *exact = NULL;
    if (dgates.dtype == WB_BF16) {
        WB_TRY(reserve_scratch(dev, wb_cuda_compress_bytes(args->T, C), &exact));
        WB_TRY(dev->zero(dev, exact, wb_cuda_compress_bytes(args->T, C)));
    }
    WB_TRY(launch_entries_back(dev, args, dentries, dvalues, dgates, exact));
    const float *sums_of = exact ? exact : static_cast<const float *>(dgates.data);
    LAUNCH(dev, "compress_backward", args->ratio * C, 1, bias_back, *args, sums_of, dbias);
}
}
