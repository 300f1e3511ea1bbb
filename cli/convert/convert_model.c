/* convert_model.c - see convert.h. */
#include "convert/convert.h"
#include "wb_model.h"

wb_status convert_model_read(const char *dir, convert_model *model_out) {
    return wb_routes_of_folder(dir, model_out->moe_layers, &model_out->routes, &model_out->vocab_size);
}
