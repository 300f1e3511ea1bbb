/* export_walk.c - see export_out.h: records of a dump one by one, and their rows in all hidden layers. */
#include "export/export_out.h"
#include "wb_check.h"

wb_status wb_export_walk(export_job *job, bool deep, export_each *each, void *ctx) {
    for (uint64_t i = 0; i < job->n; i++) {
        wb_record record;
        WB_TRY(wb_dump_record(job->dump, i, &record));
        wb_status status = wb_record_check(job->model, &record, deep);
        if (status == WB_OK) status = each(job, i, &record, ctx);
        if (status == WB_OK) status = job->out->status;
        wb_dump_release(job->dump, i);
        WB_TRY(status);
        if (job->progress) job->progress(job->progress_ctx, job->pass * job->n + i + 1, job->passes * job->n);
    }
    job->pass++;
    return WB_OK;
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
    for (uint32_t l = 0; row && l < model->n_moe_layers; l++)
        for (uint32_t k = 0; k < K; k++)
            put_id(row_out + ((size_t)model->moe_layers[l] * K + k) * bytes,
                   wb_route_id(row, dtype, (size_t)l * K + k), bytes);
    return row;
}

int64_t wb_export_version(const wb_record *record) {
    const wb_span *s = record->spans;
    const bool is_one = record->n_spans == 1 && s->start == 0 && s->end == record->n_tokens;
    return is_one && s->weight_version <= INT64_MAX ? (int64_t)s->weight_version : -1;
}
