/* export_lines.c - a line of JSON a record, as SGLang and vLLM answer; see wb_export.h. */
#include "export/export_out.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>

/* ---- what both say -------------------------------------------------------------------------------- */

static void emit_ids(export_out *out, const uint32_t *ids, uint32_t n) {
    wb_export_print(out, "[");
    for (uint32_t i = 0; i < n; i++) wb_export_print(out, "%s%" PRIu32, i ? "," : "", ids[i]);
    wb_export_print(out, "]");
}

static void emit_reals(export_out *out, const float *numbers, uint32_t n) {
    wb_export_print(out, "[");
    for (uint32_t i = 0; i < n; i++) {
        if (i) wb_export_print(out, ",");
        wb_export_real(out, numbers[i]);
    }
    wb_export_print(out, "]");
}

static void emit_mask(export_out *out, const wb_record *r, uint32_t n) {
    wb_export_print(out, ",\"sampling_mask\":[");
    for (uint32_t i = 0, from = 0; i < n; from = r->mask_ends[i++]) {
        if (i) wb_export_print(out, ",");
        emit_ids(out, r->mask_ids + from, r->mask_ends[i] - from);
    }
    wb_export_print(out, "]");
}

/* What their answers have no field for, beside the answer. */
static void emit_beside(export_out *out, const wb_record *r) {
    const uint32_t n = r->n_tokens - r->prompt_len;
    wb_export_print(out, ",\"group\":%" PRIu64 ",\"sample\":%" PRIu32 ",\"spans\":[", r->group, r->sample);
    for (uint32_t i = 0; i < r->n_spans; i++)
        wb_export_print(out, "%s[%" PRIu32 ",%" PRIu32 ",%" PRIu64 "]", i ? "," : "", r->spans[i].start,
                        r->spans[i].end, r->spans[i].weight_version);
    wb_export_print(out, "]");
    if (r->sampling) {
        wb_export_print(out, ",\"sampling\":{\"temperature\":");
        wb_export_real(out, r->sampling->temperature);
        wb_export_print(out, ",\"top_k\":%" PRIu32 ",\"top_p\":", r->sampling->top_k);
        wb_export_real(out, r->sampling->top_p);
        wb_export_print(out, "}");
    }
    if (r->sampling_logprobs) {
        wb_export_print(out, ",\"sampling_logprobs\":");
        emit_reals(out, r->sampling_logprobs, n);
    }
    if (r->mask_ends) emit_mask(out, r, n);
}

/* A request without rows that was aborted had no routes yet. */
static bool has_no_routes(const wb_record *r) {
    return r->finish == WB_FINISH_ABORT && wb_record_count_rows(r) == 0;
}

/* ---- SGLang --------------------------------------------------------------------------------------- */

static void emit_rows(export_job *job, const wb_record *r, uint32_t first, unsigned bytes, uint8_t *row) {
    for (uint32_t p = first; p + 1 < r->n_tokens; p++) {
        wb_export_row(job->model, r, p, bytes, -1, row);
        wb_export_base64(job->out, row, wb_export_row_bytes(job->model, bytes));
    }
    wb_export_base64_end(job->out);
}

/* Where the line's arrays begin: at 0, or, where a record says from a later position of the prompt on what
 * indexers chose and has no rows before, there. */
static wb_status find_begin(const wb_route_model *model, const wb_record *r, uint32_t *first_out) {
    uint32_t first = r->indexer && !has_no_routes(r) ? r->indexer->start : 0;
    for (uint32_t p = 0; p < first; p++)
        if (first > r->prompt_len || wb_record_row(model, r, p)) first = 0;
    *first_out = first;
    return wb_export_check_indexer(r, first);
}

static void emit_indexer(export_job *job, const wb_record *r, uint32_t first) {
    wb_export_print(job->out, ",\"indexer_topk_num_layers\":%" PRIu32 ",\"indexer_topk\":\"",
                    job->model->n_indexer_layers);
    wb_export_indexer(job, r, first, wb_export_base64);
    wb_export_base64_end(job->out);
    wb_export_print(job->out, "\"");
}

static wb_status sglang_line(export_job *job, uint64_t i, const wb_record *r, void *row) {
    export_out *out = job->out;
    uint32_t first = 0;
    (void)i;
    WB_TRY(find_begin(job->model, r, &first));
    wb_export_print(out, "{\"input_ids\":");
    emit_ids(out, r->tokens, r->prompt_len);
    wb_export_print(out, ",\"output_ids\":");
    emit_ids(out, r->tokens + r->prompt_len, r->n_tokens - r->prompt_len);
    wb_export_print(out, ",\"meta_info\":{\"id\":");
    wb_export_text(out, r->rid);
    if (r->finish == WB_FINISH_NONE)
        wb_export_print(out, ",\"finish_reason\":null");
    else
        wb_export_print(out, ",\"finish_reason\":{\"type\":\"%s\"}", wb_finish_name(r->finish));
    wb_export_print(out, ",\"prompt_tokens\":%" PRIu32 ",\"completion_tokens\":%" PRIu32, r->prompt_len,
                    r->n_tokens - r->prompt_len);
    if (r->logprobs) wb_export_print(out, ",\"output_token_logprobs\":[");
    for (uint32_t k = 0; r->logprobs && k < r->n_tokens - r->prompt_len; k++) {
        wb_export_print(out, k ? ",[" : "[");
        wb_export_real(out, r->logprobs[k]);
        wb_export_print(out, ",%" PRIu32 ",null]", r->tokens[r->prompt_len + k]);
    }
    if (r->logprobs) wb_export_print(out, "]");
    if (!has_no_routes(r)) {
        wb_export_print(out, ",\"routed_experts\":\"");
        emit_rows(job, r, first, 4, row);
        wb_export_print(out, "\"");
    }
    if (first > 0) wb_export_print(out, ",\"routed_experts_start_len\":%" PRIu32, first);
    if (r->indexer) emit_indexer(job, r, first);
    wb_export_print(out, "}");
    emit_beside(out, r);
    wb_export_print(out, "}\n");
    return WB_OK;
}

