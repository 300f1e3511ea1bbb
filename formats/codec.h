/* codec.h - row codecs: names, and zstd within given sizes (internal). Refuses: to trust the size that a
 * compressed frame claims for itself. */
#ifndef WB_CODEC_H
#define WB_CODEC_H

#include "wb_check.h"
#include "wb_formats.h"

bool wb_codec_from_name(const char *name, size_t length, wb_codec *codec_out);

/* The most bytes to which `size` bytes can be encoded. */
size_t wb_zstd_bound(size_t size);

/* Whether a reader believes that `stored` bytes are `decoded` bytes of rows: not if they shrank to less than
 * 1/256, or a small file could make the reader allocate any amount of memory. The writer stores such rows
 * raw. */
bool wb_zstd_plausible(uint64_t decoded, uint64_t stored);

/* The size that a frame claims for what it holds; false when it claims none. */
bool wb_zstd_claims(const void *src, size_t size, size_t *size_out);

wb_status wb_zstd_encode(const void *src, size_t size, int level, void *dst, size_t capacity,
                         size_t *size_out);
/* Decodes at most `capacity` bytes, whatever the frame says about its size. CORRUPT when that fails. */
wb_status wb_zstd_decode(const void *src, size_t size, void *dst, size_t capacity, size_t *size_out);

#endif
