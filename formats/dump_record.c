/* dump_record.c - parses a record of a dump with the bounded cursor; see dump_parse.h.
 *
 * Each key's value is read as it comes; the checks of keys against each other follow at the end, when all
 * are there. Refuses: runs of rows (dump_runs.c), how tokens were sampled (dump_sampling.c). */
#include "dump_record.h"
#include "dump_layout.h"
#include "wb_route_limits.h"
#include "wb_text.h"

#include <inttypes.h>
#include <string.h>

static void parse_spans(wb_record_parser *p) {
    wb_scan *s = &p->scan;
    uint32_t n = wb_scan_array(s);
    p->out->spans = wb_record_members(p, n, 4, sizeof *p->out->spans);
    if (!p->out->spans) return;
    p->out->n_spans = n;
    for (uint32_t i = 0; i < n && s->error == WB_SCAN_OK; i++) {
        size_t at = s->pos;
        if (wb_scan_array(s) != 3) wb_scan_refuse(s, at, "a span is not [start, end, weight_version]");
        p->out->spans[i].start = (uint32_t)wb_scan_uint(s, UINT32_MAX);
        p->out->spans[i].end = (uint32_t)wb_scan_uint(s, UINT32_MAX);
        p->out->spans[i].weight_version = wb_scan_uint(s, UINT64_MAX);
    }
}

static void parse_prefix(wb_record_parser *p) {
    static const char *const names[] = {"rid", "rows"};
    wb_scan *s = &p->scan;
    const size_t begin = s->pos;
    uint32_t seen = 0;
    for (uint32_t pairs = wb_scan_map(s); pairs > 0 && s->error == WB_SCAN_OK; pairs--) {
        const uint32_t key = wb_scan_key(s, names, 2, &seen);
        if (key == 0)
            p->out->prefix_rid = wb_scan_str(s, &p->out->prefix_rid_length);
        else if (key == 1)
            p->out->prefix_rows = (uint32_t)wb_scan_uint(s, UINT32_MAX);
        else
            wb_scan_skip(s);
    }
    if (!p->out->prefix_rid || p->out->prefix_rows == 0)
        wb_scan_refuse(s, begin, "prefix lacks a rid or rows");
}

static void parse_finish(wb_record_parser *p) {
    size_t length = 0, at = p->scan.pos;
    const char *name = wb_scan_str(&p->scan, &length);
    for (int f = WB_FINISH_NONE; f <= WB_FINISH_ABORT; f++) {
        if (!wb_key_is(name, length, wb_finish_name((wb_finish)f))) continue;
        p->out->finish = (wb_finish)f;
        return;
    }
    wb_scan_refuse(&p->scan, at, "finish is not one of none, stop, length, abort");
}

typedef enum record_key {
    KEY_RID,
    KEY_GROUP,
    KEY_SAMPLE,
    KEY_PROMPT_LEN,
    KEY_TOKENS,
    KEY_FINISH,
    KEY_XXH3,
    N_REQUIRED,
    KEY_LOGPROBS = N_REQUIRED,
    KEY_SPANS,
    KEY_PREFIX,
    KEY_ROUTES,
    KEY_DIGEST,
    KEY_SAMPLING,
    KEY_SAMPLING_LOGPROBS,
    KEY_SAMPLING_MASK,
    KEY_INDEXER,
    N_KEYS
} record_key;

static const char *const key_names[N_KEYS] = {
    [KEY_RID] = "rid",
    [KEY_GROUP] = "group",
    [KEY_SAMPLE] = "sample",
    [KEY_PROMPT_LEN] = "prompt_len",
    [KEY_TOKENS] = "tokens",
    [KEY_FINISH] = "finish",
    [KEY_XXH3] = "xxh3",
    [KEY_LOGPROBS] = "logprobs",
    [KEY_SPANS] = "spans",
    [KEY_PREFIX] = "prefix",
    [KEY_ROUTES] = "routes",
    [KEY_DIGEST] = "digest",
    [KEY_SAMPLING] = "sampling",
    [KEY_SAMPLING_LOGPROBS] = "sampling_logprobs",
    [KEY_SAMPLING_MASK] = "sampling_mask",
    [KEY_INDEXER] = "indexer",
};

/* The keys that parse_value leaves: those about sampling, the indexer's, and unknown ones. */
static void parse_later_value(wb_record_parser *p, record_key key) {
    wb_stored_sampling *sampling = &p->out->sampling;
    wb_scan *s = &p->scan;
    switch (key) {
    case KEY_DIGEST:
        sampling->digest = wb_scan_uint(s, UINT64_MAX);
        sampling->has_digest = true;
        break;
    case KEY_SAMPLING:
        wb_sampling_parse(s, sampling);
        break;
    case KEY_SAMPLING_LOGPROBS:
        sampling->logprobs = wb_scan_words(s, &sampling->n_logprobs);
        break;
    case KEY_SAMPLING_MASK:
        wb_sampling_mask_parse(s, sampling);
        break;
    case KEY_INDEXER:
        wb_parse_indexer(p);
        break;
    default:
        wb_scan_skip(s);
    }
}

