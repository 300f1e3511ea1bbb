/* cuda_move_rows.cu - rows and columns moved as they are: gathered, scattered, copied out of wider rows,
 * written into the cache of keys and values. What can be is moved 16 bytes at a time. Refuses: ops that
 * compute on rows (cuda_rows.cu). */
#include "cuda/cuda_operands.h"
#include "cuda/cuda_ops.h"
#include "cuda/cuda_scratch.h"

namespace {

/* Of `width` elements a row, each as it is. */
template <typename E>
__global__ void __launch_bounds__(BLOCK) gather_elements(int64_t n, const int32_t *n_rows, int64_t width,
                                                         const int32_t *index, const E *in, E *out) {
    const int64_t i = thread_number(), row = i / width;
    if (n_rows) n = min(n, static_cast<int64_t>(*n_rows));
    if (row < n) out[i] = in[index[row] * width + i % width];
}

template <typename E>
__global__ void __launch_bounds__(BLOCK)
    scatter_elements(int64_t n, int64_t width, const int32_t *index, const E *in, E *out) {
    const int64_t i = thread_number(), row = i / width;
    if (row < n) out[index[row] * width + i % width] = in[i];
}

/* Whether rows of that many bytes can be moved 16 bytes at a time. */
bool in_sixteens(size_t row_bytes, const void *in, const void *out) {
    const uintptr_t bits = reinterpret_cast<uintptr_t>(in) | reinterpret_cast<uintptr_t>(out) | row_bytes;
    return bits % 16 == 0;
}

template <typename E>
wb_status gather(wb_device *dev, int64_t n, const int32_t *n_rows, size_t row_bytes, const int32_t *index,
                 wb_rows in, wb_rows out) {
    const int64_t width = static_cast<int64_t>(row_bytes / sizeof(E));
    LAUNCH(dev, "gather_rows", n * width, 1, gather_elements<E>, n, n_rows, width, index,
           static_cast<const E *>(in.data), static_cast<E *>(out.data));
}

template <typename E>
wb_status scatter(wb_device *dev, int64_t n, size_t row_bytes, const int32_t *index, wb_rows in,
                  wb_rows out) {
    const int64_t width = static_cast<int64_t>(row_bytes / sizeof(E));
    LAUNCH(dev, "scatter_rows", n * width, 1, scatter_elements<E>, n, width, index,
           static_cast<const E *>(in.data), static_cast<E *>(out.data));
}

/* Blocks of `width` elements, the rows of which are apart. */
template <typename E>
__global__ void __launch_bounds__(BLOCK)
    copy_elements(int64_t n, int64_t width, const E *from, int64_t from_stride, E *to, int64_t to_stride) {
    const int64_t i = thread_number(), row = i / width, column = i % width;
    if (row < n) to[row * to_stride + column] = from[row * from_stride + column];
}

/* Strides and width in elements of `size` bytes, of which one move has as many as E. */
template <typename E>
wb_status copy_blocks(wb_device *dev, int64_t n, int64_t width, size_t size, wb_rows from,
                      int64_t from_stride, wb_rows to, int64_t to_stride) {
    const int64_t each = static_cast<int64_t>(sizeof(E) / size);
    LAUNCH(dev, "copy_columns", n * (width / each), 1, copy_elements<E>, n, width / each,
           static_cast<const E *>(from.data), from_stride / each, static_cast<E *>(to.data),
           to_stride / each);
}

/* As copy_elements; block `row` is head row % n_heads of token row / n_heads. */
template <typename E>
__global__ void __launch_bounds__(BLOCK)
    copy_head_elements(int64_t T, int64_t n_heads, int64_t width, const E *from, int64_t from_row,
                       int64_t from_head, E *to, int64_t to_row, int64_t to_head) {
    const int64_t i = thread_number(), block = i / width, column = i % width;
    const int64_t t = block / n_heads, h = block % n_heads;
    if (t < T) to[t * to_row + h * to_head + column] = from[t * from_row + h * from_head + column];
}

template <typename E> wb_status copy_head_blocks(wb_device *dev, size_t size, const wb_copy_heads *a) {
    const int64_t each = static_cast<int64_t>(sizeof(E) / size);
    LAUNCH(dev, "copy_heads", a->T * a->n_heads * (a->width / each), 1, copy_head_elements<E>, a->T,
           a->n_heads, a->width / each, static_cast<const E *>(a->from.data), a->from_row / each,
           a->from_head / each, static_cast<E *>(a->to.data), a->to_row / each, a->to_head / each);
}

__global__ void __launch_bounds__(BLOCK)
    write_cache(int64_t T, int64_t width, wb_rows x, const int64_t *rows, wb_rows cache) {
    const int64_t i = thread_number(), t = i / width;
    if (t < T && rows[t] >= 0) store_element(cache, rows[t] * width + i % width, load_element(x, i));
}

} // namespace

