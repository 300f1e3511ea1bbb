/* packed_weights.h - weights in the order in which the device's products read them, in models for inference
 * only (wb_model_options.inference_only): the matrices of experts, and those of the other layers that are
 * only ever multiplied as a whole (wb_registry_multiplied).
 *
 * All matrices of a storage's slots are packed, or none: experts move between slots, and between ranks, as
 * bytes. wb_model_read (wb_model.h) reads them as rows lie. Whoever writes rows as they lie writes all
 * matrices, and all slots that have an expert, and then packs. */
#ifndef WB_PACKED_WEIGHTS_H
#define WB_PACKED_WEIGHTS_H

#include "model_weights.h"

/* Whether matrices [rows, cols] are packed in this model: whole groups of WB_PACKED_COLUMNS rows, on a device
 * that has such an order. */
bool wb_model_packs(const wb_model *model, int64_t rows, int64_t cols);

/* What packing needs beside the weights, so that it cannot fail once rows have been written. Not
 * collective. */
wb_status wb_model_reserve_packing(wb_model *model);

/* Packs the weights of this rank, which are rows as they lie, those of MTP layers too; nothing where none are
 * to be packed. Not collective. */
wb_status wb_model_pack_weights(wb_model *model);

/* Rows first .. first + n - 1 of w, packed where w is, and then whole groups or INVALID_ARGUMENT. Every part
 * of a weight is made here, so that none says of packed rows that they lie. */
wb_status wb_weight_rows(wb_weight w, int64_t first, int64_t n, wb_weight *part_out);

/* Columns first .. first + n - 1 of w, whose rows begin w.cols apart, which the product is to be told;
 * INVALID_ARGUMENT where w is packed, as products with packed weights take whole rows. */
wb_status wb_weight_columns(wb_weight w, int64_t first, int64_t n, wb_weight *part_out);

/* UNSUPPORTED for a model whose weights `who`, which reads rows as they lie, is not to read. */
wb_status wb_model_check_rows(const wb_model *model, const char *who);

#endif
