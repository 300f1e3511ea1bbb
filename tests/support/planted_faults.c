/* planted_faults.c - defects of the engine, planted one at a time by name: schedules_broken --plant NAME must
 * find each. Linked with --wrap of the functions below. */
#include "planted_faults.h"
#include "prefix_cache.h"
#include "scheduler.h"
#include "sequence.h"
#include "sequence_bytes.h"
#include "step_forcing.h"

#include <string.h>

static const char *planted = "";

bool plant_fault(const char *name) {
    static const char *const names[] = {"overwritten_rows", "stale_prefix",   "skipped_rows",
                                        "rejected_draft",   "lent_with_seed", "home_without_rows",
                                        "kept_unfed",       "refed_lists",    "cells_of_hits"};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        if (strcmp(names[i], name) == 0) planted = names[i];
    return planted[0] != 0;
}

static bool is_planted(const char *name) {
    return strcmp(planted, name) == 0;
}

/* A request that is fed again chooses again, and its rows become those of the second pass. */
wb_fed_rows __real_wb_sequence_feed(wb_sequence *s, uint32_t end, uint64_t version);
wb_fed_rows __wrap_wb_sequence_feed(wb_sequence *s, uint32_t end, uint64_t version);
wb_fed_rows __wrap_wb_sequence_feed(wb_sequence *s, uint32_t end, uint64_t version) {
    const uint32_t start = s->entry.n_in_pool;
    /* Not what is taken over; nor where there are cells, which have no room for a second pass. */
    const bool again = start < s->n_fed && start < end && s->cells.n_columns == 0;
    const wb_fed_rows fed = __real_wb_sequence_feed(s, end, version);
    if (!is_planted("overwritten_rows") || !again) return fed;
    return (wb_fed_rows){start, end - start, s->rows + start * s->row_bytes};
}

wb_status __real_wb_step_force(wb_step_forcing *forcing, wb_device *device, const wb_step_batch *batch,
                               const wb_step_results *results, wb_filing *filing,
                               const uint8_t **direction_out);
wb_status __wrap_wb_step_force(wb_step_forcing *forcing, wb_device *device, const wb_step_batch *batch,
                               const wb_step_results *results, wb_filing *filing,
                               const uint8_t **direction_out);
wb_status __wrap_wb_step_force(wb_step_forcing *forcing, wb_device *device, const wb_step_batch *batch,
                               const wb_step_results *results, wb_filing *filing,
                               const uint8_t **direction_out) {
    if (!is_planted("overwritten_rows"))
        return __real_wb_step_force(forcing, device, batch, results, filing, direction_out);
    *direction_out = NULL;
    return WB_OK;
}

/* A token that is fed again looks at the first entries that there are, not at those that were chosen. */
void __real_wb_cells_list(const wb_cells *cells, uint32_t token, uint32_t column, int32_t *list_out);
void __wrap_wb_cells_list(const wb_cells *cells, uint32_t token, uint32_t column, int32_t *list_out);
void __wrap_wb_cells_list(const wb_cells *cells, uint32_t token, uint32_t column, int32_t *list_out) {
    __real_wb_cells_list(cells, token, column, list_out);
    if (!is_planted("refed_lists")) return;
    for (uint32_t j = 0; j < cells->model->indexer_k && list_out[j] >= 0; j++) list_out[j] = (int32_t)j;
}

/* What is taken over has all entries that there are as its choice, wherever it ends. */
wb_status __real_wb_sequence_create(const wb_request *request, const wb_request_limits *limits,
                                    int64_t max_blocks, wb_sequence **sequence_out);
wb_status __wrap_wb_sequence_create(const wb_request *request, const wb_request_limits *limits,
                                    int64_t max_blocks, wb_sequence **sequence_out);