extern "C" {

wb_status wb_cuda_gather_rows(wb_device *dev, int64_t n, int64_t width, const int32_t *index, wb_rows in,
                              wb_rows out) {
    return wb_cuda_gather_some(dev, n, NULL, width, index, in, out);
}

wb_status wb_cuda_gather_some(wb_device *dev, int64_t n, const int32_t *n_rows, int64_t width,
                              const int32_t *index, wb_rows in, wb_rows out) {
    WB_TRY(operand_check("gather_rows", "in", in.dtype));
    WB_TRY(operand_check_like("gather_rows", "out", out.dtype, "in", in.dtype));
    const size_t row_bytes = static_cast<size_t>(width) * wb_dtype_size(in.dtype);
    if (in_sixteens(row_bytes, in.data, out.data))
        return gather<uint4>(dev, n, n_rows, row_bytes, index, in, out);
    return in.dtype == WB_F32 ? gather<uint32_t>(dev, n, n_rows, row_bytes, index, in, out)
                              : gather<uint16_t>(dev, n, n_rows, row_bytes, index, in, out);
}

wb_status wb_cuda_scatter_rows(wb_device *dev, int64_t n, int64_t width, const int32_t *index, wb_rows in,
                               wb_rows out) {
    WB_TRY(operand_check("scatter_rows", "in", in.dtype));
    WB_TRY(operand_check_like("scatter_rows", "out", out.dtype, "in", in.dtype));
    const size_t row_bytes = static_cast<size_t>(width) * wb_dtype_size(in.dtype);
    if (in_sixteens(row_bytes, in.data, out.data)) return scatter<uint4>(dev, n, row_bytes, index, in, out);
    return in.dtype == WB_F32 ? scatter<uint32_t>(dev, n, row_bytes, index, in, out)
                              : scatter<uint16_t>(dev, n, row_bytes, index, in, out);
}

wb_status wb_cuda_copy_columns(wb_device *dev, int64_t n, int64_t width, wb_rows from, int64_t from_stride,
                               wb_rows to, int64_t to_stride) {
    WB_TRY(operand_check("copy_columns", "from", from.dtype));
    WB_TRY(operand_check_like("copy_columns", "to", to.dtype, "from", from.dtype));
    if (width == 0) return WB_OK;
    const size_t size = wb_dtype_size(from.dtype);
    const size_t bytes = static_cast<size_t>(width | from_stride | to_stride) * size;
    if (in_sixteens(bytes, from.data, to.data))
        return copy_blocks<uint4>(dev, n, width, size, from, from_stride, to, to_stride);
    if (from.dtype == WB_F32)
        return copy_blocks<uint32_t>(dev, n, width, size, from, from_stride, to, to_stride);
    return copy_blocks<uint16_t>(dev, n, width, size, from, from_stride, to, to_stride);
}

wb_status wb_cuda_copy_heads(wb_device *dev, const wb_copy_heads *a) {
    WB_TRY(operand_check("copy_heads", "from", a->from.dtype));
    WB_TRY(operand_check_like("copy_heads", "to", a->to.dtype, "from", a->from.dtype));
    if (a->T == 0 || a->n_heads == 0 || a->width == 0) return WB_OK;
    const size_t size = wb_dtype_size(a->from.dtype);
    const size_t bytes =
        static_cast<size_t>(a->width | a->from_row | a->from_head | a->to_row | a->to_head) * size;
    if (in_sixteens(bytes, a->from.data, a->to.data)) return copy_head_blocks<uint4>(dev, size, a);
    if (a->from.dtype == WB_F32) return copy_head_blocks<uint32_t>(dev, size, a);
    return copy_head_blocks<uint16_t>(dev, size, a);
}

wb_status wb_cuda_kv_write(wb_device *dev, int64_t T, int64_t width, wb_rows x, const int64_t *rows,
                           wb_rows cache) {
    WB_TRY(operand_check("kv_write", "x", x.dtype));
    WB_TRY(operand_check("kv_write", "cache", cache.dtype));
    if (x.dtype == WB_BF16) WB_TRY(operand_check_like("kv_write", "cache", cache.dtype, "x", x.dtype));
    LAUNCH(dev, "kv_write", T * width, 1, write_cache, T, width, x, rows, cache);
}
}
