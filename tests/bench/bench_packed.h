/* bench_packed.h - a replayed step of one rank as its sequences came, and packed, placed and planned from
 * its own routes: collectives, bytes, balancedness and time, in turns. Rank 0 prints.
 *
 * A step is what waybill-grpo does with a batch: a forward of all micro-batches, then a forward and a
 * backward of each, and the sum of the gradients. Beside the time of a step stands the sum over its passes
 * of the slowest rank's processor time, which on a machine with fewer cores than ranks is nearer to what
 * ranks with processors of their own would take (between threads; MPI's ranks spin). */
#ifndef BENCH_PACKED_H
#define BENCH_PACKED_H

#include "bench/bench_packed_case.h"

/* ---- the step ------------------------------------------------------------------------------------ */

static void plan(bench *b, way *w) {
    int64_t n;
    wb_segment segments[BATCH_ROWS];
    must(wb_comm_barrier(b->comm));
    const double begin = now();
    wb_replay_clear(w->replay);
    for (int32_t m = 0; m < w->M; m++)
        for (int32_t i = 0; i < w->batches[m].n; i++)
            must(wb_replay_add(w->replay, wb_model_routes(w->model), w->batches[m].records[i]));
    must(wb_replay_begin(w->replay, WB_REPLAY_ROLLOUT, w->M));
    for (int32_t m = 0; m < w->M; m++) {
        const fed *f = &w->batches[m];
        for (int32_t i = 0; i < f->n; i++) {
            const wb_record *r = f->records[i];
            segments[i] = wb_replay_segment(w->replay, r->rid, 0, r->n_tokens - 1, r->tokens);
        }
        must(wb_replay_plan(w->replay, m, f->n, segments));
    }
    if (w->planned) must(wb_replay_plan_dispatch(w->replay, b->comm, &n));
    w->planning = now() - begin;
}

static void forward(bench *b, way *w, int32_t m, float *logprobs_out) {
    const fed *f = &w->batches[m];
    wb_replay_slice rows;
    must(wb_replay_rows(w->replay, m, WB_ALL_LAYERS, 0, (uint32_t)f->T, &rows));
    if (f->T > 0) memcpy(b->ids, rows.ids, (size_t)f->T * L * K);
    const wb_train_batch batch = {
        .T = f->T, .tokens = f->tokens, .targets = f->targets, .n_seqs = f->n, .seq_start = f->start};
    const wb_routing routing = {.ids = b->ids,
                                .direction = rows.direction,
                                .planned = wb_replay_layer_plan(w->replay, m, WB_ALL_LAYERS)};
    must(wb_train_forward(w->train, &batch, &routing, NULL, logprobs_out));
}

