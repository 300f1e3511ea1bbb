/* test_dump_files.c - a dump of many files: how many of them are mapped and open at a time, that records stay
 * where they are while they are held, and what is said when a file is not what it was. */
#include "dump_fixture.h"
#include "dump_state.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <sys/resource.h>
// clang-format off
#include <cmocka.h>
// clang-format on

#define OK(call) assert_string_equal((call) == WB_OK ? "" : wb_error_message(), "")

enum { N_FILES = 2000, MAX_MAPS = 16, MAX_OPEN = 32 };

typedef struct place {
    char directory[64];
    fixture_model f;
    fixture_record *records; /* [N_FILES], one a file */
} place;

static void file_path(const place *p, uint32_t i, char path[96]) {
    snprintf(path, 96, "%s/part-%06u.wbr", p->directory, i);
}

/* Some files hold rows that have to be decoded. */
static void write_file(place *p, uint32_t i) {
    char path[96];
    file_path(p, i, path);
    wb_dump_options options = wb_dump_options_default();
    options.codec = i % 3 == 0 ? WB_CODEC_ZSTD : WB_CODEC_RAW;
    wb_dump_writer *w = NULL;
    OK(wb_dump_create(path, &p->f.model, &options, &w));
    OK(wb_dump_append(w, &p->records[i].record));
    OK(wb_dump_finish(w));
}

static int setup(void **state) {
    place *p = calloc(1, sizeof *p);
    p->records = calloc(N_FILES, sizeof *p->records);
    fixture_directory(p->directory);
    fixture_model_init(&p->f, 2, 16, 4);
    fixture_rng rng = {5};
    for (uint32_t i = 0; i < N_FILES; i++) {
        char rid[16];
        snprintf(rid, sizeof rid, "r%u", i);
        fixture_record_init(&p->records[i], &p->f.model, &rng, rid, 3, 9, 0, 1, i % 2);
        write_file(p, i);
    }
    *state = p;
    return 0;
}

static int teardown(void **state) {
    place *p = *state;
    fixture_remove(p->directory);
    for (uint32_t i = 0; i < N_FILES; i++) fixture_record_free(&p->records[i]);
    free(p->records);
    free(p);
    return 0;
}

/* What the system says is mapped of the directory. */
static int count_maps(const place *p) {
    char line[4096];
    int n = 0;
    FILE *maps = fopen("/proc/self/maps", "r");
    if (!maps) skip();
    while (fgets(line, sizeof line, maps)) n += strstr(line, p->directory) ? 1 : 0;
    fclose(maps);
    return n;
}

static void expect(const place *p, uint64_t i, const wb_record *found) {
    assert_null(fixture_difference(&p->f.model, &p->records[i].record, found));
}

/* More records are held than files may be mapped, all of them at the same time; then they are given back and
 * read once more, in another order. */
static void test_maps_are_bounded(void **state) {
    place *p = *state;
    wb_dump *d = NULL;
    wb_record *held = calloc(N_FILES, sizeof *held), r;
    OK(wb_dump_open_mapping(p->directory, MAX_MAPS, &d));
    assert_int_equal(wb_dump_get_info(d).records, N_FILES);
    assert_in_range(count_maps(p), 1, MAX_MAPS);
    for (uint32_t i = 0; i < N_FILES; i++) {
        OK(wb_dump_record(d, i, &held[i]));
        if (i % 100 == 0) assert_in_range(count_maps(p), 1, MAX_MAPS);
    }
    for (uint32_t i = 0; i < N_FILES; i++) expect(p, i, &held[i]);
    for (uint32_t i = 0; i < N_FILES; i++) wb_dump_release(d, i);
    for (uint32_t i = 0; i < N_FILES; i++) {
        uint64_t n = (uint64_t)i * 7 % N_FILES;
        wb_dump_entry e;
        OK(wb_dump_get_entry(d, n, &e));
        assert_ptr_equal(strstr(e.path, p->directory), e.path);
        OK(wb_dump_record(d, n, &r));
        expect(p, n, &r);
        wb_dump_release(d, n);
    }
    assert_in_range(count_maps(p), 1, MAX_MAPS);
    assert_int_equal(d->n_mapped_used, 0);
    free(held);
    wb_dump_close(d);
    assert_int_equal(count_maps(p), 0);
}

/* A descriptor is open while a file is brought in and no longer. */
static void test_few_descriptors(void **state) {
    place *p = *state;
    struct rlimit old, low;
    wb_dump *d = NULL;
    wb_dump_info info;
    wb_record r;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &old), 0);
    low = old;
    low.rlim_cur = MAX_OPEN;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &low), 0);
    OK(wb_dump_open(p->directory, &d));
    for (uint32_t i = 0; i < N_FILES; i++) OK(wb_dump_record(d, i, &r));
    wb_dump_close(d);
    OK(wb_dump_verify(p->directory, NULL, NULL, &info));
    setrlimit(RLIMIT_NOFILE, &old);
    assert_int_equal(info.files, N_FILES);
}

