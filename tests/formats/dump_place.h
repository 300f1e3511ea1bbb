/* dump_place.h - a folder with a finished dump of N records, for tests that damage it or write beside it
 * (header only). */
#ifndef DUMP_PLACE_H
#define DUMP_PLACE_H

#include "dump_fixture.h"

#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define OK(call) assert_string_equal((call) == WB_OK ? "" : wb_error_message(), "")

enum { N = 4 };

typedef struct place {
    char directory[64];
    char path[96];
    fixture_model f;
    fixture_record records[N];
    uint64_t begins[N]; /* byte of each record */
    uint8_t *bytes;     /* of the finished file */
    size_t size;
} place;

/* A finished dump of N records, small enough for a test a bit: a shared prompt, a bitmap, two runs, zstd. */
static int setup(void **state) {
    place *p = calloc(1, sizeof *p);
    fixture_rng rng = {77};
    fixture_directory(p->directory);
    snprintf(p->path, sizeof p->path, "%s/part-0.wbr", p->directory);
    fixture_model_init(&p->f, 2, 16, 4);
    wb_dump_options options = wb_dump_options_default();
    options.codec = WB_CODEC_ZSTD;
    wb_dump_writer *w = NULL;
    OK(wb_dump_create(p->path, &p->f.model, &options, &w));
    for (uint32_t i = 0; i < N; i++) {
        char rid[16];
        snprintf(rid, sizeof rid, "r%u", i);
        fixture_record *r = &p->records[i];
        fixture_record_init(r, &p->f.model, &rng, rid, 4, i == 3 ? 40 : 9, 0, i == 2 ? 2 : 1, i == 2);
        r->record.group = i / 2;
        if (i == 1) memcpy(r->ids, p->records[0].ids, 4 * wb_route_row_bytes(&p->f.model));
        if (i > 1) fixture_record_sample(r, &rng, i == 2);
        if (i == 3) /* rows that zstd makes smaller */
            for (uint32_t t = 1; t < 39; t++) memcpy(r->ids + t * 8, r->ids, 8);
        OK(wb_dump_append(w, &r->record));
    }
    OK(wb_dump_finish(w));
    p->bytes = fixture_read_file(p->path, &p->size);
    wb_dump *d = NULL;
    OK(wb_dump_open(p->path, &d));
    for (uint32_t i = 0; i < N; i++) {
        wb_dump_entry e;
        OK(wb_dump_get_entry(d, i, &e));
        p->begins[i] = e.offset;
        if (i == 1) assert_int_equal(e.prefix_rows, 4);
        if (i == 3) assert_int_equal(e.codec, WB_CODEC_ZSTD);
    }
    wb_dump_close(d);
    *state = p;
    return 0;
}

static int teardown(void **state) {
    place *p = *state;
    fixture_remove(p->directory);
    for (uint32_t i = 0; i < N; i++) fixture_record_free(&p->records[i]);
    free(p->bytes);
    free(p);
    return 0;
}

#define WITH_DUMP(test) cmocka_unit_test_setup_teardown(test, setup, teardown)

/* NULL when the open dump holds exactly the first n records of the fixture, else what is wrong. A record that
 * is refused (status in *status) is no difference. */
static inline const char *difference(place *p, wb_dump *d, uint64_t n, wb_status *status) {
    *status = WB_OK;
    for (uint64_t i = 0; i < n && *status == WB_OK; i++) {
        wb_record r;
        *status = wb_dump_record(d, i, &r);
        const char *what =
            *status == WB_OK ? fixture_difference(&p->f.model, &p->records[i].record, &r) : NULL;
        if (what) return what;
    }
    return NULL;
}

#endif
