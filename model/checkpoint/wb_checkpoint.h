/* wb_checkpoint.h - tensors in files: safetensors, alone or as shards under an index.
 *
 * Owns: reading and writing the files as files. Refuses: what the tensors mean to a model (wb_model.h),
 * devices, converting elements. No call is collective.
 */
#ifndef WB_CHECKPOINT_H
#define WB_CHECKPOINT_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

#define WB_MAX_DIMS 4

typedef struct wb_tensor_view {
    const char *name; /* owner: the safetensors handle, or the caller when writing */
    wb_dtype dtype;
    int32_t n_dims;
    int64_t shape[WB_MAX_DIMS];
    const void *data; /* host, little endian, mapped, any alignment */
    size_t bytes;
    const char *file; /* path it comes from; ignored when writing */
} wb_tensor_view;

typedef struct wb_safetensors wb_safetensors;

/* Opens one .safetensors file, or a directory holding <stem>.safetensors, or its shards listed by
 * <stem>.safetensors.index.json (stem NULL: "model"); INVALID_ARGUMENT where both are there. The index
 * decides: copies of a tensor elsewhere and tensors that it does not list are ignored, as are other
 * .safetensors files of a directory (wb_safetensors_note).
 * Every header is checked before use: offsets inside the file, not overlapping, dtype and shape equal to the
 * bytes. Errors name file, tensor and byte. */
WB_API wb_status wb_safetensors_open(const char *path, const char *stem, wb_safetensors **tensors_out);
WB_API void wb_safetensors_close(wb_safetensors *tensors); /* NULL is a no-op */
WB_API size_t wb_safetensors_count(const wb_safetensors *tensors);
WB_API wb_status wb_safetensors_get(const wb_safetensors *tensors, size_t i, wb_tensor_view *view_out);
WB_API wb_status wb_safetensors_find(const wb_safetensors *tensors, const char *name,
                                     wb_tensor_view *view_out);

/* What was ignored in the files, for a person, and how often; NULL: nothing. Owner: `tensors`. */
WB_API const char *wb_safetensors_note(const wb_safetensors *tensors);

/* Writes a file of `n` tensors (views; `data` host) under a temporary name, syncs it and renames it.
 * `metadata_json`: an object of strings for "__metadata__", or NULL. */
WB_API wb_status wb_safetensors_write(const char *path, size_t n, const wb_tensor_view *tensors,
                                      const char *metadata_json);

#ifdef __cplusplus
}
#endif
#endif
