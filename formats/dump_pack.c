/* dump_pack.c - see the header. */
#include "dump_pack.h"
#include "wb_check.h"
#include "wb_hash.h"
#include "wb_memory.h"

#include <errno.h>
#include <inttypes.h>
#include <stdlib.h>
#include <string.h>
#include <sys/uio.h>
#include <unistd.h>

#define PIECES_PER_WRITE 64

static bool add_piece(wb_pack *p, wb_piece piece) {
    if (p->failed || WB_GROW(p->pieces, p->n_pieces + 1, &p->pieces_capacity, "pieces") != WB_OK) {
        p->failed = true;
        return false;
    }
    p->pieces[p->n_pieces++] = piece;
    return true;
}

/* msgpack-c's output: text grows, and the last piece with it. */
static int append_text(void *ctx, const char *bytes, size_t size) {
    wb_pack *p = ctx;
    if (size == 0) return 0;
    if (p->failed || WB_GROW(p->text, p->text_size + size, &p->text_capacity, "text") != WB_OK) {
        p->failed = true;
        return -1;
    }
    bool after_text = p->n_pieces > 0 && !p->pieces[p->n_pieces - 1].data;
    if (!after_text && !add_piece(p, (wb_piece){NULL, p->text_size, 0, true})) return -1;
    memcpy(p->text + p->text_size, bytes, size);
    p->text_size += size;
    p->pieces[p->n_pieces - 1].size += size;
    return 0;
}

void wb_pack_init(wb_pack *p) {
    memset(p, 0, sizeof *p);
    msgpack_packer_init(&p->packer, p, append_text);
}

void wb_pack_reset(wb_pack *p) {
    p->text_size = 0;
    p->n_pieces = 0;
    p->failed = false;
}

void wb_pack_free(wb_pack *p) {
    free(p->text);
    free(p->pieces);
    wb_pack_init(p);
}

/* A failed append_text has set `failed`, so msgpack-c's own return value says nothing new. */
void wb_pack_map(wb_pack *p, size_t pairs) {
    msgpack_pack_map(&p->packer, pairs);
}

void wb_pack_array(wb_pack *p, size_t members) {
    msgpack_pack_array(&p->packer, members);
}

void wb_pack_str(wb_pack *p, const char *text, size_t length) {
    msgpack_pack_str_with_body(&p->packer, text, length);
}

void wb_pack_text(wb_pack *p, const char *text) {
    wb_pack_str(p, text, strlen(text));
}

void wb_pack_uint(wb_pack *p, uint64_t value) {
    msgpack_pack_uint64(&p->packer, value);
}

void wb_pack_float(wb_pack *p, float value) {
    msgpack_pack_float(&p->packer, value);
}

void wb_pack_uint64(wb_pack *p, uint64_t value) {
    msgpack_pack_fix_uint64(&p->packer, value);
}

void wb_pack_bin(wb_pack *p, const void *data, size_t size, bool sealed) {
    msgpack_pack_bin(&p->packer, size);
    if (size > 0) add_piece(p, (wb_piece){data, 0, size, sealed});
}

void wb_pack_borrow(wb_pack *p, const void *data, size_t size) {
    if (size > 0) add_piece(p, (wb_piece){data, 0, size, true});
}

void wb_pack_bytes(wb_pack *p, const void *data, size_t size) {
    append_text(p, data, size);
}

static const void *piece_bytes(const wb_pack *p, const wb_piece *piece) {
    return piece->data ? piece->data : p->text + piece->at;
}

static wb_status failure(const wb_pack *p) {
    return p->failed ? wb_fail(WB_OUT_OF_MEMORY, "packing an object: no memory") : WB_OK;
}

wb_status wb_pack_seal(wb_pack *p) {
    wb_pack_text(p, "xxh3");
    WB_TRY(failure(p));
    wb_hash hash;
    wb_hash_start(&hash);
    for (size_t i = 0; i < p->n_pieces; i++)
        if (p->pieces[i].sealed) wb_hash_add(&hash, piece_bytes(p, &p->pieces[i]), p->pieces[i].size);
    wb_pack_uint64(p, wb_hash_value(&hash));
    return failure(p);
}

uint64_t wb_pack_size(const wb_pack *p) {
    uint64_t total = 0;
    for (size_t i = 0; i < p->n_pieces; i++) total += p->pieces[i].size;
    return total;
}

/* Writes some of what is left from byte `done` of piece `*first` on, and steps over what was written. */
static wb_status write_some(const wb_pack *p, int fd, size_t *first, size_t *done, uint64_t *offset) {
    struct iovec parts[PIECES_PER_WRITE];
    int n = 0;
    for (size_t i = *first; i < p->n_pieces && n < PIECES_PER_WRITE; i++, n++) {
        size_t skip = i == *first ? *done : 0;
        const char *bytes = piece_bytes(p, &p->pieces[i]);
        parts[n] = (struct iovec){(void *)(uintptr_t)(bytes + skip), p->pieces[i].size - skip};
    }
    ssize_t written = pwritev(fd, parts, n, (off_t)*offset);
    if (written < 0 && errno == EINTR) return WB_OK;
    if (written < 0) return wb_fail(WB_IO, "%s", strerror(errno));
    if (written == 0) return wb_fail(WB_IO, "the system took no byte");
    *offset += (uint64_t)written;
    *done += (size_t)written;
    while (*first < p->n_pieces && *done >= p->pieces[*first].size) *done -= p->pieces[(*first)++].size;
    return WB_OK;
}

wb_status wb_pack_write(const wb_pack *p, int fd, uint64_t offset, const char *path) {
    WB_TRY(failure(p));
    size_t first = 0, done = 0;
    uint64_t at = offset;
    while (first < p->n_pieces) {
        wb_status status = write_some(p, fd, &first, &done, &at);
        if (status == WB_OK) continue;
        status = wb_fail_context(status, "%s: writing %" PRIu64 " bytes at byte %" PRIu64, path,
                                 wb_pack_size(p), offset);
        if (ftruncate(fd, (off_t)offset) != 0)
            status = wb_fail_context(status, "%s: cannot be cut back (%s)", path, strerror(errno));
        return status;
    }
    return WB_OK;
}
