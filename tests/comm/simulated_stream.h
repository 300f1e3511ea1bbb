/* simulated_stream.h - streams and events of a GPU as threads: what is put on a stream is done by its thread,
 * in order, after a while; and device memory (exchange_device.h) whose functions lie on such a stream. One
 * mutex guards all of it.
 *
 * Streams stay in memory when they are closed, since others may still wait for them. */
#ifndef SIMULATED_STREAM_H
#define SIMULATED_STREAM_H

#include "comm/exchange_device.h"
#include "nccl/nccl_cuda.h"
#include "support/alloc_fail.h"

#include <pthread.h>
#include <stdatomic.h>
#include <time.h>

#define SIM_TASKS 1024

typedef struct sim_task {
    void (*call)(void *); /* under the mutex; NULL: one of those below */
    void *context;
    struct sim_stream *after; /* waits until it has done `number` tasks */
    uint64_t number;
    void *to; /* copies `bytes` bytes, or adds `n` floats */
    const void *from;
    size_t bytes, n;
} sim_task;

typedef struct sim_stream {
    struct sim_stream *opened_before; /* all are in one list */
    sim_task tasks[SIM_TASKS];
    uint64_t put, done;
    bool closed;
} sim_stream;

/* What lay on the stream when it was recorded. */
typedef struct sim_event {
    sim_stream *stream;
    uint64_t number;
} sim_event;

static struct {
    pthread_mutex_t mutex;
    pthread_cond_t changed;
    sim_stream *streams;
} sim = {PTHREAD_MUTEX_INITIALIZER, PTHREAD_COND_INITIALIZER, NULL};

static void sim_lock(void) {
    pthread_mutex_lock(&sim.mutex);
}

static void sim_unlock(void) {
    pthread_mutex_unlock(&sim.mutex);
}

static void sim_changed(void) {
    pthread_cond_broadcast(&sim.changed);
}

static void sim_wait(void) {
    pthread_cond_wait(&sim.changed, &sim.mutex);
}

/* Tests let allocations of the adapter fail, and not what the simulation makes of memory and threads. Returns
 * what it replaces. The compiler knows calloc, and that it reads no variable of ours. */
static long sim_set_countdown(long countdown) {
    const long before = alloc_fail_countdown_here;
    alloc_fail_countdown_here = countdown;
    __asm__ volatile("" ::: "memory");
    return before;
}

static void *sim_allocate(size_t bytes) {
    const long countdown = sim_set_countdown(0);
    void *const memory = calloc(1, bytes);
    sim_set_countdown(countdown);
    if (!memory) abort();
    return memory;
}

static void sim_start_thread(void *(*work)(void *), void *context) {
    const long countdown = sim_set_countdown(0);
    pthread_t thread;
    if (pthread_create(&thread, NULL, work, context) != 0) abort();
    sim_set_countdown(countdown);
    pthread_detach(thread);
}

/* Addresses outside of the arena are host memory. */
static void *sim_view(const void *at) {
    const char *const p = at;
    const bool far = p >= device_arena.base && p < device_arena.base + DEVICE_BYTES * DEVICE_RANKS;
    return far ? device_arena.shadow + (p - device_arena.base) : (void *)(uintptr_t)at;
}

/* ---- streams -------------------------------------------------------------------------------------- */

/* Under the mutex. */
static void sim_do(const sim_task *task) {
    while (task->after && task->after->done < task->number) sim_wait();
    if (task->call) task->call(task->context);
    if (task->bytes > 0) memcpy(sim_view(task->to), sim_view(task->from), task->bytes);
    for (size_t i = 0; i < task->n; i++)
        ((float *)sim_view(task->to))[i] += ((const float *)sim_view(task->from))[i];
}

static void *sim_work(void *opaque) {
    sim_stream *stream = opaque;
    sim_lock();
    for (;;) {
        while (stream->done == stream->put && !stream->closed) sim_wait();
        if (stream->done == stream->put) break;
        /* The host is ahead of what it has put here. */
        sim_unlock();
        nanosleep(&(struct timespec){.tv_nsec = 20000}, NULL);
        sim_lock();
        sim_do(&stream->tasks[stream->done % SIM_TASKS]);
        stream->done++;
        sim_changed();
    }
    sim_unlock();
    return NULL;
}

/* Under the mutex. */
static void sim_put(sim_stream *stream, sim_task task) {
    while (stream->put - stream->done == SIM_TASKS) sim_wait();
    stream->tasks[stream->put++ % SIM_TASKS] = task;
    sim_changed();
}

static void sim_put_call(sim_stream *stream, void (*call)(void *), void *context) {
    sim_put(stream, (sim_task){.call = call, .context = context});
}

static void sim_put_now(sim_stream *stream, sim_task task) {
    sim_lock();
    sim_put(stream, task);
    sim_unlock();
}