/* Names are looked up in the directory that was opened, wherever the process has gone meanwhile. */
static void test_another_working_directory(void **state) {
    place *p = *state;
    char before[512];
    wb_dump *d = NULL;
    wb_record r;
    assert_non_null(getcwd(before, sizeof before));
    assert_int_equal(chdir(p->directory), 0);
    OK(wb_dump_open_mapping(".", 1, &d));
    assert_int_equal(chdir("/"), 0);
    for (uint32_t i = 0; i < 10; i++) {
        OK(wb_dump_record(d, i, &r));
        expect(p, i, &r);
    }
    wb_dump_close(d);
    assert_int_equal(chdir(before), 0);
}

/* A file that is no longer there, is another, or is shorter: an error that names it, and others are read. */
static void test_files_that_changed(void **state) {
    place *p = *state;
    wb_dump *d = NULL;
    wb_record r;
    char path[96], other[96];
    OK(wb_dump_open_mapping(p->directory, 1, &d));
    file_path(p, 0, path);
    unlink(path);
    assert_int_equal(wb_dump_record(d, 0, &r), WB_IO);
    assert_non_null(strstr(wb_error_message(), path));
    file_path(p, 1, other);
    assert_int_equal(link(other, path), 0);
    assert_int_equal(wb_dump_record(d, 0, &r), WB_IO);
    assert_non_null(strstr(wb_error_message(), "another file"));
    file_path(p, 2, other);
    assert_int_equal(truncate(other, 100), 0);
    assert_int_equal(wb_dump_record(d, 2, &r), WB_IO);
    assert_non_null(strstr(wb_error_message(), "has shrunk"));
    assert_int_equal(d->n_mapped_used, 0);
    OK(wb_dump_record(d, 3, &r));
    expect(p, 3, &r);
    wb_dump_close(d);
}

/* MiB of files that are mapped and in memory. */
static long mapped_mib(void) {
    long size = 0, resident = 0, shared = 0;
    FILE *statm = fopen("/proc/self/statm", "r");
    if (!statm) skip();
    assert_int_equal(fscanf(statm, "%ld %ld %ld", &size, &resident, &shared), 3);
    fclose(statm);
    return shared * sysconf(_SC_PAGESIZE) >> 20;
}

/* Writes records of 48 KiB, `n` of them, with an index or without. */
static void write_large(const char *path, uint32_t n, bool index) {
    fixture_model f;
    fixture_record record;
    fixture_rng rng = {11};
    fixture_model_init(&f, 8, 64, 4);
    fixture_record_init(&record, &f.model, &rng, "r", 4, 1200, 0, 1, true);
    wb_dump_options options = wb_dump_options_default();
    wb_dump_writer *w = NULL;
    OK(wb_dump_create(path, &f.model, &options, &w));
    for (uint32_t i = 0; i < n; i++) {
        snprintf(record.rid, sizeof record.rid, "r%u", i);
        OK(wb_dump_append(w, &record.record));
    }
    if (index)
        OK(wb_dump_finish(w));
    else
        wb_dump_abandon(w);
    fixture_record_free(&record);
}

/* A file of 48 MiB is read, in order and not, in a few MiB of it, whose records are each less than is worth a
 * call of the system; a file without an index is walked in as few. */
static void test_small_records_leave(void **state) {
    const place *p = *state;
    enum { N = 1000, AT_MOST_MIB = 6, STEP = 7 };
    char path[96];
    snprintf(path, sizeof path, "%s/large", p->directory);
    for (int index = 0; index < 2; index++) {
        wb_dump *d = NULL;
        wb_record r;
        write_large(path, N, index);
        long before = mapped_mib();
        OK(wb_dump_open(path, &d));
        assert_true(wb_dump_get_info(d).bytes > 40u << 20);
        assert_in_range(mapped_mib(), 0, before + AT_MOST_MIB);
        for (uint32_t i = 0; i < 2 * N; i++) {
            uint32_t which = i < N ? i : i * STEP % N;
            OK(wb_dump_record(d, which, &r));
            OK(wb_record_check(wb_dump_model(d), &r, true));
            wb_dump_release(d, which);
            assert_in_range(mapped_mib(), 0, before + AT_MOST_MIB);
        }
        wb_dump_close(d);
        unlink(path);
    }
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_maps_are_bounded),          cmocka_unit_test(test_few_descriptors),
        cmocka_unit_test(test_another_working_directory), cmocka_unit_test(test_small_records_leave),
        cmocka_unit_test(test_files_that_changed),
    };
    return cmocka_run_group_tests(tests, setup, teardown);
}
