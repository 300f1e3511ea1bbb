/* hopper_attention_launch.h - the two kernels of hopper_attention.h, as hopper_attention.cu calls them. For
 * .cu files compiled for sm_90a. */
#ifndef WB_HOPPER_ATTENTION_LAUNCH_H
#define WB_HOPPER_ATTENTION_LAUNCH_H

#include "cuda/cuda_device.h"

/* Of a launch that may begin when the kernel before it in the stream lets it, or has ended but for what a
 * launch costs (hopper_ptx.h: let_next_begin, wait_for_kernels_before). */
inline cudaLaunchAttribute early_begin() {
    cudaLaunchAttribute early = {};
    early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
    early.val.programmaticStreamSerializationAllowed = 1;
    return early;
}

/* Tiles of adjacent tokens; with skips_singles without tokens that are the only ones of their sequence. */
wb_status wb_hopper_attend_tiles(wb_device *dev, const wb_attention &args, wb_rows out, bool skips_singles);

/* wb_hopper_attend_singles has at most so many tokens. */
const int64_t WB_MAX_SINGLES = 1 << 15;

/* Each token by itself: those that are the only ones of their sequence, or with `all` every token. */
wb_status wb_hopper_attend_singles(wb_device *dev, const wb_attention &args, wb_rows out, bool all);

#endif
