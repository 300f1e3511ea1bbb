/* pack_counts.c - what a packing knows of routes: a sketch of each sequence's counts, and the loads of each
 * micro-batch. */
#include "pack_state.h"
#include "wb_random.h"

#include <stdlib.h>
#include <string.h>

enum { WIDEST = 256 };

uint32_t wb_pack_sketch_width(const wb_route_model *model) {
    const uint64_t n = (uint64_t)model->n_moe_layers * model->num_experts;
    return n < WIDEST ? (uint32_t)n : WIDEST;
}

/* Where there are as many numbers as experts each has its own. Else each is added to one or taken from it, as
 * bits of its number's mix say: the square of a sum of such terms is expected to be that of the counts. */
void wb_pack_sketch(const wb_route_model *model, const uint64_t *counts, uint32_t width,
                    int32_t *sketch_out) {
    const size_t n = (size_t)model->n_moe_layers * model->num_experts;
    memset(sketch_out, 0, width * sizeof *sketch_out);
    for (size_t i = 0; i < n; i++) {
        if (i % model->num_experts >= wb_route_weighted(model)) continue;
        const uint64_t bits = wb_mix64(i);
        if (n == width)
            sketch_out[i] = (int32_t)counts[i];
        else if (bits >> 63)
            sketch_out[bits % WIDEST] += (int32_t)counts[i];
        else
            sketch_out[bits % WIDEST] -= (int32_t)counts[i];
    }
}

/* Numbers of a micro-batch's loads: experts without weights have none. */
static size_t n_loads(const wb_pack *p) {
    return (size_t)p->model.n_moe_layers * wb_route_weighted(&p->model);
}

/* loads [L][experts with weights] += counts [L][E]. */
static void add_counts(const wb_route_model *model, const uint64_t *counts, double *loads) {
    const size_t L = model->n_moe_layers, E = model->num_experts, weighted = wb_route_weighted(model);
    for (size_t l = 0; l < L; l++)
        for (size_t e = 0; e < weighted; e++) loads[l * weighted + e] += (double)counts[l * E + e];
}

static wb_status count_own(wb_pack *p) {
    const size_t n = (size_t)p->model.n_moe_layers * p->model.num_experts;
    uint64_t *counts;
    WB_TRY(WB_OWN(&p->memory, p->loads, p->n_micro_batches * n_loads(p), "packing: loads"));
    WB_TRY(WB_NEW(counts, n, "packing: counts"));
    for (uint32_t i = 0; i < p->n_own; i++) {
        const wb_pack_place *place = &p->places[p->home_start[p->rank] + i];
        memset(counts, 0, n * sizeof *counts);
        wb_record_count(&p->model, p->own[i].record, 0, p->own[i].rows, counts);
        add_counts(&p->model, counts, p->loads + place->micro_batch * n_loads(p));
    }
    free(counts);
    return WB_OK;
}

wb_status wb_pack_sum_loads(wb_pack *p, wb_comm *comm) {
    WB_TRY(wb_comm_agree(comm, count_own(p)));
    return wb_comm_all_reduce_f64(comm, p->loads, p->n_micro_batches * n_loads(p));
}
