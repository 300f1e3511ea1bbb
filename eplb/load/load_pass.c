/* load_pass.c - the end of a pass: its counts are summed over ranks, and it enters the window, and the sums
 * of the window, and the oldest leaves. Refuses: counting rows (load_record.c), reading the window (load.c,
 * load_report.c). */
#include "load/load_internal.h"
#include "wb_hash.h"

#include <inttypes.h>
#include <string.h>

/* PEER unless all ranks count the same regions. */
static wb_status check_same_regions(const wb_load *load, wb_comm *comm) {
    uint64_t digest = load->window;
    for (uint32_t i = 0; i < load->n_regions; i++) {
        const wb_load_region *shape = &load->regions[i].shape;
        const uint32_t numbers[] = {i, shape->n_layers, shape->n_experts, shape->n_shared};
        digest = wb_hash64_seeded(numbers, sizeof numbers, digest);
    }
    return wb_comm_check_equal(comm, &digest, sizeof digest, "regions and window of the load statistics");
}

/* CAPACITY, on every rank, if a sum over ranks might leave 32 bits. */
static wb_status check_room(const wb_load *load, wb_comm *comm) {
    uint64_t max = 0;
    for (uint32_t i = 0; i < load->n_regions; i++) {
        const uint32_t *counts = wb_load_cells(&load->regions[i], load->open, WB_PHASE_PREFILL);
        for (size_t c = 0; c < WB_N_PHASES * wb_load_table_cells(&load->regions[i].shape); c++)
            if (counts[c] > max) max = counts[c];
    }
    WB_TRY(wb_comm_all_reduce_max_u64(comm, &max));
    if (max <= UINT32_MAX / (uint32_t)wb_comm_size(comm)) return WB_OK;
    return wb_fail(WB_CAPACITY,
                   "load: end of a pass: a rank has %" PRIu64
                   " tokens of an expert, expected at most %" PRIu32 " for a sum over %d ranks in 32 bits",
                   max, UINT32_MAX / (uint32_t)wb_comm_size(comm), wb_comm_size(comm));
}

/* Counts are whole numbers below 2^53, so sums of doubles are exact. The tally serves as buffer: [L][E] of
 * the largest region fits. */
static wb_status sum_over_ranks(const wb_load *load, wb_comm *comm) {
    double *sums = (double *)load->tally;
    for (uint32_t i = 0; i < load->n_regions; i++)
        for (wb_phase phase = WB_PHASE_PREFILL; phase <= WB_PHASE_REPLAY; phase++) {
            uint32_t *counts = wb_load_cells(&load->regions[i], load->open, phase);
            size_t n = wb_load_table_cells(&load->regions[i].shape);
            for (size_t c = 0; c < n; c++) sums[c] = counts[c];
            WB_TRY(wb_comm_all_reduce_f64(comm, sums, n));
            for (size_t c = 0; c < n; c++) counts[c] = (uint32_t)sums[c];
            wb_load_filled(&load->regions[i], load->open)[phase] = true;
        }
    return WB_OK;
}

/* ---- the window -------------------------------------------------------------------------------- */

/* The sums += or, modulo 2^64, -= what one phase of a pass has. */
static void add_phase(const wb_load_table *table, uint32_t place, wb_phase phase, uint64_t sign,
                      double weight) {
    const size_t cells = wb_load_table_cells(&table->shape), first = (size_t)phase * cells;
    const uint32_t *counts = wb_load_cells(table, place, phase);
    uint64_t *sums = table->sums + first;
    if (!wb_load_filled(table, place)[phase]) return;
    for (size_t c = 0; c < cells; c++) sums[c] += sign * counts[c];
    if (!table->decayed) return;
    double *decayed = table->decayed + first;
    for (size_t c = 0; c < cells; c++) decayed[c] += weight * counts[c];
}

static void enter_pass(const wb_load *load, const wb_load_table *table, uint32_t place) {
    const size_t cells = table->decayed ? WB_N_PHASES * wb_load_table_cells(&table->shape) : 0;
    const double decay = load->decay;
    double *decayed = table->decayed;
    for (size_t c = 0; c < cells; c++) decayed[c] *= decay;
    for (wb_phase phase = WB_PHASE_PREFILL; phase <= WB_PHASE_REPLAY; phase++)
        add_phase(table, place, phase, 1, 1);
}

/* Of a full window, the oldest pass; its place is the next one's. */
static void leave_pass(const wb_load *load, const wb_load_table *table, uint32_t place) {
    for (wb_phase phase = WB_PHASE_PREFILL; phase <= WB_PHASE_REPLAY; phase++)
        add_phase(table, place, phase, UINT64_MAX, -load->last_decay);
}

static void clear_pass(const wb_load_table *table, uint32_t place) {
    const size_t bytes = wb_load_table_cells(&table->shape) * sizeof *table->counts;
    bool *filled = wb_load_filled(table, place);
    for (wb_phase phase = WB_PHASE_PREFILL; phase <= WB_PHASE_REPLAY; phase++) {
        if (filled[phase]) memset(wb_load_cells(table, place, phase), 0, bytes);
        filled[phase] = false;
    }
}

static void advance(wb_load *load) {
    const uint32_t next = (uint32_t)(((uint64_t)load->open + 1) % ((uint64_t)load->window + 1));
    for (uint32_t i = 0; i < load->n_regions; i++) {
        const wb_load_table *table = &load->regions[i];
        enter_pass(load, table, load->open);
        if (load->passes == load->window) leave_pass(load, table, next);
        clear_pass(table, next);
    }
    load->open = next;
    load->recorded = false;
    load->passes_seen++;
    if (load->passes < load->window) load->passes++;
}

void wb_load_sum_window(wb_load *load) {
    for (uint32_t i = 0; i < load->n_regions; i++)
        for (uint32_t age = load->passes; age-- > 0;) {
            const uint32_t place = wb_load_place(load, age);
            bool *filled = wb_load_filled(&load->regions[i], place);
            for (uint32_t phase = 0; phase < WB_N_PHASES; phase++) filled[phase] = true;
            enter_pass(load, &load->regions[i], place);
        }
}

void wb_load_end_own_pass(wb_load *load) {
    advance(load);
}

wb_status wb_load_end_pass(wb_load *load, wb_comm *comm) {
    uint64_t recorded = load->recorded;
    if (comm) {
        WB_TRY(check_same_regions(load, comm));
        WB_TRY(wb_comm_all_reduce_max_u64(comm, &recorded));
        if (recorded) WB_TRY(check_room(load, comm));
        if (recorded) WB_TRY(sum_over_ranks(load, comm));
    }
    if (recorded) advance(load);
    return WB_OK;
}
