/* hopper_attention_single.cu - launches the kernel of single tokens, in the shape that suits their number.
 * The shape is for speed: the bits are the same in all. See hopper_attention_items.h. */
#include "cuda/cuda_scratch.h"
#include "cuda/hopper/hopper_attention.h"
#include "cuda/hopper/hopper_attention_items.h"
#include "cuda/hopper/hopper_attention_launch.h"

namespace {

/* Parts of a share: more keys than this are of few tokens, or so many that items need not be cut. */
const int64_t MAX_PARTS = 32;

int64_t splits_of(int64_t keys) {
    return (keys + SPLIT_KEYS - 1) / SPLIT_KEYS;
}

const wb_cuda_device *cuda_of(const wb_device *dev) {
    return reinterpret_cast<const wb_cuda_device *>(dev);
}

/* Room for `blocks` blocks of threads, each with parts + 1 of `heads` rows. */
size_t part_bytes(int64_t blocks, int64_t parts, int64_t heads, int64_t D) {
    return static_cast<size_t>(blocks * (parts + 1) * heads * (D + 2)) * sizeof(float);
}

template <class S> wb_status launch(wb_device *dev, single_call call, unsigned blocks) {
    const char *op = "attention_forward";
    const size_t bytes = S::bytes(call.args.T);
    const int32_t group = call.args.n_heads / call.args.n_kv_heads;
    const int64_t rows = static_cast<int64_t>(blocks) * (call.parts + 1) * S::HEADS;
    float *scratch = NULL;
    call.token_items = call.args.n_kv_heads * ((group + S::HEADS - 1) / S::HEADS);
    WB_TRY(reserve_scratch(dev, part_bytes(blocks, call.parts, S::HEADS, S::D), &scratch));
    call.sums = scratch;
    call.states = reinterpret_cast<row_state *>(scratch + rows * S::D);
    /* The bound is the whole context's: it is the same for every T, so that a device of another thread on the
     * same GPU does not lower it between here and the launch. */
    WB_TRY(wb_cuda_check(cudaFuncSetAttribute(attend_singles<S>, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                              static_cast<int>(S::bytes(WB_MAX_SINGLES))),
                         op));
    cudaLaunchConfig_t config = {};
    cudaLaunchAttribute early = early_begin();
    config.gridDim = dim3(blocks), config.blockDim = dim3(S::THREADS), config.dynamicSmemBytes = bytes;
    config.stream = static_cast<cudaStream_t>(dev->stream);
    /* Before it waits, the kernel reads seq, pos, blocks and keys: the op before it may write them, but where
     * the caller says one_a_sequence (wb_attention). */
    config.attrs = &early, config.numAttrs = call.args.one_a_sequence ? 1 : 0;
    return wb_cuda_check(cudaLaunchKernelEx(&config, attend_singles<S>, call), op);
}

/* Few items: blocks of threads that have a multiprocessor for themselves, with twice as many tiles on their
 * way. Many: two beside each other. */
template <int D, int HEADS> wb_status launch_sized(wb_device *dev, const single_call &call) {
    const unsigned processors = static_cast<unsigned>(cuda_of(dev)->multiprocessors);
    const int SLOTS = D == 64 ? 6 : 3, WARPS = D == 64 || HEADS == 16 ? 4 : 8;
    if (call.args.block_size % PAGE_GRAIN != 0)
        return launch<single_shape<D, HEADS, 4, SLOTS, false>>(dev, call, processors);
    if (call.args.T * call.args.n_kv_heads <= 32)
        return launch<single_shape<D, HEADS, D == 64 ? 4 : 8, 2 * SLOTS, true>>(dev, call, processors);
    return launch<single_shape<D, HEADS, WARPS, SLOTS, true>>(dev, call, 2 * processors);
}

} // namespace

size_t wb_hopper_attention_bytes(const wb_device *dev, const wb_op_sizes *most) {
    if (most->n_heads < 1 || most->dtype != WB_BF16 || cuda_of(dev)->capability != 9) return 0;
    if (most->head_dim != 64 && most->head_dim != 128) return 0;
    /* the last page may have keys beyond those */
    const int64_t splits = splits_of(most->keys) + 1, parts = splits < MAX_PARTS ? splits : MAX_PARTS;
    const int64_t heads = most->n_heads / most->n_kv_heads <= 8 ? 8 : 16;
    return part_bytes(2 * cuda_of(dev)->multiprocessors, parts, heads, most->head_dim);
}

wb_status wb_hopper_attend_singles(wb_device *dev, const wb_attention &args, wb_rows out, bool all) {
    const int64_t splits = splits_of(static_cast<int64_t>(args.max_blocks) * args.block_size);
    single_call call = {};
    call.args = args, call.out = out, call.all = all;
    call.parts = static_cast<int32_t>(splits < MAX_PARTS ? splits : MAX_PARTS);
    call.may_exceed = splits > MAX_PARTS;
    call.flags = cuda_of(dev)->counters + WB_CUDA_DRAWS;
    const bool narrow = args.n_heads / args.n_kv_heads <= 8;
    if (args.head_dim == 64) return narrow ? launch_sized<64, 8>(dev, call) : launch_sized<64, 16>(dev, call);
    return narrow ? launch_sized<128, 8>(dev, call) : launch_sized<128, 16>(dev, call);
}
