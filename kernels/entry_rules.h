/* entry_rules.h - which compressed entries a query sees and where they lie, and what an indexer's score is of
 * (not installed): rules that both backends share. */
#ifndef WB_ENTRY_RULES_H
#define WB_ENTRY_RULES_H

#include "attention_keys.h"
#include "wb_exact_math.h"

/* Entries that a query at position `pos` sees: 0 .. this - 1. */
static WB_HD int32_t entries_seen(int32_t ratio, int32_t pos) {
    return ratio > 0 ? (pos + 1) / ratio : 0;
}

/* The row of a sequence's entry w among entries; blocks: the sequence's. */
static WB_HD int64_t entry_row(const int32_t *blocks, int32_t block_size, int32_t ratio, int32_t w) {
    const int64_t last = (int64_t)w * ratio + ratio - 1, of_block = (block_size + ratio - 1) / ratio;
    return blocks[last / block_size] * of_block + last % block_size / ratio;
}

/* How many of list[most], which ends with -1s, are entries. */
static WB_HD int32_t listed_entries(const int32_t *list, int32_t most) {
    int32_t low = 0, high = most;
    while (low < high) {
        const int32_t middle = low + (high - low) / 2;
        if (list[middle] >= 0)
            low = middle + 1;
        else
            high = middle;
    }
    return low;
}

/* Whether place i of a list may stand behind the one before it: a -1, or an entry below `limit` that is
 * larger than it. Nothing but -1 follows a -1. */
static WB_HD bool follows_in_list(const int32_t *list, int32_t i, int32_t limit) {
    const int32_t found = list[i];
    return found < 0 || (found < limit && (i == 0 || (list[i - 1] >= 0 && found > list[i - 1])));
}

/* An indexer's score goes on by a head: the product of a query and a key, unless it is below 0. NaN stays. */
static WB_HD float index_score(float so_far, float weight, float product) {
    return wb_fma(weight, product < 0.0f ? 0.0f : product, so_far);
}

#endif
