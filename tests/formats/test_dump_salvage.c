/* test_dump_salvage.c - what of a damaged dump is whole comes back, and nothing else: every bit flipped, a
 * cut at every byte, bytes put in and taken out, parts of several kinds. */
#include "dump_layout.h"
#include "dump_place.h"

#include <inttypes.h>

typedef struct losses {
    uint32_t stretches, shortened, empty;
    uint64_t bytes, first, end; /* of the first stretch; of the last one, exclusive */
    char rid[64];               /* of the latest one that has one */
} losses;

static void add_loss(void *ctx, const wb_dump_loss *loss) {
    losses *l = ctx;
    assert_true(loss->path[0] != '\0' && loss->why[0] != '\0');
    if (loss->rid) snprintf(l->rid, sizeof l->rid, "%s", loss->rid);
    if (loss->bytes == 0) {
        l->shortened += loss->rid != NULL;
        l->empty += !loss->rid;
        return;
    }
    if (l->stretches == 0) l->first = loss->offset;
    if (l->stretches > 0) assert_true(loss->offset >= l->end); /* ascending, and no byte twice */
    l->stretches++;
    l->bytes += loss->bytes;
    l->end = loss->offset + loss->bytes;
}

/* Byte where record i ends; N is the index. */
static uint64_t begin_of(const place *p, uint32_t i) {
    uint64_t index = 0;
    memcpy(&index, p->bytes + p->size - WB_TRAILER_BYTES + WB_TRAILER_OFFSET_AT, 8);
    return i < N ? p->begins[i] : index;
}

/* NULL when the record is the fixture's, or with `shortened` the fixture's without rows of its prompt. */
static const char *compare(const place *p, uint32_t i, const wb_record *r, bool shortened) {
    const wb_record *whole = &p->records[i].record;
    wb_route_rows rest = whole->routes[0];
    wb_record expected = *whole;
    if (!shortened) return fixture_difference(&p->f.model, whole, r);
    if (wb_record_row(&p->f.model, r, 0)) return "rows that are lost";
    rest.ids = (const uint8_t *)rest.ids + 4 * wb_route_row_bytes(&p->f.model);
    rest.start += 4;
    rest.rows -= 4;
    expected.routes = &rest;
    return fixture_difference(&p->f.model, &expected, r);
}

/* Salvages p->path; expects the records of the bits of `whole`, in their order, with record 1 without its
 * prefix where 0 is not among them. */
static void expect(const place *p, uint32_t whole, const char *what, uint64_t at) {
    wb_dump *d = NULL;
    losses lost = {0};
    const wb_status status = wb_dump_salvage(p->path, add_loss, &lost, &d);
    if (status != WB_OK) fail_msg("%s %" PRIu64 ": %s", what, at, wb_error_message());
    uint64_t n = 0;
    for (uint32_t i = 0; i < N; i++) {
        if (!(whole >> i & 1)) continue;
        wb_record r;
        if (n == wb_dump_get_info(d).records) fail_msg("%s %" PRIu64 ": record %u is not there", what, at, i);
        wb_dump_entry e;
        OK(wb_dump_get_entry(d, n, &e));
        assert_int_equal(e.prefix_rows, i == 1 && (whole & 1) ? 4 : 0);
        OK(wb_dump_record(d, n++, &r));
        const char *difference = compare(p, i, &r, i == 1 && !(whole & 1));
        if (difference) fail_msg("%s %" PRIu64 ": record %u: another %s", what, at, i, difference);
    }
    if (n != wb_dump_get_info(d).records) fail_msg("%s %" PRIu64 ": more records than expected", what, at);
    assert_int_equal(lost.shortened, (whole & 3) == 2);
    if (whole != (1u << N) - 1) assert_true(lost.stretches > 0);
    wb_dump_close(d);
}

/* Every bit: the record that has it is lost, all others come back. One of the header leaves no model. */
static void test_flip(void **state) {
    place *p = *state;
    for (uint64_t bit = 0; bit < 8 * p->size; bit++) {
        const uint64_t byte = bit / 8;
        uint32_t whole = (1u << N) - 1;
        for (uint32_t i = 0; i < N; i++)
            if (byte >= begin_of(p, i) && byte < begin_of(p, i + 1)) whole &= ~(1u << i);
        p->bytes[byte] ^= (uint8_t)(1u << bit % 8);
        fixture_write_file(p->path, p->bytes, p->size);
        p->bytes[byte] ^= (uint8_t)(1u << bit % 8);
        wb_dump *d = NULL;
        if (byte < p->begins[0]) {
            if (wb_dump_salvage(p->path, NULL, NULL, &d) == WB_OK) fail_msg("bit %" PRIu64 ": a model", bit);
            assert_null(d);
            continue;
        }
        expect(p, whole, "bit", bit);
    }
}

