/* safetensors_table.h - what an opened checkpoint is made of: its mapped files and their tensors by name. */
#ifndef WB_SAFETENSORS_TABLE_H
#define WB_SAFETENSORS_TABLE_H

#include "wb_tensor_io.h"

typedef struct st_file {
    char *path;
    unsigned char *map;
    size_t bytes;
    size_t data_start; /* byte of the file where offsets count from */
    char *names;       /* of its tensors, NUL-terminated one after another */
} st_file;

typedef struct st_entry {
    const char *name; /* owner: the file's `names` */
    char dtype_name[16];
    bool supported;
    wb_dtype dtype; /* where supported */
    int32_t n_dims; /* may exceed WB_MAX_DIMS where not supported */
    int64_t shape[WB_MAX_DIMS];
    size_t begin, end; /* data offsets, checked */
    size_t file;
} st_entry;

struct wb_safetensors {
    char *path; /* as opened, for messages */
    st_file *files;
    size_t n_files;
    st_entry *entries; /* by name, once sorted */
    size_t n, capacity;
    uint64_t digest;
    char *note; /* wb_safetensors_note; NULL: nothing */
};

/* Opens `path` as the next file, for which `files` has room, and appends its tensors. What a failure leaves
 * is freed by wb_safetensors_close. */
wb_status wb_tensor_file_add(wb_safetensors *tensors, const char *path);

/* Puts the tensors in order of their names, as lookups expect them; CORRUPT where two have one name. */
wb_status wb_safetensors_sort(wb_safetensors *tensors);

#endif
