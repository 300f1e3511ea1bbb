/* alloc_fail.h - makes the N-th allocation of a test program fail, sees what is not freed, and counts the
 * allocations of a steady state.
 *
 * Included by exactly one file of a test program: it defines malloc, calloc, realloc, free and the aligned
 * ones for all that is linked into it, the library's rooms among them, on top of glibc's own. Shared
 * libraries keep glibc's, since symbols are hidden: OpenMP's runtime would end the process where an
 * allocation fails, and makes one at each loop. Under a sanitizer, which has its own, or without glibc,
 * ALLOC_FAIL_WORKS is 0 and the test is to skip (exit 77). There a program that is linked with --wrap of
 * these functions and says so by ALLOC_FAIL_WRAPPED has alloc_fail_this_thread_at: ALLOC_FAIL_AT_WORKS.
 *
 *     for (long n = 0;; n++) {
 *         alloc_fail_arm(n, false);
 *         status = body();
 *         bool failed = alloc_fail_disarm(&live_blocks);
 *         if (!failed) break;                       // body needs n allocations
 *         ... status must say so, live_blocks must be 0
 *     }
 *
 * Between arm and disarm, one thread, and body frees all that it allocates. With ALLOC_FAIL_NEVER, any number
 * of threads, of which each may be refused what it asks for by alloc_fail_this_thread_at.
 *
 *     alloc_count_start();                          // in all threads
 *     step(); ...
 *     alloc_count_pause(true);                      // this thread does what may allocate
 *     submit(); ...
 *     alloc_count_pause(false);
 *     n = alloc_count_stop(&bytes);                 // must be 0 */
#ifndef ALLOC_FAIL_H
#define ALLOC_FAIL_H

#include <errno.h>
#include <limits.h>
#include <malloc.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__) || !defined(__GLIBC__)
#define ALLOC_FAIL_WORKS 0
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer) || __has_feature(memory_sanitizer)
#define ALLOC_FAIL_WORKS 0
#endif
#endif
#ifndef ALLOC_FAIL_WORKS
#define ALLOC_FAIL_WORKS 1
#endif
#ifdef ALLOC_FAIL_WRAPPED
#define ALLOC_FAIL_AT_WORKS 1
#else
#define ALLOC_FAIL_AT_WORKS ALLOC_FAIL_WORKS
#endif

static struct {
    atomic_bool armed;
    bool ever_after, failed;
    atomic_long countdown; /* allocations that still succeed */
    atomic_long live;      /* allocated less freed since arming */
} alloc_fail;

static _Thread_local bool alloc_fail_here;
static _Thread_local long alloc_fail_countdown_here; /* 0: not armed; 1: the next one fails, once */

/* Besides arming, and in any number of threads: from alloc_fail_this_thread(true) on, this thread's
 * allocations fail, and no other thread's. */
static inline void alloc_fail_this_thread(bool fails) {
    alloc_fail_here = fails;
}

/* Likewise: lets `n` allocations of this thread succeed and the next one fail. */
static inline void alloc_fail_this_thread_at(long n) {
    alloc_fail_countdown_here = n + 1;
}

/* How many more would have succeeded, to be armed with again; -1: it was refused. Disarms. */
static inline long alloc_fail_this_thread_left(void) {
    const long left = alloc_fail_countdown_here - 1;
    alloc_fail_countdown_here = 0;
    return left;
}

/* Whether it was refused; disarms. */
static inline bool alloc_fail_this_thread_failed(void) {
    const bool failed = alloc_fail_countdown_here == 0;
    alloc_fail_countdown_here = 0;
    return failed;
}

#define ALLOC_FAIL_NEVER LONG_MAX

/* Lets `n` allocations succeed and the next one fail, or all from there on. */
static inline void alloc_fail_arm(long n, bool ever_after) {
    alloc_fail.countdown = n;
    alloc_fail.ever_after = ever_after;
    alloc_fail.failed = false;
    alloc_fail.live = 0;
    alloc_fail.armed = true;
}

/* Whether an allocation was refused; *live_blocks_out: what was allocated since arming and not freed. */
static inline bool alloc_fail_disarm(long *live_blocks_out) {
    alloc_fail.armed = false;
    *live_blocks_out = alloc_fail.live;
    return alloc_fail.failed;
}

/* ---- counting ------------------------------------------------------------------------------------ */

static struct {
    atomic_bool on;
    atomic_long n;
    atomic_size_t latest_bytes;
} alloc_count;

static _Thread_local bool alloc_count_paused;

/* Counts the allocations of all threads from here on, even those that fail. */
static inline void alloc_count_start(void) {
    alloc_count.n = 0;
    alloc_count.latest_bytes = 0;
    alloc_count.on = true;
}

/* From pause(true) to pause(false), allocations of this thread are not counted. */
static inline void alloc_count_pause(bool paused) {
    alloc_count_paused = paused;
}

