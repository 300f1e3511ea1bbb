/* test_alloc_fail_formats.c - every allocation of writing, reading and verifying a dump is made to fail in
 * turn. Each time the call says "out of memory", nothing leaks, and what was written stays readable. */
#include "dump_fixture.h"
#include "support/alloc_fail.h"

#include <errno.h>
#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { N = 6 };

typedef struct place {
    char directory[64], path[96];
    fixture_model f;
    fixture_record records[N];
    wb_dump_options options;
} place;

static int setup_codec(void **state, wb_codec codec, uint32_t E, uint32_t K) {
    place *p = calloc(1, sizeof *p);
    fixture_rng rng = {5};
    fixture_directory(p->directory);
    snprintf(p->path, sizeof p->path, "%s/part-0.wbr", p->directory);
    fixture_model_init(&p->f, 3, E, K);
    fixture_model_index(&p->f, 7);
    p->options = wb_dump_options_default();
    p->options.codec = codec;
    p->options.chunk_bytes = 200;
    p->options.producer = "alloc_fail";
    for (uint32_t i = 0; i < N; i++) {
        char rid[16];
        snprintf(rid, sizeof rid, "r%u", i);
        fixture_record_init(&p->records[i], &p->f.model, &rng, rid, 9, 40, 0, 1 + i % 2, i == 1);
        p->records[i].record.group = i / 3;
        if (i % 2 == 1) fixture_record_sample(&p->records[i], &rng, i > 1);
        if (i > 2) fixture_record_index(&p->records[i], &p->f.model, &rng, i % 2);
        if (i == 4) memcpy(p->records[i].ids, p->records[3].ids, 9 * wb_route_row_bytes(&p->f.model));
    }
    *state = p;
    return 0;
}

static int setup(void **state) {
    return setup_codec(state, WB_CODEC_ZSTD, 64, 4);
}

/* Few experts, so that short rows gain something by being packed. */
static int setup_packed(void **state) {
    return setup_codec(state, WB_CODEC_PACKED, 4, 4);
}

static int teardown(void **state) {
    place *p = *state;
    fixture_remove(p->directory);
    for (uint32_t i = 0; i < N; i++) fixture_record_free(&p->records[i]);
    free(p);
    return 0;
}

/* Runs `body` with its n-th allocation failing, for every n. */
static void every_allocation(place *p, wb_status (*body)(place *), void (*after)(place *)) {
    for (int ever_after = 0; ever_after < 2; ever_after++) {
        for (long n = 0;; n++) {
            long live = 0;
            alloc_fail_arm(n, ever_after);
            wb_status status = body(p);
            bool failed = alloc_fail_disarm(&live);
            if (live != 0) fail_msg("allocation %ld fails: %ld blocks are not freed", n, live);
            if (failed && status == WB_IO)
                assert_non_null(strstr(wb_error_message(), strerror(ENOMEM)));
            else
                assert_int_equal(status, failed ? WB_OUT_OF_MEMORY : WB_OK);
            after(p);
            if (failed) continue;
            print_message("%ld allocations\n", n);
            assert_true(n > 3);
            break;
        }
    }
}

static wb_status write_all(place *p) {
    wb_dump_writer *w = NULL;
    wb_status status = wb_dump_create(p->path, &p->f.model, &p->options, &w);
    for (uint32_t i = 0; i < N && status == WB_OK; i++) status = wb_dump_append(w, &p->records[i].record);
    wb_status finished = wb_dump_finish(w);
    return status != WB_OK ? status : finished;
}

static void check_written(place *p) {
    wb_dump *d = NULL;
    if (access(p->path, F_OK) != 0) return; /* the creation failed */
    assert_int_equal(wb_dump_open(p->path, &d), WB_OK);
    wb_dump_info info = wb_dump_get_info(d);
    assert_int_equal(info.lost_bytes, 0);
    for (uint64_t i = 0; i < info.records; i++) {
        wb_record r;
        assert_int_equal(wb_dump_record(d, i, &r), WB_OK);
        assert_null(fixture_difference(&p->f.model, &p->records[i].record, &r));
    }
    wb_dump_close(d);
    unlink(p->path);
}

static void test_write(void **state) {
    every_allocation(*state, write_all, check_written);
}

