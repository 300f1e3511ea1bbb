/* record_check.c - what makes a record well formed: its counts, spans, runs and log-probabilities, how it
 * was sampled, and the ids of its valid rows. Refuses: files, allocation, walking rows (rows.c). */
#include "indexer.h"
#include "octets.h"
#include "wb_check.h"
#include "wb_formats.h"
#include "wb_hash.h"
#include "wb_isa.h"
#include "wb_route_limits.h"
#include "wb_text.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define ID_WORDS (WB_MAX_EXPERTS / 64)

/* ---- ids ---------------------------------------------------------------------------------------- */

typedef struct id_fault {
    uint32_t row, layer; /* in the run; in the list of MoE layers */
    uint32_t id;
    bool repeated; /* else out of range */
} id_fault;

/* The K ids of one layer against a bitmap of the experts seen, which is left empty again. */
static bool layer_fault(const void *row, wb_dtype dtype, size_t first, uint32_t K, const wb_route_model *m,
                        uint64_t *seen, id_fault *fault) {
    uint32_t k = 0;
    bool faulty = false;
    for (; k < K && !faulty; k++) {
        uint32_t id = wb_route_id(row, dtype, first + k);
        fault->id = id;
        fault->repeated = id < m->num_experts && (seen[id / 64] >> (id % 64) & 1);
        faulty = fault->repeated || id >= m->num_experts;
        if (!faulty) seen[id / 64] |= (uint64_t)1 << (id % 64);
    }
    for (uint32_t i = 0; i < k; i++) {
        uint32_t id = wb_route_id(row, dtype, first + i);
        if (id < m->num_experts) seen[id / 64] = 0;
    }
    return faulty;
}

/* The first fault in rows [begin, end) of a run. */
static bool find_fault(const wb_route_model *m, const wb_route_rows *run, uint32_t begin, uint32_t end,
                       uint64_t *seen, id_fault *fault) {
    wb_dtype dtype = wb_route_dtype(m->num_experts);
    for (uint32_t r = begin; r < end; r++) {
        const uint8_t *row = (const uint8_t *)run->ids + (size_t)r * wb_route_row_bytes(m);
        size_t first = 0;
        for (uint32_t l = 0; l < m->n_moe_layers; first += wb_route_layer_k(m, l++)) {
            if (!layer_fault(row, dtype, first, wb_route_layer_k(m, l), m, seen, fault)) continue;
            fault->row = r;
            fault->layer = l;
            return true;
        }
    }
    return false;
}

static bool rows_fault(const wb_route_model *m, const wb_route_rows *run, uint32_t begin, uint32_t end,
                       uint64_t *seen, id_fault *fault) {
    if (m->top_k == 8 && !m->layer_top_k && m->num_experts <= 256) {
        const uint8_t *first = (const uint8_t *)run->ids + (size_t)begin * wb_route_row_bytes(m);
        static wb_octets_fn *const ok[WB_ISAS] = WB_ISA_EACH(wb_octets_ok);
        if (ok[wb_isa_of_machine()](first, (size_t)(end - begin) * m->n_moe_layers, m->num_experts))
            return false;
    }
    return find_fault(m, run, begin, end, seen, fault);
}

static wb_status ids_check(const wb_route_model *m, const wb_record *record, const wb_route_rows *run) {
    uint64_t seen[ID_WORDS] = {0};
    id_fault fault = {0, 0, 0, false};
    for (uint32_t r = 0, alike; r < run->rows; r += alike) {
        alike = wb_row_stretch(run->valid, r, run->rows);
        if (!wb_row_valid(run->valid, r) || !rows_fault(m, run, r, r + alike, seen, &fault)) continue;
        return wb_fail(WB_INVALID_ARGUMENT,
                       "record %s: position %" PRIu32 ", MoE layer %" PRIu32 " (model layer %" PRIu32
                       "): expert %" PRIu32 " %s",
                       record->rid, run->start + fault.row, fault.layer, m->moe_layers[fault.layer], fault.id,
                       fault.repeated ? "is chosen twice" : "is out of range");
    }
    return WB_OK;
}

