/* tensor_source.h - where a tensor of the registry lies in the files of a checkpoint, under which name and
 * in which form, and its elements as numbers. Refuses: the memory of weights, which tensors are surplus. */
#ifndef WB_TENSOR_SOURCE_H
#define WB_TENSOR_SOURCE_H

#include "model_weights.h"

/* Elements of a row that share a scale where they have 4 bits. */
enum { WB_FP4_GROUP = 32 };

typedef enum wb_source_form {
    WB_SOURCE_PLAIN,
    /* f8_e4m3, and for each block of rows and columns a float or a power of 2 that they are multiplied by:
     * <name>_scale_inv, or scale in place of weight */
    WB_SOURCE_FP8,
    /* 4 bits (a sign, exponent 2, mantissa 1), two a byte, the low half first, WB_FP4_GROUP of a row sharing
     * a power of 2. A matrix: i8 or u8 [rows, columns / 2], scales named as those of FP8. All experts of a
     * layer: <name>_blocks and <name>_scales, rows of gate and up in turn. */
    WB_SOURCE_FP4
} wb_source_form;

typedef struct wb_tensor_source {
    wb_source_form form;
    size_t index, scales_index; /* tensors of the files; scales SIZE_MAX: none */
    wb_tensor_view view, scales;
    /* Element (row, column) is element first + row * row_stride + column * column_stride of the view.
     * FP4: its row of the view is first + row * row_stride. */
    int64_t columns, first, row_stride, column_stride;
    int32_t block_rows, block_columns; /* FP8 */
} wb_tensor_source;

/* "[16, 32]" for messages. */
typedef struct wb_shape {
    char text[128];
} wb_shape;
wb_shape wb_shape_text(int32_t n_dims, const int64_t *shape);

/* Which tensor of the files has all of it: by its name, as releases or as another version of the family's own
 * code may call it; SIZE_MAX: none has. */
size_t wb_tensor_lookup(const wb_model *model, const wb_safetensors *files, const wb_tensor *tensor);

/* NOT_FOUND, MISMATCH and UNSUPPORTED name tensor, shape and file. */
wb_status wb_tensor_source_find(const wb_model *model, const wb_safetensors *files, const char *dir,
                                const wb_tensor *tensor, wb_tensor_source *source_out);

/* ---- tensor_elements.c ------------------------------------------------------------------------ */

/* The elements as they lie in the file, where they lie side by side as the tensor has them; else NULL. */
const void *wb_tensor_source_bytes(const wb_tensor_source *source);

/* Elements [first, first + n) of the tensor, as f32. */
void wb_tensor_source_read(const wb_tensor_source *source, int64_t first, int64_t n, float *values_out);

#endif
