/* torch_file.h - a file of torch.save, read without torch: its pickle, and the elements of the tensors in
 * it. Refuses: files of before torch 1.6, tensors of other types than those of torch_pickle.h, big-endian
 * ones, and views of more elements than their storage has. */
#ifndef WB_TORCH_FILE_H
#define WB_TORCH_FILE_H

#include "files/offline/torch_pickle.h"
#include "wb_zip.h"

typedef struct wb_torch_file {
    char *bytes; /* the whole file; freed by the close */
    wb_zip zip;
    wb_pickle pickle;
} wb_torch_file;

/* Whether a regular file begins like a zip archive. */
bool wb_torch_file_is(const char *path);

/* Reads the file and its pickle. Messages name the path. NOT_FOUND and IO as in wb_file_read; UNSUPPORTED
 * beyond 1 GiB; CORRUPT and UNSUPPORTED as in wb_zip.h and torch_pickle.h. On failure nothing is to be
 * closed. */
wb_status wb_torch_file_open(const char *path, wb_torch_file *file_out);
void wb_torch_file_close(wb_torch_file *file); /* a zeroed struct is a no-op */

/* Where a tensor's elements lie, once its shape and strides have been held against its storage, and that
 * against the bytes of the archive's member: bytes of the element of index 0. CORRUPT or UNSUPPORTED, not
 * naming the path. */
wb_status wb_torch_file_elements(const wb_torch_file *file, const wb_torch_tensor *tensor,
                                 const uint8_t **bytes_out);

/* The element `at` elements after those bytes, as a number; whole numbers are exact to 2^53. */
double wb_torch_element(wb_torch_type type, const uint8_t *bytes, uint64_t at);

size_t wb_torch_type_bytes(wb_torch_type type);

#endif
