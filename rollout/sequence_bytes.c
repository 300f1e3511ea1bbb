/* sequence_bytes.c - see sequence_bytes.h: a head with the numbers, then the name, the stop tokens and the
 * arrays that grow, each from a multiple of 8 on. */
#include "sequence_bytes.h"
#include "wb_check.h"
#include "wb_memory.h"

#include <string.h>

typedef struct sequence_head {
    size_t bytes; /* of the whole, the head included */
    uint64_t number, seed;
    int64_t place;
    wb_sampling sampling;
    uint32_t prompt_len, n_tokens, max_len, n_fed, n_rows, n_spans, n_kept;
    uint32_t n_stop, rid_bytes, expected_tokens, finish, return_routes, has_mask, return_indexer;
    uint64_t n_cells, n_positions; /* of what indexers chose */
    int32_t home;
} sequence_head;

typedef struct part {
    void *at;
    size_t bytes;
} part;

enum { N_PARTS = 10 };

static size_t padded(size_t bytes) {
    return (bytes + 7) & ~(size_t)7;
}

/* The arrays that grow, where they lie in `s`, of the lengths in the head. */
static void parts_of(const wb_sequence *s, const sequence_head *head, part *parts_out) {
    const size_t n_new = head->n_tokens - head->prompt_len;
    const part parts[N_PARTS] = {{s->tokens, head->n_tokens * sizeof *s->tokens},
                                 {s->logprobs, n_new * sizeof *s->logprobs},
                                 {s->sampling_logprobs, n_new * sizeof *s->sampling_logprobs},
                                 {s->mask_ends, head->has_mask ? n_new * sizeof *s->mask_ends : 0},
                                 {s->mask_ids, head->n_kept * sizeof *s->mask_ids},
                                 {s->spans, head->n_spans * sizeof *s->spans},
                                 {s->cells.counts, head->n_cells * sizeof *s->cells.counts},
                                 {s->cells.ends, head->n_cells * sizeof *s->cells.ends},
                                 {s->cells.positions, head->n_positions * sizeof *s->cells.positions},
                                 {s->rows, head->n_rows * s->row_bytes}};
    memcpy(parts_out, parts, sizeof parts);
}

/* Where the stop tokens are, and the arrays behind them. */
static size_t stop_offset(const sequence_head *head) {
    return padded(sizeof *head) + padded(head->rid_bytes);
}

static size_t parts_offset(const sequence_head *head) {
    return stop_offset(head) + padded(head->n_stop * sizeof(uint32_t));
}

static size_t total_bytes(const wb_sequence *s, const sequence_head *head) {
    part parts[N_PARTS];
    size_t bytes = parts_offset(head);
    parts_of(s, head, parts);
    for (int i = 0; i < N_PARTS; i++) bytes += padded(parts[i].bytes);
    return bytes;
}

static sequence_head head_of(const wb_sequence *s, bool with_rows) {
    const wb_record *record = &s->completion.record;
    const uint32_t n_new = record->n_tokens - record->prompt_len;
    sequence_head head;
    /* Padding too is sent. */
    memset(&head, 0, sizeof head);
    head.number = s->number;
    head.seed = s->seed;
    head.place = s->entry.place;
    head.sampling = s->sampling;
    head.prompt_len = record->prompt_len;
    head.n_tokens = record->n_tokens;
    head.max_len = s->max_len;
    head.n_fed = s->n_fed;
    head.n_rows = with_rows ? s->n_fed : 0;
    head.n_spans = (uint32_t)record->n_spans;
    head.n_kept = s->mask_ends && n_new > 0 ? s->mask_ends[n_new - 1] : 0;
    head.n_stop = s->n_stop;
    head.rid_bytes = (uint32_t)strlen(record->rid) + 1;
    head.expected_tokens = s->entry.expected_tokens;
    head.finish = record->finish;
    head.return_routes = s->return_routes;
    head.has_mask = s->mask_ends != NULL;
    head.return_indexer = s->cells.n_columns > 0;
    head.n_cells = (uint64_t)s->cells.n_rows * s->cells.n_columns;
    head.n_positions = wb_cells_n_positions(&s->cells);
    head.home = s->home;
    head.bytes = total_bytes(s, &head);
    return head;
}

