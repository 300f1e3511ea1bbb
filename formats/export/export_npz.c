/* export_npz.c - all records one after the other, for who has numpy; see wb_export.h. */
#include "export/export_columns.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static wb_status put_tokens(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)i;
    (void)ctx;
    for (uint32_t k = 0; k < r->n_tokens; k++) wb_export_little(job->out, r->tokens[k], 4);
    return WB_OK;
}

static wb_status put_logprobs(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)i;
    (void)ctx;
    for (uint32_t k = 0; k < r->n_tokens; k++) {
        const float number = k < r->prompt_len || !r->logprobs ? NAN : r->logprobs[k - r->prompt_len];
        uint32_t bits;
        memcpy(&bits, &number, sizeof bits);
        wb_export_little(job->out, bits, sizeof bits);
    }
    return WB_OK;
}

static wb_status put_routes(export_job *job, uint64_t i, const wb_record *r, void *zeros) {
    const size_t row_bytes = wb_route_row_bytes(job->model);
    (void)i;
    for (uint32_t p = 0; p < r->n_tokens; p++) {
        const void *row = wb_record_row(job->model, r, p);
        wb_export_bytes(job->out, row ? row : zeros, row_bytes);
    }
    return WB_OK;
}

static wb_status put_valid(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)i;
    (void)ctx;
    for (uint32_t p = 0; p < r->n_tokens; p++)
        wb_export_little(job->out, wb_record_row(job->model, r, p) ? 1 : 0, 1);
    return WB_OK;
}

static wb_status put_prompt_len(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)i;
    (void)ctx;
    wb_export_little(job->out, r->prompt_len, 8);
    return WB_OK;
}

/* The end of each record, after the 0 where the first one begins. */
static wb_status put_end(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    uint64_t *end = ctx;
    if (i == 0) wb_export_little(job->out, 0, 8);
    wb_export_little(job->out, *end += r->n_tokens, 8);
    return WB_OK;
}

static void put_layers(export_job *job, const char *name, const uint32_t *numbers) {
    const uint64_t L = job->model->n_moe_layers;
    wb_export_begin(job->out, name, "<i8", 1, &L);
    for (uint64_t l = 0; l < L; l++) wb_export_little(job->out, numbers[l], 8);
    wb_export_end(job->out);
}

static wb_status put_arrays(export_job *job, const export_sizes *sizes, uint8_t *zeros) {
    const wb_route_model *m = job->model;
    const uint64_t n = sizes->tokens, ends = job->n + 1, ids = wb_route_row_ids(m);
    const uint64_t routes[] = {n, m->layer_top_k ? ids : m->n_moe_layers, m->top_k};
    uint64_t end = 0;
    WB_TRY(wb_export_array(job, "offsets", "<i8", 1, &ends, put_end, &end));
    WB_TRY(wb_export_array(job, "prompt_len", "<i8", 1, &job->n, put_prompt_len, NULL));
    WB_TRY(wb_export_array(job, "tokens", "<u4", 1, &n, put_tokens, NULL));
    WB_TRY(wb_export_array(job, "logprobs", "<f4", 1, &n, put_logprobs, NULL));
    WB_TRY(wb_export_array(job, "valid", "|b1", 1, &n, put_valid, NULL));
    WB_TRY(wb_export_array(job, "routes", m->num_experts <= 256 ? "|u1" : "<u2", m->layer_top_k ? 2 : 3,
                           routes, put_routes, zeros));
    put_layers(job, "moe_layers", m->moe_layers);
    if (m->layer_top_k) put_layers(job, "layer_top_k", m->layer_top_k);
    return wb_export_columns(job, sizes);
}

wb_status wb_export_npz(export_job *job) {
    export_sizes sizes;
    uint8_t *zeros = NULL;
    job->passes = 1 + 6 + EXPORT_COLUMN_PASSES;
    WB_TRY(wb_export_choose(job, NULL, NULL));
    WB_TRY(wb_export_measure(job, &sizes));
    if (job->n == 0) return wb_fail(WB_NOT_FOUND, "expected records, found none");
    WB_TRY(WB_NEW(zeros, wb_route_row_bytes(job->model), "row"));
    const wb_status status = put_arrays(job, &sizes, zeros);
    free(zeros);
    return status;
}
