/* hopper_launch.h - launches the kernel of products in one shape: the maps of its operands, and the grid.
 *
 * A tensor map is made for each call, on the host. Refuses: choosing the shape (hopper_multiply.cu). For .cu
 * files compiled for sm_90a. */
#ifndef WB_HOPPER_LAUNCH_H
#define WB_HOPPER_LAUNCH_H

#include "cuda/hopper/hopper_maps.h"
#include "cuda/hopper/hopper_product.h"
#include "cuda/hopper/hopper_shapes.h"

namespace {

/* A: boxes of 64 rows and 64 columns. */
inline tensor tensor_a(const wb_product &p) {
    const int64_t columns = p.form == WB_PRODUCT_WGRAD ? p.M : p.K;
    tensor t = {p.a, 2, {size_of(columns), size_of(p.rows)}, {1, p.lda}, {64, PART}};
    return t;
}

/* B: see fill_b. */
template <class S> tensor tensor_b(const wb_product &p) {
    const cuuint64_t groups = size_of(p.n_groups);
    if (S::FORM == WB_PRODUCT_WGRAD) {
        tensor t = {
            p.b, 4, {size_of(p.N), size_of(p.rows), 1, 1}, {1, p.ldb, p.ldb, p.ldb}, {64, PART, 1, 1}};
        return t;
    }
    if (S::FORM == WB_PRODUCT_DGRAD) {
        const int64_t matrix = p.K * p.ldb;
        tensor t = {
            p.b, 4, {size_of(p.N), size_of(p.K), 1, groups}, {1, p.ldb, p.ldb, matrix}, {64, PART, 1, 1}};
        return t;
    }
    const int64_t halves = S::RESULT == WB_PRODUCT_SWIGLU ? 2 : 1, rows = p.N / halves;
    tensor t = {p.b,
                4,
                {size_of(p.K), size_of(rows), size_of(halves), groups},
                {1, p.ldb, rows * p.ldb, p.N * p.ldb},
                {64, S::COLUMNS / 2, 1, 1}};
    return t;
}

template <class S> wb_status launch(wb_device *dev, const char *op, const wb_product &p) {
    const wb_cuda_device *cuda = reinterpret_cast<const wb_cuda_device *>(dev);
    const int bytes = S::shared_bytes(p.n_groups);
    CUtensorMap map_a = {}, map_b;
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute cluster[1];
    if (!S::GATHER) WB_TRY(make_map(tensor_a(p), &map_a));
    WB_TRY(make_map(tensor_b<S>(p), &map_b));
    WB_TRY(wb_cuda_check(
        cudaFuncSetAttribute(multiply_tiles<S>, cudaFuncAttributeMaxDynamicSharedMemorySize, bytes), op));
    cluster[0].id = cudaLaunchAttributeClusterDimension;
    cluster[0].val.clusterDim.x = S::CLUSTER, cluster[0].val.clusterDim.y = cluster[0].val.clusterDim.z = 1;
    config.gridDim = dim3(static_cast<unsigned>(cuda->multiprocessors / S::CLUSTER * S::CLUSTER));
    config.blockDim = dim3(S::THREADS);
    config.dynamicSmemBytes = static_cast<size_t>(bytes);
    config.stream = static_cast<cudaStream_t>(dev->stream);
    config.attrs = cluster, config.numAttrs = 1;
    return wb_cuda_check(cudaLaunchKernelEx(&config, multiply_tiles<S>, map_a, map_b, p), op);
}

/* Many rows a group: pairs of blocks with tiles of 128 x 256. Few: blocks with tiles of 64 x 128. The
 * gradient of gate and up needs room for both and has narrower tiles. */
template <wb_product_form FORM, wb_product_result RESULT, bool GATHER>
wb_status launch_sized(wb_device *dev, const char *op, const wb_product &p, wb_tile_size size) {
    if constexpr (RESULT == WB_PRODUCT_DSWIGLU)
        return size == WB_TILE_LARGE ? launch<shape<FORM, RESULT, GATHER, 128, 2, 4, 2>>(dev, op, p)
                                     : launch<shape<FORM, RESULT, GATHER, 128, 1, 6, 1>>(dev, op, p);
    else
        return size == WB_TILE_LARGE ? launch<shape<FORM, RESULT, GATHER, 256, 2, 4, 2>>(dev, op, p)
                                     : launch<shape<FORM, RESULT, GATHER, 128, 1, 8, 1>>(dev, op, p);
}

/* A product of so few rows and columns that wider tiles would leave most of the GPU idle: 64 x 32. */
inline wb_status launch_narrow(wb_device *dev, const char *op, const wb_product &p) {
    return launch<shape<WB_PRODUCT_FORWARD, WB_PRODUCT_ELEMENTS, false, 32, 1, 12, 1>>(dev, op, p);
}

} // namespace

#endif
