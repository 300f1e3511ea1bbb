/* safetensors_write.c - a .safetensors file from tensors, in a layout that every reader of the format
 * accepts: a JSON header padded to 8 bytes, then the data without gaps, wide elements first so that each
 * tensor is aligned. Refuses: dtypes that Waybill has no name for. */
#include "wb_check.h"
#include "wb_json.h"
#include "wb_tensor_io.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

static const char *dtype_name(wb_dtype dtype) {
    switch (dtype) {
    case WB_U8:
        return "U8";
    case WB_U16:
        return "U16";
    case WB_I32:
        return "I32";
    case WB_I64:
        return "I64";
    case WB_F32:
        return "F32";
    case WB_BF16:
        return "BF16";
    case WB_F16:
        return "F16";
    case WB_F8_E4M3:
        return "F8_E4M3";
    case WB_F8_E8M0:
        return "F8_E8M0";
    case WB_I8:
        return "I8";
    }
    return NULL;
}

static wb_status check_view(const wb_tensor_view *view) {
    uint64_t bytes = wb_dtype_size(view->dtype);
    if (!view->name) return wb_fail(WB_INVALID_ARGUMENT, "name: expected a string, found NULL");
    if (!dtype_name(view->dtype))
        return wb_fail(WB_INVALID_ARGUMENT, "dtype: unknown value %d", (int)view->dtype);
    if (view->n_dims < 0 || view->n_dims > WB_MAX_DIMS)
        return wb_fail(WB_INVALID_ARGUMENT, "n_dims: expected 0..%d, found %d", WB_MAX_DIMS, view->n_dims);
    for (int32_t d = 0; d < view->n_dims; d++) {
        if (view->shape[d] < 0 ||
            (view->shape[d] > 0 && bytes > (uint64_t)INT64_MAX / (uint64_t)view->shape[d]))
            return wb_fail(WB_INVALID_ARGUMENT, "shape[%d]: %" PRId64 " is negative or too large", d,
                           view->shape[d]);
        bytes *= (uint64_t)view->shape[d];
    }
    if (bytes != view->bytes)
        return wb_fail(WB_INVALID_ARGUMENT, "bytes: expected %" PRIu64 " of the shape, found %zu", bytes,
                       view->bytes);
    return WB_OK;
}

/* ---- order ----------------------------------------------------------------------------------- */

/* Walks the tensors in file order: by element size descending, else in the order of the list. Starts at
 * {0, 8}. */
typedef struct order {
    size_t next, size;
} order;

static size_t order_next(order *o, size_t n, const wb_tensor_view *tensors) {
    for (; o->size > 0; o->size /= 2, o->next = 0) {
        while (o->next < n) {
            size_t i = o->next++;
            if (wb_dtype_size(tensors[i].dtype) == o->size) return i;
        }
    }
    return SIZE_MAX;
}

/* ---- header ---------------------------------------------------------------------------------- */

static json_t *make_entry(const wb_tensor_view *view, uint64_t begin) {
    json_t *shape = json_array();
    for (int32_t d = 0; shape && d < view->n_dims; d++) {
        if (json_array_append_new(shape, json_integer(view->shape[d])) != 0) {
            json_decref(shape);
            return NULL;
        }
    }
    return json_pack("{s:s, s:o, s:[I, I]}", "dtype", dtype_name(view->dtype), "shape", shape, "data_offsets",
                     (json_int_t)begin, (json_int_t)(begin + view->bytes));
}

static wb_status set_metadata(json_t *root, const char *metadata_json) {
    json_t *metadata = NULL, *value;
    const char *key;
    if (!metadata_json) return WB_OK;
    WB_TRY(wb_json_parse(metadata_json, strlen(metadata_json), "__metadata__", &metadata));
    json_object_foreach(metadata, key, value) {
        if (json_is_string(value)) continue;
        wb_status status = wb_fail(WB_INVALID_ARGUMENT, "__metadata__: %s: expected a string", key);
        json_decref(metadata);
        return status;
    }
    return json_object_set_new(root, "__metadata__", metadata) == 0
               ? WB_OK
               : wb_fail(WB_OUT_OF_MEMORY, "safetensors header: no memory");
}