/* ---- the record --------------------------------------------------------------------------------- */

const char *wb_finish_name(wb_finish finish) {
    static const char *const names[] = {"none", "stop", "length", "abort"};
    return (size_t)finish < sizeof names / sizeof names[0] ? names[finish] : "unknown";
}

static wb_status head_check(const wb_record *r) {
    size_t length = r->rid ? strnlen(r->rid, WB_MAX_RID_BYTES + 1) : 0;
    if (length == 0 || length > WB_MAX_RID_BYTES || !wb_text_ok(r->rid, length))
        return wb_fail(WB_INVALID_ARGUMENT, "record: rid must be 1..%u bytes of UTF-8", WB_MAX_RID_BYTES);
    if (r->n_tokens >= WB_MAX_TOKENS || r->prompt_len > r->n_tokens)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "record %s: expected prompt_len <= n_tokens < %u, found %" PRIu32 " and %" PRIu32,
                       r->rid, WB_MAX_TOKENS, r->prompt_len, r->n_tokens);
    if (r->n_tokens > 0 && !r->tokens) return wb_fail(WB_INVALID_ARGUMENT, "record %s: tokens NULL", r->rid);
    if ((unsigned)r->finish > WB_FINISH_ABORT)
        return wb_fail(WB_INVALID_ARGUMENT, "record %s: finish %d is none of wb_finish", r->rid,
                       (int)r->finish);
    if ((r->n_spans > 0 && !r->spans) || (r->n_routes > 0 && !r->routes))
        return wb_fail(WB_INVALID_ARGUMENT, "record %s: spans or routes NULL with a count", r->rid);
    return WB_OK;
}

static wb_status spans_check(const wb_record *r) {
    uint32_t from = 0;
    for (uint32_t i = 0; i < r->n_spans; i++) {
        wb_span s = r->spans[i];
        if (s.start < from || s.end <= s.start || s.end > r->n_tokens)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "record %s: span %" PRIu32 " [%" PRIu32 ", %" PRIu32
                           ") must be ascending and inside [%" PRIu32 ", %" PRIu32 ")",
                           r->rid, i, s.start, s.end, from, r->n_tokens);
        from = s.end;
    }
    return WB_OK;
}

static wb_status runs_check(const wb_record *r) {
    uint32_t from = 0, limit = r->n_tokens > 0 ? r->n_tokens - 1 : 0;
    for (uint32_t i = 0; i < r->n_routes; i++) {
        const wb_route_rows *run = &r->routes[i];
        if (run->start < from || run->start > limit || run->rows > limit - run->start)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "record %s: run %" PRIu32 " of %" PRIu32 " rows from position %" PRIu32
                           " must be ascending and inside [%" PRIu32 ", %" PRIu32 ")",
                           r->rid, i, run->rows, run->start, from, limit);
        if (run->rows > 0 && !run->ids)
            return wb_fail(WB_INVALID_ARGUMENT, "record %s: run %" PRIu32 ": ids NULL", r->rid, i);
        from = run->start + run->rows;
    }
    return WB_OK;
}

