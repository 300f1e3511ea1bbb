/* codec.h - row codecs and the checksum (internal). Refuses: a size that was not given to it. */
#ifndef WB_CODEC_H
#define WB_CODEC_H

#include "wb_check.h"
#include "wb_formats.h"
#include "wb_hash.h"

/* found == expected; true for anything in a fuzzing build, which must get past the checksums. */
bool wb_hash_same(uint64_t expected, uint64_t found);

const char *wb_codec_name(wb_codec codec); /* NULL for a value that is none */
bool wb_codec_from_name(const char *name, size_t length, wb_codec *codec_out);

/* Most bytes that `size` bytes can become. */
size_t wb_zstd_bound(size_t size);

/* Whether a reader takes `stored` bytes for `decoded` ones. Rows that shrink more are not routes but an
 * attempt on its memory; the writer stores them raw. */
bool wb_zstd_plausible(uint64_t decoded, uint64_t stored);

wb_status wb_zstd_encode(const void *src, size_t size, int level, void *dst, size_t capacity,
                         size_t *size_out);
/* Decodes at most `capacity` bytes, whatever the frame says about its size. */
wb_status wb_zstd_decode(const void *src, size_t size, void *dst, size_t capacity, size_t *size_out);

#endif
