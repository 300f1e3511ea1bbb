/* test_file.c - files that appear only when they are whole: over files, links, devices and pipes; what is
 * refused. */
#include "support/temp_files.h"
#include "wb_file.h"

#include <fcntl.h>
#include <pthread.h>

static void expect_content(const char *path, const char *text) {
    size_t bytes = 0;
    char *found = NULL;
    assert_int_equal(wb_file_read(path, 1000, &found, &bytes), WB_OK);
    assert_string_equal(found, text);
    assert_int_equal(bytes, strlen(text));
    free(found);
}

static bool is_link(const char *path) {
    struct stat info;
    assert_int_equal(lstat(path, &info), 0);
    return S_ISLNK(info.st_mode);
}

static wb_status replace(const char *path, const char *text) {
    return wb_file_replace(path, text, strlen(text));
}

static void test_new_over_old(void **state) {
    (void)state;
    temp_path dir = temp_dir(), path = temp_in(dir.text, "file");
    assert_int_equal(replace(path.text, "one"), WB_OK);
    expect_content(path.text, "one");
    wb_new_file file;
    assert_int_equal(wb_new_file_open(path.text, &file), WB_OK);
    assert_int_equal(wb_new_file_write(&file, "tw", 2), WB_OK);
    expect_content(path.text, "one"); /* until the commit */
    wb_new_file_discard(&file);
    wb_new_file_discard(&file);
    expect_content(path.text, "one");
    assert_int_equal(rmdir(dir.text), -1);
    assert_int_equal(unlink(path.text), 0);
    assert_int_equal(rmdir(dir.text), 0); /* no temporary is left */
}

static void test_links_are_followed(void **state) {
    (void)state;
    temp_path dir = temp_dir(), real = temp_in(dir.text, "real"), link = temp_in(dir.text, "link");
    temp_path second = temp_in(dir.text, "second"), loop = temp_in(dir.text, "loop");
    assert_int_equal(symlink("real", link.text), 0);
    assert_int_equal(symlink(link.text, second.text), 0);
    assert_int_equal(replace(second.text, "first"), WB_OK); /* to a file that is not there yet */
    expect_content(real.text, "first");
    assert_int_equal(replace(second.text, "again"), WB_OK);
    expect_content(real.text, "again");
    assert_true(is_link(link.text) && is_link(second.text) && !is_link(real.text));
    assert_int_equal(symlink("loop", loop.text), 0);
    assert_int_equal(replace(loop.text, "x"), WB_IO);
    temp_remove(dir);
}

static void test_devices_stay_devices(void **state) {
    (void)state;
    struct stat info;
    assert_int_equal(replace("/dev/null", "x"), WB_OK);
    assert_int_equal(replace("/dev/full", "x"), WB_IO);
    assert_non_null(strstr(wb_error_message(), "/dev/full"));
    assert_int_equal(stat("/dev/full", &info), 0);
    assert_true(S_ISCHR(info.st_mode));
}

static void *read_pipe(void *path) {
    static char text[16];
    int fd = open(path, O_RDONLY);
    ssize_t n = read(fd, text, sizeof text - 1);
    text[n > 0 ? n : 0] = '\0';
    close(fd);
    return text;
}

static void test_pipes_are_written_directly(void **state) {
    (void)state;
    temp_path dir = temp_dir(), pipe_path = temp_in(dir.text, "pipe");
    pthread_t reader;
    void *found = NULL;
    assert_int_equal(mkfifo(pipe_path.text, 0600), 0);
    assert_int_equal(pthread_create(&reader, NULL, read_pipe, pipe_path.text), 0);
    assert_int_equal(replace(pipe_path.text, "through"), WB_OK);
    assert_int_equal(pthread_join(reader, &found), 0);
    assert_string_equal(found, "through");
    temp_remove(dir);
}

/* A descriptor goes on where its owner is, whatever it is open on: a log that is appended to keeps its
 * lines. */
