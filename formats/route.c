/* route.c - the route model and the record: what makes them well formed.
 * Refuses: files, allocation, walking rows (rows.c). */
#include "wb_check.h"
#include "wb_formats.h"
#include "wb_route_limits.h"
#include "wb_text.h"

#include <inttypes.h>
#include <string.h>

#define ID_WORDS (WB_MAX_EXPERTS / 64)

/* A non-empty NUL-terminated string inside its array. */
static wb_status field_check(const char *field, const char *text, size_t capacity) {
    size_t length = strnlen(text, capacity);
    if (length == capacity || length == 0 || !wb_text_ok(text, length))
        return wb_fail(WB_INVALID_ARGUMENT, "model %s: expected 1..%zu bytes of UTF-8", field, capacity - 1);
    return WB_OK;
}

/* ---- the model ---------------------------------------------------------------------------------- */

static wb_status layers_check(const wb_route_model *m) {
    if (m->num_hidden_layers == 0 || m->num_hidden_layers > WB_MAX_LAYERS)
        return wb_fail(WB_INVALID_ARGUMENT, "model num_hidden_layers: expected 1..%u, found %" PRIu32,
                       WB_MAX_LAYERS, m->num_hidden_layers);
    if (m->n_moe_layers == 0 || m->n_moe_layers > m->num_hidden_layers)
        return wb_fail(WB_INVALID_ARGUMENT, "model n_moe_layers: expected 1..%" PRIu32 ", found %" PRIu32,
                       m->num_hidden_layers, m->n_moe_layers);
    if (!m->moe_layers) return wb_fail(WB_INVALID_ARGUMENT, "model moe_layers: NULL");
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        if (m->moe_layers[l] >= m->num_hidden_layers || (l > 0 && m->moe_layers[l] <= m->moe_layers[l - 1]))
            return wb_fail(WB_INVALID_ARGUMENT,
                           "model moe_layers[%" PRIu32 "]: expected ascending and < %" PRIu32
                           ", found %" PRIu32,
                           l, m->num_hidden_layers, m->moe_layers[l]);
    }
    return WB_OK;
}

wb_status wb_route_model_check(const wb_route_model *m) {
    WB_TRY(field_check("name", m->name, sizeof m->name));
    WB_TRY(field_check("router", m->router, sizeof m->router));
    WB_TRY(field_check("fingerprint", m->fingerprint, sizeof m->fingerprint));
    if (strspn(m->fingerprint, "0123456789abcdef") != sizeof m->fingerprint - 1)
        return wb_fail(WB_INVALID_ARGUMENT, "model fingerprint: expected 32 lower-case hex digits, found %s",
                       m->fingerprint);
    if (m->num_experts == 0 || m->num_experts > WB_MAX_EXPERTS)
        return wb_fail(WB_INVALID_ARGUMENT, "model num_experts: expected 1..%u, found %" PRIu32,
                       WB_MAX_EXPERTS, m->num_experts);
    if (m->top_k == 0 || m->top_k > m->num_experts)
        return wb_fail(WB_INVALID_ARGUMENT, "model top_k: expected 1..%" PRIu32 ", found %" PRIu32,
                       m->num_experts, m->top_k);
    WB_TRY(layers_check(m));
    if (wb_route_row_bytes(m) > WB_MAX_ROW_BYTES)
        return wb_fail(WB_INVALID_ARGUMENT, "model: a row of %zu bytes is over the limit of %zu",
                       wb_route_row_bytes(m), WB_MAX_ROW_BYTES);
    return WB_OK;
}

static wb_status match_text(const char *field, const char *expected, const char *found) {
    if (strcmp(expected, found) == 0) return WB_OK;
    return wb_fail(WB_MISMATCH, "model %s: expected %s, found %s", field, expected, found);
}

static wb_status match_number(const char *field, uint32_t expected, uint32_t found) {
    if (expected == found) return WB_OK;
    return wb_fail(WB_MISMATCH, "model %s: expected %" PRIu32 ", found %" PRIu32, field, expected, found);
}

wb_status wb_route_model_match(const wb_route_model *expected, const wb_route_model *found) {
    WB_TRY(match_text("name", expected->name, found->name));
    WB_TRY(match_number("num_hidden_layers", expected->num_hidden_layers, found->num_hidden_layers));
    WB_TRY(match_number("n_moe_layers", expected->n_moe_layers, found->n_moe_layers));
    WB_TRY(match_number("num_experts", expected->num_experts, found->num_experts));
    WB_TRY(match_number("top_k", expected->top_k, found->top_k));
    WB_TRY(match_text("router", expected->router, found->router));
    for (uint32_t l = 0; l < expected->n_moe_layers; l++)
        WB_TRY(match_number("moe_layers", expected->moe_layers[l], found->moe_layers[l]));
    return match_text("fingerprint", expected->fingerprint, found->fingerprint);
}