static wb_status logprobs_check(const wb_record *r, const float *logprobs, const char *what) {
    for (uint32_t i = 0; logprobs && i < r->n_tokens - r->prompt_len; i++)
        if (!isfinite(logprobs[i]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "record %s: %s of position %" PRIu32 ": expected a finite number, found %g",
                           r->rid, what, r->prompt_len + i, (double)logprobs[i]);
    return WB_OK;
}

uint64_t wb_tokens_digest(const uint32_t *tokens, uint32_t n) {
    return wb_hash64(tokens, (size_t)n * sizeof *tokens);
}

static wb_status sampling_check(const wb_record *r) {
    const wb_sampling *s = r->sampling;
    if (!s) return WB_OK;
    if (!(s->temperature >= 0 && isfinite(s->temperature)))
        return wb_fail(WB_INVALID_ARGUMENT,
                       "record %s: sampling temperature: expected 0 or more, finite, found %g", r->rid,
                       (double)s->temperature);
    if (!(s->top_p > 0 && s->top_p <= 1))
        return wb_fail(WB_INVALID_ARGUMENT, "record %s: sampling top_p: expected 0 < top_p <= 1, found %g",
                       r->rid, (double)s->top_p);
    return WB_OK;
}

/* All ends are checked before any id is read: an end that goes back shows that one before it is too large. */
static wb_status mask_ends_check(const wb_record *r) {
    const uint32_t n = r->n_tokens - r->prompt_len;
    uint32_t from = 0;
    if (!r->mask_ids != !r->mask_ends)
        return wb_fail(WB_INVALID_ARGUMENT, "record %s: mask: expected ids and ends, found one of them",
                       r->rid);
    for (uint32_t i = 0; r->mask_ends && i < n; from = r->mask_ends[i++])
        if (r->mask_ends[i] <= from || r->mask_ends[i] >= WB_MAX_TOKENS)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "record %s: mask of position %" PRIu32 ": expected an end above %" PRIu32
                           " and below %u, found %" PRIu32,
                           r->rid, r->prompt_len + i, from, WB_MAX_TOKENS, r->mask_ends[i]);
    return WB_OK;
}

static wb_status mask_ids_check(const wb_record *r, uint32_t i) {
    const uint32_t position = r->prompt_len + i, token = r->tokens[position];
    const uint32_t from = i > 0 ? r->mask_ends[i - 1] : 0;
    bool has_token = false;
    for (uint32_t k = from; k < r->mask_ends[i]; k++) {
        const uint32_t id = r->mask_ids[k];
        if (id > INT32_MAX || (k > from && id <= r->mask_ids[k - 1]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "record %s: mask of position %" PRIu32
                           ": expected ascending ids below 2^31, found %" PRIu32,
                           r->rid, position, id);
        has_token = has_token || id == token;
    }
    if (has_token) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT,
                   "record %s: mask of position %" PRIu32 ": the sampled token %" PRIu32 " is not in it",
                   r->rid, position, token);
}

wb_status wb_record_check(const wb_route_model *model, const wb_record *record, bool deep) {
    WB_TRY(head_check(record));
    WB_TRY(spans_check(record));
    WB_TRY(runs_check(record));
    WB_TRY(logprobs_check(record, record->logprobs, "logprobs"));
    WB_TRY(logprobs_check(record, record->sampling_logprobs, "sampling_logprobs"));
    WB_TRY(sampling_check(record));
    WB_TRY(mask_ends_check(record));
    for (uint32_t i = 0; record->mask_ends && i < record->n_tokens - record->prompt_len; i++)
        WB_TRY(mask_ids_check(record, i));
    WB_TRY(wb_indexer_check(model, record));
    for (uint32_t i = 0; deep && i < record->n_routes; i++)
        WB_TRY(ids_check(model, record, &record->routes[i]));
    return WB_OK;
}

wb_status wb_record_check_vocabulary(const wb_record *record, uint32_t vocab_size) {
    const uint32_t n_new = record->n_tokens - record->prompt_len;
    for (uint32_t i = 0; vocab_size > 0 && i < record->n_tokens; i++)
        if (record->tokens[i] >= vocab_size)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "record %s: position %" PRIu32 ": expected a token of the model's, 0..%" PRIu32
                           ", found %" PRIu32,
                           record->rid, i, vocab_size - 1, record->tokens[i]);
    for (uint32_t i = 0, k = 0; vocab_size > 0 && record->mask_ends && i < n_new; i++)
        for (; k < record->mask_ends[i]; k++)
            if (record->mask_ids[k] >= vocab_size)
                return wb_fail(WB_INVALID_ARGUMENT,
                               "record %s: mask of position %" PRIu32
                               ": expected tokens of the model's, 0..%" PRIu32 ", found %" PRIu32,
                               record->rid, record->prompt_len + i, vocab_size - 1, record->mask_ids[k]);
    return WB_OK;
}