/* How many were counted; *latest_bytes_out: the size of the latest, which tells where to look. */
static inline long alloc_count_stop(size_t *latest_bytes_out) {
    alloc_count.on = false;
    *latest_bytes_out = alloc_count.latest_bytes;
    return alloc_count.n;
}

/* An allocation of `bytes`, of the host or of a device. */
static inline void alloc_count_see(size_t bytes) {
    if (!alloc_count.on || alloc_count_paused) return;
    alloc_count.n++;
    alloc_count.latest_bytes = bytes;
}

/* Calls of malloc, calloc and realloc of this thread so far, in what is linked into the program: rooms are,
 * MPI is not. Always 0 where ALLOC_FAIL_WORKS is 0. */
static _Thread_local long alloc_count_made;

static inline long alloc_count_here(void) {
    return alloc_count_made;
}

/* ---- instead of glibc's -------------------------------------------------------------------------- */

#if ALLOC_FAIL_WORKS

extern void *__libc_malloc(size_t size);
extern void *__libc_calloc(size_t count, size_t size);
extern void *__libc_realloc(void *block, size_t size);
extern void *__libc_memalign(size_t alignment, size_t size);
extern void __libc_free(void *block);

extern char __executable_start, etext;

static inline void alloc_count_note(const void *caller) {
    const uintptr_t at = (uintptr_t)caller;
    if (at >= (uintptr_t)&__executable_start && at < (uintptr_t)&etext) alloc_count_made++;
}

static inline bool alloc_fail_refuses(size_t bytes) {
    alloc_count_see(bytes);
    if (alloc_fail_here || (alloc_fail_countdown_here > 0 && --alloc_fail_countdown_here == 0)) {
        errno = ENOMEM;
        return true;
    }
    if (!alloc_fail.armed) return false;
    if (alloc_fail.countdown-- > 0) return false;
    if (alloc_fail.failed && !alloc_fail.ever_after) return false;
    alloc_fail.failed = true;
    errno = ENOMEM;
    return true;
}

static inline void *alloc_fail_count(void *block) {
    if (block && alloc_fail.armed) alloc_fail.live++;
    return block;
}

void *malloc(size_t size) {
    alloc_count_note(__builtin_return_address(0));
    return alloc_fail_refuses(size) ? NULL : alloc_fail_count(__libc_malloc(size));
}

void *calloc(size_t count, size_t size) {
    alloc_count_note(__builtin_return_address(0));
    return alloc_fail_refuses(count * size) ? NULL : alloc_fail_count(__libc_calloc(count, size));
}

void *realloc(void *block, size_t size) {
    alloc_count_note(__builtin_return_address(0));
    if (alloc_fail_refuses(size)) return NULL;
    void *moved = __libc_realloc(block, size);
    if (alloc_fail.armed && !block && moved) alloc_fail.live++;
    if (alloc_fail.armed && block && !moved && size == 0) alloc_fail.live--;
    return moved;
}

void *memalign(size_t alignment, size_t size) {
    return alloc_fail_refuses(size) ? NULL : alloc_fail_count(__libc_memalign(alignment, size));
}

void *aligned_alloc(size_t alignment, size_t size) {
    return memalign(alignment, size);
}

int posix_memalign(void **out, size_t alignment, size_t size) {
    void *block = memalign(alignment, size);
    if (!block) return ENOMEM;
    *out = block;
    return 0;
}

void free(void *block) {
    if (block && alloc_fail.armed) alloc_fail.live--;
    __libc_free(block);
}

#elif defined(ALLOC_FAIL_WRAPPED)

static inline bool alloc_fail_refuses_here(void) {
    if (alloc_fail_countdown_here == 0 || --alloc_fail_countdown_here > 0) return false;
    errno = ENOMEM;
    return true;
}

void *__real_malloc(size_t size);
void *__wrap_malloc(size_t size);
void *__wrap_malloc(size_t size) {
    return alloc_fail_refuses_here() ? NULL : __real_malloc(size);
}

void *__real_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size);
void *__wrap_calloc(size_t count, size_t size) {
    return alloc_fail_refuses_here() ? NULL : __real_calloc(count, size);
}

void *__real_realloc(void *block, size_t size);
void *__wrap_realloc(void *block, size_t size);
void *__wrap_realloc(void *block, size_t size) {
    return alloc_fail_refuses_here() ? NULL : __real_realloc(block, size);
}

int __real_posix_memalign(void **out, size_t alignment, size_t size);
int __wrap_posix_memalign(void **out, size_t alignment, size_t size);
int __wrap_posix_memalign(void **out, size_t alignment, size_t size) {
    return alloc_fail_refuses_here() ? ENOMEM : __real_posix_memalign(out, alignment, size);
}

#endif
#endif
