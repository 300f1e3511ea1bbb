/* export_slime.c - the fields of slime's samples, each an array with the sample's number; see wb_export.h. */
#include "export/export_out.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct field_name {
    char text[48];
} field_name;

static field_name numbered(const char *name, uint64_t i) {
    field_name n;
    snprintf(n.text, sizeof n.text, "%s_%" PRIu64, name, i);
    return n;
}

static void put_number(export_out *out, const char *name, uint64_t i, uint64_t number) {
    wb_export_begin(out, numbered(name, i).text, "<i8", 0, NULL);
    wb_export_little(out, number, 8);
    wb_export_end(out);
}

static void put_text(export_out *out, const char *name, uint64_t i, const char *text) {
    char type[32];
    snprintf(type, sizeof type, "|S%zu", strlen(text));
    wb_export_begin(out, numbered(name, i).text, type, 0, NULL);
    wb_export_bytes(out, text, strlen(text));
    wb_export_end(out);
}

static void put_reals(export_out *out, const char *name, uint64_t i, const float *numbers, uint64_t n) {
    wb_export_begin(out, numbered(name, i).text, "<f4", 1, &n);
    for (uint64_t k = 0; k < n; k++) {
        uint32_t bits;
        memcpy(&bits, &numbers[k], sizeof bits);
        wb_export_little(out, bits, sizeof bits);
    }
    wb_export_end(out);
}

static void put_spans(export_out *out, uint64_t i, const wb_record *r) {
    const uint64_t shape[] = {r->n_spans, 3};
    wb_export_begin(out, numbered("spans", i).text, "<i8", 2, shape);
    for (uint32_t s = 0; s < r->n_spans; s++) {
        wb_export_little(out, r->spans[s].start, 8);
        wb_export_little(out, r->spans[s].end, 8);
        wb_export_little(out, r->spans[s].weight_version, 8);
    }
    wb_export_end(out);
}

static void put_rows(export_job *job, uint64_t i, const wb_record *r, uint8_t *row) {
    const uint64_t n = r->n_tokens > 0 ? r->n_tokens - 1 : 0;
    const uint64_t shape[] = {n, job->model->num_hidden_layers, job->model->top_k};
    wb_export_begin(job->out, numbered("rollout_routed_experts", i).text, "<i4", 3, shape);
    for (uint32_t p = 0; p < n; p++) {
        wb_export_row(job->model, r, p, 4, -1, row);
        wb_export_bytes(job->out, row, wb_export_row_bytes(job->model, 4));
    }
    wb_export_end(job->out);
}

static void put_indexer(export_job *job, uint64_t i, const wb_record *r) {
    const uint64_t n = r->n_tokens > 0 ? r->n_tokens - 1 : 0;
    const uint64_t shape[] = {n, job->model->n_indexer_layers, job->model->indexer_k};
    wb_export_begin(job->out, numbered("rollout_indexer_topk", i).text, "<i4", 3, shape);
    wb_export_indexer(job, r, 0, wb_export_bytes);
    wb_export_end(job->out);
}

static wb_status look_at(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)job;
    (void)i;
    (void)ctx;
    return wb_export_check_indexer(r, 0);
}

static wb_status put_sample(export_job *job, uint64_t i, const wb_record *r, void *row) {
    export_out *out = job->out;
    const uint64_t n = r->n_tokens, n_new = n - r->prompt_len;
    wb_export_begin(out, numbered("tokens", i).text, "<i8", 1, &n);
    for (uint64_t k = 0; k < n; k++) wb_export_little(out, r->tokens[k], 8);
    wb_export_end(out);
    put_number(out, "response_length", i, n_new);
    put_rows(job, i, r, row);
    if (r->indexer) put_indexer(job, i, r);
    if (r->logprobs) put_reals(out, "rollout_log_probs", i, r->logprobs, n_new);
    if (r->sampling_logprobs) put_reals(out, "sampling_logprobs", i, r->sampling_logprobs, n_new);
    if (r->n_spans > 0) put_spans(out, i, r);
    put_text(out, "rid", i, r->rid);
    put_text(out, "finish_reason", i, wb_finish_name(r->finish));
    put_number(out, "group_index", i, r->group);
    put_number(out, "sample", i, r->sample);
    return WB_OK;
}

wb_status wb_export_slime(export_job *job) {
    uint8_t *row = NULL;
    WB_TRY(WB_NEW(row, wb_export_row_bytes(job->model, 4), "row"));
    wb_status status = wb_export_choose(job, look_at, NULL);
    if (status == WB_OK) status = wb_export_walk(job, true, put_sample, row);
    free(row);
    return status;
}
