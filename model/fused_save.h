/* fused_save.h - the experts of a model whose files hold those of a layer in one tensor (fused_experts.h),
 * on their way into rank 0's shard, expert after expert, from the ranks that have them. Refuses: files. */
#ifndef WB_FUSED_SAVE_H
#define WB_FUSED_SAVE_H

#include "fused_experts.h"
#include "wb_file.h"

/* What a tensor is written as: never wider than it is here. */
static inline wb_dtype wb_saved_dtype(const wb_tensor *t, bool as_opened) {
    return as_opened && t->file_dtype == WB_BF16 ? WB_BF16 : t->dtype;
}

/* One tensor of all experts of a layer. */
typedef struct wb_fused_tensor {
    wb_fused_place place;    /* of its first member of expert 0 */
    wb_dtype dtype, written; /* in the model and in the file */
    int32_t first;           /* tensor of the registry: that member */
} wb_fused_tensor;

typedef struct wb_fused_save {
    wb_model *model;
    bool as_opened;           /* whether what came as bf16 is written as bf16 */
    wb_fused_tensor *tensors; /* [n] vectors, which are f32, first: the order in which a file has them */
    size_t n;
    size_t n_done;          /* experts that have come to rank 0, of all tensors together */
    uint8_t *part, *values; /* [largest part] of an expert, and a tensor of its own or what is written */
    uint8_t *arrived;       /* [largest part] on rank 0 */
    size_t *sizes;          /* [4][R] of an all-to-all */
    wb_status status;       /* the first failure of this rank, which keeps on taking part */
    wb_owner memory;
} wb_fused_save;

/* n 0: the files of this model hold every tensor by itself. Not collective. */
wb_status wb_fused_save_open(wb_model *model, bool as_opened, wb_fused_save *save);
void wb_fused_save_close(wb_fused_save *save);

/* Rank 0: writes tensor i, when those before it have been written. The others meanwhile run
 * wb_fused_serve. */
wb_status wb_fused_save_write(wb_fused_save *save, size_t i, wb_new_file *file);

/* Sends what this rank has of all tensors that are left, and on rank 0 takes it and does nothing with it,
 * so that none waits for a rank that failed. Collective, with rank 0's writes. */
wb_status wb_fused_serve(wb_fused_save *save);

#endif
