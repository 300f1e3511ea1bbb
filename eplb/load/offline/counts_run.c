/* counts_run.c - whether counts are one rank's view, whatever the ranks were that recorded them. Refuses: the
 * blocks of ranks that are known (wb_load_in_one_block). */
#include "wb_check.h"
#include "wb_load.h"
#include "wb_memory.h"

#include <stdlib.h>
#include <string.h>

/* Experts in a circle: a rank's block of slots may begin with the last experts and end with the first. */
typedef struct expert_run {
    uint32_t first, n; /* n 0: no counts */
} expert_run;

/* The shortest run with all experts of `counted` [E]: what the longest gap leaves. */
static expert_run run_of(const uint8_t *counted, uint32_t E) {
    uint32_t any = 0, gap = 0, longest = 0, after = 0;
    while (any < E && !counted[any]) any++;
    if (any == E) return (expert_run){0};
    for (uint32_t i = 1; i <= E; i++) { /* ends where it began */
        const uint32_t e = (uint32_t)(((uint64_t)any + i) % E);
        if (!counted[e]) {
            gap++;
            continue;
        }
        if (gap >= longest) longest = gap, after = e;
        gap = 0;
    }
    return (expert_run){after, E - longest};
}

static expert_run layer_run(const wb_counts *counts, uint32_t layer, uint8_t *counted) {
    const wb_counts_info info = wb_counts_get_info(counts);
    const size_t L = info.n_layers, E = info.n_experts;
    memset(counted, 0, E);
    for (size_t p = 0; p < info.n_passes; p++) {
        const double *row = wb_counts_loads(counts) + (p * L + layer) * E;
        for (size_t e = 0; e < E; e++) counted[e] |= row[e] != 0;
    }
    return run_of(counted, info.n_experts);
}

/* How many layers have all their counts in the `width` experts from `first` on; *end_out: experts up to the
 * last that has one. */
static uint32_t count_within(const expert_run *runs, uint32_t L, uint32_t E, uint32_t first, uint32_t width,
                             uint32_t *end_out) {
    uint32_t n = 0, end = 0;
    for (uint32_t l = 0; l < L; l++) {
        if (runs[l].n == 0) continue;
        const uint32_t skipped = runs[l].first >= first ? runs[l].first - first : runs[l].first + E - first;
        if (skipped > width || runs[l].n > width - skipped) continue;
        if (skipped + runs[l].n > end) end = skipped + runs[l].n;
        n++;
    }
    *end_out = end;
    return n;
}

/* The run of the most layers begins where that of one of them begins. tried [E] is scratch: layers that begin
 * at the same expert are looked at once. */
static wb_counts_run best_run(const expert_run *runs, uint32_t L, uint32_t E, uint8_t *tried) {
    wb_counts_run best = {0};
    uint32_t informed = 0;
    for (uint32_t l = 0; l < L; l++) {
        uint32_t end = 0, n;
        if (runs[l].n == 0) continue;
        informed++;
        if (runs[l].n > E / 2 || tried[runs[l].first]) continue;
        tried[runs[l].first] = 1;
        n = count_within(runs, L, E, runs[l].first, E / 2, &end);
        if (n > best.n_layers || (n == best.n_layers && end < best.n_experts))
            best = (wb_counts_run){.first = runs[l].first, .n_experts = end, .n_layers = n};
    }
    return 10 * (uint64_t)best.n_layers >= 9 * (uint64_t)informed ? best : (wb_counts_run){0};
}

wb_status wb_counts_find_run(const wb_counts *counts, wb_counts_run *run_out) {
    const wb_counts_info info = wb_counts_get_info(counts);
    wb_owner memory = {0};
    expert_run *runs = NULL;
    uint8_t *counted = NULL;
    wb_status status = WB_OWN(&memory, runs, info.n_layers, "runs of experts");
    if (status == WB_OK) status = WB_OWN(&memory, counted, info.n_experts, "runs of experts");
    for (uint32_t l = 0; status == WB_OK && l < info.n_layers; l++) runs[l] = layer_run(counts, l, counted);
    if (status == WB_OK) {
        memset(counted, 0, info.n_experts);
        *run_out = best_run(runs, info.n_layers, info.n_experts, counted);
    }
    wb_owner_close(&memory);
    return status;
}
