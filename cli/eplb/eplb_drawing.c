/* eplb_drawing.c - the loads that `waybill eplb --chart` shows: those of the last step, over all layers and
 * in the one that is worst without balancing. Refuses: the drawing itself (report/eplb_chart.c). */
#include "eplb/eplb.h"
#include "report/eplb_chart.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <string.h>

/* Memory to work in. */
typedef struct drawing_scratch {
    double *ranks;    /* [R] tokens of each rank in one layer */
    double *slots;    /* [S] */
    uint32_t *counts; /* [R][E] */
} drawing_scratch;

/* scratch->ranks becomes the tokens of each rank in one layer, summed over micro-batches. */
static wb_status layer_tokens(const eplb_row *row, uint32_t layer, const wb_traffic *traffic,
                              drawing_scratch *scratch) {
    const wb_topology *t = wb_placement_topology(row->placement);
    memset(scratch->ranks, 0, t->n_ranks * sizeof *scratch->ranks);
    for (uint32_t b = 0; b < traffic->n_batches; b++) {
        wb_dispatch_traffic sent;
        WB_TRY(traffic->fill(traffic->ctx, b, layer, scratch->counts));
        WB_TRY(
            wb_dispatch_loads(row->placement, row->dispatch, layer, scratch->counts, scratch->slots, &sent));
        for (uint32_t i = 0; i < t->n_slots; i++)
            scratch->ranks[wb_placement_rank_of(row->placement, (wb_physical_id){i})] += scratch->slots[i];
    }
    return WB_OK;
}

/* What the chart shows of one row. */
typedef struct drawing {
    const eplb_row *row;
    double *all, *worst; /* [R] tokens of each rank over all layers, and in the worst layer of `none` */
} drawing;

/* Fills both rows' loads; *layer_out is the layer with the smallest balancedness in the first row. */
static wb_status add_loads(const eplb_run *run, eplb_source *source, drawing *rows, drawing_scratch *scratch,
                           uint32_t *layer_out) {
    const wb_traffic traffic = eplb_source_traffic(source);
    const uint32_t n_ranks = run->topology->n_ranks;
    double *ranks = scratch->ranks;
    double min = 2; /* balancedness is at most 1 */
    for (int r = 0; r < 2; r++) {
        for (uint32_t l = 0; l < run->source.n_layers; l++) {
            WB_TRY(layer_tokens(rows[r].row, l, &traffic, scratch));
            for (uint32_t p = 0; p < n_ranks; p++) rows[r].all[p] += ranks[p] *= eplb_source_scale(source);
            const double balancedness = wb_placement_balancedness(rows[r].row->placement, ranks);
            if (r == 0 && balancedness < min) {
                min = balancedness;
                *layer_out = l;
            }
            if (l == *layer_out) memcpy(rows[r].worst, ranks, n_ranks * sizeof *ranks);
        }
    }
    return WB_OK;
}

static eplb_series series_of(const drawing *d, const double *loads) {
    return (eplb_series){.name = d->row->name,
                         .loads = loads,
                         .balancedness = wb_placement_balancedness(d->row->placement, loads)};
}

/* [R] over all ranks, the arrays of both rows and those to work in. */
static wb_status open_memory(const eplb_run *run, wb_owner *memory, drawing *rows, drawing_scratch *scratch) {
    const wb_topology *t = run->topology;
    for (int r = 0; r < 2; r++) {
        WB_TRY(WB_OWN(memory, rows[r].all, t->n_ranks, "chart"));
        WB_TRY(WB_OWN(memory, rows[r].worst, t->n_ranks, "chart"));
    }
    WB_TRY(WB_OWN(memory, scratch->ranks, t->n_ranks, "chart"));
    WB_TRY(WB_OWN(memory, scratch->slots, t->n_slots, "chart"));
    return WB_OWN(memory, scratch->counts, (size_t)t->n_ranks * run->source.n_experts, "chart");
}

static wb_status draw_rows(eplb_run *run, eplb_source *source, drawing *rows, drawing_scratch *scratch) {
    const wb_topology *t = run->topology;
    uint32_t worst = 0;
    char title[96];
    WB_TRY(add_loads(run, source, rows, scratch, &worst));
    snprintf(title, sizeof title, "MoE layer %" PRIu32 " (of 0..%" PRIu32 "), the least balanced before",
             worst, run->source.n_layers - 1);
    const eplb_panel panels[2] = {
        {"All layers together", series_of(&rows[0], rows[0].all), series_of(&rows[1], rows[1].all)},
        {title, series_of(&rows[0], rows[0].worst), series_of(&rows[1], rows[1].worst)}};
    return eplb_chart_write(run->settings->chart_path, t->n_ranks, t->dead, 2, panels);
}

wb_status eplb_draw(eplb_run *run, eplb_source *source) {
    drawing rows[2] = {{.row = &run->rows[0]}, {.row = eplb_result_row(run)}};
    drawing_scratch scratch;
    wb_owner memory = {0};
    wb_status status = open_memory(run, &memory, rows, &scratch);
    if (status == WB_OK) status = draw_rows(run, source, rows, &scratch);
    wb_owner_close(&memory);
    return status;
}
