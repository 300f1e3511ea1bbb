/* stored_tensor.c - see stored_tensor.h. Refuses: where a tensor goes, which tensors a model has. */
#include "stored_tensor.h"
#include "elements.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* Rows and columns of a block, all of which has one scale. */
enum { BLOCK = 128 };

/* A way to store a matrix: elements of `dtype`, and in the tensor of their name with `suffix` the scales, f32
 * [ceil(rows / BLOCK), ceil(columns / BLOCK)], by which elements are multiplied. */
static const struct scaled_format {
    wb_dtype dtype;
    const char *suffix;
} formats[] = {{WB_F8_E4M3, "_scale_inv"}};

static int64_t blocks_of(int64_t n) {
    return (n + BLOCK - 1) / BLOCK;
}

static wb_status find_scales(const wb_safetensors *files, const struct scaled_format *format,
                             wb_stored_tensor *stored) {
    const wb_tensor_view *view = &stored->view;
    char name[512];
    if (view->n_dims != 2)
        return wb_fail(WB_UNSUPPORTED, "%s: tensor %s: expected a matrix of %s, found %d dimensions",
                       view->file, view->name, wb_dtype_name(view->dtype), view->n_dims);
    snprintf(name, sizeof name, "%s%s", view->name, format->suffix);
    stored->scales_index = wb_safetensors_lookup(files, name);
    if (stored->scales_index == SIZE_MAX)
        return wb_fail(WB_NOT_FOUND, "%s: tensor %s of %s: expected its scales, %s, found none", view->file,
                       view->name, wb_dtype_name(view->dtype), name);
    wb_tensor_view scales = {0};
    WB_TRY(wb_safetensors_get(files, stored->scales_index, &scales));
    const int64_t rows = blocks_of(view->shape[0]), columns = blocks_of(view->shape[1]);
    if (scales.dtype != WB_F32)
        return wb_fail(WB_UNSUPPORTED, "%s: tensor %s: expected f32, found %s", scales.file, scales.name,
                       wb_dtype_name(scales.dtype));
    if (scales.n_dims != 2 || scales.shape[0] != rows || scales.shape[1] != columns)
        return wb_fail(WB_MISMATCH,
                       "%s: tensor %s: expected [%" PRId64 ", %" PRId64
                       "], a scale for each %d x %d of [%" PRId64 ", %" PRId64 "], found [%" PRId64
                       ", %" PRId64 "] in %d dimensions",
                       scales.file, scales.name, rows, columns, BLOCK, BLOCK, view->shape[0], view->shape[1],
                       scales.shape[0], scales.shape[1], scales.n_dims);
    stored->scales = scales;
    return WB_OK;
}

wb_status wb_stored_find(const wb_safetensors *files, size_t index, wb_stored_tensor *stored_out) {
    wb_stored_tensor stored = {.scales_index = SIZE_MAX};
    wb_tensor_view *view = &stored.view;
    WB_TRY(wb_safetensors_get(files, index, view));
    bool known = view->dtype == WB_F32 || view->dtype == WB_BF16 || view->dtype == WB_F16;
    for (size_t i = 0; !known && i < sizeof formats / sizeof formats[0]; i++) {
        known = view->dtype == formats[i].dtype;
        if (known) WB_TRY(find_scales(files, &formats[i], &stored));
    }
    if (!known)
        return wb_fail(WB_UNSUPPORTED, "%s: tensor %s: expected dtype f32, bf16, f16 or f8_e4m3, found %s",
                       view->file, view->name, wb_dtype_name(view->dtype));
    *stored_out = stored;
    return WB_OK;
}

/* x[n], from element `first` of the matrix on and within one row, times their scales. */
static void scale(const wb_stored_tensor *stored, int64_t first, int64_t n, float *x) {
    const int64_t columns = stored->view.shape[1], row = first / columns, column = first % columns;
    const char *scales =
        (const char *)stored->scales.data + row / BLOCK * blocks_of(columns) * (int64_t)sizeof(float);
    for (int64_t i = 0; i < n; i++) {
        float factor;
        memcpy(&factor, scales + (column + i) / BLOCK * (int64_t)sizeof factor, sizeof factor);
        x[i] *= factor;
    }
}

void wb_stored_read(const wb_stored_tensor *stored, int64_t first, int64_t n, void *to, wb_dtype dtype) {
    const char *from = stored->view.data;
    const int64_t size = (int64_t)wb_dtype_size(stored->view.dtype), to_size = (int64_t)wb_dtype_size(dtype);
    if (!stored->scales.data) {
        wb_convert(n, from + first * size, stored->view.dtype, to, dtype);
        return;
    }
    float x[BLOCK];
    for (int64_t done = 0; done < n;) {
        const int64_t at = first + done, columns = stored->view.shape[1];
        int64_t count = columns - at % columns;
        if (count > n - done) count = n - done;
        if (count > BLOCK) count = BLOCK;
        wb_convert(count, from + at * size, stored->view.dtype, x, WB_F32);
        scale(stored, at, count, x);
        wb_convert(count, x, WB_F32, (char *)to + done * to_size, dtype);
        done += count;
    }
}