/* ---- vLLM ----------------------------------------------------------------------------------------- */

/* The first position with a row, from which on all have one. */
static wb_status find_first(const wb_route_model *model, const wb_record *r, uint32_t *first_out) {
    uint32_t first = 0;
    while (first + 1 < r->n_tokens && !wb_record_row(model, r, first)) first++;
    for (uint32_t p = first; p + 1 < r->n_tokens; p++)
        if (!wb_record_row(model, r, p))
            return wb_fail(WB_UNSUPPORTED,
                           "record %s: position %" PRIu32
                           ": expected a row, which vLLM's layout has for each",
                           r->rid, p);
    if (first > r->prompt_len)
        return wb_fail(WB_UNSUPPORTED,
                       "record %s: expected a first row at 0..%" PRIu32 ", in the prompt, found %" PRIu32,
                       r->rid, r->prompt_len, first);
    *first_out = first;
    return WB_OK;
}

static wb_status vllm_routes(export_job *job, const wb_record *r, uint8_t *row, uint32_t *first_out) {
    const wb_route_model *m = job->model;
    const unsigned bytes = m->num_experts <= 256 ? 1 : 2;
    char head[EXPORT_HEAD_BYTES];
    WB_TRY(find_first(m, r, first_out));
    const uint32_t fed = r->n_tokens > 0 ? r->n_tokens - 1 : 0;
    const uint64_t shape[] = {fed - *first_out, m->num_hidden_layers, m->top_k};
    wb_export_print(job->out, "\"");
    wb_export_base64(job->out, head, wb_export_head(head, bytes == 1 ? "|u1" : "<u2", 3, shape));
    emit_rows(job, r, *first_out, bytes, row);
    wb_export_print(job->out, "\"");
    return WB_OK;
}

static wb_status vllm_line(export_job *job, uint64_t i, const wb_record *r, void *row) {
    export_out *out = job->out;
    uint32_t first = 0;
    (void)i;
    wb_export_print(out, "{\"id\":");
    wb_export_text(out, r->rid);
    wb_export_print(out, ",\"object\":\"text_completion\",\"prompt_token_ids\":");
    emit_ids(out, r->tokens, r->prompt_len);
    wb_export_print(out, ",\"choices\":[{\"index\":0,\"token_ids\":");
    emit_ids(out, r->tokens + r->prompt_len, r->n_tokens - r->prompt_len);
    if (r->finish == WB_FINISH_NONE)
        wb_export_print(out, ",\"finish_reason\":null");
    else
        wb_export_print(out, ",\"finish_reason\":\"%s\"", wb_finish_name(r->finish));
    wb_export_print(out, ",\"logprobs\":");
    if (r->logprobs) {
        wb_export_print(out, "{\"token_logprobs\":");
        emit_reals(out, r->logprobs, r->n_tokens - r->prompt_len);
        wb_export_print(out, "}");
    } else {
        wb_export_print(out, "null");
    }
    wb_export_print(out, ",\"routed_experts\":");
    if (has_no_routes(r))
        wb_export_print(out, "null");
    else
        WB_TRY(vllm_routes(job, r, row, &first));
    wb_export_print(out, "}],\"routed_experts_prompt_start\":%" PRIu32, first);
    emit_beside(out, r);
    wb_export_print(out, "}\n");
    return WB_OK;
}

/* ---- both ----------------------------------------------------------------------------------------- */

static wb_status drop(void *ctx, const void *bytes, size_t size) {
    (void)ctx;
    (void)bytes;
    (void)size;
    return WB_OK;
}

/* What a line refuses is known when it is written: they are written to nowhere first. */
static wb_status choose_lines(export_job *job, export_each *line, uint8_t *row) {
    export_out *out = job->out;
    wb_export_write_fn *const write = out->write;
    out->write = drop;
    const wb_status status = wb_export_choose(job, line, row);
    out->write = write;
    out->used = 0;
    return status;
}

static wb_status export_lines(export_job *job, export_each *line) {
    uint8_t *row = NULL;
    WB_TRY(WB_NEW(row, wb_export_row_bytes(job->model, 4), "row"));
    wb_status status = job->skip ? choose_lines(job, line, row) : WB_OK;
    if (status == WB_OK) status = wb_export_walk(job, true, line, row);
    free(row);
    return status;
}

wb_status wb_export_sglang(export_job *job) {
    return export_lines(job, sglang_line);
}

wb_status wb_export_vllm(export_job *job) {
    return export_lines(job, vllm_line);
}
