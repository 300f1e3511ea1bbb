/* hopper_launch.h - launches the kernel of products in one shape: the maps of its operands, and the grid.
 *
 * Refuses: choosing the shape (hopper_multiply.cu). For .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_LAUNCH_H
#define WB_HOPPER_LAUNCH_H

#include "cuda/hopper/hopper_maps.h"
#include "cuda/hopper/hopper_product.h"
#include "cuda/hopper/hopper_shapes.h"

namespace {

/* A: boxes of 64 rows and 64 columns. */
inline tensor tensor_a(const wb_product &p) {
    const int64_t columns = p.form == WB_PRODUCT_WGRAD ? p.M : p.K;
    return {p.a, 2, {size_of(columns), size_of(p.rows)}, {1, p.lda}, {64, PART}};
}

/* B: see fill_half_b. */
template <class S> tensor tensor_b(const wb_product &p) {
    const cuuint64_t groups = size_of(p.n_groups), N = size_of(p.N), K = size_of(p.K);
    const cuuint32_t k = k_halves<S>() ? PART / 2 : PART;
    if (S::FORM == WB_PRODUCT_WGRAD)
        return {p.b, 4, {N, size_of(p.rows), 1, 1}, {1, p.ldb, p.ldb, p.ldb}, {64, k, 1, 1}};
    if (S::FORM == WB_PRODUCT_DGRAD)
        return {p.b, 4, {N, K, 1, groups}, {1, p.ldb, p.ldb, p.K * p.ldb}, {64, k, 1, 1}};
    const int64_t halves = S::RESULT == WB_PRODUCT_SWIGLU ? 2 : 1, rows = p.N / halves;
    return {p.b,
            4,
            {K, size_of(rows), size_of(halves), groups},
            {1, p.ldb, rows * p.ldb, p.N * p.ldb},
            {64, S::COLUMNS / 2, 1, 1}};
}

/* C: boxes of a warp's 16 rows, or of a pair's 32; see hopper_boxes.h. */
template <class S> tensor tensor_c(const wb_product &p) {
    const cuuint64_t M = size_of(p.M), N = size_of(p.N), groups = size_of(p.n_groups);
    const int64_t group = p.n_groups > 1 ? p.c_group : 4;
    if (S::RESULT != WB_PRODUCT_SUMS)
        return {p.c.data, 2, {size_of(p.c_row), size_of(p.rows)}, {1, p.c_row}, {64, 16}};
    if (S::GATHER) return {p.c.data, 3, {M, N, groups}, {1, p.c_column, group}, {32, 32, 1}, true};
    return {p.c.data, 3, {N, M, groups}, {1, p.c_row, group}, {32, 16, 1}, true};
}

template <class S> wb_status make_maps(const wb_product &p, product_maps *maps_out) {
    const tensor act = {p.act, 2, {size_of(p.N / 2), size_of(p.rows)}, {1, p.N / 2}, {64, 16}};
    *maps_out = product_maps();
    if (!S::GATHER) WB_TRY(make_map(tensor_a(p), &maps_out->a));
    WB_TRY(make_map(tensor_b<S>(p), &maps_out->b));
    if (S::RESULT == WB_PRODUCT_SWIGLU) WB_TRY(make_map(act, &maps_out->act));
    if (S::RESULT != WB_PRODUCT_ELEMENTS && p.c.data) WB_TRY(make_map(tensor_c<S>(p), &maps_out->c));
    return WB_OK;
}

template <class S> wb_status launch(wb_device *dev, const char *op, const wb_product &p) {
    const wb_cuda_device *cuda = reinterpret_cast<const wb_cuda_device *>(dev);
    product_maps maps;
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute cluster[1];
    static_assert(S::SHARED_BYTES <= 227 * 1024, "what a block may have");
    WB_TRY(make_maps<S>(p, &maps));
    WB_TRY(wb_cuda_check(
        cudaFuncSetAttribute(multiply_tiles<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, S::SHARED_BYTES),
        op));
    cluster[0].id = cudaLaunchAttributeClusterDimension;
    cluster[0].val.clusterDim.x = S::CLUSTER, cluster[0].val.clusterDim.y = cluster[0].val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(cuda->multiprocessors / S::CLUSTER * S::CLUSTER));
    config.blockDim = dim3(S::THREADS);
    config.dynamicSmemBytes = S::SHARED_BYTES;
    config.stream = static_cast<cudaStream_t>(dev->stream);
    config.attrs = cluster, config.numAttrs = 1;
    return wb_cuda_check(cudaLaunchKernelEx(&config, multiply_tiles<S>, maps, p), op);
}

/* Many rows a group: pairs of blocks with tiles of 128 x 256. Few: blocks with tiles of 64 x 128. The
 * gradient of gate and up needs room for both and has narrower tiles: of the two widths for many rows the one
 * that leaves less of the last tile empty. */
template <wb_product_form FORM, wb_product_result RESULT, bool GATHER>
wb_status launch_sized(wb_device *dev, const char *op, const wb_product &p, wb_tile_size size) {
    if constexpr (RESULT == WB_PRODUCT_DSWIGLU) {
        if (size != WB_TILE_LARGE) return launch<shape<FORM, RESULT, GATHER, 128, 1, 6, 1, 4>>(dev, op, p);
        if ((p.N + 191) / 192 * 192 * 9 <= (p.N + 127) / 128 * 128 * 10)
            return launch<shape<FORM, RESULT, GATHER, 192, 2, 4, 2, 4>>(dev, op, p);
        return launch<shape<FORM, RESULT, GATHER, 128, 2, 5, 2, 4>>(dev, op, p);
    } else {
        return size == WB_TILE_LARGE ? launch<shape<FORM, RESULT, GATHER, 256, 2, 4, 2, 2>>(dev, op, p)
                                     : launch<shape<FORM, RESULT, GATHER, 128, 1, 8, 1, 2>>(dev, op, p);
    }
}

/* A product of so few rows and columns that wider tiles would leave most of the GPU idle: 64 x 32. */
inline wb_status launch_narrow(wb_device *dev, const char *op, const wb_product &p) {
    return launch<shape<WB_PRODUCT_FORWARD, WB_PRODUCT_ELEMENTS, false, 32, 1, 12, 1, 1>>(dev, op, p);
}

} // namespace

#endif
