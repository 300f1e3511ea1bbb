/* model.c - a model without values in its weights, its end, and what its users may ask.
 * Refuses: where values come from (model_open.c, model_create.c, model_copy.c), which tensors there are
 * (architecture.c), where experts are (expert_placement.c). */
#include "config.h"
#include "exchange_memory.h"
#include "expert_placement.h"
#include "hash_tables.h"
#include "model_dispatch.h"
#include "model_mtp.h"
#include "registry.h"
#include "wb_options.h"
#include "wb_text.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* ---- options --------------------------------------------------------------------------------- */

WB_OPTIONS_END(wb_model_options, reserved);
static const wb_model_options default_options = {
    .size = sizeof default_options, .dtype = WB_F32, .activations = WB_F32};

void wb_model_options_init(wb_model_options *options_out, size_t size) {
    wb_options_init(options_out, size, &default_options, sizeof default_options);
}

wb_status wb_model_read_options(const wb_model_options *options, wb_model_options *own_out) {
    wb_model_options own = default_options;
    WB_TRY(wb_options_read(&own, sizeof own, options, "model options"));
    if (!own.comm) return wb_fail(WB_INVALID_ARGUMENT, "model options: expected a communicator, found NULL");
    *own_out = own;
    return WB_OK;
}

/* ---- open and close -------------------------------------------------------------------------- */

static void layout(void *user, wb_arena *arena) {
    wb_model *m = user;
    wb_arena_part(arena, "weights");
    wb_architecture_layout(m, arena);
    wb_arena_part(arena, "tables");
    wb_model_dispatch_layout(m, arena);
    wb_model_layout_rope(m, arena);
    wb_hash_tables_layout(m, arena);
    wb_mtp_layout(m, arena);
}

/* What a model is built of, without memory for it. */
static wb_status declare_model(wb_model *m, const wb_config *config, const wb_model_options *options) {
    m->config = *config;
    m->dtype = options->dtype;
    m->activations = options->activations;
    m->inference_only = options->inference_only;
    WB_TRY(wb_model_describe_routes(m));
    WB_TRY(wb_expert_placement_open(m, options->placement));
    WB_TRY(wb_model_dispatch_open(m, options->dispatch));
    WB_TRY(wb_hash_tables_build(m));
    WB_TRY(wb_architecture_build(m));
    return wb_mtp_build(m, options->placement);
}

static wb_status fill_model(wb_model *m) {
    WB_TRY(wb_arena_open(&m->memory, layout, m));
    WB_TRY(wb_model_dispatch_fill_all(m));
    WB_TRY(wb_mtp_fill_tables(m));
    return wb_model_fill_rope(m);
}

static wb_status check_dtype(const char *field, wb_dtype dtype) {
    if (dtype == WB_F32 || dtype == WB_BF16) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s: expected f32 or bf16, found %s", field, wb_dtype_name(dtype));
}

static wb_status check_options(const wb_model_options *options) {
    WB_TRY(wb_options_check_reserved(options->reserved, sizeof options->reserved, "model options"));
    WB_TRY(check_dtype("dtype", options->dtype));
    return check_dtype("activations", options->activations);
}

wb_status wb_model_new(const wb_config *config, const wb_family_rules *family,
                       const wb_model_options *options, wb_model **model_out) {
    wb_model *m = NULL;
    WB_TRY(check_options(options));
    if (!options->device) return wb_fail(WB_INVALID_ARGUMENT, "model options: expected a device, found NULL");
    WB_TRY(wb_config_check_by(config, family));
    WB_TRY(WB_NEW(m, 1, "model"));
    m->family = family;
    m->device = m->memory.device = options->device;
    m->comm = options->comm;
    m->n_ranks = wb_comm_size(m->comm);
    m->rank = wb_comm_rank(m->comm);
    wb_status status = declare_model(m, config, options);
    if (status == WB_OK) status = fill_model(m);
    if (status != WB_OK) {
        wb_model_close(m);
        return status;
    }
    *model_out = m;
    return WB_OK;
}

wb_status wb_model_open_exchange(wb_model *m) {
    const wb_exchange_memory memory = wb_device_exchange_memory(m->device);
    WB_TRY(wb_exchange_open(m->comm, &memory, &m->exchange));
    if (m->mtp) m->mtp->exchange = m->exchange;
    return wb_model_open_mailboxes(m);
}

/* ---- measuring ------------------------------------------------------------------------------- */

/* Those of a placement (wb_topology), checked before arrays of as many are made. */
enum { MAX_RANKS = 65536 };

