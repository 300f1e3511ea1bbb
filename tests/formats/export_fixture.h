/* export_fixture.h - a dump of random records and what is exported of it (header only). */
#ifndef EXPORT_FIXTURE_H
#define EXPORT_FIXTURE_H

#include "dump_fixture.h"
#include "wb_export.h"
#include "wb_import.h"

#include <inttypes.h>
#include <math.h>
#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static uint64_t export_seed = 35;

enum { EXPORT_N = 9 };

typedef struct export_place {
    char directory[64], path[96];
    fixture_model f;
    fixture_record records[EXPORT_N];
    wb_dump *dump;
    uint8_t *bytes; /* what was exported */
    size_t size, room;
} export_place;

/* Records of different lengths; `holes`: runs with gaps and invalid rows. */
static inline void export_make_records(export_place *p, fixture_rng *rng, bool holes) {
    for (uint32_t i = 0; i < EXPORT_N; i++) {
        char rid[32];
        const uint32_t prompt = 2 + fixture_below(rng, 8), n = prompt + 4 + fixture_below(rng, 12);
        const uint32_t start = i % 3 == 1 ? fixture_below(rng, prompt) : 0;
        snprintf(rid, sizeof rid, "r%u \"\\ \xc3\xa4", i);
        fixture_record_init(&p->records[i], &p->f.model, rng, rid, prompt, n, start, holes ? i % 3 + 1 : 1,
                            holes && i % 2);
        p->records[i].bits[0] |= 1; /* a batch of verl's has a row of each record */
        if (i % 4 == 1) fixture_record_sample(&p->records[i], rng, i % 8 == 1);
        p->records[i].record.group = i / 3;
        if (i % 4 == 2) p->records[i].record.logprobs = NULL;
        if (i % 4 == 3) p->records[i].record.n_spans = 0;
    }
}

/* What a model has beside: indexers, of which some records say what they chose; layers that differ in K, and
 * experts without weights. */
typedef enum export_kind { EXPORT_PLAIN, EXPORT_INDEXED, EXPORT_DIFFERING } export_kind;

/* Writes the records, as they are now, and opens the dump. */
static inline void export_write(export_place *p) {
    wb_dump_writer *writer = NULL;
    wb_dump_close(p->dump);
    unlink(p->path);
    assert_int_equal(wb_dump_create(p->path, &p->f.model, NULL, &writer), WB_OK);
    for (uint32_t i = 0; i < EXPORT_N; i++)
        assert_int_equal(wb_dump_append(writer, &p->records[i].record), WB_OK);
    assert_int_equal(wb_dump_finish(writer), WB_OK);
    assert_int_equal(wb_dump_open(p->path, &p->dump), WB_OK);
}

static inline void export_open(export_place *p, fixture_rng *rng, uint32_t E, uint32_t K, bool holes,
                               export_kind kind) {
    memset(p, 0, sizeof *p);
    fixture_directory(p->directory);
    snprintf(p->path, sizeof p->path, "%s/run.wbr", p->directory);
    fixture_model_init(&p->f, 4, E, K);
    if (kind == EXPORT_INDEXED) fixture_model_index(&p->f, 5);
    if (kind == EXPORT_DIFFERING) fixture_model_vary(&p->f, 2);
    export_make_records(p, rng, holes);
    for (uint32_t i = 0; kind == EXPORT_INDEXED && i < EXPORT_N; i += 3)
        fixture_record_index(&p->records[i], &p->f.model, rng, 0);
    export_write(p);
}

static inline void export_close(export_place *p) {
    wb_dump_close(p->dump);
    fixture_remove(p->directory);
    for (uint32_t i = 0; i < EXPORT_N; i++) fixture_record_free(&p->records[i]);
    free(p->bytes);
}

static inline wb_status export_take(void *ctx, const void *bytes, size_t size) {
    export_place *p = ctx;
    if (p->size + size > p->room) {
        p->room = 2 * (p->size + size);
        p->bytes = realloc(p->bytes, p->room);
        if (!p->bytes) abort();
    }
    memcpy(p->bytes + p->size, bytes, size);
    p->size += size;
    return WB_OK;
}

static inline wb_status export_to(export_place *p, wb_export_layout layout) {
    p->size = 0;
    return wb_export_dump(p->dump, layout, export_take, p, NULL, NULL, NULL);
}

static inline void export_refused(export_place *p, wb_export_layout layout, wb_status expected,
                                  const char *part) {
    const wb_status status = export_to(p, layout);
    if (status != expected || !strstr(wb_error_message(), part))
        fail_msg("seed %" PRIu64 ": expected %d with '%s', found %d: %s", export_seed, (int)expected, part,
                 (int)status, wb_error_message());
}

#endif
