/* tensor_elements.c - the elements of a source as f32, whatever the form in which the file has them
 * (tensor_source.h). All of it is exact but for FP8, whose product with its scale is rounded once. */
#include "elements.h"
#include "tensor_source.h"

const void *wb_tensor_source_bytes(const wb_tensor_source *s) {
    if (s->form != WB_SOURCE_PLAIN || s->column_stride > 1 || s->row_stride != s->columns) return NULL;
    return (const unsigned char *)s->view.data + (size_t)s->first * wb_dtype_size(s->view.dtype);
}

/* Element i of a view of floats. */
static float element(const wb_tensor_view *view, int64_t i) {
    float value;
    wb_convert(1, (const unsigned char *)view->data + (size_t)i * wb_dtype_size(view->dtype), view->dtype,
               &value, WB_F32);
    return value;
}

/* Scale i of a source whose scales are floats or exponents. */
static float scale_at(const wb_tensor_source *s, int64_t i) {
    const bool is_exponent = wb_dtype_size(s->scales.dtype) == 1;
    return is_exponent ? wb_f32_from_f8_e8m0(((const uint8_t *)s->scales.data)[i]) : element(&s->scales, i);
}

/* Each reads n elements of a row, from a column on. */

static void read_plain(const wb_tensor_source *s, int64_t row, int64_t column, int64_t n, float *out) {
    const int64_t first = s->first + row * s->row_stride + column * s->column_stride;
    if (s->column_stride == 1) {
        const size_t size = wb_dtype_size(s->view.dtype);
        wb_convert(n, (const unsigned char *)s->view.data + (size_t)first * size, s->view.dtype, out, WB_F32);
        return;
    }
    for (int64_t i = 0; i < n; i++) out[i] = element(&s->view, first + i * s->column_stride);
}

static void read_fp8(const wb_tensor_source *s, int64_t row, int64_t column, int64_t n, float *out) {
    const int64_t per_row = s->scales.shape[1];
    const unsigned char *from = (const unsigned char *)s->view.data + row * s->columns + column;
    for (int64_t i = 0; i < n;) {
        const int64_t block = (column + i) / s->block_columns,
                      left = (block + 1) * s->block_columns - column - i;
        const float scale = scale_at(s, row / s->block_rows * per_row + block);
        const int64_t end = left < n - i ? i + left : n;
        for (; i < end; i++) out[i] = wb_f32_from_f8_e4m3(from[i]) * scale;
    }
}

/* The low half of a byte comes first. */
static void read_fp4(const wb_tensor_source *s, int64_t row, int64_t column, int64_t n, float *out) {
    static const float values[16] = {0, 0.5f, 1, 1.5f, 2, 3, 4, 6, -0.0f, -0.5f, -1, -1.5f, -2, -3, -4, -6};
    const int64_t at = (s->first + row * s->row_stride) * s->columns + column;
    const unsigned char *pairs = s->view.data;
    for (int64_t i = at; i < at + n;) {
        const float scale = scale_at(s, i / WB_FP4_GROUP);
        const int64_t group_end = (i / WB_FP4_GROUP + 1) * WB_FP4_GROUP;
        const int64_t end = group_end < at + n ? group_end : at + n;
        for (; i < end; i++) *out++ = values[i % 2 == 0 ? pairs[i / 2] & 15 : pairs[i / 2] >> 4] * scale;
    }
}

void wb_tensor_source_read(const wb_tensor_source *s, int64_t first, int64_t n, float *out) {
    /* A vector's rows are its elements: it has one row here, of which each is a column. */
    wb_tensor_source flat = *s;
    if (s->columns <= 1 && s->form == WB_SOURCE_PLAIN) {
        flat.columns = INT64_MAX;
        flat.column_stride = s->row_stride;
    }
    for (int64_t i = 0; i < n;) {
        const int64_t row = (first + i) / flat.columns, column = (first + i) % flat.columns;
        const int64_t left = flat.columns - column, count = left < n - i ? left : n - i;
        if (s->form == WB_SOURCE_FP8)
            read_fp8(&flat, row, column, count, out + i);
        else if (s->form == WB_SOURCE_FP4)
            read_fp4(&flat, row, column, count, out + i);
        else
            read_plain(&flat, row, column, count, out + i);
        i += count;
    }
}
