/* cpu_entries.h - the keys of one query of attention over entries, as the forward and the backward gather
 * them: the rows of its window, then the entries that it sees. Refuses: sums (cpu_entry_attention.c and its
 * backward).
 */
#ifndef WB_CPU_ENTRIES_H
#define WB_CPU_ENTRIES_H

#include "cpu/cpu_attention.h"
#include "device_fault.h"
#include "entry_check.h"
#include "entry_rules.h"

/* Of a query: positions [first, first + raw), and entries: those of `list`, or the first ones. */
typedef struct key_list {
    int64_t first, raw, entries;
    const int32_t *list; /* [entries], or NULL */
} key_list;

static inline key_list find_list(const wb_entry_attention *args, int64_t t) {
    const span seen = seen_by(&args->raw, t);
    key_list keys = {seen.begin, seen.end - seen.begin, entries_seen(args->entries.ratio, args->raw.pos[t]),
                     NULL};
    if (!args->listed || args->entries.ratio == 0) return keys;
    keys.list = args->listed + t * args->max_listed;
    keys.entries = listed_entries(keys.list, args->max_listed);
    return keys;
}

static inline int64_t key_count(key_list keys) {
    return keys.raw + keys.entries;
}

/* Number i of the entries. */
static inline int32_t entry_of(key_list keys, int64_t i) {
    return keys.list ? keys.list[i] : (int32_t)i;
}

static inline const int32_t *blocks_of_token(const wb_entry_attention *args, int64_t t) {
    return args->raw.blocks + (int64_t)args->raw.seq[t] * args->raw.max_blocks;
}

/* Lists of tokens name entries that these see, ascending, and then nothing but -1. */
static inline wb_status check_lists(const wb_entry_attention *args, wb_op op) {
    for (int64_t t = 0; t < args->raw.T && args->listed && args->entries.ratio > 0; t++) {
        if (args->raw.seq[t] < 0) continue;
        const int32_t *list = args->listed + t * args->max_listed;
        const int32_t limit = entries_seen(args->entries.ratio, args->raw.pos[t]);
        for (int32_t i = 0; i < args->max_listed; i++) {
            const int32_t found = list[i];
            const wb_fault fault = {
                .kind = WB_FAULT_ENTRY, .op = op, .row = t, .choice = i, .limit = limit, .found = found};
            if (!follows_in_list(list, i, limit)) return wb_fault_report(&fault);
        }
    }
    return WB_OK;
}

/* The keys that some query of a call sees at most, and multiply-adds of a product of all queries with
 * theirs. */
static inline int64_t most_keys(const wb_entry_attention *args, int64_t *work_out) {
    int64_t most = 0, all = 0;
    for (int64_t t = 0; t < args->raw.T; t++) {
        const int64_t count = args->raw.seq[t] < 0 ? 0 : key_count(find_list(args, t));
        most = max64(most, count);
        all += count;
    }
    *work_out = all * args->raw.n_heads * args->raw.head_dim;
    return most;
}

#endif
