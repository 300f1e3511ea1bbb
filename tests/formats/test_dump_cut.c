/* test_dump_cut.c - what of a dump survives: a file cut at every byte, every bit flipped, parts that a dead
 * rank left. */
#include "dump_layout.h"
#include "dump_place.h"

#include <inttypes.h>

static void test_cut_everywhere(void **state) {
    place *p = *state;
    for (size_t cut = 0; cut < p->size; cut++) {
        fixture_write_file(p->path, p->bytes, cut);
        uint32_t whole = 0;
        uint64_t end = p->begins[0];
        size_t index = p->size; /* where it begins: what the trailer says */
        memcpy(&index, p->bytes + p->size - WB_TRAILER_BYTES + WB_TRAILER_OFFSET_AT, 8);
        for (; whole < N; whole++) {
            uint64_t next = whole + 1 < N ? p->begins[whole + 1] : index;
            if (next > cut) break;
            end = next;
        }
        wb_dump *d = NULL;
        wb_status status = wb_dump_open(p->path, &d);
        if (cut < p->begins[0]) {
            assert_int_equal(status, WB_CORRUPT);
            assert_non_null(strstr(wb_error_message(), "header"));
            assert_null(d);
            continue;
        }
        OK(status);
        wb_dump_info info = wb_dump_get_info(d);
        assert_int_equal(info.records, whole);
        assert_int_equal(info.files_without_index, 1);
        assert_int_equal(info.lost_bytes, cut - end);
        char where[64];
        snprintf(where, sizeof where, "part-0.wbr: byte %" PRIu64 ": ", end);
        assert_string_equal(cut == end ? "" : info.lost_where[0] ? "lost" : "", cut == end ? "" : "lost");
        if (cut != end) assert_non_null(strstr(info.lost_where, where));
        assert_null(difference(p, d, whole, &status));
        OK(status);
        wb_dump_close(d);
        OK(wb_dump_verify(p->path, NULL, NULL, &info));
        assert_int_equal(info.lost_bytes, cut - end);
    }
}

/* Every bit of the finished file: found, or of no consequence. */
static void test_flip_finished(void **state) {
    place *p = *state;
    for (size_t bit = 0; bit < 8 * p->size; bit++) {
        p->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        fixture_write_file(p->path, p->bytes, p->size);
        p->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        wb_dump_info info;
        wb_status status = wb_dump_verify(p->path, NULL, NULL, &info);
        if (status == WB_OK) fail_msg("bit %zu of byte %zu flipped: not noticed", bit % 8, bit / 8);
        wb_dump *d = NULL;
        if (wb_dump_open(p->path, &d) != WB_OK) continue;
        const char *what = difference(p, d, N, &status);
        if (what) fail_msg("bit %zu of byte %zu flipped: another %s", bit % 8, bit / 8, what);
        assert_int_not_equal(status, WB_OK);
        wb_dump_close(d);
    }
}

/* Without an index a length that grew looks like a cut: then records are missing, and the dump says so. */
static void test_flip_unfinished(void **state) {
    place *p = *state;
    size_t size = 0;
    memcpy(&size, p->bytes + p->size - WB_TRAILER_BYTES + WB_TRAILER_OFFSET_AT, 8);
    for (size_t bit = 0; bit < 8 * size; bit++) {
        p->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        fixture_write_file(p->path, p->bytes, size);
        p->bytes[bit / 8] ^= (uint8_t)(1u << bit % 8);
        wb_dump *d = NULL;
        if (wb_dump_open(p->path, &d) != WB_OK) continue;
        wb_dump_info info = wb_dump_get_info(d);
        wb_status status;
        const char *what = difference(p, d, info.records, &status);
        if (what) fail_msg("bit %zu of byte %zu flipped: another %s", bit % 8, bit / 8, what);
        if (status == WB_OK && (info.lost_bytes == 0 || info.records == N))
            fail_msg("bit %zu of byte %zu flipped: not noticed", bit % 8, bit / 8);
        wb_dump_close(d);
    }
}

/* A cut file in a directory does not take the others with it, even when cut in its header. */
static void test_cut_part(void **state) {
    place *p = *state;
    char second[96];
    snprintf(second, sizeof second, "%s/part-1.wbr", p->directory);
    for (size_t cut = 0; cut <= 40; cut += 20) {
        fixture_write_file(second, p->bytes, cut);
        wb_dump *d = NULL;
        OK(wb_dump_open(p->directory, &d));
        wb_dump_info info = wb_dump_get_info(d);
        assert_int_equal(info.files, 2);
        assert_int_equal(info.records, N);
        assert_int_equal(info.lost_bytes, cut);
        assert_int_equal(info.files_cut, 1);
        assert_ptr_equal(strstr(info.lost_where, second), info.lost_where);
        assert_non_null(strstr(info.lost_where, "part-1.wbr: byte 0: "));
        wb_dump_close(d);
    }
}

/* One rule for a file that was cut inside its header, at byte 0 too: it holds nothing. A directory in which
 * another file says the model is a dump, whichever comes first; where none does there is no dump. */
static void test_rule_29_cut_before_its_header(void **state) {
    place *p = *state;
    for (size_t cut = 0; cut <= 40; cut += 20) {
        char names[2][96];
        for (int i = 0; i < 2; i++) {
            snprintf(names[i], sizeof names[i], "%s/part-%d.wbr", p->directory, 1 - i);
            fixture_write_file(names[i], p->bytes, i == 0 ? p->size : cut);
        }
        wb_dump *d = NULL;
        OK(wb_dump_open(p->directory, &d));
        assert_int_equal(wb_dump_get_info(d).records, N);
        assert_int_equal(wb_dump_get_info(d).files_cut, 1);
        wb_dump_close(d);
        d = NULL;
        assert_int_equal(wb_dump_open(names[1], &d), WB_CORRUPT);
        assert_non_null(strstr(wb_error_message(), "no file with a whole header"));
        fixture_write_file(names[0], p->bytes, cut);
        assert_int_equal(wb_dump_open(p->directory, &d), WB_CORRUPT);
        assert_non_null(strstr(wb_error_message(), names[1]));
        assert_null(d);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_DUMP(test_cut_everywhere),
        WITH_DUMP(test_flip_finished),
        WITH_DUMP(test_flip_unfinished),
        WITH_DUMP(test_cut_part),
        WITH_DUMP(test_rule_29_cut_before_its_header),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
