/* sched_entry.h - what the scheduler knows of a request: its place in the line, and how far it is fed. */
#ifndef WB_SCHED_ENTRY_H
#define WB_SCHED_ENTRY_H

#include "wb_formats.h"

/* A request as the scheduler sees it: a growing list of tokens, of which [0, n_in_pool) have keys in the KV
 * pool. The request's owner embeds it, and appends the tokens that are sampled. */
typedef struct wb_sched_entry {
    const wb_record *record; /* its tokens so far, [record->n_tokens] */
    int32_t *blocks;         /* [n_blocks] held; room for all that the request can come to need */
    int32_t n_blocks;
    int32_t state; /* number of its state of fixed size, held while it runs */
    /* While a step with drafts is made, a copy of what it was before, where there is one; else -1. */
    int32_t saved_state;
    bool running; /* holds blocks and a state */
    /* All its keys are, or will be, those of the present weights along the rows that these choose: it may
     * take over known blocks, and what it feeds becomes known. */
    bool shares;
    int32_t n_known; /* of `blocks`, the first ones: known to the prefix cache */
    /* Tokens of known blocks that it was admitted with, whose rows it has yet to get. */
    uint32_t n_taken_over;
    uint32_t take_limit; /* of its tokens so many may be taken over at most; 0: all but the last */
    uint32_t n_in_pool;  /* 0 unless running */
    /* Tokens from n_in_pool on that a step fed and kept before its state went back from a wrong draft: they
     * are fed again, and have been counted. */
    uint32_t n_went_back;
    uint32_t n_planned; /* tokens from n_in_pool on that this step feeds */
    /* Guesses at the tokens that come next, behind the record's last one: how many there are, how many this
     * step feeds behind the planned ones, and how many of these the model chose too. */
    uint32_t n_proposed, n_drafts, n_accepted;
    int64_t place;                          /* in the line, the smaller the earlier */
    uint32_t expected_tokens;               /* of one place, the more the earlier */
    struct wb_sched_entry *previous, *next; /* in the order of the line */
} wb_sched_entry;

/* Blocks that the keys of n_tokens tokens fill. */
static inline int64_t wb_kv_blocks_for(int32_t block_size, uint64_t n_tokens) {
    const uint64_t size = (uint64_t)block_size;
    return (int64_t)(n_tokens / size + (n_tokens % size != 0));
}

/* True when the planned tokens end with the last one that exists: a token is sampled after it, and after each
 * draft. */
static inline bool wb_sched_samples(const wb_sched_entry *entry) {
    return entry->n_in_pool + entry->n_planned == entry->record->n_tokens;
}

/* True when all but the last token have keys in the pool. */
static inline bool wb_sched_decodes(const wb_sched_entry *entry) {
    return entry->n_in_pool + 1 == entry->record->n_tokens;
}

/* Tokens that this step feeds, of which the last ones are drafts. */
static inline uint32_t wb_sched_n_fed(const wb_sched_entry *entry) {
    return entry->n_planned + entry->n_drafts;
}

/* Those of them that stay: without the drafts that the model did not choose. */
static inline uint32_t wb_sched_n_kept(const wb_sched_entry *entry) {
    return entry->n_planned + entry->n_accepted;
}

/* Of the tokens that stay, how many from the first on count as prefill: those of a prompt, and what is fed
 * again, a last token that is fed with them too. The rest counts as decode: the one token of a step of
 * decoding, also behind what went back, and drafts wherever they are fed, behind a prompt's last token
 * too. */
static inline uint32_t wb_sched_n_prefilled(const wb_sched_entry *entry) {
    const bool decodes = wb_sched_samples(entry) && entry->n_planned == entry->n_went_back + 1 &&
                         entry->n_in_pool + entry->n_went_back >= entry->record->prompt_len;
    return decodes ? entry->n_went_back : entry->n_planned;
}

#endif