static wb_status set_tensors(json_t *root, size_t n, const wb_tensor_view *tensors) {
    uint64_t begin = 0;
    order o = {0, 8};
    for (size_t i; (i = order_next(&o, n, tensors)) != SIZE_MAX;) {
        const wb_tensor_view *view = &tensors[i];
        wb_status status = check_view(view);
        if (status != WB_OK)
            return wb_fail_context(status, "tensor %s", view->name ? view->name : "(no name)");
        if (strcmp(view->name, "__metadata__") == 0 || json_object_get(root, view->name))
            return wb_fail(WB_INVALID_ARGUMENT, "tensor %s: the name is taken", view->name);
        if (begin > (uint64_t)INT64_MAX - view->bytes)
            return wb_fail(WB_INVALID_ARGUMENT, "tensor %s: the file would exceed 2^63 bytes", view->name);
        if (json_object_set_new(root, view->name, make_entry(view, begin)) != 0)
            return wb_fail(WB_OUT_OF_MEMORY, "tensor %s: no memory for the header, or the name is no UTF-8",
                           view->name);
        begin += view->bytes;
    }
    return WB_OK;
}

static wb_status make_header(size_t n, const wb_tensor_view *tensors, const char *metadata_json,
                             char **text_out) {
    json_t *root = json_object();
    if (!root) return wb_fail(WB_OUT_OF_MEMORY, "safetensors header: no memory");
    wb_status status = set_metadata(root, metadata_json);
    if (status == WB_OK) status = set_tensors(root, n, tensors);
    if (status == WB_OK) {
        *text_out = json_dumps(root, JSON_COMPACT | JSON_PRESERVE_ORDER);
        if (!*text_out) status = wb_fail(WB_OUT_OF_MEMORY, "safetensors header: no memory");
    }
    json_decref(root);
    return status;
}

static wb_status write_header(wb_new_file *file, const char *text) {
    static const char spaces[8] = "        ";
    unsigned char length[8];
    size_t bytes = strlen(text), padding = (8 - bytes % 8) % 8, padded = bytes + padding;
    if (padded > WB_SAFETENSORS_MAX_HEADER)
        return wb_fail(WB_CAPACITY, "%s: a header of %zu bytes: at most %zu are allowed", file->path, padded,
                       WB_SAFETENSORS_MAX_HEADER);
    for (int i = 0; i < 8; i++) length[i] = (unsigned char)(padded >> (8 * i));
    WB_TRY(wb_new_file_write(file, length, sizeof length));
    WB_TRY(wb_new_file_write(file, text, bytes));
    return wb_new_file_write(file, spaces, padding);
}

/* ---- writing --------------------------------------------------------------------------------- */

wb_status wb_safetensors_write_to(wb_new_file *file, size_t n, const wb_tensor_view *tensors,
                                  const char *metadata_json, wb_tensor_emit emit, void *ctx) {
    char *text = NULL;
    wb_status status = make_header(n, tensors, metadata_json, &text);
    if (status != WB_OK) return wb_fail_context(status, "%s", file->path);
    status = write_header(file, text);
    free(text);
    WB_TRY(status);
    order o = {0, 8};
    for (size_t i; (i = order_next(&o, n, tensors)) != SIZE_MAX;)
        WB_TRY(emit ? emit(ctx, i, file) : wb_new_file_write(file, tensors[i].data, tensors[i].bytes));
    return WB_OK;
}

wb_status wb_safetensors_write(const char *path, size_t n, const wb_tensor_view *tensors,
                               const char *metadata_json) {
    wb_new_file file;
    WB_TRY(wb_new_file_open(path, &file));
    wb_status status = wb_safetensors_write_to(&file, n, tensors, metadata_json, NULL, NULL);
    if (status == WB_OK) status = wb_new_file_sync(&file);
    if (status == WB_OK) status = wb_new_file_commit(&file);
    if (status != WB_OK) wb_new_file_discard(&file);
    return status;
}
