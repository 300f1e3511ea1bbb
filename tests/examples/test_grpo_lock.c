/* test_grpo_lock.c - one run at a time in a folder of waybill-grpo: the second is told of the first, a lock
 * is free when its process has ended by whatever means, and a file system without locks keeps nobody out. */
/* The file under test, and the declaration in the system's header, call the function below. */
#define flock flock_or_not
#include "../../examples/grpo/out_lock.c"
#include "../../examples/grpo/paths.c"
#undef flock

#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/wait.h>

#include <cmocka.h>

static int failures, reason; /* how many of the next calls fail, and why */
static const char *removed;  /* before the next call: the holder before takes its file away */

extern int flock(int fd, int operation);
int flock_or_not(int fd, int operation) {
    if (removed) unlink(removed);
    removed = NULL;
    if (failures-- <= 0) return flock(fd, operation);
    errno = reason;
    return -1;
}

static char dir[] = "/tmp/test_grpo_lock.XXXXXX", path[PATH_BYTES];

static void test_the_second_is_told_of_the_first(void **state) {
    (void)state;
    out_lock *first = NULL, *second = NULL;
    char expected[64];
    assert_int_equal(out_lock_take(dir, &first), WB_OK);
    assert_int_equal(out_lock_take(dir, &second), WB_INVALID_ARGUMENT);
    assert_null(second);
    snprintf(expected, sizeof expected, "is in use by process %d on ", (int)getpid());
    assert_non_null(strstr(wb_error_message(), expected));
    assert_true(out_lock_is_alone(dir));
    out_lock_release(first);
    assert_int_not_equal(access(path, F_OK), 0);
    assert_int_equal(out_lock_take(dir, &second), WB_OK);
    out_lock_release(second);
}

static void test_a_killed_process_holds_nothing(void **state) {
    (void)state;
    out_lock *lock = NULL;
    int taken[2], how;
    char byte;
    assert_int_equal(pipe(taken), 0);
    pid_t child = fork();
    if (child == 0) {
        if (out_lock_take(dir, &lock) != WB_OK || write(taken[1], "x", 1) != 1) _exit(1);
        for (;;) pause();
    }
    assert_int_equal(read(taken[0], &byte, 1), 1);
    assert_int_equal(out_lock_take(dir, &lock), WB_INVALID_ARGUMENT);
    kill(child, SIGKILL);
    assert_int_equal(waitpid(child, &how, 0), child);
    assert_int_equal(access(path, F_OK), 0);
    assert_int_equal(out_lock_take(dir, &lock), WB_OK);
    out_lock_release(lock);
    close(taken[0]);
    close(taken[1]);
}

/* A lock on a file without a name keeps nobody out. */
static void test_a_file_that_is_gone_is_not_the_lock(void **state) {
    (void)state;
    out_lock *first = NULL, *second = NULL;
    removed = path;
    assert_int_equal(out_lock_take(dir, &first), WB_OK);
    assert_int_equal(out_lock_take(dir, &second), WB_INVALID_ARGUMENT);
    out_lock_release(first);
}

static void test_a_file_system_without_locks(void **state) {
    (void)state;
    static const int reasons[] = {ENOLCK, ENOSYS, EOPNOTSUPP};
    for (size_t i = 0; i < sizeof reasons / sizeof reasons[0]; i++) {
        out_lock *lock = NULL;
        failures = 1;
        reason = reasons[i];
        assert_int_equal(out_lock_take(dir, &lock), WB_OK);
        out_lock_release(lock);
    }
}

int main(void) {
    if (!mkdtemp(dir)) return 1;
    snprintf(path, sizeof path, "%s/" LOCK_FILE, dir);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_the_second_is_told_of_the_first),
        cmocka_unit_test(test_a_killed_process_holds_nothing),
        cmocka_unit_test(test_a_file_that_is_gone_is_not_the_lock),
        cmocka_unit_test(test_a_file_system_without_locks),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    rmdir(dir);
    return failed;
}
