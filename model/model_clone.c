/* model_clone.c - a model from another one's weights, without its files. */
#include "model_copy_travel.h"
#include "wb_text.h"

static wb_status clone_local(const wb_model *from, const wb_model_options *options, wb_model **model) {
    if (!from) return wb_fail(WB_INVALID_ARGUMENT, "model to clone: NULL");
    wb_model_options own = *options;
    if (!own.placement) own.placement = from->placement;
    WB_TRY(wb_model_new(&from->config, from->family, &own, model));
    if (from->source_config) WB_TRY(wb_text_format(&(*model)->source_config, "%s", from->source_config));
    (*model)->companions = wb_companions_share(from->companions);
    return wb_model_check_copy(*model, from);
}

static wb_status copy_weights(wb_model *model, const wb_model *from) {
    const wb_status status = wb_model_copy_weights(model, from);
    return wb_model_copy_travels(model, from) ? status : wb_comm_agree(model->comm, status);
}

wb_status wb_model_clone(const wb_model *from, const wb_model_options *options, wb_model **model_out) {
    wb_model_options own;
    wb_model *m = NULL;
    wb_status status;
    WB_TRY(wb_model_read_options(options, &own));
    WB_GOTO(wb_comm_agree(own.comm, clone_local(from, &own, &m)), close);
    const int32_t source = (int32_t)from->dtype;
    WB_GOTO(wb_model_check_peers(m, &source, sizeof source), close);
    WB_GOTO(wb_model_open_exchange(m), close);
    WB_GOTO(copy_weights(m, from), close);
    *model_out = m;
    return WB_OK;
close:
    wb_model_close(m);
    return status;
}
