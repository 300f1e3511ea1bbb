/* convert_model.c - see convert.h. */
#include "convert/convert.h"
#include "wb_check.h"
#include "wb_model.h"

wb_status convert_model_read(const char *dir, convert_model *model_out) {
    wb_config config;
    WB_TRY(wb_config_load(dir, &config));
    const wb_status status = wb_config_routes(&config, model_out->moe_layers, &model_out->routes);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%s", dir);
}
