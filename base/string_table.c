/* string_table.c - see wb_string_table.h: open addressing with linear probing over wb_hash64 of the text. */
#include "wb_check.h"
#include "wb_hash.h"
#include "wb_memory.h"
#include "wb_string_table.h"

#include <stdlib.h>
#include <string.h>

typedef struct wb_string_entry {
    char *text; /* NULL: the place is empty */
    uint64_t hash, value;
} wb_string_entry;

enum { FIRST_PLACES = 64 };

void wb_string_table_free(wb_string_table *t) {
    for (size_t i = 0; i < t->n_places; i++) free(t->entries[i].text);
    free(t->entries);
    *t = (wb_string_table){0};
}

static bool same_text(const wb_string_entry *entry, uint64_t hash, const char *text, size_t length) {
    return entry->hash == hash && strncmp(entry->text, text, length) == 0 && entry->text[length] == '\0';
}

/* The place that holds the text, or the empty one where it belongs. Needs n_places > 0. */
static size_t place_of(const wb_string_table *t, uint64_t hash, const char *text, size_t length) {
    size_t mask = t->n_places - 1, i = (size_t)hash & mask;
    while (t->entries[i].text && !same_text(&t->entries[i], hash, text, length)) i = (i + 1) & mask;
    return i;
}

/* The place of a hash that no entry of the table has. */
static size_t empty_place(const wb_string_table *t, uint64_t hash) {
    size_t mask = t->n_places - 1, i = (size_t)hash & mask;
    while (t->entries[i].text) i = (i + 1) & mask;
    return i;
}

bool wb_string_table_find(const wb_string_table *t, const char *text, size_t length, uint64_t *value_out) {
    if (t->n_places == 0) return false;
    const wb_string_entry *entry = &t->entries[place_of(t, wb_hash64(text, length), text, length)];
    if (!entry->text) return false;
    *value_out = entry->value;
    return true;
}

static wb_status make_room(wb_string_table *t) {
    if ((t->count + 1) * 3 <= t->n_places * 2) return WB_OK;
    wb_string_table wider = {.n_places = t->n_places ? t->n_places * 2 : FIRST_PLACES, .count = t->count};
    WB_TRY(WB_NEW(wider.entries, wider.n_places, "strings by text"));
    for (size_t i = 0; i < t->n_places; i++)
        if (t->entries[i].text) wider.entries[empty_place(&wider, t->entries[i].hash)] = t->entries[i];
    free(t->entries);
    *t = wider;
    return WB_OK;
}

wb_status wb_string_table_add(wb_string_table *t, const char *text, size_t length, uint64_t value,
                              const char **text_out) {
    char *copy = NULL;
    WB_TRY(make_room(t));
    WB_TRY(WB_NEW(copy, length + 1, "a string of a table"));
    memcpy(copy, text, length);
    uint64_t hash = wb_hash64(text, length);
    t->entries[empty_place(t, hash)] = (wb_string_entry){copy, hash, value};
    t->count++;
    if (text_out) *text_out = copy;
    return WB_OK;
}

/* Entries after the hole move into it, unless they would then stand before the place that their hash
 * names: so every entry is still reached from there without meeting an empty place. */
static void close_hole(wb_string_table *t, size_t hole) {
    size_t mask = t->n_places - 1;
    for (size_t i = (hole + 1) & mask; t->entries[i].text; i = (i + 1) & mask) {
        size_t wanted = (size_t)t->entries[i].hash & mask;
        if (((i - wanted) & mask) < ((i - hole) & mask)) continue;
        t->entries[hole] = t->entries[i];
        hole = i;
    }
    t->entries[hole] = (wb_string_entry){0};
}

void wb_string_table_remove(wb_string_table *t, const char *text, size_t length) {
    if (t->n_places == 0) return;
    size_t i = place_of(t, wb_hash64(text, length), text, length);
    if (!t->entries[i].text) return;
    free(t->entries[i].text);
    t->count--;
    close_hole(t, i);
}
