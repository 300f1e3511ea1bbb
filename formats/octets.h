/* octets.h - the check of ids of most models (internal; formats/lanes/ has it once for each instruction set).
 * With K = 8 and E <= 256 a token's choices in a layer are eight bytes. */
#ifndef WB_OCTETS_H
#define WB_OCTETS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* Whether in each of the n groups of eight ids all are below num_experts and no two are the same. */
typedef bool wb_octets_fn(const uint8_t *ids, size_t n, uint32_t num_experts);

wb_octets_fn wb_octets_ok_generic, wb_octets_ok_v3, wb_octets_ok_v4;

#endif
