/* packed_ranks.h - between the ids of rows and the symbols that codec `packed` stores for them (internal;
 * formats/lanes/ has it once for each instruction set).
 *
 * In each MoE layer the experts have an order of their own, the popular ones first; an expert's place in it
 * is its rank. A row is coded against the row before it (the first one against ranks 0 .. K - 1): the list
 * of candidates is the ranks of that row, in its order of choices, then all others ascending. The symbol of
 * a choice is its place in that list without the choices before it. So what was chosen a token ago, and what
 * is popular, gets small numbers, and no number is spent on an expert that cannot come again.
 *
 * Refuses: the order of experts and compression (packed.c), ids of more than 8 bits. */
#ifndef WB_PACKED_RANKS_H
#define WB_PACKED_RANKS_H

#include <stddef.h>
#include <stdint.h>

enum {
    WB_PACKED_EXPERTS = 256, /* E is at most this */
    WB_PACKED_CHOICES = 16,  /* K is at most this */
    WB_PACKED_BEYOND = 64    /* bytes after the last symbol that are read, whatever they are */
};

typedef struct wb_packed_shape {
    size_t rows;
    uint32_t L, K, E;
} wb_packed_shape;

/* symbols_out [K][rows][L] of ids [rows][L][K]. rank_of: [L][256] an expert's rank. `valid`: bits of rows, or
 * NULL for all; the symbols of a row that is not valid repeat the row before it. Ids of a layer of a valid
 * row are distinct and have ranks. */
typedef void wb_packed_encode_fn(wb_packed_shape shape, const uint8_t *rank_of, const uint8_t *ids,
                                 const uint8_t *valid, uint8_t *symbols_out);

/* The reverse: ids_out [rows][L][K]. expert_at: [L][256], defined for every rank: symbols that no encoder
 * makes give some of its experts. With E <= 128 the second half repeats the first: of a rank seven bits
 * count. */
typedef void wb_packed_decode_fn(wb_packed_shape shape, const uint8_t *expert_at, const uint8_t *symbols,
                                 uint8_t *ids_out);

typedef struct wb_packed_table {
    wb_packed_encode_fn *encode;
    wb_packed_decode_fn *decode;
} wb_packed_table;

/* base/wb_isa.h says which of them a machine can run. */
extern const wb_packed_table wb_packed_generic, wb_packed_v3, wb_packed_v4;

#endif
