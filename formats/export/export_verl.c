/* export_verl.c - a padded batch as verl's trainer has it; see wb_export.h. */
#include "export/export_columns.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

typedef struct verl_batch {
    export_sizes sizes;
    uint64_t P, N; /* places of prompts, and of new tokens */
    unsigned id_bytes;
    uint8_t *row, *zeros; /* [wb_export_row_bytes] */
    bool has_logprobs;    /* all records have them */
    int what;             /* what token_of gives */
} verl_batch;

/* ---- numbers of places ---------------------------------------------------------------------------- */

enum { INPUT_IDS, ATTENTION_MASK };

/* Places [first, end) of a record, of P + N: its token, or 1, and 0 where it is padding. */
static void put_places(export_job *job, const verl_batch *b, const wb_record *r, uint64_t first,
                       uint64_t end) {
    const uint64_t left = b->P - r->prompt_len;
    for (uint64_t place = first; place < end; place++) {
        const bool is_token = place >= left && place - left < r->n_tokens;
        const uint64_t token = is_token ? r->tokens[place - left] : 0;
        wb_export_little(job->out, b->what == INPUT_IDS ? token : is_token, 8);
    }
}

static wb_status put_all(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    const verl_batch *b = ctx;
    (void)i;
    put_places(job, b, r, 0, b->P + b->N);
    return WB_OK;
}

static wb_status put_prompt(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    const verl_batch *b = ctx;
    (void)i;
    put_places(job, b, r, 0, b->P);
    return WB_OK;
}

static wb_status put_new(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    const verl_batch *b = ctx;
    (void)i;
    put_places(job, b, r, b->P, b->P + b->N);
    return WB_OK;
}

static wb_status put_logprobs(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    const verl_batch *b = ctx;
    (void)i;
    for (uint64_t k = 0; k < b->N; k++) {
        uint32_t bits = 0;
        if (k < r->n_tokens - r->prompt_len) memcpy(&bits, &r->logprobs[k], sizeof bits);
        wb_export_little(job->out, bits, sizeof bits);
    }
    return WB_OK;
}

/* ---- routes --------------------------------------------------------------------------------------- */

static wb_status put_rows(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    const verl_batch *b = ctx;
    const uint64_t left = b->P - r->prompt_len;
    const size_t row_bytes = wb_export_row_bytes(job->model, b->id_bytes);
    (void)i;
    for (uint64_t place = 0; place < b->P + b->N; place++) {
        const bool has_row = place >= left && place - left + 1 < r->n_tokens;
        const uint32_t position = has_row ? (uint32_t)(place - left) : 0;
        const bool is_there = has_row && wb_export_row(job->model, r, position, b->id_bytes, 0, b->row);
        wb_export_bytes(job->out, is_there ? b->row : b->zeros, row_bytes);
    }
    return WB_OK;
}

/* A record without any row would be one that an engine has left at zero: a batch cannot say otherwise. */
static wb_status look_at(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    verl_batch *b = ctx;
    (void)i;
    if (r->n_tokens > 1 && wb_record_count_rows(r) == 0)
        return wb_fail(WB_UNSUPPORTED, "record %s: expected rows, found none", r->rid);
    for (uint32_t p = 0; job->model->top_k == 1 && p + 1 < r->n_tokens; p++)
        if (!wb_record_row(job->model, r, p))
            return wb_fail(WB_UNSUPPORTED,
                           "record %s: position %" PRIu32
                           ": expected a row: with one choice a token, zero is an expert",
                           r->rid, p);
    b->has_logprobs &= r->logprobs || r->n_tokens == r->prompt_len;
    return WB_OK;
}

static wb_status put_arrays(export_job *job, verl_batch *b) {
    const wb_route_model *m = job->model;
    const uint64_t S = b->P + b->N, all[] = {job->n, S}, prompts[] = {job->n, b->P}, fresh[] = {job->n, b->N},
                   rows[] = {job->n, S, m->num_hidden_layers, m->top_k};
    b->what = INPUT_IDS;
    WB_TRY(wb_export_array(job, "input_ids", "<i8", 2, all, put_all, b));
    WB_TRY(wb_export_array(job, "prompts", "<i8", 2, prompts, put_prompt, b));
    WB_TRY(wb_export_array(job, "responses", "<i8", 2, fresh, put_new, b));
    b->what = ATTENTION_MASK;
    WB_TRY(wb_export_array(job, "attention_mask", "<i8", 2, all, put_all, b));
    WB_TRY(wb_export_array(job, "response_mask", "<i8", 2, fresh, put_new, b));
    if (b->has_logprobs) WB_TRY(wb_export_array(job, "rollout_log_probs", "<f4", 2, fresh, put_logprobs, b));
    return wb_export_array(job, "routed_experts", b->id_bytes == 2 ? "<i2" : "<i4", 4, rows, put_rows, b);
}

wb_status wb_export_verl(export_job *job) {
    verl_batch b = {.id_bytes = job->model->num_experts <= 32768 ? 2 : 4, .has_logprobs = true};
    wb_owner memory = {0};
    wb_status status = WB_OK;
    job->passes = 1 + 7 + EXPORT_COLUMN_PASSES;
    WB_TRY(wb_export_choose(job, look_at, &b));
    WB_TRY(wb_export_measure(job, &b.sizes));
    b.P = b.sizes.max_prompt;
    b.N = b.sizes.max_new;
    WB_GOTO(WB_OWN(&memory, b.row, wb_export_row_bytes(job->model, b.id_bytes), "row"), close);
    WB_GOTO(WB_OWN(&memory, b.zeros, wb_export_row_bytes(job->model, b.id_bytes), "row"), close);
    WB_GOTO(put_arrays(job, &b), close);
    status = wb_export_columns(job, &b.sizes);
close:
    wb_owner_close(&memory);
    return status;
}