static void test_descriptors_are_written_where_they_are(void **state) {
    (void)state;
    temp_path dir = temp_dir(), log = temp_in(dir.text, "log"), link = temp_in(dir.text, "link");
    int fd = open(log.text, O_WRONLY | O_CREAT | O_APPEND, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, "before ", 7), 7);
    static const char *const folders[] = {"/dev/fd", "/proc/self/fd"};
    for (size_t i = 0; i < 2; i++) {
        char name[64];
        snprintf(name, sizeof name, "%s/%d", folders[i], fd);
        assert_int_equal(replace(name, "through "), WB_OK);
    }
    char name[64];
    snprintf(name, sizeof name, "/proc/self/fd/%d", fd);
    assert_int_equal(symlink(name, link.text), 0);
    assert_int_equal(replace(link.text, "linked "), WB_OK);
    assert_int_equal(write(fd, "after", 5), 5);
    expect_content(log.text, "before through through linked after");
    assert_int_equal(unlink(log.text), 0);
    assert_int_equal(replace(name, "gone"), WB_OK); /* a file without a name gets none */
    assert_int_equal(close(fd), 0);
    assert_int_equal(replace(name, "x"), WB_IO);
    assert_int_equal(unlink(link.text), 0);
    assert_int_equal(rmdir(dir.text), 0);
}

static void test_permissions_stay(void **state) {
    (void)state;
    temp_path dir = temp_dir(), path = temp_in(dir.text, "file");
    struct stat info;
    assert_int_equal(replace(path.text, "one"), WB_OK);
    assert_int_equal(chmod(path.text, 0600), 0);
    assert_int_equal(replace(path.text, "two"), WB_OK);
    assert_int_equal(stat(path.text, &info), 0);
    assert_int_equal(info.st_mode & 07777, 0600);
    temp_remove(dir);
}

static void test_refusals(void **state) {
    (void)state;
    temp_path dir = temp_dir(), missing = temp_in(dir.text, "no/such/file");
    assert_int_equal(replace(dir.text, "x"), WB_IO);
    assert_non_null(strstr(wb_error_message(), "a directory"));
    assert_int_equal(replace(missing.text, "x"), WB_IO);
    assert_non_null(
        strstr(wb_error_message(), "no/such/file: cannot be written")); /* the name that was asked for */
    char *text = NULL;
    size_t bytes = 0;
    assert_int_equal(wb_file_read(missing.text, 10, &text, &bytes), WB_NOT_FOUND);
    temp_path large = temp_in(dir.text, "large");
    assert_int_equal(replace(large.text, "12345678901"), WB_OK);
    assert_int_equal(wb_file_read(large.text, 10, &text, &bytes), WB_CORRUPT);
    assert_null(text);
    assert_int_equal(wb_dir_create(large.text), WB_IO);
    temp_path deep = temp_in(dir.text, "a/b/c");
    assert_int_equal(wb_dir_create(deep.text), WB_OK);
    assert_int_equal(wb_dir_create(deep.text), WB_OK);
    temp_remove(dir);
}

/* A directory has come where the file was to be: the temporary goes, and what is there stays. */
static void test_a_failed_rename_leaves_nothing(void **state) {
    (void)state;
    temp_path dir = temp_dir(), path = temp_in(dir.text, "file"), inside = temp_in(dir.text, "file/inside");
    wb_new_file file;
    assert_int_equal(wb_new_file_open(path.text, &file), WB_OK);
    assert_int_equal(wb_new_file_write(&file, "x", 1), WB_OK);
    assert_int_equal(wb_new_file_sync(&file), WB_OK);
    assert_int_equal(wb_dir_create(inside.text), WB_OK);
    assert_int_equal(wb_new_file_commit(&file), WB_IO);
    assert_non_null(strstr(wb_error_message(), "cannot be renamed"));
    wb_new_file_discard(&file); /* a no-op after commit */
    assert_int_equal(rmdir(inside.text), 0);
    assert_int_equal(rmdir(path.text), 0);
    assert_int_equal(rmdir(dir.text), 0); /* no temporary is left */
}

static void test_names_of_temporaries(void **state) {
    (void)state;
    static const struct {
        const char *name;
        size_t stem;
    } names[] = {{"model.safetensors.123.tmp", 17},
                 {"a.1.tmp", 1},
                 {"a.tmp", 0},
                 {".1.tmp", 0},
                 {"a.x1.tmp", 0},
                 {"tmp", 0},
                 {"a1.tmp", 0}};
    for (size_t i = 0; i < sizeof names / sizeof names[0]; i++)
        assert_int_equal(wb_new_file_stem(names[i].name), names[i].stem);
}

int main(void) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_new_over_old),
        cmocka_unit_test(test_links_are_followed),
        cmocka_unit_test(test_devices_stay_devices),
        cmocka_unit_test(test_pipes_are_written_directly),
        cmocka_unit_test(test_descriptors_are_written_where_they_are),
        cmocka_unit_test(test_permissions_stay),
        cmocka_unit_test(test_refusals),
        cmocka_unit_test(test_a_failed_rename_leaves_nothing),
        cmocka_unit_test(test_names_of_temporaries),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
