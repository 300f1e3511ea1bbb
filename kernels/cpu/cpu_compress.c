/* cpu_compress.c - the entries that a compressor makes of a sequence's positions, and the backward.
 *
 * A channel of a sequence is one chain over its positions (compress_rules.h); threads have runs and blocks of
 * channels. Refuses: the norm and the rotation of entries (cpu_rows.c), and where they lie. */
#include "compress_check.h"
#include "compress_rules.h"
#include "cpu/cpu_recurrent.h"

/* Channels of one task. */
enum { CHANNELS = 64 };

/* The chains of a task's channels, for one entry. */
typedef struct chains {
    float largest[CHANNELS], weights[CHANNELS], values[CHANNELS];
} chains;

/* Of a call's arrays the channels [first, first + count) of entries. C: channels of a row of gates. */
typedef struct part {
    const wb_compress *args;
    const float *values, *gates; /* [T, C] */
    int64_t C, first, count;
} part;

static int64_t blocks_of(const wb_compress *args) {
    return (args->width + CHANNELS - 1) / CHANNELS;
}

static part part_of(const wb_compress *args, const operand *list, int64_t block) {
    const int64_t first = block * CHANNELS, left = args->width - first;
    return (part){
        args, list[0].f32, list[1].f32, compress_channels(args), first, left < CHANNELS ? left : CHANNELS};
}

/* The first of the part's channels of a position for its own entry, or for the one behind that. */
static int64_t first_channel(part p, bool is_own) {
    return compress_channel(p.args, is_own, p.first);
}

static const float *bias_at(part p, int64_t t, int64_t channel) {
    return p.args->bias + p.args->pos[t] % p.args->ratio * p.C + channel;
}

/* Goes on by token t, of which the chains have the channels from `channel` on. */
static void add_position(part p, int64_t t, int64_t channel, chains *c) {
    const float *gate = p.gates + t * p.C + channel, *value = p.values + t * p.C + channel;
    const float *bias = bias_at(p, t, channel);
    WB_INDEPENDENT
    for (int64_t i = 0; i < p.count; i++) {
        const compress_sum before = {c->largest[i], c->weights[i], c->values[i]};
        const compress_sum sum = compress_add(before, wb_add(gate[i], bias[i]), value[i]);
        c->largest[i] = sum.largest, c->weights[i] = sum.weights, c->values[i] = sum.values;
    }
}

static void end_entry(part p, const chains *c, float *entry) {
    for (int64_t i = 0; i < p.count; i++)
        entry[i] = compress_entry((compress_sum){c->largest[i], c->weights[i], c->values[i]});
}

/* ---- forward --------------------------------------------------------------------------------- */

/* The part's chains in a state, those of entry number `of`: three rows of all channels. */
static float *state_at(part p, const wb_sequence_run *run, int of, int row) {
    return run_state(&p.args->of, run) + compress_state_at(p.args, of, row, p.first);
}

static void load_chains(part p, const wb_sequence_run *run, int of, chains *c) {
    const size_t bytes = (size_t)p.count * sizeof(float);
    memset(c, 0, sizeof *c);
    if (!p.args->of.states) return;
    memcpy(c->largest, state_at(p, run, of, 0), bytes);
    memcpy(c->weights, state_at(p, run, of, 1), bytes);
    memcpy(c->values, state_at(p, run, of, 2), bytes);
}

static void store_chains(part p, const wb_sequence_run *run, int of, const chains *c) {
    const size_t bytes = (size_t)p.count * sizeof(float);
    if (!p.args->of.states) return;
    memcpy(state_at(p, run, of, 0), c->largest, bytes);
    memcpy(state_at(p, run, of, 1), c->weights, bytes);
    memcpy(state_at(p, run, of, 2), c->values, bytes);
}

static void forward_run(part p, const wb_sequence_run *run, float *entries) {
    const wb_compress *args = p.args;
    chains own, next;
    if (run->n == 0) return;
    load_chains(p, run, 0, &own);
    if (args->overlaps) load_chains(p, run, 1, &next);
    for (int64_t t = run->start; t < run->start + run->n; t++) {
        add_position(p, t, first_channel(p, true), &own);
        if (args->overlaps) add_position(p, t, first_channel(p, false), &next);
        if (args->pos[t] % args->ratio < args->ratio - 1) continue;
        end_entry(p, &own, entries + t * args->width + p.first);
        if (args->overlaps) own = next;
        memset(args->overlaps ? &next : &own, 0, sizeof own);
    }
    store_chains(p, run, 0, &own);
    if (args->overlaps) store_chains(p, run, 1, &next);
}

