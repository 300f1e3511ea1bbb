/* fuzz_safetensors.c - any bytes as a .safetensors file: refused, or every tensor lies inside the file,
 * has the bytes that its shape says, overlaps no other, and is found by its name. */
#include "wb_tensor_io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static void require(bool holds) {
    if (!holds) abort();
}

/* Reads every byte, so that the sanitizer sees one outside; returns the bytes of the tensor. */
static size_t check_tensor(const wb_safetensors *st, size_t i) {
    wb_tensor_view view, again;
    if (wb_safetensors_get(st, i, &view) != WB_OK) return 0;
    uint64_t bytes = wb_dtype_size(view.dtype);
    for (int32_t d = 0; d < view.n_dims; d++) bytes *= (uint64_t)view.shape[d];
    require(bytes == view.bytes);
    static volatile unsigned char sink;
    for (size_t b = 0; b < view.bytes; b++) sink = ((const unsigned char *)view.data)[b];
    (void)sink;
    require(wb_safetensors_find(st, view.name, &again) == WB_OK && again.data == view.data);
    require(i == 0 || strcmp(wb_safetensors_name(st, i - 1), view.name) < 0);
    return view.bytes;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64];
    wb_safetensors *st = NULL;
    int fd = memfd_create("fuzz", MFD_CLOEXEC);
    require(fd >= 0 && write(fd, data, size) == (ssize_t)size);
    snprintf(path, sizeof path, "/proc/self/fd/%d", fd);
    wb_status status = wb_safetensors_open(path, NULL, &st);
    close(fd);
    if (status != WB_OK) {
        require(!st && strstr(wb_error_message(), path));
        return 0;
    }
    size_t total = 0;
    for (size_t i = 0; i < wb_safetensors_count(st); i++) total += check_tensor(st, i);
    require(total + 8 <= size);
    wb_safetensors_close(st);
    return 0;
}
