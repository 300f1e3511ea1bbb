/* torch_file.c - see torch_file.h. */
#include "files/offline/torch_file.h"
#include "wb_check.h"
#include "wb_file.h"

#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* As much as of a tree (tree_file.c): what is larger is refused before it is read. */
#define MAX_FILE_BYTES ((size_t)1 << 30)

/* ---- the file ------------------------------------------------------------------------------------ */

bool wb_torch_file_is(const char *path) {
    struct stat about;
    char mark[4];
    if (stat(path, &about) != 0 || !S_ISREG(about.st_mode)) return false;
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return false;
    const bool is =
        read(fd, mark, sizeof mark) == (ssize_t)sizeof mark && memcmp(mark, "PK\x03\x04", sizeof mark) == 0;
    close(fd);
    return is;
}

/* Files of before torch 2.1 do not say their byte order; it is that of the machine, which was little. */
static wb_status check_byte_order(const wb_zip *zip) {
    wb_zip_member order = {0};
    WB_TRY(wb_zip_find(zip, "byteorder", &order));
    if (!order.bytes || (order.size == 6 && memcmp(order.bytes, "little", 6) == 0)) return WB_OK;
    return wb_fail(WB_UNSUPPORTED, "byteorder: expected little, found %.*s",
                   order.size < 16 ? (int)order.size : 16, (const char *)order.bytes);
}

static wb_status read_archive(wb_torch_file *file, size_t size) {
    wb_zip_member pickle = {0};
    WB_TRY(wb_zip_open((const uint8_t *)file->bytes, size, &file->zip));
    WB_TRY(wb_zip_check(&file->zip));
    WB_TRY(check_byte_order(&file->zip));
    WB_TRY(wb_zip_find(&file->zip, "data.pkl", &pickle));
    if (!pickle.bytes)
        return wb_fail(WB_UNSUPPORTED, "expected an archive of torch.save, found one without data.pkl");
    return wb_pickle_read(pickle.bytes, pickle.size, &file->pickle);
}

wb_status wb_torch_file_open(const char *path, wb_torch_file *file_out) {
    wb_torch_file file = {0};
    size_t size = 0;
    wb_status status = wb_file_read(path, MAX_FILE_BYTES, &file.bytes, &size);
    if (status == WB_CORRUPT) return WB_UNSUPPORTED; /* too large: no fault of the file */
    WB_TRY(status);
    status = read_archive(&file, size);
    if (status == WB_OK) {
        *file_out = file;
        return WB_OK;
    }
    wb_torch_file_close(&file);
    return wb_fail_context(status, "%s", path);
}

void wb_torch_file_close(wb_torch_file *file) {
    wb_pickle_close(&file->pickle);
    free(file->bytes);
    *file = (wb_torch_file){0};
}

/* ---- tensors ------------------------------------------------------------------------------------- */

size_t wb_torch_type_bytes(wb_torch_type type) {
    static const uint8_t sizes[] = {
#define X(VALUE, name, bytes) bytes,
        WB_TORCH_TYPE_LIST(X)
#undef X
    };
    return sizes[type];
}

/* The storage of a tensor as a member of the archive, "data/<key>", which has to be as long as it says. */
static wb_status find_storage(const wb_torch_file *file, const wb_torch_tensor *t, wb_zip_member *found_out) {
    char name[64];
    const size_t bytes = wb_torch_type_bytes(t->type);
    if (t->key_bytes > sizeof name - 6)
        return wb_fail(WB_CORRUPT, "tensor: expected a storage's key of at most %zu bytes", sizeof name - 6);
    snprintf(name, sizeof name, "data/%.*s", (int)t->key_bytes, t->key);
    WB_TRY(wb_zip_find(&file->zip, name, found_out));
    if (!found_out->bytes)
        return wb_fail(WB_CORRUPT, "tensor: expected its elements in %s, found none", name);
    if (found_out->size % bytes != 0 || found_out->size / bytes != t->storage_elements)
        return wb_fail(WB_CORRUPT, "tensor: %s: expected %" PRIu64 " elements of %zu bytes, found %zu bytes",
                       name, t->storage_elements, bytes, found_out->size);
    return WB_OK;
}

/* The last element lies in the storage, and there are no more elements than there: a view that repeats them
 * could be of any size. */
static wb_status check_view(const wb_torch_tensor *t) {
    uint64_t left = t->storage_elements, elements = 1;
    bool fits = t->offset < left;
    if (fits) left -= t->offset + 1; /* beyond the first */
    for (uint32_t d = 0; fits && d < t->n_dims; d++) {
        const uint64_t steps = t->shape[d] - 1;
        fits = t->shape[d] <= t->storage_elements / elements && (steps == 0 || t->stride[d] <= left / steps);
        if (!fits) break;
        left -= steps * t->stride[d];
        elements *= t->shape[d];
    }
    if (fits) return WB_OK;
    return wb_fail(WB_CORRUPT, "tensor: expected a view within its storage of %" PRIu64 " elements",
                   t->storage_elements);
}

wb_status wb_torch_file_elements(const wb_torch_file *file, const wb_torch_tensor *tensor,
                                 const uint8_t **bytes_out) {
    wb_zip_member storage = {0};
    if (tensor->n_dims < 1 || tensor->n_dims > WB_PICKLE_MAX_DIMS)
        return wb_fail(WB_UNSUPPORTED, "tensor: expected 1..%d dimensions, found %" PRIu32,
                       WB_PICKLE_MAX_DIMS, tensor->n_dims);
    for (uint32_t d = 0; d < tensor->n_dims; d++)
        if (tensor->shape[d] == 0)
            return wb_fail(WB_MISMATCH, "tensor: dimension %" PRIu32 ": expected 1 and more, found 0", d);
    WB_TRY(find_storage(file, tensor, &storage));
    WB_TRY(check_view(tensor));
    *bytes_out = storage.bytes + tensor->offset * wb_torch_type_bytes(tensor->type);
    return WB_OK;
}

/* Values are not aligned in the file. Files are little-endian, and so are the machines that this is for. */
double wb_torch_element(wb_torch_type type, const uint8_t *bytes, uint64_t at) {
    int16_t i16;
    int32_t i32;
    int64_t i64;
    float f32;
    double f64;
    const uint8_t *from = bytes + at * wb_torch_type_bytes(type);
    switch (type) {
    case WB_TORCH_BYTE:
        return *from;
    case WB_TORCH_SHORT:
        return memcpy(&i16, from, sizeof i16), i16;
    case WB_TORCH_INT:
        return memcpy(&i32, from, sizeof i32), i32;
    case WB_TORCH_LONG:
        return memcpy(&i64, from, sizeof i64), (double)i64;
    case WB_TORCH_FLOAT:
        return memcpy(&f32, from, sizeof f32), (double)f32;
    default:
        return memcpy(&f64, from, sizeof f64), f64;
    }
}
