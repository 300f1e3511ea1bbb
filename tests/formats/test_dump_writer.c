/* test_dump_writer.c - writers that are refused, that other versions open, or that run out of disk. */
#include "dump_place.h"

#include <errno.h>
#include <signal.h>
#include <sys/resource.h>
#include <sys/syscall.h>

static void test_create_refuses(void **state) {
    place *p = *state;
    wb_dump_writer *w = (wb_dump_writer *)p;
    const wb_route_model *m = &p->f.model;
    assert_int_equal(wb_dump_create(p->path, m, NULL, &w), WB_IO); /* it exists */
    assert_non_null(strstr(wb_error_message(), p->path));
    char path[96];
    snprintf(path, sizeof path, "%s/no_such_folder/x.wbr", p->directory);
    assert_int_equal(wb_dump_create(path, m, NULL, &w), WB_IO);
    assert_int_equal(wb_dump_create(NULL, m, NULL, &w), WB_INVALID_ARGUMENT);
    snprintf(path, sizeof path, "%s/new.wbr", p->directory);
    wb_route_model bad = *m;
    bad.num_experts = 65537;
    assert_int_equal(wb_dump_create(path, &bad, NULL, &w), WB_INVALID_ARGUMENT);
    bad = *m;
    bad.top_k = bad.num_experts + 1;
    assert_int_equal(wb_dump_create(path, &bad, NULL, &w), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "top_k"));
    bad = *m;
    bad.fingerprint[3] = 'X';
    assert_int_equal(wb_dump_create(path, &bad, NULL, &w), WB_INVALID_ARGUMENT);
    wb_dump_options o = wb_dump_options_default();
    o.codec = (wb_codec)9;
    assert_int_equal(wb_dump_create(path, m, &o, &w), WB_INVALID_ARGUMENT);
    o = wb_dump_options_default();
    o.chunk_bytes = ((size_t)1 << 30) + 1;
    assert_int_equal(wb_dump_create(path, m, &o, &w), WB_INVALID_ARGUMENT);
    o = wb_dump_options_default();
    o.zstd_level = 20;
    for (o.codec = WB_CODEC_ZSTD; o.codec <= WB_CODEC_PACKED; o.codec++)
        assert_int_equal(wb_dump_create(path, m, &o, &w), WB_INVALID_ARGUMENT);
    o = wb_dump_options_default();
    o.reserved[6] = 2;
    assert_int_equal(wb_dump_create(path, m, &o, &w), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "dump options: reserved[6]: expected 0, found 2"));
    assert_ptr_equal(w, p); /* written only on success */
    assert_int_equal(access(path, F_OK), -1);
}

/* Options of callers that were compiled with another version: an earlier one's struct ends before fields that
 * then have their default, a later one's may have more fields as long as they are zero. */
static void test_options_of_other_versions(void **state) {
    place *p = *state;
    const wb_route_model *m = &p->f.model;
    struct {
        wb_dump_options known;
        uint64_t later;
    } options = {.known = {.size = 0}};
    char path[96];
    snprintf(path, sizeof path, "%s/new.wbr", p->directory);
    wb_dump_writer *w = NULL;
    assert_int_equal(wb_dump_create(path, m, &options.known, &w), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "dump options"));

    wb_dump_options_init(&options.known, sizeof options);
    assert_int_equal(options.known.size, sizeof options);
    OK(wb_dump_create(path, m, &options.known, &w));
    OK(wb_dump_finish(w));
    unlink(path);
    options.later = 1;
    assert_int_equal(wb_dump_create(path, m, &options.known, &w), WB_INVALID_ARGUMENT);

    size_t earlier = offsetof(wb_dump_options, chunk_bytes);
    wb_dump_options_init(&options.known, earlier);
    options.known.chunk_bytes = 0;                    /* not valid, but not the earlier version's */
    options.known.producer = (const char *)(void *)p; /* nor is this */
    OK(wb_dump_create(path, m, &options.known, &w));
    OK(wb_dump_append(w, &p->records[0].record));
    OK(wb_dump_finish(w));
}

static void test_append_refuses(void **state) {
    place *p = *state;
    char path[96];
    snprintf(path, sizeof path, "%s/new.wbr", p->directory);
    wb_dump_writer *w = NULL;
    OK(wb_dump_create(path, &p->f.model, NULL, &w));
    OK(wb_dump_append(w, &p->records[0].record));
    size_t before = 0, after = 0;
    free(fixture_read_file(path, &before));
    assert_int_equal(wb_dump_append(w, &p->records[0].record), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "r0"));
    uint8_t *ids = p->records[1].ids;
    size_t last = 7 * 8 + 7; /* of the last row that position 7 has */
    uint8_t good = ids[last];
    ids[last] = 16;
    assert_int_equal(wb_dump_append(w, &p->records[1].record), WB_INVALID_ARGUMENT);
    assert_non_null(
        strstr(wb_error_message(), "record r1: position 7, MoE layer 1 (model layer 2): expert 16"));
    ids[last] = ids[last - 1];
    assert_int_equal(wb_dump_append(w, &p->records[1].record), WB_INVALID_ARGUMENT);
    assert_non_null(strstr(wb_error_message(), "chosen twice"));
    ids[last] = good;
    wb_route_rows late = {1, 8, ids, NULL}; /* the last token has no row */
    wb_record r = p->records[1].record;
    r.routes = &late;
    assert_int_equal(wb_dump_append(w, &r), WB_INVALID_ARGUMENT);
    r = p->records[1].record;
    r.prompt_len = r.n_tokens + 1;
    assert_int_equal(wb_dump_append(w, &r), WB_INVALID_ARGUMENT);
    r = p->records[1].record;
    r.rid = "";
    assert_int_equal(wb_dump_append(w, &r), WB_INVALID_ARGUMENT);
    free(fixture_read_file(path, &after));
    assert_int_equal(before, after);
    OK(wb_dump_append(w, &p->records[1].record));
    OK(wb_dump_finish(w));
    OK(wb_dump_finish(NULL));
}

