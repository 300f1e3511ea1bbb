/* rid_table.c - open addressing with linear probing over XXH3 of the rid; see rid_table.h. */
#include "rid_table.h"
#include "codec.h"

#include <stdlib.h>
#include <string.h>

void wb_rid_table_free(wb_rid_table *t) {
    free(t->text);
    free(t->at);
    free(t->slots);
    memset(t, 0, sizeof *t);
}

const char *wb_rid_table_get(const wb_rid_table *t, uint64_t i) {
    return t->text + t->at[i];
}

/* The slot that holds the rid, or the empty one where it belongs. Needs n_slots > 0. */
static uint64_t *slot_of(const wb_rid_table *t, const char *rid, size_t length) {
    size_t mask = t->n_slots - 1;
    size_t s = (size_t)XXH3_64bits(rid, length) & mask;
    for (; t->slots[s] != 0; s = (s + 1) & mask) {
        const char *other = wb_rid_table_get(t, t->slots[s] - 1);
        if (strlen(other) == length && memcmp(other, rid, length) == 0) break;
    }
    return &t->slots[s];
}

bool wb_rid_table_find(const wb_rid_table *t, const char *rid, size_t length, uint64_t *index_out) {
    if (t->n_slots == 0) return false;
    uint64_t slot = *slot_of(t, rid, length);
    if (slot == 0) return false;
    *index_out = slot - 1;
    return true;
}

/* Grows *block so that it holds `needed` objects, doubling. */
static wb_status grow(void **block, size_t size, size_t needed, size_t *capacity) {
    if (needed <= *capacity) return WB_OK;
    size_t want = *capacity ? *capacity * 2 : 64;
    while (want < needed) want *= 2;
    void *larger = realloc(*block, want * size);
    if (!larger) return wb_fail(WB_OUT_OF_MEMORY, "request ids: no memory for %zu x %zu bytes", want, size);
    *block = larger;
    *capacity = want;
    return WB_OK;
}

static wb_status grow_slots(wb_rid_table *t) {
    if (t->n_slots > 0 && (t->count + 1) * 3 <= t->n_slots * 2) return WB_OK;
    wb_rid_table wider = *t;
    wider.n_slots = t->n_slots ? t->n_slots * 2 : 64;
    WB_TRY(wb_alloc(wider.n_slots, sizeof *wider.slots, "request ids", (void **)&wider.slots));
    for (size_t i = 0; i < t->count; i++) {
        const char *rid = wb_rid_table_get(t, i);
        *slot_of(&wider, rid, strlen(rid)) = i + 1;
    }
    free(t->slots);
    *t = wider;
    return WB_OK;
}

wb_status wb_rid_table_reserve(wb_rid_table *t, size_t length) {
    WB_TRY(grow((void **)&t->text, 1, t->text_size + length + 1, &t->text_capacity));
    WB_TRY(grow((void **)&t->at, sizeof *t->at, t->count + 1, &t->at_capacity));
    return grow_slots(t);
}

void wb_rid_table_add(wb_rid_table *t, const char *rid, size_t length) {
    uint64_t *slot = slot_of(t, rid, length);
    memcpy(t->text + t->text_size, rid, length);
    t->text[t->text_size + length] = '\0';
    t->at[t->count] = t->text_size;
    t->text_size += length + 1;
    *slot = ++t->count;
}