wb_status wb_model_blank(const wb_config *config, const wb_model_options *options, int32_t n_ranks,
                         int32_t rank, wb_model **model_out) {
    wb_model_options own = default_options;
    wb_model *m = NULL;
    WB_TRY(wb_options_read(&own, sizeof own, options, "model options"));
    WB_TRY(check_options(&own));
    WB_TRY(wb_config_check(config));
    if (n_ranks < 1 || n_ranks > MAX_RANKS)
        return wb_fail(WB_INVALID_ARGUMENT, "expected 1..%d ranks, found %d", MAX_RANKS, n_ranks);
    if (rank < 0 || rank >= n_ranks)
        return wb_fail(WB_INVALID_ARGUMENT, "expected a rank in 0..%d, found %d", n_ranks - 1, rank);
    WB_TRY(WB_NEW(m, 1, "model"));
    m->family = wb_family_rules_of(config->family);
    m->n_ranks = n_ranks;
    m->rank = rank;
    const wb_status status = declare_model(m, config, &own);
    if (status != WB_OK) {
        wb_model_close(m);
        return status;
    }
    *model_out = m;
    return WB_OK;
}

wb_status wb_model_measure(const wb_config *config, const wb_model_options *options, int32_t n_ranks,
                           int32_t rank, wb_memory *memory_out) {
    wb_model *m = NULL;
    WB_TRY(wb_model_blank(config, options, n_ranks, rank, &m));
    const wb_status status = wb_arena_measure(NULL, layout, m, memory_out);
    if (status == WB_OK) memory_out->n_tensors = m->n_tensors;
    wb_model_close(m);
    return status;
}

wb_status wb_model_measure_slot(const wb_config *config, const wb_model_options *options, size_t *bytes_out) {
    wb_model *m = NULL;
    const int32_t n_ranks =
        options && options->placement ? (int32_t)wb_placement_topology(options->placement)->n_ranks : 1;
    WB_TRY(wb_model_blank(config, options, n_ranks, 0, &m));
    *bytes_out = 0;
    for (uint32_t l = 0; l < m->route_model.n_moe_layers; l++) {
        size_t bytes = 0;
        for (int32_t i = 0; i < m->n_params; i++)
            if (m->params[i].moe_layer == (int32_t)l)
                bytes += (size_t)m->params[i].slot_elements * wb_dtype_size(m->params[i].dtype);
        if (bytes > *bytes_out) *bytes_out = bytes;
    }
    wb_model_close(m);
    return WB_OK;
}

wb_status wb_model_measure_mailbox(const wb_config *config, const wb_model_options *options, int32_t n_ranks,
                                   size_t *bytes_out) {
    wb_model *m = NULL;
    WB_TRY(wb_model_blank(config, options, n_ranks, 0, &m));
    *bytes_out = wb_model_mailbox_bytes(m);
    wb_model_close(m);
    return WB_OK;
}

/* ---- the end --------------------------------------------------------------------------------- */

void wb_model_close(wb_model *m) {
    if (!m) return;
    wb_mtp_close(m->mtp);
    wb_model_close_mailboxes(m);
    wb_shared_area_close(&m->shared_shadow);
    wb_exchange_close(m->exchange);
    wb_workspace_close(&m->memory);
    wb_dispatch_close(m->dispatch_rows);
    wb_placement_close(m->placement);
    free(m->attached);
    free(m->source_config);
    wb_companions_close(m->companions);
    free(m->copied.transfers);
    free(m->note);
    free(m);
}

wb_status wb_model_check_peers(const wb_model *m, const void *source, size_t bytes) {
    const int32_t sizes[] = {(int32_t)m->dtype, (int32_t)m->activations, m->config.max_positions,
                             m->inference_only};
    WB_TRY(wb_comm_check_equal(m->comm, m->route_model.fingerprint, sizeof m->route_model.fingerprint,
                               "model fingerprint"));
    WB_TRY(wb_comm_check_equal(m->comm, sizes, sizeof sizes,
                               "model dtype, activations and max_positions, and inference_only"));
    WB_TRY(wb_comm_check_equal(m->comm, source, bytes, "source of the weights"));
    return wb_placement_check_equal(m->placement, m->comm);
}

/* ---- use ------------------------------------------------------------------------------------- */

const wb_config *wb_model_config(const wb_model *model) {
    return &model->config;
}

const wb_route_model *wb_model_routes(const wb_model *model) {
    return &model->route_model;
}

wb_device *wb_model_device(const wb_model *model) {
    return model->device;
}

wb_status wb_model_add_note(wb_model *m, const char *format, ...) {
    char text[1024], *note = NULL;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    WB_TRY(wb_text_format(&note, "%s%s%s", m->note ? m->note : "", m->note ? "; " : "", text));
    free(m->note);
    m->note = note;
    return WB_OK;
}

const char *wb_model_note(const wb_model *model) {
    return model->note;
}

wb_model *wb_model_mtp(const wb_model *model) {
    return model->mtp;
}

wb_exchange *wb_model_exchange(const wb_model *model) {
    return model->exchange;
}

wb_comm *wb_model_comm(const wb_model *model) {
    return model->comm;
}
