/* dump_sampling.h - the keys of a record about how its tokens were sampled, and the digest of its tokens, as
 * a dump stores them (internal): packed and parsed. Refuses: what the values mean (record_check.c). */
#ifndef WB_DUMP_SAMPLING_H
#define WB_DUMP_SAMPLING_H

#include "dump_pack.h"
#include "wb_msgpack_scan.h"

/* Arrays point into the scanned bytes, at any alignment; NULL: the key is absent. */
typedef struct wb_stored_sampling {
    bool known;          /* values are there */
    wb_sampling values;  /* how the tokens were sampled */
    uint32_t n_logprobs; /* of sampling_logprobs, f32 */
    uint32_t n_ids, n_ends;
    const uint8_t *logprobs, *mask_ids, *mask_ends;
    bool has_digest;
    uint64_t digest;
} wb_stored_sampling;

/* How many pairs wb_sampling_pack appends. */
size_t wb_sampling_pairs(const wb_record *record);
void wb_sampling_pack(wb_pack *pack, const wb_record *record);

/* A bin of 4-byte elements, fewer than WB_MAX_TOKENS; their number goes to *count_out. */
const uint8_t *wb_scan_words(wb_scan *scan, uint32_t *count_out);

/* The values of the keys `sampling` and `sampling_mask`. */
void wb_sampling_parse(wb_scan *scan, wb_stored_sampling *sampling);
void wb_sampling_mask_parse(wb_scan *scan, wb_stored_sampling *sampling);

/* NULL, or why the arrays do not fit a record of n_sampled sampled tokens. */
const char *wb_sampling_fault(const wb_stored_sampling *sampling, uint32_t n_sampled);

#endif