static double processor_seconds(void) {
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

static void run_step(bench *b, way *w) {
    float logprobs[BATCH_ROWS], dlogprobs[BATCH_ROWS];
    double begin;
    for (int i = 0; i < BATCH_ROWS; i++) dlogprobs[i] = -1.0F / BATCH_ROWS;
    for (int32_t m = 0; m < w->M; m++) {
        begin = processor_seconds();
        forward(b, w, m, logprobs);
        w->passes[m] = processor_seconds() - begin;
    }
    must(wb_train_zero_grads(w->train));
    for (int32_t m = 0; m < w->M; m++) {
        begin = processor_seconds();
        forward(b, w, m, logprobs);
        must(m + 1 < w->M ? wb_train_backward(w->train, dlogprobs)
                          : wb_train_backward_last(w->train, dlogprobs));
        w->passes[w->M + m] = processor_seconds() - begin;
    }
}

static wb_exchange_count exchanged(const way *w) {
    wb_exchange_count sum = {0}, count;
    for (int kind = 0; kind < WB_EXCHANGE_KINDS; kind++) {
        must(wb_exchange_stats(wb_model_exchange(w->model), (wb_exchange_kind)kind, &count));
        sum.calls += count.calls;
        sum.bytes += count.bytes;
    }
    return sum;
}

/* Sum over ranks and the maximum of them. */
static void over_ranks(bench *b, double value, double *sum_out, double *max_out) {
    double all[64];
    *sum_out = *max_out = 0;
    must(wb_comm_all_gather(b->comm, &value, sizeof value, all));
    for (int r = 0; r < wb_comm_size(b->comm); r++) {
        *sum_out += all[r];
        *max_out = fmax(*max_out, all[r]);
    }
}

static void timed_step(bench *b, way *w, int repeat) {
    must(wb_comm_barrier(b->comm));
    const uint64_t calls = comm_calls(b);
    const wb_exchange_count before = exchanged(w);
    const double begin = now();
    run_step(b, w);
    w->comm_calls = comm_calls(b) - calls;
    must(wb_comm_barrier(b->comm));
    w->seconds[repeat] = now() - begin;
    w->slowest[repeat] = 0;
    for (int32_t i = 0; i < 2 * w->M; i++) {
        double sum, max;
        over_ranks(b, w->passes[i], &sum, &max);
        w->slowest[repeat] += max;
    }
    const wb_exchange_count after = exchanged(w);
    w->exchange_calls = after.calls - before.calls;
    w->exchange_bytes = after.bytes - before.bytes;
}

/* The log-probabilities of each sequence are kept, or expected to be those that were. */
static bool first_forward(bench *b, way *w, bool keep) {
    float logprobs[BATCH_ROWS];
    bool same = true;
    for (int32_t m = 0; m < w->M; m++) {
        const fed *f = &w->batches[m];
        forward(b, w, m, logprobs);
        for (int32_t i = 0; i < f->n; i++) {
            const size_t bytes = (size_t)(f->start[i + 1] - f->start[i]) * sizeof(float);
            if (keep)
                memcpy(f->logprobs[i], logprobs + f->start[i], bytes);
            else
                same = same && memcmp(f->logprobs[i], logprobs + f->start[i], bytes) == 0;
        }
    }
    return same;
}

/* ---- figures ------------------------------------------------------------------------------------- */

/* Sum of means over sum of maxima, of the rows of experts in each (micro-batch, layer), and of attention in
 * each micro-batch: a rank's sum of T (T + 1) / 2. The way needs plans for it. */
static void balancedness(bench *b, const way *w, double *experts_out, double *attention_out) {
    const int R = wb_comm_size(b->comm);
    const uint32_t rank = (uint32_t)wb_comm_rank(b->comm);
    const wb_placement *p = wb_model_placement(w->model);
    const uint32_t here = wb_placement_first_slot(p, rank + 1) - wb_placement_first_slot(p, rank);
    double means = 0, maxima = 0, sum, max, attention_means = 0, attention_maxima = 0;
    for (int32_t m = 0; m < w->M; m++) {
        double pairs = 0;
        for (int32_t i = 0; i < w->batches[m].n; i++) {
            const double T = w->batches[m].start[i + 1] - w->batches[m].start[i];
            pairs += T * (T + 1) / 2;
        }
        over_ranks(b, pairs, &sum, &max);
        attention_means += sum / R;
        attention_maxima += max;
        for (int l = 0; l < L; l++) {
            const wb_planned_layer *plan = wb_replay_layer_plan(w->replay, m, l);
            double rows = 0;
            for (uint32_t i = 0; i < (uint32_t)R * here; i++) rows += plan->received[i];
            over_ranks(b, rows, &sum, &max);
            means += sum / R;
            maxima += max;
        }
    }
    *experts_out = means / maxima;
    *attention_out = attention_means / attention_maxima;
}

static int by_value(const void *a, const void *b) {
    const double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void print_way(bench *b, way *w, int repeats, double preparing) {
    double experts, attention, bytes, most;
    const bool planned = w->planned;
    w->planned = true;
    wb_replay_abort(w->replay);
    plan(b, w);
    w->planned = planned;
    balancedness(b, w, &experts, &attention);
    over_ranks(b, (double)w->exchange_bytes, &bytes, &most);
    double rows = (double)wb_replay_max_expert_rows(w->replay), sum;
    over_ranks(b, rows, &sum, &rows);
    if (wb_comm_rank(b->comm) != 0) return;
    qsort(w->seconds, (size_t)repeats, sizeof *w->seconds, by_value);
    qsort(w->slowest, (size_t)repeats, sizeof *w->slowest, by_value);
    printf("| %s | %d | %.3f | %.3f | %llu | %llu | %.2f | %.2f | %.0f | %.1f (%.1f) | %.1f (%.1f) | %.2f | "
           "%.2f |\n",
           w->name, w->M, attention, experts, (unsigned long long)w->comm_calls,
           (unsigned long long)w->exchange_calls, bytes / 1e6, most / 1e6, rows,
           1e3 * w->seconds[repeats / 2], 1e3 * w->seconds[0], 1e3 * w->slowest[repeats / 2],
           1e3 * w->slowest[0], 1e3 * w->planning, 1e3 * preparing);
    fflush(stdout);
}

static void close_bench(bench *b) {
    for (int i = 0; i < 3; i++) {
        wb_replay_close(b->ways[i].replay);
        wb_train_close(b->ways[i].train);
        wb_model_close(b->ways[i].model);
        free(b->ways[i].batches);
    }
    wb_pack_close(b->pack);
    for (int i = 0; i < OF_RANK; i++) {
        free((void *)(uintptr_t)b->records[i].rid);
        free((void *)(uintptr_t)b->records[i].tokens);
        free((void *)(uintptr_t)b->runs[i].ids);
    }
    free(b->bags);
    free(b->ids);
    wb_device_close(b->device);
}

static void open_bench(bench *b, double *packing_out, double *solving_out) {
    static const char *const names[] = {"as it comes", "as it comes, planned", "packed, placed, planned"};
    b->bags = take(OF_RANK, sizeof *b->bags);
    b->ids = take(BATCH_ROWS, L * K);
    must(wb_device_open_cpu(1, &b->device));
    make_sequences(b);
    wb_placement *placement = place(b, solving_out);
    for (int i = 0; i < 2; i++) {
        b->ways[i].planned = i > 0;
        open_way(b, &b->ways[i], placement);
        as_it_comes(b, &b->ways[i]);
        plan(b, &b->ways[i]);
    }
    first_forward(b, &b->ways[0], true);
    *packing_out = pack(b);
    wb_placement_close(placement);
    placement = place(b, solving_out);
    b->ways[2].planned = true;
    open_way(b, &b->ways[2], placement);
    as_packed(b, &b->ways[2]);
    plan(b, &b->ways[2]);
    wb_placement_close(placement);
    for (int i = 0; i < 3; i++) b->ways[i].name = names[i];
}

/* One rank's part. */
static void bench_run(wb_comm *comm, int repeats) {
    bench *b = take(1, sizeof *b);
    double packing, solving, moved, most;
    b->comm = comm;
    open_bench(b, &packing, &solving);
    /* Both are run, on all ranks, whatever the first one finds. */
    const bool as_planned = first_forward(b, &b->ways[1], false);
    const bool as_packed = first_forward(b, &b->ways[2], false);
    double differ = !as_planned || !as_packed, ranks;
    over_ranks(b, differ, &ranks, &differ);
    for (int i = -1; i < repeats; i++)
        for (int j = 0; j < 3; j++) timed_step(b, &b->ways[(i + 1 + j) % 3], i < 0 ? 0 : i);
    const wb_pack_stats stats = wb_pack_get_stats(b->pack);
    over_ranks(b, (double)stats.moved_bytes, &moved, &most);
    if (wb_comm_rank(comm) == 0)
        printf("%s, %d ranks, %d repeats; log-probabilities: %s; packing: %llu collectives, %.3f MB gathered "
               "a rank, %llu of "
               "%d sequences moved, %.2f MB\n\n"
               "| step | M | attention | experts | comm calls | exchanges | MB, all ranks | MB, most "
               "| rows, most | ms, median (min) | slowest ranks, ms | planning ms | packing, solving ms |\n"
               "|---|---|---|---|---|---|---|---|---|---|---|---|---|\n",
               wb_comm_name(comm), wb_comm_size(comm), repeats, differ > 0 ? "DIFFERENT" : "the same bits",
               (unsigned long long)b->pack_calls, (double)stats.gathered_bytes / 1e6,
               (unsigned long long)stats.moved_sequences, OF_RANK * wb_comm_size(comm), moved / 1e6);
    for (int i = 0; i < 3; i++) print_way(b, &b->ways[i], repeats, i == 2 ? packing + solving : 0);
    close_bench(b);
    free(b);
}

#endif
