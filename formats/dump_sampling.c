/* dump_sampling.c - see the header. */
#include "dump_sampling.h"
#include "dump_parse.h"
#include "wb_route_limits.h"

#include <string.h>

/* ---- writing ------------------------------------------------------------------------------------ */

size_t wb_sampling_pairs(const wb_record *r) {
    return 1u + (r->sampling ? 1u : 0u) + (r->sampling_logprobs ? 1u : 0u) + (r->mask_ends ? 1u : 0u);
}

void wb_sampling_pack(wb_pack *p, const wb_record *r) {
    const size_t n = r->n_tokens - r->prompt_len;
    wb_pack_text(p, "digest");
    wb_pack_uint64(p, wb_tokens_digest(r->tokens, r->n_tokens));
    if (r->sampling) {
        wb_pack_text(p, "sampling");
        wb_pack_map(p, 3);
        wb_pack_text(p, "temperature");
        wb_pack_float(p, r->sampling->temperature);
        wb_pack_text(p, "top_k");
        wb_pack_uint(p, r->sampling->top_k);
        wb_pack_text(p, "top_p");
        wb_pack_float(p, r->sampling->top_p);
    }
    if (r->sampling_logprobs) {
        wb_pack_text(p, "sampling_logprobs");
        wb_pack_bin(p, r->sampling_logprobs, n * sizeof *r->sampling_logprobs, true);
    }
    if (!r->mask_ends) return;
    wb_pack_text(p, "sampling_mask");
    wb_pack_map(p, 2);
    wb_pack_text(p, "ids");
    wb_pack_bin(p, r->mask_ids, n > 0 ? r->mask_ends[n - 1] * sizeof *r->mask_ids : 0, true);
    wb_pack_text(p, "ends");
    wb_pack_bin(p, r->mask_ends, n * sizeof *r->mask_ends, true);
}

/* ---- reading ------------------------------------------------------------------------------------ */

const uint8_t *wb_scan_words(wb_scan *s, uint32_t *count_out) {
    size_t size = 0, at = s->pos;
    const uint8_t *bytes = wb_scan_bin(s, &size);
    if (size % 4 != 0 || size / 4 >= WB_MAX_TOKENS)
        wb_scan_refuse(s, at, "a bin is not of 4-byte elements, or of too many");
    *count_out = (uint32_t)(size / 4);
    return bytes;
}

void wb_sampling_parse(wb_scan *s, wb_stored_sampling *sampling) {
    enum { TEMPERATURE, TOP_K, TOP_P, N_KEYS };
    static const char *const names[N_KEYS] = {"temperature", "top_k", "top_p"};
    const size_t begin = s->pos;
    uint32_t seen = 0;
    for (uint32_t pairs = wb_scan_map(s); pairs > 0 && s->error == WB_SCAN_OK; pairs--) {
        const uint32_t key = wb_scan_key(s, names, N_KEYS, &seen);
        if (key == TEMPERATURE)
            sampling->values.temperature = wb_scan_float(s);
        else if (key == TOP_K)
            sampling->values.top_k = (uint32_t)wb_scan_uint(s, UINT32_MAX);
        else if (key == TOP_P)
            sampling->values.top_p = wb_scan_float(s);
        else
            wb_scan_skip(s);
    }
    if (seen != (1u << N_KEYS) - 1)
        wb_scan_refuse(s, begin, "sampling lacks one of temperature, top_k, top_p");
    sampling->known = true;
}

void wb_sampling_mask_parse(wb_scan *s, wb_stored_sampling *sampling) {
    static const char *const names[] = {"ids", "ends"};
    const size_t begin = s->pos;
    uint32_t seen = 0;
    for (uint32_t pairs = wb_scan_map(s); pairs > 0 && s->error == WB_SCAN_OK; pairs--) {
        const uint32_t key = wb_scan_key(s, names, 2, &seen);
        if (key == 0)
            sampling->mask_ids = wb_scan_words(s, &sampling->n_ids);
        else if (key == 1)
            sampling->mask_ends = wb_scan_words(s, &sampling->n_ends);
        else
            wb_scan_skip(s);
    }
    if (!sampling->mask_ids || !sampling->mask_ends)
        wb_scan_refuse(s, begin, "sampling_mask lacks ids or ends");
}

const char *wb_sampling_fault(const wb_stored_sampling *sampling, uint32_t n_sampled) {
    if (sampling->logprobs && sampling->n_logprobs != n_sampled)
        return "sampling_logprobs does not have a number a sampled token";
    if (!sampling->mask_ends) return NULL;
    if (sampling->n_ends != n_sampled) return "sampling_mask.ends does not have a number a sampled token";
    uint32_t last = 0;
    if (n_sampled > 0) memcpy(&last, sampling->mask_ends + 4 * ((size_t)n_sampled - 1), sizeof last);
    return last == sampling->n_ids ? NULL : "sampling_mask.ends does not end with the number of ids";
}