static void test_cut(void **state) {
    place *p = *state;
    for (uint64_t cut = p->begins[0]; cut < p->size; cut++) {
        uint32_t whole = 0;
        fixture_write_file(p->path, p->bytes, (size_t)cut);
        for (uint32_t i = 0; i < N; i++) whole |= (uint32_t)(begin_of(p, i + 1) <= cut) << i;
        wb_dump *d = NULL;
        losses lost = {0};
        OK(wb_dump_salvage(p->path, add_loss, &lost, &d));
        const uint32_t n = (uint32_t)wb_dump_get_info(d).records;
        assert_int_equal(whole, (1u << n) - 1);
        /* All that is left of a record that was cut is one loss, or several, to the end of the file. */
        if (cut > begin_of(p, n) && n < N) assert_int_equal(lost.first, begin_of(p, n));
        if (cut > begin_of(p, n) && n < N) assert_int_equal(lost.end, cut);
        wb_dump_close(d);
    }
}

/* Bytes that were put in before record 2, or taken out of it: its neighbours are found by how records
 * begin. */
static void test_moved(void **state) {
    place *p = *state;
    const uint64_t at = p->begins[2];
    uint8_t *bytes = calloc(p->size + 64, 1);
    assert_non_null(bytes);
    for (uint64_t n = 1; n < 64; n++) {
        memcpy(bytes, p->bytes, at);
        for (uint64_t i = 0; i < n; i++) bytes[at + i] = (uint8_t)(n * 37 + i * 101);
        memcpy(bytes + at + n, p->bytes + at, p->size - at);
        fixture_write_file(p->path, bytes, p->size + n);
        expect(p, 15, "bytes put in:", n);
        memcpy(bytes + at, p->bytes + at + n, p->size - at - n);
        fixture_write_file(p->path, bytes, p->size - n);
        expect(p, 11, "bytes taken out:", n);
    }
    free(bytes);
}

/* A record with the right seals but an id that no expert has is not whole, nor is a rid that comes again. */
static void test_what_verify_finds(void **state) {
    (void)state;
    static const char *const bad[] = {"bad_id_out_of_range", "bad_id_repeated", "bad_rid_twice",
                                      "bad_rows_checksum",   "bad_zstd_frame",  "bad_digest"};
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        char path[512];
        wb_dump *d = NULL;
        losses lost = {0};
        snprintf(path, sizeof path, "%s/dump/%s.wbr", WB_TEST_DATA, bad[i]);
        OK(wb_dump_salvage(path, add_loss, &lost, &d));
        assert_int_equal(wb_dump_get_info(d).records, 1);
        assert_int_equal(lost.stretches, 1);
        assert_string_equal(lost.rid, strcmp(bad[i], "bad_rid_twice") == 0 ? "a" : "b");
        wb_dump_close(d);
    }
}

/* A directory: a part whose header is damaged has the model of the others, one of another model is lost. */
static void test_parts(void **state) {
    place *p = *state;
    char path[128];
    wb_dump *d = NULL;
    losses lost = {0};
    snprintf(path, sizeof path, "%s/part-1.wbr", p->directory);
    fixture_model other;
    wb_dump_writer *w = NULL;
    fixture_model_init(&other, 2, 16, 3);
    OK(wb_dump_create(path, &other.model, NULL, &w));
    OK(wb_dump_finish(w));
    fixture_write_file(p->path, "", 0);
    snprintf(path, sizeof path, "%s/part-2.wbr", p->directory);
    p->bytes[20] ^= 1;
    fixture_write_file(path, p->bytes, p->size);
    OK(wb_dump_salvage(p->directory, add_loss, &lost, &d));
    assert_int_equal(wb_dump_get_info(d).records, 0); /* of another model than part-1's */
    assert_int_equal(lost.empty, 1);
    assert_true(lost.stretches > 0);
    wb_dump_close(d);
    p->bytes[20] ^= 1;
    fixture_write_file(p->path, p->bytes, (size_t)p->begins[0]); /* a whole header alone */
    p->bytes[20] ^= 1;
    OK(wb_dump_salvage(p->directory, NULL, NULL, &d));
    assert_int_equal(wb_dump_get_info(d).records, N);
    wb_status status = WB_OK;
    assert_null(difference(p, d, N, &status));
    OK(status);
    wb_dump_close(d);
    assert_int_equal(wb_dump_salvage("/nothing/here", NULL, NULL, &d), WB_IO);
    assert_int_equal(wb_dump_salvage(NULL, NULL, NULL, &d), WB_INVALID_ARGUMENT);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_DUMP(test_flip),  WITH_DUMP(test_cut),
        WITH_DUMP(test_moved), cmocka_unit_test(test_what_verify_finds),
        WITH_DUMP(test_parts),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
