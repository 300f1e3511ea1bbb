/* out_lock.c - one run at a time in a folder: DIR/waybill-grpo.lock, which one process holds for as long as
 * it runs and which names it. The kernel frees the lock of a process that was killed; the file that it leaves
 * is taken over by the next run. Refuses: waiting for the other. */
#include "grpo.h"
#include "wb_memory.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

struct out_lock {
    int fd;
    char path[PATH_BYTES];
};

/* "process 12 on host", as the holder of the file `fd` wrote it, or what is said of one that has not yet. */
static void read_holder(int fd, char *text, size_t bytes) {
    ssize_t n = pread(fd, text, bytes - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    text[strcspn(text, "\n")] = '\0';
    if (text[0] == '\0') snprintf(text, bytes, "another process");
}

static void write_holder(int fd) {
    char host[256] = "", text[320];
    gethostname(host, sizeof host - 1);
    int n = snprintf(text, sizeof text, "process %d on %s\n", (int)getpid(), host);
    /* It is for people: a disk that is full takes nothing from the lock. */
    if (ftruncate(fd, 0) != 0 || pwrite(fd, text, (size_t)n, 0) != n) return;
}

/* The lock of the open file, without waiting. A file system that has none cannot tell runs apart: that is
 * said, and no run is kept from it. */
static wb_status lock_file(const char *dir, const out_lock *lock) {
    char holder[320];
    if (flock(lock->fd, LOCK_EX | LOCK_NB) == 0) return WB_OK;
    if (errno == EWOULDBLOCK) {
        read_holder(lock->fd, holder, sizeof holder);
        return wb_fail(WB_INVALID_ARGUMENT,
                       "%s is in use by %s (%s): expected a folder of its own, or its end", dir, holder,
                       lock->path);
    }
    fprintf(stderr, "%s: cannot be locked (%s): nothing keeps another run out of %s\n", lock->path,
            strerror(errno), dir);
    return WB_OK;
}

/* Whether the open file is still the one of that name: the holder before may have removed it since. */
static bool is_there(const out_lock *lock) {
    struct stat held, named;
    return fstat(lock->fd, &held) == 0 && stat(lock->path, &named) == 0 && held.st_dev == named.st_dev &&
           held.st_ino == named.st_ino;
}

/* Opens and locks the file of that name, and does so again where it was removed between the two. */
static wb_status take(const char *dir, out_lock *lock) {
    for (;;) {
        lock->fd = open(lock->path, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
        if (lock->fd < 0) return wb_fail(WB_IO, "%s: cannot be opened: %m", lock->path);
        wb_status status = lock_file(dir, lock);
        if (status == WB_OK && is_there(lock)) return WB_OK;
        close(lock->fd);
        if (status != WB_OK) return status;
    }
}

wb_status out_lock_take(const char *dir, out_lock **lock_out) {
    out_lock *lock;
    WB_TRY(WB_NEW(lock, 1, "lock"));
    wb_status status = path_join(lock->path, dir, LOCK_FILE);
    if (status == WB_OK) status = take(dir, lock);
    if (status != WB_OK) {
        free(lock);
        return status;
    }
    write_holder(lock->fd);
    *lock_out = lock;
    return WB_OK;
}

void out_lock_release(out_lock *lock) {
    if (!lock) return;
    /* While it is held, so that it is no other's. */
    unlink(lock->path);
    close(lock->fd);
    free(lock);
}

bool out_lock_is_alone(const char *path) {
    DIR *dir = opendir(path);
    if (!dir) return false;
    bool alone = true;
    for (const struct dirent *entry; alone && (entry = readdir(dir));)
        alone = strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0 ||
                strcmp(entry->d_name, LOCK_FILE) == 0;
    closedir(dir);
    return alone;
}
