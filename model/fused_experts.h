/* fused_experts.h - how files of some families (wb_family_rules.fused_experts) hold experts: those of a layer
 * in one tensor, an expert's part after the other, and transposed: an input's outputs side by side, of gate
 * and up in turn. Refuses: reading and writing (tensor_source.h, fused_save.h). */
#ifndef WB_FUSED_EXPERTS_H
#define WB_FUSED_EXPERTS_H

#include "registry.h"

/* Where the tensor of an expert lies in such a one. Element (row, column) of it is element
 * expert * part + first + row * row_stride + column * column_stride. */
typedef struct wb_fused_place {
    char name[WB_TENSOR_NAME_BYTES]; /* of the tensor of all experts */
    int32_t n_dims;
    int64_t shape[3];
    int64_t part; /* elements of an expert */
    int64_t first, row_stride, column_stride;
} wb_fused_place;

/* False: the files of this model hold this tensor by itself. */
bool wb_fused_place_of(const wb_model *model, const wb_tensor *tensor, wb_fused_place *place_out);

#endif