/* Eight u8 ids in a word, the shape of most models (K = 8, E <= 256): the same bit tricks on each, so that
 * the compiler makes vectors of them. The result has the high bit of a byte set iff an id is >= E or two are
 * equal. Three byte rotations and the half one meet all 28 pairs; (x - 0x01..) & ~x & 0x80.. is not zero
 * iff x has a zero byte. */
typedef struct octet_range {
    uint64_t add;   /* carries a byte's low 7 bits into bit 7 when they are too large */
    uint64_t small; /* all ones when E <= 128: bit 7 alone is then too large */
} octet_range;

static uint64_t octet_bad(uint64_t v, octet_range range) {
    const uint64_t ones = 0x0101010101010101u;
    uint64_t low = (v & ones * 0x7f) + range.add;
    uint64_t bad = (low & v) | ((low | v) & range.small);
    for (unsigned turn = 8; turn <= 32; turn += 8) {
        uint64_t x = v ^ (v << turn | v >> (64 - turn));
        bad |= (x - ones) & ~x;
    }
    return bad & ones * 0x80;
}

static bool octets_ok(const uint8_t *ids, size_t n, uint32_t num_experts) {
    uint64_t headroom = num_experts <= 128 ? 128 - num_experts : 256 - num_experts;
    octet_range range = {0x0101010101010101u * headroom, num_experts <= 128 ? UINT64_MAX : 0};
    uint64_t bad = 0;
    for (size_t i = 0; i < n; i++) {
        uint64_t v;
        memcpy(&v, ids + 8 * i, sizeof v);
        bad |= octet_bad(v, range);
    }
    return bad == 0;
}

typedef struct id_fault {
    uint32_t row, layer; /* in the run; in the list of MoE layers */
    uint32_t id;
    bool repeated; /* else out of range */
} id_fault;

/* One layer's K ids against a bitmap of the experts seen, which is left empty again. */
static bool layer_fault(const void *row, wb_dtype dtype, size_t first, const wb_route_model *m,
                        uint64_t *seen, id_fault *fault) {
    uint32_t k = 0;
    bool faulty = false;
    for (; k < m->top_k && !faulty; k++) {
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
        for (uint32_t l = 0; l < m->n_moe_layers; l++) {
            if (!layer_fault(row, dtype, (size_t)l * m->top_k, m, seen, fault)) continue;
            fault->row = r;
            fault->layer = l;
            return true;
        }
    }
    return false;
}

static bool rows_fault(const wb_route_model *m, const wb_route_rows *run, uint32_t begin, uint32_t end,
                       uint64_t *seen, id_fault *fault) {
    if (m->top_k == 8 && m->num_experts <= 256) {
        const uint8_t *first = (const uint8_t *)run->ids + (size_t)begin * wb_route_row_bytes(m);
        if (octets_ok(first, (size_t)(end - begin) * m->n_moe_layers, m->num_experts)) return false;
    }
    return find_fault(m, run, begin, end, seen, fault);
}

static wb_status ids_check(const wb_route_model *m, const wb_record *record, const wb_route_rows *run) {
    uint64_t seen[ID_WORDS] = {0};
    id_fault fault = {0, 0, 0, false};
    for (uint32_t begin = 0, end; begin < run->rows; begin = end) {
        end = begin + 1;
        bool valid = wb_row_valid(run->valid, begin);
        if (!run->valid) end = run->rows;
        while (end < run->rows && wb_row_valid(run->valid, end) == valid) end++;
        if (!valid || !rows_fault(m, run, begin, end, seen, &fault)) continue;
        return wb_fail(WB_INVALID_ARGUMENT,
                       "record %s: position %" PRIu32 ", MoE layer %" PRIu32 " (model layer %" PRIu32
                       "): expert %" PRIu32 " %s",
                       record->rid, run->start + fault.row, fault.layer, m->moe_layers[fault.layer], fault.id,
                       fault.repeated ? "is chosen twice" : "is out of range");
    }
    return WB_OK;
}

const char *wb_finish_name(wb_finish finish) {
    static const char *const names[] = {"none", "stop", "length", "abort"};
    return (size_t)finish < sizeof names / sizeof names[0] ? names[finish] : "unknown";
}

/* ---- the record --------------------------------------------------------------------------------- */

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

wb_status wb_record_check(const wb_route_model *model, const wb_record *record, bool deep) {
    WB_TRY(head_check(record));
    WB_TRY(spans_check(record));
    WB_TRY(runs_check(record));
    for (uint32_t i = 0; deep && i < record->n_routes; i++)
        WB_TRY(ids_check(model, record, &record->routes[i]));
    return WB_OK;
}
