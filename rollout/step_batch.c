/* step_batch.c - see step_batch.h. */
#include "step_batch.h"
#include "wb_check.h"

wb_status wb_step_batch_open(wb_owner *owner, size_t max_tokens, size_t max_entries, size_t max_sampled,
                             size_t max_blocks, wb_step_batch *batch) {
    static const char what[] = "engine batch";
    WB_TRY(WB_OWN(owner, batch->tokens, max_tokens, what));
    WB_TRY(WB_OWN(owner, batch->pos, max_tokens, what));
    WB_TRY(WB_OWN(owner, batch->seq, max_tokens, what));
    WB_TRY(WB_OWN(owner, batch->entries, max_entries, what));
    WB_TRY(WB_OWN(owner, batch->blocks, max_entries * max_blocks, what));
    WB_TRY(WB_OWN(owner, batch->states, max_entries, what));
    WB_TRY(WB_OWN(owner, batch->sampled, max_sampled, what));
    return WB_OWN(owner, batch->logit_rows, max_sampled, what);
}

void wb_step_batch_clear(wb_step_batch *batch) {
    batch->n_tokens = batch->n_rows = batch->n_sampled = 0;
    batch->n_entries = batch->max_blocks = 0;
}

static void add_tokens(wb_step_batch *batch, const wb_sched_entry *entry) {
    for (uint32_t i = entry->n_in_pool; i < entry->n_in_pool + wb_sched_n_fed(entry); i++) {
        batch->tokens[batch->n_tokens] = (int32_t)entry->record->tokens[i];
        batch->pos[batch->n_tokens] = (int32_t)i;
        batch->seq[batch->n_tokens++] = batch->n_entries;
    }
}

void wb_step_batch_add(wb_step_batch *batch, wb_sched_entry *entry) {
    add_tokens(batch, entry);
    batch->entries[batch->n_entries++] = entry;
    if (batch->max_blocks < entry->n_blocks) batch->max_blocks = entry->n_blocks;
    if (!wb_sched_samples(entry)) return;
    for (int64_t t = batch->n_tokens - 1 - entry->n_drafts; t < batch->n_tokens; t++) {
        batch->sampled[batch->n_sampled] = entry;
        batch->logit_rows[batch->n_sampled++] = (int32_t)t;
    }
}

void wb_step_batch_pad(wb_step_batch *batch, int64_t n) {
    for (int64_t t = batch->n_tokens; t < n; t++) {
        batch->tokens[t] = batch->pos[t] = 0;
        batch->seq[t] = -1;
    }
    batch->n_rows = n;
}

void wb_step_batch_fill_held(wb_step_batch *batch) {
    for (int32_t i = 0; i < batch->n_entries; i++) {
        int32_t *row = batch->blocks + (size_t)i * (size_t)batch->max_blocks;
        const wb_sched_entry *entry = batch->entries[i];
        batch->states[i] = entry->state;
        for (int32_t k = 0; k < batch->max_blocks; k++) row[k] = k < entry->n_blocks ? entry->blocks[k] : 0;
    }
}
