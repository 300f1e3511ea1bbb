/* safetensors_table.c - the tensors of opened files by name, and their end. Refuses: reading a header. */
#include "safetensors_table.h"
#include "wb_check.h"

#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

static int by_name(const void *a, const void *b) {
    return strcmp(((const st_entry *)a)->name, ((const st_entry *)b)->name);
}

wb_status wb_safetensors_sort(wb_safetensors *st) {
    if (st->n > 0) qsort(st->entries, st->n, sizeof *st->entries, by_name);
    for (size_t i = 1; i < st->n; i++)
        if (strcmp(st->entries[i].name, st->entries[i - 1].name) == 0)
            return wb_fail(WB_CORRUPT, "tensor %s: in both %s and %s", st->entries[i].name,
                           st->files[st->entries[i - 1].file].path, st->files[st->entries[i].file].path);
    return WB_OK;
}

void wb_safetensors_close(wb_safetensors *st) {
    if (!st) return;
    for (size_t i = 0; i < st->n_files; i++) {
        if (st->files[i].map) munmap(st->files[i].map, st->files[i].bytes);
        free(st->files[i].names);
        free(st->files[i].path);
    }
    free(st->files);
    free(st->entries);
    free(st->path);
    free(st->note);
    free(st);
}

/* ---- use ------------------------------------------------------------------------------------- */

size_t wb_safetensors_count(const wb_safetensors *tensors) {
    return tensors->n;
}

const char *wb_safetensors_name(const wb_safetensors *tensors, size_t i) {
    return tensors->entries[i].name;
}

const char *wb_safetensors_note(const wb_safetensors *tensors) {
    return tensors->note;
}

uint64_t wb_safetensors_digest(const wb_safetensors *tensors) {
    return tensors->digest;
}

size_t wb_safetensors_lookup(const wb_safetensors *st, const char *name) {
    st_entry key = {.name = name};
    const st_entry *found = st->n > 0 ? bsearch(&key, st->entries, st->n, sizeof key, by_name) : NULL;
    return found ? (size_t)(found - st->entries) : SIZE_MAX;
}

wb_status wb_safetensors_get(const wb_safetensors *st, size_t i, wb_tensor_view *view_out) {
    if (i >= st->n)
        return wb_fail(WB_INVALID_ARGUMENT, "%s: tensor index: expected below %zu, found %zu", st->path,
                       st->n, i);
    const st_entry *entry = &st->entries[i];
    const st_file *file = &st->files[entry->file];
    if (!entry->supported)
        return wb_fail(WB_UNSUPPORTED, "%s: tensor %s: dtype %s with %d dimensions is not supported",
                       file->path, entry->name, entry->dtype_name, entry->n_dims);
    wb_tensor_view view = {.name = entry->name,
                           .dtype = entry->dtype,
                           .n_dims = entry->n_dims,
                           .data = file->map + file->data_start + entry->begin,
                           .bytes = entry->end - entry->begin,
                           .file = file->path};
    memcpy(view.shape, entry->shape, sizeof view.shape);
    *view_out = view;
    return WB_OK;
}

wb_status wb_safetensors_find(const wb_safetensors *st, const char *name, wb_tensor_view *view_out) {
    size_t i = wb_safetensors_lookup(st, name);
    if (i == SIZE_MAX) return wb_fail(WB_NOT_FOUND, "%s: no tensor %s", st->path, name);
    return wb_safetensors_get(st, i, view_out);
}