size_t wb_sequence_bytes(const wb_sequence *s, bool with_rows) {
    return head_of(s, with_rows).bytes;
}

void wb_sequence_write(const wb_sequence *s, bool with_rows, uint8_t *to) {
    const sequence_head head = head_of(s, with_rows);
    part parts[N_PARTS];
    parts_of(s, &head, parts);
    memset(to, 0, head.bytes);
    memcpy(to, &head, sizeof head);
    memcpy(to + padded(sizeof head), s->completion.record.rid, head.rid_bytes);
    if (head.n_stop > 0) memcpy(to + stop_offset(&head), s->stop_tokens, head.n_stop * sizeof(uint32_t));
    to += parts_offset(&head);
    for (int i = 0; i < N_PARTS; to += padded(parts[i++].bytes))
        if (parts[i].bytes > 0) memcpy(to, parts[i].at, parts[i].bytes);
}

static wb_request request_of(const sequence_head *head, const uint8_t *bytes) {
    wb_request request = wb_request_default();
    request.rid = (const char *)(bytes + padded(sizeof *head));
    request.n_tokens = head->prompt_len;
    request.tokens = (const uint32_t *)(const void *)(bytes + parts_offset(head));
    request.temperature = head->sampling.temperature;
    request.top_k = (int32_t)head->sampling.top_k;
    request.top_p = head->sampling.top_p;
    request.seed = head->seed;
    request.n_stop = head->n_stop;
    request.stop_tokens = (const uint32_t *)(const void *)(bytes + stop_offset(head));
    request.max_tokens = head->max_len - head->prompt_len;
    request.return_routes = head->return_routes;
    request.return_sampling_mask = head->has_mask;
    request.return_indexer = head->return_indexer;
    request.expected_tokens = head->expected_tokens;
    return request;
}

wb_status wb_sequence_create_from(const uint8_t *bytes, size_t n, const wb_request_limits *limits,
                                  wb_sequence **sequence_out) {
    sequence_head head;
    memcpy(&head, bytes, sizeof head);
    const wb_request request = request_of(&head, bytes);
    const int64_t max_blocks = wb_kv_blocks_for(limits->block_size, (uint64_t)head.max_len - 1);
    wb_sequence *s = NULL;
    WB_TRY(wb_sequence_create(&request, limits, max_blocks, &s));
    const wb_status status = wb_sequence_reserve_read(s, bytes, n);
    if (status != WB_OK) {
        wb_sequence_free(s);
        return status;
    }
    wb_sequence_read(s, bytes);
    s->number = head.number;
    s->home = head.home;
    s->entry.place = head.place;
    *sequence_out = s;
    return WB_OK;
}

/* A span more than there are: the next feed may begin one. */
wb_status wb_sequence_reserve_read(wb_sequence *s, const uint8_t *bytes, size_t n) {
    sequence_head head;
    memcpy(&head, bytes, sizeof head);
    if (head.bytes != n || total_bytes(s, &head) != n)
        return wb_fail(WB_MISMATCH, "request %s: expected %zu bytes from another rank, found %zu",
                       s->completion.record.rid, total_bytes(s, &head), n);
    return WB_GROW(s->spans, (size_t)head.n_spans + 1, &s->spans_capacity, "request spans");
}

wb_finish wb_sequence_read(wb_sequence *s, const uint8_t *bytes) {
    sequence_head head;
    part parts[N_PARTS];
    memcpy(&head, bytes, sizeof head);
    parts_of(s, &head, parts);
    bytes += parts_offset(&head);
    for (int i = 0; i < N_PARTS; bytes += padded(parts[i++].bytes))
        if (parts[i].bytes > 0) memcpy(parts[i].at, bytes, parts[i].bytes);
    s->completion.record.n_tokens = head.n_tokens;
    s->completion.record.n_spans = head.n_spans;
    s->n_fed = head.n_fed;
    if (head.return_indexer) s->cells.n_rows = (uint32_t)(head.n_cells / s->cells.n_columns);
    return (wb_finish)head.finish;
}
