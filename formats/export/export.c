/* export.c - see wb_export.h: the layouts by name, and an export from its beginning to its end. */
#include "export/export_out.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define X(NAME, name) name,
static const char *const names[] = {WB_EXPORT_LIST(X)};
#undef X
enum { N_LAYOUTS = sizeof names / sizeof names[0] };

const char *wb_export_layout_name(wb_export_layout layout) {
    return (size_t)layout < N_LAYOUTS ? names[layout] : "unknown";
}

#define X(NAME, name) " " name
wb_status wb_export_layout_find(const char *name, wb_export_layout *layout_out) {
    for (size_t i = 0; i < N_LAYOUTS; i++) {
        if (strcmp(name, names[i]) != 0) continue;
        *layout_out = (wb_export_layout)i;
        return WB_OK;
    }
    return wb_fail(WB_INVALID_ARGUMENT, "layout: expected one of" WB_EXPORT_LIST(X) ", found %s", name);
}
#undef X

/* ---- the dump ------------------------------------------------------------------------------------- */

static wb_status run(export_job *job, wb_export_layout layout) {
    static wb_status (*const layouts[])(export_job *) = {wb_export_npz, wb_export_sglang, wb_export_vllm,
                                                         wb_export_verl, wb_export_slime};
    export_out *out = job->out;
    out->is_zip = layout != WB_EXPORT_SGLANG && layout != WB_EXPORT_VLLM;
    out->zip = (wb_zip_writer){.write = out->write, .ctx = out->ctx};
    WB_TRY(layouts[layout](job));
    WB_TRY(wb_export_flush(out));
    return out->is_zip ? wb_zip_finish(&out->zip) : WB_OK;
}

/* vLLM's elements are unsigned: nothing can stand behind the choices of a layer that has fewer. */
static wb_status check_choices(const wb_route_model *m, wb_export_layout layout) {
    uint32_t l = 0;
    if (!m->layer_top_k || layout != WB_EXPORT_VLLM) return WB_OK;
    while (m->layer_top_k[l] == m->top_k) l++;
    return wb_fail(WB_UNSUPPORTED,
                   "MoE layer %" PRIu32 " (model layer %" PRIu32 ") has %" PRIu32
                   " choices and others up to %" PRIu32 ": vLLM's layout has nothing to stand for the rest",
                   l, m->moe_layers[l], m->layer_top_k[l], m->top_k);
}

wb_status wb_export_dump(wb_dump *dump, wb_export_layout layout, wb_export_write_fn *write, void *ctx,
                         wb_export_skip_fn *skip, void (*progress)(void *ctx, uint64_t done, uint64_t total),
                         void *callback_ctx) {
    export_out *out = NULL;
    if ((size_t)layout >= N_LAYOUTS) return wb_fail(WB_INVALID_ARGUMENT, "layout %d is none", (int)layout);
    WB_TRY(check_choices(wb_dump_model(dump), layout));
    WB_TRY(WB_NEW(out, 1, "export"));
    out->write = write;
    out->ctx = ctx;
    export_job job = {.dump = dump,
                      .model = wb_dump_model(dump),
                      .out = out,
                      .n = wb_dump_get_info(dump).records,
                      .passes = 1,
                      .progress = progress,
                      .skip = skip,
                      .callback_ctx = callback_ctx};
    const wb_status status = run(&job, layout);
    wb_zip_free(&out->zip);
    free(job.kept);
    free(out);
    return status;
}
