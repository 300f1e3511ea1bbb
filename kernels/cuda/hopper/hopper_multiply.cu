/* hopper_multiply.cu - which products the kernels of sm_90a take, and in which shape. The shape is for speed:
 * the bits are the same in all. */
#include "cuda/hopper/hopper_call.h"
#include "cuda/hopper/hopper_shapes.h"
#include "wb_check.h"

namespace {

const wb_cuda_device *cuda_of(const wb_device *dev) {
    return reinterpret_cast<const wb_cuda_device *>(dev);
}

bool aligned(const void *data, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(data) % bytes == 0;
}

/* Boxes of rows, or pairs of elements. */
bool takes_result(const wb_product *p) {
    const int64_t columns = p->result == WB_PRODUCT_SWIGLU ? p->N / 2 : p->N;
    if (p->result == WB_PRODUCT_ELEMENTS) return p->N % 2 == 0 && p->c_row % 2 == 0 && aligned(p->c.data, 8);
    if (p->result == WB_PRODUCT_SUMS)
        return aligned(p->c.data, 16) && (p->gather ? p->c_column : p->c_row) % 4 == 0 && p->c_group % 4 == 0;
    return columns % 8 == 0 && p->c_row % 8 == 0 && aligned(p->c.data, 16) && aligned(p->act, 16);
}

/* A tile's place is told in words of which it has a half (hopper_tiles.h). */
bool takes_sizes(const wb_product *p) {
    return p->N < 32 << 16 && (p->form != WB_PRODUCT_WGRAD || p->M < 64 << 15);
}

int64_t tiles_of(int64_t rows, int64_t columns, int64_t tile_rows, int64_t tile_columns) {
    return (rows + tile_rows - 1) / tile_rows * ((columns + tile_columns - 1) / tile_columns);
}

wb_tile_size size_of(const wb_device *dev, const wb_product *p) {
    const int64_t half = cuda_of(dev)->multiprocessors / 2;
    const int64_t rows = p->form == WB_PRODUCT_WGRAD ? p->M : p->rows / p->n_groups;
    const bool plain = p->result == WB_PRODUCT_ROWS || p->result == WB_PRODUCT_ELEMENTS;
    /* Half of a large tile would stay empty where a router has no more than 128 experts. */
    if (rows >= 96 && p->N > 128 && tiles_of(rows, p->N, 256, 256) * p->n_groups >= half)
        return WB_TILE_LARGE;
    if (p->form != WB_PRODUCT_FORWARD || !plain || p->n_groups > 1) return WB_TILE_SMALL;
    return tiles_of(rows, p->N, 64, 128) <= half ? WB_TILE_NARROW : WB_TILE_SMALL;
}

} // namespace

bool wb_hopper_takes(const wb_device *dev, const wb_product *p) {
    if (cuda_of(dev)->capability != 9 || !takes_sizes(p)) return false;
    if (!aligned(p->a, 16) || !aligned(p->b, 16) || p->lda % 8 != 0 || p->ldb % 8 != 0) return false;
    if (p->gather && (p->K % 8 != 0 || p->M % 8 != 0)) return false;
    return takes_result(p);
}

wb_status wb_hopper_multiply(wb_device *dev, const char *op, const wb_product *product) {
    const wb_tile_size size = size_of(dev, product);
    wb_product p = *product;
    p.counters = cuda_of(dev)->counters;
    WB_TRY(wb_cuda_use(dev, op));
    if (p.form == WB_PRODUCT_FORWARD) return wb_hopper_forward(dev, op, p, size);
    if (p.form == WB_PRODUCT_DGRAD) return wb_hopper_dgrad(dev, op, p, size);
    return wb_hopper_wgrad(dev, op, p, size);
}