static void parse_value(wb_record_parser *p, record_key key, uint32_t *n_logprobs) {
    wb_stored_record *r = p->out;
    wb_scan *s = &p->scan;
    switch (key) {
    case KEY_RID:
        r->rid = wb_scan_str(s, &r->rid_length);
        break;
    case KEY_GROUP:
        r->group = wb_scan_uint(s, UINT64_MAX);
        break;
    case KEY_SAMPLE:
        r->sample = (uint32_t)wb_scan_uint(s, UINT32_MAX);
        break;
    case KEY_PROMPT_LEN:
        r->prompt_len = (uint32_t)wb_scan_uint(s, UINT32_MAX);
        break;
    case KEY_TOKENS:
        r->tokens = wb_scan_words(s, &r->n_tokens);
        break;
    case KEY_FINISH:
        parse_finish(p);
        break;
    case KEY_LOGPROBS:
        r->logprobs = wb_scan_words(s, n_logprobs);
        break;
    case KEY_SPANS:
        parse_spans(p);
        break;
    case KEY_PREFIX:
        parse_prefix(p);
        break;
    case KEY_ROUTES:
        wb_parse_routes(p);
        break;
    default:
        parse_later_value(p, key);
    }
}

static void digest_check(wb_record_parser *p, uint64_t begin) {
    const wb_stored_sampling *sampling = &p->out->sampling;
    if (!sampling->has_digest || p->scan.error != WB_SCAN_OK) return;
    const uint64_t found = wb_hash64(p->out->tokens, (size_t)p->out->n_tokens * 4);
    if (wb_checksum_ok(sampling->digest, found)) return;
    p->status =
        wb_fail(WB_CORRUPT,
                "%s: byte %" PRIu64 ": the digest of the tokens: expected %016" PRIx64 ", found %016" PRIx64,
                p->file->name, begin, sampling->digest, found);
}

/* What the keys say about each other. */
static void record_shape(wb_record_parser *p, uint64_t begin, uint32_t n_logprobs) {
    const wb_stored_record *r = p->out;
    if (p->scan.pos != p->scan.end) wb_scan_refuse(&p->scan, p->scan.pos, "expected the record's end");
    if (r->prompt_len > r->n_tokens || (r->logprobs && n_logprobs != r->n_tokens - r->prompt_len))
        wb_scan_refuse(&p->scan, begin, "tokens, prompt_len and logprobs do not fit together");
    if (r->rid_length == 0 || r->rid_length > WB_MAX_RID_BYTES || !wb_text_ok(r->rid, r->rid_length))
        wb_scan_refuse(&p->scan, begin, "rid is not 1..1024 bytes of UTF-8");
    if (r->prefix_rows > 0 && (r->n_runs == 0 || r->runs[0].start < r->prefix_rows))
        wb_scan_refuse(&p->scan, begin, "prefix has more rows than there are positions before routes.start");
    if (p->scan.error != WB_SCAN_OK) return;
    const char *fault = wb_sampling_fault(&r->sampling, r->n_tokens - r->prompt_len);
    if (fault) wb_scan_refuse(&p->scan, begin, fault);
    digest_check(p, begin);
}

static void parse_pairs(wb_record_parser *p, uint64_t begin) {
    wb_scan *s = &p->scan;
    uint32_t seen = 0, n_logprobs = 0, pairs = wb_scan_map(s);
    for (; pairs > 0 && s->error == WB_SCAN_OK && p->status == WB_OK; pairs--)
        parse_value(p, (record_key)wb_scan_key(s, key_names, N_KEYS, &seen), &n_logprobs);
    const uint32_t required = (1u << N_REQUIRED) - 1;
    if ((seen & required) != required)
        wb_scan_refuse(s, begin,
                       "the record lacks one of rid, group, sample, prompt_len, tokens, finish, xxh3");
    if (s->error == WB_SCAN_OK) record_shape(p, begin, n_logprobs);
}

wb_status wb_parse_record(const wb_file_bytes *file, uint64_t begin, uint64_t end,
                          const wb_route_model *model, wb_owner *memory, wb_stored_record *record_out) {
    wb_stored_record record = {0};
    wb_record_parser p = {.file = file, .model = model, .scan = wb_scan_range(file->bytes, begin, end)};
    p.hashed = begin;
    p.memory = memory;
    p.out = &record;
    wb_hash_start(&p.hash);
    parse_pairs(&p, begin);
    WB_TRY(p.status);
    if (p.scan.error != WB_SCAN_OK) return wb_parse_fail(file, &p.scan);
    WB_TRY(wb_seal_check(file, begin, end, p.hashed, &p.hash));
    *record_out = record;
    return WB_OK;
}
