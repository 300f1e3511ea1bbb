/* cuda_digest.cu - the digest of bytes in device memory (wb_digest_rules.h). Sums of integers are the same in
 * any order, so that blocks add theirs as they come. */
#include "cuda/cuda_operands.h"
#include "wb_digest_rules.h"

namespace {

enum { DIGEST_BLOCKS = 1024 };

__global__ void __launch_bounds__(BLOCK)
    add_words(const void *data, uint64_t bytes, bool aligned, unsigned long long *digest) {
    const uint64_t step = static_cast<uint64_t>(gridDim.x) * BLOCK, whole = bytes / 8;
    unsigned long long sum = 0;
    for (uint64_t i = thread_number(); i < wb_digest_words(bytes); i += step) {
        const bool at_once = aligned && i < whole;
        const uint64_t word =
            at_once ? static_cast<const uint64_t *>(data)[i] : wb_digest_load(data, bytes, i);
        sum += wb_digest_word(word, i);
    }
    for (int lanes = WARP / 2; lanes > 0; lanes /= 2) sum += __shfl_xor_sync(ALL_LANES, sum, lanes);
    if (threadIdx.x % WARP == 0) atomicAdd(digest, sum);
}

} // namespace

extern "C" {

wb_status wb_cuda_start_digest(wb_device *dev, const void *data, size_t bytes, uint64_t *digest) {
    const int64_t most = DIGEST_BLOCKS;
    unsigned blocks = 0;
    WB_TRY(dev->zero(dev, digest, sizeof *digest));
    WB_TRY(count_blocks("digest", "words", static_cast<int64_t>(wb_digest_words(bytes)), 1, &blocks));
    if (blocks == 0) return WB_OK;
    if (blocks > most) blocks = static_cast<unsigned>(most);
    const bool aligned = reinterpret_cast<uintptr_t>(data) % 8 == 0;
    add_words<<<blocks, BLOCK, 0, stream_of(dev)>>>(data, bytes, aligned,
                                                    reinterpret_cast<unsigned long long *>(digest));
    return wb_cuda_check(cudaGetLastError(), "digest");
}
}
