/* fuzz_dump.c - any bytes as a dump: it opens or is refused; each record it gives has its shape; what
 * passes the deep check is written to another dump and comes back the same. What is salvaged of them is
 * whole, can be copied as it is stored, and comes back the same too.
 *
 * The library is to be built with FUZZING_BUILD_MODE_UNSAFE_FOR_PRODUCTION, which lets wrong checksums
 * pass; without it nearly every input ends there. The file is given to the reader as a heap block of its
 * exact size, so that the sanitizer sees a read past its end. */
#include "formats/dump_fixture.h"

#include <sys/mman.h>
#include <sys/syscall.h>

enum { MAX_RECORDS = 64 };

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static const uint8_t *input; /* while a dump of it is open */
static size_t input_size;
static int input_fd = -1;
static void *block;

/* In place of libc's, for the input file only. */
void *mmap(void *at, size_t size, int protection, int flags, int fd, off_t offset) {
    struct stat mine, theirs;
    if (!input || fd < 0 || fstat(input_fd, &mine) != 0 || fstat(fd, &theirs) != 0 ||
        mine.st_ino != theirs.st_ino || mine.st_dev != theirs.st_dev)
        return (void *)syscall(SYS_mmap, at, size, protection, flags, fd, offset); // NOLINT
    block = malloc(size);
    if (!block || size != input_size) abort();
    memcpy(block, input, size);
    return block;
}

int munmap(void *at, size_t size) {
    if (at != block || !block) return (int)syscall(SYS_munmap, at, size);
    free(block);
    block = NULL;
    return 0;
}

static void require(int holds) {
    if (!holds) abort();
}

/* Copies what passes the deep check into a new dump; returns how many records that are. */
static uint64_t copy_records(wb_dump *from, const char *path) {
    const wb_route_model *m = wb_dump_model(from);
    wb_dump_options options = wb_dump_options_default();
    wb_dump_writer *w = NULL;
    uint64_t n = wb_dump_get_info(from).records, copied = 0;
    options.codec = (wb_codec)(n % 3);
    options.chunk_bytes = 1000;
    require(wb_dump_create(path, m, &options, &w) == WB_OK);
    for (uint64_t i = 0; i < n && i < MAX_RECORDS; i++) {
        wb_record r;
        wb_dump_entry e;
        if (wb_dump_record(from, i, &r) != WB_OK) continue;
        require(wb_record_check(m, &r, false) == WB_OK);
        require(wb_dump_get_entry(from, i, &e) == WB_OK && e.offset + e.bytes <= input_size);
        if (wb_record_check(m, &r, true) == WB_OK) {
            require(wb_dump_append(w, &r) == WB_OK);
            copied++;
        }
        wb_dump_release(from, i);
    }
    require(wb_dump_finish(w) == WB_OK);
    return copied;
}

static void compare(wb_dump *from, const char *path, uint64_t n) {
    const wb_route_model *m = wb_dump_model(from);
    wb_dump *copy = NULL;
    require(wb_dump_open(path, &copy) == WB_OK);
    require(wb_dump_get_info(copy).records == n);
    for (uint64_t i = 0; i < n; i++) {
        wb_record mine, theirs;
        require(wb_dump_record(copy, i, &mine) == WB_OK);
        require(wb_dump_find(from, mine.rid, &theirs) == WB_OK);
        require(!fixture_difference(m, &mine, &theirs));
    }
    wb_dump_close(copy);
}

static void check_loss(void *ctx, const wb_dump_loss *loss) {
    uint64_t *end = ctx;
    require(loss->offset <= input_size && loss->bytes <= input_size - loss->offset && loss->why[0] != '\0');
    if (loss->bytes == 0) return;
    require(loss->offset >= *end);
    *end = loss->offset + loss->bytes;
}

/* What is salvaged is whole: it is copied as it is, and the copy says the same. */
static void salvage(const char *path, const char *copy) {
    wb_dump *dump = NULL;
    wb_dump_writer *w = NULL;
    wb_dump_info info;
    uint64_t end = 0;
    if (wb_dump_salvage(path, check_loss, &end, &dump) != WB_OK) return;
    const uint64_t n = wb_dump_get_info(dump).records;
    require(wb_dump_create(copy, wb_dump_model(dump), NULL, &w) == WB_OK);
    for (uint64_t i = 0; i < n; i++) require(wb_dump_append_stored(w, dump, i) == WB_OK);
    require(wb_dump_finish(w) == WB_OK);
    require(wb_dump_verify(copy, NULL, NULL, &info) == WB_OK && info.records == n);
    compare(dump, copy, n);
    unlink(copy);
    wb_dump_close(dump);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    char path[64], copy[64];
    if (input_fd < 0) input_fd = memfd_create("fuzz_dump", 0);
    if (input_fd < 0 || ftruncate(input_fd, 0) != 0 || pwrite(input_fd, data, size, 0) != (ssize_t)size)
        abort();
    snprintf(path, sizeof path, "/proc/self/fd/%d", input_fd);
    snprintf(copy, sizeof copy, "/dev/shm/fuzz_dump.%ld", (long)getpid());
    input = data;
    input_size = size;
    wb_dump *dump = NULL;
    if (wb_dump_open(path, &dump) == WB_OK) {
        wb_dump_info info = wb_dump_get_info(dump);
        require(info.lost_bytes <= size && (info.lost_bytes == 0 || info.lost_where[0] != '\0'));
        uint64_t n = copy_records(dump, copy);
        compare(dump, copy, n);
        unlink(copy);
    }
    wb_dump_close(dump);
    salvage(path, copy);
    input = NULL;
    return 0;
}