wb_status __wrap_wb_sequence_create(const wb_request *request, const wb_request_limits *limits,
                                    int64_t max_blocks, wb_sequence **sequence_out) {
    const wb_status status = __real_wb_sequence_create(request, limits, max_blocks, sequence_out);
    if (is_planted("cells_of_hits") && status == WB_OK) (*sequence_out)->entry.take_limit = 0;
    return status;
}

/* Blocks of the old weights stay known. */
void __real_wb_kv_blocks_forget(wb_kv_blocks *blocks);
void __wrap_wb_kv_blocks_forget(wb_kv_blocks *blocks);
void __wrap_wb_kv_blocks_forget(wb_kv_blocks *blocks) {
    if (!is_planted("stale_prefix")) __real_wb_kv_blocks_forget(blocks);
}

/* The token after a draft that was rejected is taken too. */
uint32_t __real_wb_sequence_count_taken(const wb_sequence *s, uint32_t n, const int32_t *sampled,
                                        wb_finish *finish_out);
uint32_t __wrap_wb_sequence_count_taken(const wb_sequence *s, uint32_t n, const int32_t *sampled,
                                        wb_finish *finish_out);
uint32_t __wrap_wb_sequence_count_taken(const wb_sequence *s, uint32_t n, const int32_t *sampled,
                                        wb_finish *finish_out) {
    const uint32_t taken = __real_wb_sequence_count_taken(s, n, sampled, finish_out);
    const bool more =
        taken < n && *finish_out == WB_FINISH_NONE && wb_sequence_length(s) + taken + 1 < s->max_len;
    return is_planted("rejected_draft") && more ? taken + 1 : taken;
}

/* What is taken over comes without its rows. */
const uint8_t *__real_wb_prefix_cache_rows(const wb_prefix_cache *cache, int32_t block);
const uint8_t *__wrap_wb_prefix_cache_rows(const wb_prefix_cache *cache, int32_t block);
const uint8_t *__wrap_wb_prefix_cache_rows(const wb_prefix_cache *cache, int32_t block) {
    static const uint8_t zeros[1024];
    return is_planted("skipped_rows") ? zeros : __real_wb_prefix_cache_rows(cache, block);
}

/* A request that another rank takes has the seed of another request there. */
wb_status __real_wb_sequence_create_from(const uint8_t *bytes, size_t n, const wb_request_limits *limits,
                                         wb_sequence **sequence_out);
wb_status __wrap_wb_sequence_create_from(const uint8_t *bytes, size_t n, const wb_request_limits *limits,
                                         wb_sequence **sequence_out);
wb_status __wrap_wb_sequence_create_from(const uint8_t *bytes, size_t n, const wb_request_limits *limits,
                                         wb_sequence **sequence_out) {
    const wb_status status = __real_wb_sequence_create_from(bytes, n, limits, sequence_out);
    if (is_planted("lent_with_seed") && status == WB_OK) (*sequence_out)->seed++;
    return status;
}

/* A request that comes home has the last row that it was fed there as zeros. */
wb_finish __real_wb_sequence_read(wb_sequence *s, const uint8_t *bytes);
wb_finish __wrap_wb_sequence_read(wb_sequence *s, const uint8_t *bytes);
wb_finish __wrap_wb_sequence_read(wb_sequence *s, const uint8_t *bytes) {
    const wb_finish finish = __real_wb_sequence_read(s, bytes);
    if (is_planted("home_without_rows") && s->n_fed > 0)
        memset(s->rows + (s->n_fed - 1) * s->row_bytes, 0, s->row_bytes);
    return finish;
}

/* What a state has yet to be fed again when weights are set is fed to it by the new ones. */
void __real_wb_sequence_take_back(wb_sequence *s, uint32_t n_tokens);
void __wrap_wb_sequence_take_back(wb_sequence *s, uint32_t n_tokens);
void __wrap_wb_sequence_take_back(wb_sequence *s, uint32_t n_tokens) {
    if (!is_planted("kept_unfed")) __real_wb_sequence_take_back(s, n_tokens);
}
