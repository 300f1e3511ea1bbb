/* convert_input.c - see convert.h. A regular file is mapped, anything else is read to its end. */
#include "convert/convert.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static wb_status map_file(int fd, const char *path, size_t size, convert_input *input_out) {
    void *bytes = mmap(NULL, size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (bytes == MAP_FAILED) return wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    *input_out = (convert_input){.bytes = bytes, .size = size, .mapped = bytes};
    return WB_OK;
}

static wb_status read_pipe(int fd, const char *path, convert_input *input_out) {
    uint8_t *bytes = NULL;
    size_t size = 0, capacity = 0;
    for (;;) {
        if (WB_GROW(bytes, size + 65536, &capacity, path) != WB_OK) break;
        const ssize_t got = read(fd, bytes + size, capacity - size);
        if (got < 0 && errno == EINTR) continue;
        if (got == 0) {
            *input_out = (convert_input){.bytes = bytes, .size = size, .read = bytes};
            return WB_OK;
        }
        if (got < 0) {
            free(bytes);
            return wb_fail(WB_IO, "%s: %s", path, strerror(errno));
        }
        size += (size_t)got;
    }
    free(bytes);
    return WB_OUT_OF_MEMORY;
}

static wb_status open_input(int fd, const char *path, convert_input *input_out) {
    struct stat file;
    if (fstat(fd, &file) != 0) return wb_fail(WB_IO, "%s: %s", path, strerror(errno));
    if (S_ISREG(file.st_mode) && file.st_size > 0 && lseek(fd, 0, SEEK_CUR) == 0)
        return map_file(fd, path, (size_t)file.st_size, input_out);
    return read_pipe(fd, path, input_out);
}

wb_status convert_input_open(const char *path, convert_input *input_out) {
    const int fd = open(path, O_RDONLY | O_CLOEXEC);
    if (fd < 0) return wb_fail(errno == ENOENT ? WB_NOT_FOUND : WB_IO, "%s: %s", path, strerror(errno));
    const wb_status status = open_input(fd, path, input_out);
    close(fd);
    return status;
}

void convert_input_pass(convert_input *input, size_t begin) {
    enum { AT_ONCE = 4 << 20 }; /* a multiple of the pages' size */
    begin -= begin % AT_ONCE;
    if (!input->mapped || begin <= input->passed) return;
    WB_IGNORE(madvise((char *)input->mapped + input->passed, begin - input->passed, MADV_DONTNEED));
    input->passed = begin;
}

void convert_input_close(convert_input *input) {
    if (input->mapped) munmap(input->mapped, input->size);
    free(input->read);
}