/* A disk that fills up: every append that fails leaves whole records only, and the writer lives on; once
 * there is room, a record that failed can be appended. */
static void test_disk_full(void **state) {
    place *p = *state;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    char path[96];
    snprintf(path, sizeof path, "%s/full.wbr", p->directory);
    for (size_t limit = 1; limit < p->size; limit += 3) {
        wb_dump_writer *w = NULL;
        low = old;
        low.rlim_cur = limit;
        setrlimit(RLIMIT_FSIZE, &low);
        wb_status status = wb_dump_create(path, &p->f.model, NULL, &w);
        uint32_t written = 0, failed = 0;
        uint32_t order[N], again[N];
        for (uint32_t i = 0; i < N && status == WB_OK; i++) {
            wb_status appended = wb_dump_append(w, &p->records[i].record);
            if (appended == WB_OK) {
                order[written++] = i;
                continue;
            }
            assert_int_equal(appended, WB_IO);
            assert_non_null(strstr(wb_error_message(), strerror(EFBIG)));
            again[failed++] = i;
        }
        if (limit % 2) setrlimit(RLIMIT_FSIZE, &old);
        for (uint32_t i = 0; limit % 2 && i < failed; i++) {
            OK(wb_dump_append(w, &p->records[again[i]].record));
            order[written++] = again[i];
        }
        if (status != WB_OK) assert_int_equal(access(path, F_OK), -1);
        /* The index may find room or not: the records are there either way. */
        if (status == WB_OK) (void)wb_dump_finish(w);
        setrlimit(RLIMIT_FSIZE, &old);
        if (status != WB_OK) continue;
        wb_dump *d = NULL;
        OK(wb_dump_open(path, &d));
        assert_int_equal(wb_dump_get_info(d).records, written);
        assert_int_equal(wb_dump_get_info(d).lost_bytes, 0);
        for (uint32_t i = 0; i < written; i++) {
            wb_record r;
            OK(wb_dump_record(d, i, &r));
            assert_null(fixture_difference(&p->f.model, &p->records[order[i]].record, &r));
        }
        wb_dump_close(d);
        unlink(path);
    }
}

/* The C library's, which a test makes fail. */
static bool cutting_fails;
int ftruncate(int fd, off_t size) {
    if (cutting_fails) {
        errno = EIO;
        return -1;
    }
    return (int)syscall(SYS_ftruncate, fd, size);
}

/* A record that is written in part and cannot be cut off: the writer says so and writes nothing behind it, or
 * what follows could not be read. The records before it are there. */
static void test_cannot_be_cut_back(void **state) {
    place *p = *state;
    signal(SIGXFSZ, SIG_IGN);
    struct rlimit old, low;
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &old), 0);
    char path[96];
    snprintf(path, sizeof path, "%s/part.wbr", p->directory);
    wb_dump_writer *w = NULL;
    size_t before = 0, after = 0;
    OK(wb_dump_create(path, &p->f.model, NULL, &w));
    OK(wb_dump_append(w, &p->records[0].record));
    free(fixture_read_file(path, &before));
    low = old;
    low.rlim_cur = before + 20;
    setrlimit(RLIMIT_FSIZE, &low);
    cutting_fails = true;
    wb_status status = wb_dump_append(w, &p->records[1].record);
    cutting_fails = false;
    setrlimit(RLIMIT_FSIZE, &old);
    assert_int_equal(status, WB_IO);
    assert_non_null(strstr(wb_error_message(), "cannot be cut back"));
    for (uint32_t i = 1; i < 3; i++) {
        assert_int_equal(wb_dump_append(w, &p->records[i].record), WB_IO);
        assert_non_null(strstr(wb_error_message(), "holds part of an object"));
    }
    assert_int_equal(wb_dump_finish(w), WB_IO);
    free(fixture_read_file(path, &after));
    assert_int_equal(after, before + 20);
    wb_dump *d = NULL;
    wb_record r;
    OK(wb_dump_open(path, &d));
    assert_int_equal(wb_dump_get_info(d).records, 1);
    assert_int_equal(wb_dump_get_info(d).lost_bytes, 20);
    OK(wb_dump_record(d, 0, &r));
    assert_null(fixture_difference(&p->f.model, &p->records[0].record, &r));
    wb_dump_close(d);
    unlink(path);
}

/* What was appended stays and is whole, and the file says that nobody finished it. */
static void test_abandoned(void **state) {
    place *p = *state;
    char path[96];
    snprintf(path, sizeof path, "%s/abandoned.wbr", p->directory);
    for (uint32_t n = 0; n < 3; n++) {
        wb_dump_writer *w = NULL;
        OK(wb_dump_create(path, &p->f.model, NULL, &w));
        for (uint32_t i = 0; i < n; i++) OK(wb_dump_append(w, &p->records[i].record));
        wb_dump_abandon(w);
        wb_dump_info info = {0};
        OK(wb_dump_verify(path, NULL, NULL, &info));
        assert_int_equal(info.records, n);
        assert_int_equal(info.files_without_index, 1);
        assert_int_equal(info.files_cut, 0);
        unlink(path);
    }
    wb_dump_abandon(NULL);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        WITH_DUMP(test_create_refuses),     WITH_DUMP(test_options_of_other_versions),
        WITH_DUMP(test_append_refuses),     WITH_DUMP(test_disk_full),
        WITH_DUMP(test_cannot_be_cut_back), WITH_DUMP(test_abandoned),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