wb_status WB_CPU(compress_forward)(wb_device *dev, const wb_compress *args, wb_rows entries) {
    const int64_t n = args->of.T * compress_channels(args), n_entries = args->of.T * args->width;
    operand list[] = {{.name = "values", .rows = args->values, .n = n, .use = READ},
                      {.name = "gates", .rows = args->gates, .n = n, .use = READ},
                      {.name = "entries", .rows = entries, .n = n_entries, .use = WRITE}};
    WB_TRY(compress_check("compress_forward", args, "entries", entries));
    WB_TRY(WB_CPU(operands_open)(dev, "compress_forward", list, 3));
    const int64_t blocks = blocks_of(args);
    if (n_entries > 0) memset(list[2].f32, 0, (size_t)n_entries * sizeof(float));
#pragma omp parallel for schedule(dynamic) num_threads(wb_cpu_threads(dev, n * 8))
    for (int64_t task = 0; task < args->of.n_runs * blocks; task++)
        forward_run(part_of(args, list, task % blocks), args->of.runs + task / blocks, list[2].f32);
    WB_CPU(operands_close)(dev, list, 3);
    return WB_OK;
}

/* ---- backward -------------------------------------------------------------------------------- */

/* Where gradients go, [T, C] each. */
typedef struct gradients {
    float *dvalues, *dgates;
} gradients;

/* Of the R positions from token t on, as positions of an entry with these chains. */
static void backward_positions(part p, int64_t t, int64_t channel, const chains *c, const float *entry,
                               const float *d, gradients to) {
    for (int64_t end = t + p.args->ratio; t < end; t++) {
        const int64_t at = t * p.C + channel;
        const float *bias = bias_at(p, t, channel);
        const float *gates = p.gates + at, *values = p.values + at;
        float *dgates = to.dgates + at, *dvalues = to.dvalues + at;
        WB_INDEPENDENT
        for (int64_t i = 0; i < p.count; i++) {
            float dgate, dvalue;
            compress_gradient((compress_sum){c->largest[i], c->weights[i], c->values[i]}, entry[i],
                              wb_add(gates[i], bias[i]), values[i], d[i], &dgate, &dvalue);
            dgates[i] = dgate, dvalues[i] = dvalue;
        }
    }
}

/* Entry after entry: its chains again, then the gradients of its positions. */
static void backward_run(part p, const wb_sequence_run *run, const float *dentries, gradients to) {
    const int64_t R = p.args->ratio;
    for (int64_t begin = run->start; begin + R <= run->start + run->n; begin += R) {
        const bool before = p.args->overlaps && begin > run->start;
        const float *d = dentries + (begin + R - 1) * p.args->width + p.first;
        float entry[CHANNELS];
        chains c = {{0}, {0}, {0}};
        for (int64_t t = begin - R; before && t < begin; t++) add_position(p, t, first_channel(p, false), &c);
        for (int64_t t = begin; t < begin + R; t++) add_position(p, t, first_channel(p, true), &c);
        end_entry(p, &c, entry);
        if (before) backward_positions(p, begin - R, first_channel(p, false), &c, entry, d, to);
        backward_positions(p, begin, first_channel(p, true), &c, entry, d, to);
    }
}

/* dbias of the channels [begin, end). */
static void add_to_bias(part p, int64_t begin, int64_t end, const float *dgates, float *dbias) {
    const wb_compress *args = p.args;
    for (const wb_sequence_run *run = args->of.runs; run < args->of.runs + args->of.n_runs; run++)
        for (int64_t t = run->start; t < run->start + run->n; t++) {
            float *to = dbias + args->pos[t] % args->ratio * p.C;
            for (int64_t c = begin; c < end; c++) to[c] += dgates[t * p.C + c];
        }
}

wb_status WB_CPU(compress_backward)(wb_device *dev, const wb_compress *args, wb_rows dentries,
                                    wb_rows dvalues, wb_rows dgates, float *dbias) {
    const int64_t C = compress_channels(args), n = args->of.T * C;
    operand list[] = {{.name = "values", .rows = args->values, .n = n, .use = READ},
                      {.name = "gates", .rows = args->gates, .n = n, .use = READ},
                      {.name = "dentries", .rows = dentries, .n = args->of.T * args->width, .use = READ},
                      {.name = "dvalues", .rows = dvalues, .n = n, .use = WRITE},
                      {.name = "dgates", .rows = dgates, .n = n, .use = WRITE}};
    WB_TRY(compress_back_check(args, dentries, dvalues, dgates));
    WB_TRY(WB_CPU(operands_open)(dev, "compress_backward", list, 5));
    const gradients to = {list[3].f32, list[4].f32};
    const int64_t blocks = blocks_of(args);
    const int threads = wb_cpu_threads(dev, n * 16);
    if (n > 0)
        memset(to.dvalues, 0, (size_t)n * sizeof(float)), memset(to.dgates, 0, (size_t)n * sizeof(float));
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (int64_t task = 0; task < args->of.n_runs * blocks; task++)
        backward_run(part_of(args, list, task % blocks), args->of.runs + task / blocks, list[2].f32, to);
#pragma omp parallel for schedule(static) num_threads(threads)
    for (int64_t begin = 0; begin < C; begin += CHANNELS)
        add_to_bias(part_of(args, list, 0), begin, begin + CHANNELS < C ? begin + CHANNELS : C, to.dgates,
                    dbias);
    WB_CPU(operands_close)(dev, list, 5);
    return WB_OK;
}
