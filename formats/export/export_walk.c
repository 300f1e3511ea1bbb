/* export_walk.c - see export_out.h: records of a dump one by one, and their rows in all hidden layers. */
#include "export/export_out.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>

/* Arrays and answers have signed integers: a larger number would be read as another one, or not at all. */
static wb_status check_numbers(const wb_record *r) {
    if (r->group > INT64_MAX)
        return wb_fail(WB_UNSUPPORTED, "record %s: expected a group of at most %" PRId64 ", found %" PRIu64,
                       r->rid, INT64_MAX, r->group);
    for (uint32_t i = 0; i < r->n_spans; i++)
        if (r->spans[i].weight_version > INT64_MAX)
            return wb_fail(WB_UNSUPPORTED,
                           "record %s: span %" PRIu32 ": expected a weight version of at most %" PRId64
                           ", found %" PRIu64,
                           r->rid, i, INT64_MAX, r->spans[i].weight_version);
    return WB_OK;
}

static wb_status visit(export_job *job, uint64_t i, bool deep, export_each *each, void *ctx) {
    const uint64_t at = job->kept ? job->kept[i] : i;
    wb_record record;
    WB_TRY(wb_dump_record(job->dump, at, &record));
    wb_status status = wb_record_check(job->model, &record, deep);
    if (status == WB_OK) status = check_numbers(&record);
    if (status == WB_OK && each) status = each(job, i, &record, ctx);
    if (status == WB_OK) status = job->out->status;
    if (status == WB_INVALID_ARGUMENT && job->out->status == status)
        wb_fail_context(status, "record %s", record.rid); /* a number that is none in JSON */
    wb_dump_release(job->dump, at);
    return status;
}

static void show(const export_job *job, uint64_t done) {
    if (job->progress) job->progress(job->callback_ctx, job->pass * job->n + done, job->passes * job->n);
}

wb_status wb_export_walk(export_job *job, bool deep, export_each *each, void *ctx) {
    for (uint64_t i = 0; i < job->n; i++) {
        WB_TRY(visit(job, i, deep, each, ctx));
        show(job, i + 1);
    }
    job->pass++;
    return WB_OK;
}

static bool may_skip(const export_job *job, wb_status status) {
    return status != WB_OUT_OF_MEMORY && status != WB_IO && job->skip(job->callback_ctx, status);
}

wb_status wb_export_choose(export_job *job, export_each *look, void *ctx) {
    uint64_t *kept = NULL, n = 0;
    if (!job->skip && !look) return WB_OK;
    job->passes++;
    if (!job->skip) return wb_export_walk(job, false, look, ctx);
    WB_TRY(WB_NEW(kept, job->n, "export"));
    for (uint64_t i = 0; i < job->n; i++) {
        const wb_status status = visit(job, i, true, look, ctx);
        job->out->status = WB_OK;
        if (status == WB_OK) {
            kept[n++] = i;
        } else if (!may_skip(job, status)) {
            free(kept);
            return status;
        }
        show(job, i + 1);
    }
    job->pass++;
    job->kept = kept;
    const bool are_none = n == 0 && job->n > 0;
    job->n = n;
    return are_none ? wb_fail(WB_NOT_FOUND, "expected records that can be written, found none") : WB_OK;
}

size_t wb_export_row_bytes(const wb_route_model *model, unsigned bytes) {
    return (size_t)model->num_hidden_layers * model->top_k * bytes;
}

static void put_id(uint8_t *at, uint32_t id, unsigned bytes) {
    for (unsigned i = 0; i < bytes; i++) at[i] = (uint8_t)(id >> 8 * i);
}

bool wb_export_row(const wb_route_model *model, const wb_record *record, uint32_t position, unsigned bytes,
                   int32_t missing, uint8_t *row_out) {
    const void *row = wb_record_row(model, record, position);
    const wb_dtype dtype = wb_route_dtype(model->num_experts);
    const uint32_t K = model->top_k;
    const size_t n = (size_t)model->num_hidden_layers * K;
    for (size_t i = 0; i < n; i++) put_id(row_out + i * bytes, row ? 0 : (uint32_t)missing, bytes);
    size_t at = 0;
    for (uint32_t l = 0; row && l < model->n_moe_layers; l++)
        for (uint32_t k = 0; k < K; k++) {
            const bool is_choice = k < wb_route_layer_k(model, l);
            put_id(row_out + ((size_t)model->moe_layers[l] * K + k) * bytes,
                   is_choice ? wb_route_id(row, dtype, at++) : UINT32_MAX, bytes);
        }
    return row;
}

int64_t wb_export_version(const wb_record *record) {
    const wb_span *s = record->spans;
    const bool is_one = record->n_spans == 1 && s->start == 0 && s->end == record->n_tokens;
    return is_one ? (int64_t)s->weight_version : -1;
}