/* The host waits. */
static void sim_finish(sim_stream *stream) {
    sim_lock();
    const uint64_t put = stream->put;
    while (stream->done < put) sim_wait();
    sim_unlock();
}

wb_status wb_gpu_stream_open(void **stream_out) {
    sim_stream *stream = sim_allocate(sizeof *stream);
    sim_lock();
    stream->opened_before = sim.streams;
    sim.streams = stream;
    sim_unlock();
    sim_start_thread(sim_work, stream);
    *stream_out = stream;
    return WB_OK;
}

void wb_gpu_stream_close(void *opaque) {
    sim_stream *stream = opaque;
    if (!stream) return;
    sim_lock();
    stream->closed = true;
    sim_changed();
    sim_unlock();
}

/* ---- events --------------------------------------------------------------------------------------- */

wb_status wb_gpu_event_open(void **event_out) {
    *event_out = calloc(1, sizeof(sim_event));
    return *event_out ? WB_OK : wb_fail(WB_OUT_OF_MEMORY, "simulated event");
}

void wb_gpu_event_close(void *event) {
    free(event);
}

wb_status wb_gpu_record(void *event, void *stream) {
    sim_lock();
    *(sim_event *)event = (sim_event){stream, ((sim_stream *)stream)->put};
    sim_unlock();
    return WB_OK;
}

wb_status wb_gpu_wait(void *stream, void *opaque) {
    sim_lock();
    const sim_event event = *(const sim_event *)opaque;
    if (event.stream) sim_put(stream, (sim_task){.after = event.stream, .number = event.number});
    sim_unlock();
    return WB_OK;
}

wb_status wb_gpu_has_come(void *opaque, bool *come_out) {
    sim_lock();
    const sim_event *event = opaque;
    *come_out = !event->stream || event->stream->done >= event->number;
    sim_unlock();
    return WB_OK;
}

/* ---- device memory on a stream -------------------------------------------------------------------- */

/* Of one rank, for all its exchanges. */
typedef struct sim_device {
    sim_stream *stream;
    char why_lost[512];
    bool lost; /* under sim.mutex */
} sim_device;

static sim_device sim_devices[DEVICE_RANKS];

static sim_device *sim_device_of(const device *d) {
    return &sim_devices[d->start / DEVICE_BYTES];
}

static wb_status sim_finish_device(sim_device *s) {
    char why[sizeof s->why_lost];
    sim_finish(s->stream);
    sim_lock();
    const bool lost = s->lost;
    s->lost = false;
    memcpy(why, s->why_lost, sizeof why);
    sim_unlock();
    return lost ? wb_fail(WB_PEER, "to_host: %s", why) : WB_OK;
}

static wb_status sim_to_host(void *context, void *host, const void *at, size_t bytes) {
    sim_device *s = sim_device_of(context);
    if (device_call(context) != WB_OK) return WB_DEVICE;
    if (bytes > 0) sim_put_now(s->stream, (sim_task){.to = host, .from = at, .bytes = bytes});
    return sim_finish_device(s);
}

static wb_status sim_to_device(void *context, void *at, const void *host, size_t bytes) {
    sim_device *s = sim_device_of(context);
    if (device_call(context) != WB_OK) return WB_DEVICE;
    sim_put_now(s->stream, (sim_task){.to = at, .from = host, .bytes = bytes});
    return sim_finish_device(s);
}

static wb_status sim_copy(void *context, void *to, const void *from, size_t bytes) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    sim_put_now(sim_device_of(context)->stream, (sim_task){.to = to, .from = from, .bytes = bytes});
    return WB_OK;
}

static wb_status sim_add(void *context, size_t n, const float *x, float *y) {
    if (device_call(context) != WB_OK) return WB_DEVICE;
    sim_put_now(sim_device_of(context)->stream, (sim_task){.to = y, .from = x, .n = n});
    return WB_OK;
}

static void sim_lose(void *context, const char *why) {
    sim_device *s = sim_device_of(context);
    sim_lock();
    if (!s->lost) snprintf(s->why_lost, sizeof s->why_lost, "%s", why);
    s->lost = true;
    sim_unlock();
}

static wb_exchange_memory sim_memory(device *d) {
    sim_device *s = sim_device_of(d);
    void *stream = s->stream;
    if (!stream && wb_gpu_stream_open(&stream) != WB_OK) abort();
    s->stream = stream;
    return (wb_exchange_memory){.size = sizeof(wb_exchange_memory),
                                .context = d,
                                .stream = stream,
                                .host_alloc = device_host_alloc,
                                .host_free = device_host_free,
                                .to_host = sim_to_host,
                                .to_device = sim_to_device,
                                .copy = sim_copy,
                                .add = sim_add,
                                .lose = sim_lose};
}

#endif
