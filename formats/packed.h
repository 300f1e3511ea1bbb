/* packed.h - codec `packed`: a chunk of rows as a zstd frame of small numbers, in the order of the choices
 * (internal; docs/format.md has the bytes). Refuses: to trust what a frame claims; models that wb_packed_fits
 * is false for. */
#ifndef WB_PACKED_H
#define WB_PACKED_H

#include "wb_check.h"
#include "wb_formats.h"

/* A chunk holds at most so many bytes of rows: it is coded with numbers of its own, and what is decoded on
 * the way should stay in a processor's cache. A reader takes longer ones too. */
#define WB_PACKED_CHUNK_BYTES ((size_t)1 << 20)

/* Whether rows of this model can be packed: ids of 8 bits, and K <= 16. */
bool wb_packed_fits(const wb_route_model *model);

/* The most bytes that `rows` rows can become. */
size_t wb_packed_bound(const wb_route_model *model, size_t rows);

/* Packs `rows` rows of `ids`, of which row r is bit first + r of `valid` (NULL: all are). *size_out is 0 when
 * an id of a valid row is not below E or is there twice in its layer, which cannot be packed. Ids of rows
 * that are not valid are not kept. */
wb_status wb_packed_encode(const wb_route_model *model, const uint8_t *ids, size_t rows, const uint8_t *valid,
                           size_t first, uint8_t *dst, size_t capacity, size_t *size_out);

/* What decoding needs of memory, kept from chunk to chunk: zeros before the first, freed with free(bytes). */
typedef struct wb_packed_scratch {
    uint8_t *bytes;
    size_t capacity;
} wb_packed_scratch;

/* Decodes at most `capacity` bytes of rows, whatever the frame says about its size. CORRUPT when that
 * fails. */
wb_status wb_packed_decode(const wb_route_model *model, const uint8_t *src, size_t size,
                           wb_packed_scratch *scratch, uint8_t *dst, size_t capacity, size_t *size_out);

#endif
