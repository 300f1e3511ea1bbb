/* model_clone.c - a model from another one's weights, without its files. */
#include "model_weights.h"
#include "wb_text.h"

static wb_status clone_local(const wb_model *from, const wb_model_options *options, wb_model **model) {
    if (!from) return wb_fail(WB_INVALID_ARGUMENT, "model to clone: NULL");
    WB_TRY(wb_model_new(&from->config, from->family, options, model));
    if (from->source_config) WB_TRY(wb_text_format(&(*model)->source_config, "%s", from->source_config));
    (*model)->companions = wb_companions_share(from->companions);
    return wb_model_copy_weights(*model, from);
}

wb_status wb_model_clone(const wb_model *from, const wb_model_options *options, wb_model **model_out) {
    wb_model_options own;
    wb_model *m = NULL;
    WB_TRY(wb_model_read_options(options, &own));
    const wb_status status = wb_comm_agree(own.comm, clone_local(from, &own, &m));
    if (status == WB_OK)
        *model_out = m;
    else
        wb_model_close(m);
    return status;
}
