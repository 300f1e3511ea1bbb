/* model_open.c - a model from a checkpoint directory. Refuses: what is in the files (model_load.c). */
#include "config.h"
#include "model_weights.h"
#include "wb_tensor_io.h"
#include "wb_text.h"

#include <stdlib.h>

static wb_status open_local(const char *dir, const wb_model_options *options, wb_safetensors **files,
                            wb_model **model) {
    wb_config config;
    char *text = NULL;
    if (!dir) return wb_fail(WB_INVALID_ARGUMENT, "model directory: NULL");
    WB_TRY(wb_config_read(dir, &config, &text));
    wb_status status = wb_safetensors_open(dir, NULL, files);
    if (status == WB_OK) status = wb_model_new(&config, wb_family_rules_of(config.family), options, model);
    if (status != WB_OK) {
        free(text);
        return status;
    }
    (*model)->source_config = text;
    if (wb_safetensors_note(*files))
        WB_TRY(wb_text_format(&(*model)->note, "%s", wb_safetensors_note(*files)));
    return wb_comm_rank(options->comm) == 0 ? wb_companions_read(dir, &(*model)->companions) : WB_OK;
}

wb_status wb_model_open(const char *dir, const wb_model_options *options, wb_model **model_out) {
    wb_model_options own;
    wb_model *m = NULL;
    wb_safetensors *files = NULL;
    wb_status status;
    WB_TRY(wb_model_read_options(options, &own));
    WB_GOTO(wb_comm_agree(own.comm, open_local(dir, &own, &files, &m)), close);
    uint64_t digest[2] = {wb_safetensors_digest(files), wb_safetensors_sample(files)};
    WB_GOTO(wb_model_check_peers(m, digest, sizeof digest), close);
    WB_GOTO(wb_comm_agree(own.comm, wb_model_load(m, files, dir, &digest[0])), close);
    WB_GOTO(wb_comm_check_equal(own.comm, digest, sizeof digest[0], "weights that all ranks hold"), close);
    wb_safetensors_close(files);
    *model_out = m;
    return WB_OK;
close:
    wb_safetensors_close(files);
    wb_model_close(m);
    return status;
}