static wb_status read_all(place *p) {
    wb_dump *d = NULL;
    wb_status status = wb_dump_open(p->directory, &d);
    if (status != WB_OK) return status;
    for (uint64_t i = N; i-- > 0 && status == WB_OK;) {
        wb_record r;
        wb_dump_entry e;
        status = wb_dump_find(d, p->records[i].rid, &r);
        if (status == WB_OK) status = wb_dump_get_entry(d, i, &e);
        if (status == WB_OK && i % 2) wb_dump_release(d, i);
    }
    wb_dump_close(d);
    return status;
}

static wb_status verify_all(place *p) {
    wb_dump_info info;
    return wb_dump_verify(p->path, NULL, NULL, &info);
}

static void nothing(place *p) {
    (void)p;
}

/* Copies each record as it is stored, but the first, whose rows others have: those are encoded anew. */
static wb_status copy_all(place *p) {
    wb_dump *d = NULL;
    wb_dump_writer *w = NULL;
    char path[128];
    snprintf(path, sizeof path, "%s/copy", p->directory);
    unlink(path);
    wb_status status = wb_dump_salvage(p->path, NULL, NULL, &d);
    if (status == WB_OK) status = wb_dump_create(path, &p->f.model, NULL, &w);
    for (uint64_t i = 0; i < N && status == WB_OK; i++)
        if (i != 3) status = wb_dump_append_stored(w, d, i);
    const wb_status finished = wb_dump_finish(w);
    wb_dump_close(d);
    return status == WB_OK ? finished : status;
}

static void test_read(void **state) {
    assert_int_equal(write_all(*state), WB_OK);
    every_allocation(*state, copy_all, nothing);
    every_allocation(*state, read_all, nothing);
    every_allocation(*state, verify_all, nothing);
}

/* Without an index, and with a part of another name: the walk and the list of names. */
static void test_walk(void **state) {
    place *p = *state;
    assert_int_equal(write_all(p), WB_OK);
    size_t size = 0;
    uint8_t *bytes = fixture_read_file(p->path, &size);
    fixture_write_file(p->path, bytes, size - 3);
    char other[96];
    snprintf(other, sizeof other, "%s/part-1.wbr", p->directory);
    fixture_write_file(other, bytes, 20);
    free(bytes);
    every_allocation(p, read_all, nothing);
}

/* A record that could not be read for want of memory can be read later. */
static void test_again(void **state) {
    place *p = *state;
    assert_int_equal(write_all(p), WB_OK);
    wb_dump *d = NULL;
    assert_int_equal(wb_dump_open(p->path, &d), WB_OK);
    for (uint64_t i = N; i-- > 0;) {
        wb_record r;
        for (long n = 0;; n++) {
            long live = 0;
            alloc_fail_arm(n, false);
            wb_status status = wb_dump_record(d, i, &r);
            if (!alloc_fail_disarm(&live)) break;
            assert_int_equal(status, WB_OUT_OF_MEMORY);
        }
        assert_null(fixture_difference(&p->f.model, &p->records[i].record, &r));
    }
    wb_dump_close(d);
}

/* A record that could not be written for want of memory can be appended later, under its rid. */
static void test_append_again(void **state) {
    place *p = *state;
    wb_dump_writer *w = NULL;
    assert_int_equal(wb_dump_create(p->path, &p->f.model, &p->options, &w), WB_OK);
    for (uint32_t i = 0; i < N; i++)
        for (long n = 0;; n++) {
            long live = 0;
            alloc_fail_arm(n, false);
            wb_status status = wb_dump_append(w, &p->records[i].record);
            if (!alloc_fail_disarm(&live)) {
                assert_int_equal(status, WB_OK);
                break;
            }
            if (status == WB_OK) break; /* it did without */
            assert_int_equal(status, WB_OUT_OF_MEMORY);
        }
    assert_int_equal(wb_dump_finish(w), WB_OK);
    check_written(p);
}

int main(void) {
    if (!ALLOC_FAIL_WORKS) {
        printf("skipped: a sanitizer has malloc\n");
        return 77;
    }
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(test_write, setup, teardown),
        cmocka_unit_test_setup_teardown(test_read, setup, teardown),
        cmocka_unit_test_setup_teardown(test_walk, setup, teardown),
        cmocka_unit_test_setup_teardown(test_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_append_again, setup, teardown),
        cmocka_unit_test_setup_teardown(test_write, setup_packed, teardown),
        cmocka_unit_test_setup_teardown(test_read, setup_packed, teardown),
        cmocka_unit_test_setup_teardown(test_again, setup_packed, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
