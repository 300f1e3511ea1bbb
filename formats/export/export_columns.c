/* export_columns.c - see export_columns.h. */
#include "export/export_columns.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static wb_status measure(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    export_sizes *s = ctx;
    const uint64_t prompt = r->prompt_len, n_new = r->n_tokens - r->prompt_len, rid = strlen(r->rid);
    (void)job;
    (void)i;
    s->max_prompt = prompt > s->max_prompt ? prompt : s->max_prompt;
    s->max_new = n_new > s->max_new ? n_new : s->max_new;
    s->max_rid = rid > s->max_rid ? rid : s->max_rid;
    s->tokens += r->n_tokens;
    return WB_OK;
}

wb_status wb_export_measure(export_job *job, export_sizes *sizes_out) {
    export_sizes sizes = {.max_rid = 1};
    WB_TRY(wb_export_walk(job, true, measure, &sizes));
    *sizes_out = sizes;
    return WB_OK;
}

wb_status wb_export_array(export_job *job, const char *name, const char *type, unsigned n_dims,
                          const uint64_t *shape, export_each *each, void *ctx) {
    wb_export_begin(job->out, name, type, n_dims, shape);
    WB_TRY(wb_export_walk(job, false, each, ctx));
    wb_export_end(job->out);
    return job->out->status;
}

/* ---- columns -------------------------------------------------------------------------------------- */

/* Text of `width` bytes, filled up with NUL. */
static void put_padded(export_out *out, const char *text, uint64_t width) {
    wb_export_bytes(out, text, strlen(text));
    for (uint64_t i = strlen(text); i < width; i++) wb_export_bytes(out, "", 1);
}

static wb_status put_rid(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    const export_sizes *sizes = ctx;
    (void)i;
    put_padded(job->out, r->rid, sizes->max_rid);
    return WB_OK;
}

enum { FINISH_WIDTH = 6 };

static wb_status put_finish(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)i;
    (void)ctx;
    put_padded(job->out, wb_finish_name(r->finish), FINISH_WIDTH);
    return WB_OK;
}

static wb_status put_group(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)i;
    (void)ctx;
    wb_export_little(job->out, r->group, 8);
    return WB_OK;
}

static wb_status put_sample(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)i;
    (void)ctx;
    wb_export_little(job->out, r->sample, 8);
    return WB_OK;
}

static wb_status put_version(export_job *job, uint64_t i, const wb_record *r, void *ctx) {
    (void)i;
    (void)ctx;
    wb_export_little(job->out, (uint64_t)wb_export_version(r), 8);
    return WB_OK;
}

wb_status wb_export_columns(export_job *job, const export_sizes *sizes) {
    char rid_type[32], finish_type[8];
    export_sizes known = *sizes;
    snprintf(rid_type, sizeof rid_type, "|S%" PRIu64, sizes->max_rid);
    snprintf(finish_type, sizeof finish_type, "|S%d", FINISH_WIDTH);
    WB_TRY(wb_export_array(job, "rid", rid_type, 1, &job->n, put_rid, &known));
    WB_TRY(wb_export_array(job, "finish_reason", finish_type, 1, &job->n, put_finish, NULL));
    WB_TRY(wb_export_array(job, "group", "<i8", 1, &job->n, put_group, NULL));
    WB_TRY(wb_export_array(job, "sample", "<i8", 1, &job->n, put_sample, NULL));
    return wb_export_array(job, "weight_version", "<i8", 1, &job->n, put_version, NULL);
}
