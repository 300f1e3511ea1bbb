/* wb_tensor_io.h - what loading and saving a model needs of safetensors files beyond wb_checkpoint.h: lookups
 * that cost no view, and writing tensors that are not in host memory (not installed). */
#ifndef WB_TENSOR_IO_H
#define WB_TENSOR_IO_H

#include "wb_checkpoint.h"
#include "wb_file.h"

/* The longest header that the format's own reader accepts. */
#define WB_SAFETENSORS_MAX_HEADER ((size_t)100 * 1000 * 1000)

/* Index for wb_safetensors_get, or SIZE_MAX. */
size_t wb_safetensors_lookup(const wb_safetensors *tensors, const char *name);

/* Name of tensor i, also of one whose dtype is not supported. */
const char *wb_safetensors_name(const wb_safetensors *tensors, size_t i);

/* A number from all headers and file sizes: the same files give the same number on every rank. */
uint64_t wb_safetensors_digest(const wb_safetensors *tensors);

/* Writes header and tensors to an open file. `emit` writes tensor i's bytes with wb_new_file_write; NULL:
 * they are views[i].data. */
typedef wb_status (*wb_tensor_emit)(void *ctx, size_t i, wb_new_file *file);
wb_status wb_safetensors_write_to(wb_new_file *file, size_t n, const wb_tensor_view *tensors,
                                  const char *metadata_json, wb_tensor_emit emit, void *ctx);

#endif
