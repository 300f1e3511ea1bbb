/* exchange_checks.h - what the tests of the data plane check with: values that every rank can compute, and
 * device memory with poison around it. */
#ifndef EXCHANGE_CHECKS_H
#define EXCHANGE_CHECKS_H

#include "comm/exchange_device.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>

#define POISON 0xa5

typedef struct exchange_core {
    wb_exchange *exchange;
    wb_comm *comm;
    device *memory;
    size_t rank, ranks;
    uint64_t seed;
    int failures;
} exchange_core;

#define CHECK(c, condition) core_check(c, condition, #condition, __LINE__)
#define CHECK_STATUS(c, expected, call) core_check_status(c, expected, call, #call, __LINE__)

static bool core_check(exchange_core *c, bool held, const char *what, int line) {
    if (held) return true;
    fprintf(stderr, "%s%s: rank %zu of %zu, seed %" PRIu64 ", line %d: %s (last message: %s)\n",
            wb_comm_name(c->comm), c->memory->host_access ? "" : ", far memory", c->rank, c->ranks, c->seed,
            line, what, wb_error_message());
    c->failures++;
    return false;
}

static bool core_check_status(exchange_core *c, wb_status expected, wb_status found, const char *what,
                              int line) {
    if (expected == found) return true;
    fprintf(stderr, "expected \"%s\", found \"%s\": ", wb_status_string(expected), wb_status_string(found));
    return core_check(c, false, what, line);
}

/* The host sees what was waited for. Where that was lost, the control plane knows more, if a rank has said
 * why. */
static wb_status core_settle(exchange_core *c) {
    if (!device_on_streams) return WB_OK;
    const wb_exchange_memory functions = device_memory(c->memory);
    const wb_status status = functions.to_host(functions.context, NULL, NULL, 0);
    if (status != WB_PEER) return status;
    char message[512];
    snprintf(message, sizeof message, "%s", wb_error_message());
    const wb_status heard = wb_comm_look(c->comm);
    return heard != WB_OK ? heard : wb_fail(WB_PEER, "%s", message);
}

static wb_status core_wait(exchange_core *c, uint64_t work) {
    const wb_status status = wb_exchange_wait(c->exchange, work);
    return status == WB_OK ? core_settle(c) : status;
}

/* ---- values that every rank can compute ---------------------------------------------------------- */

static uint64_t hash(const exchange_core *c, uint64_t topic, uint64_t a, uint64_t b) {
    return wb_mix64(wb_mix64(wb_mix64(wb_mix64(c->seed + 1) + topic) + a) + b);
}

static unsigned char byte_of(uint64_t stream, size_t i) {
    return (unsigned char)((stream >> (i % 57)) + i * 31 + i / 251);
}

/* Magnitudes far apart, so that another order of addition gives other bits. Finite. */
static float value_of(const exchange_core *c, uint64_t topic, size_t rank, size_t i) {
    const uint64_t h = wb_mix64(c->seed + topic * 1000 + rank * WB_RANDOM_STEP + i);
    if (h % 61 == 0) return -0.0f;
    const double mantissa = (double)(int64_t)(h >> 11) / 4503599627370496.0 - 1.0;
    return (float)ldexp(mantissa, (int)(h % 41) - 20);
}

/* In rank order. */
static float sum_of(const exchange_core *c, uint64_t topic, size_t i) {
    float sum = value_of(c, topic, 0, i);
    for (size_t r = 1; r < c->ranks; r++) sum += value_of(c, topic, r, i);
    return sum;
}

/* None, a few, or, beyond what is staged or sent eagerly at once, many. */
static size_t size_of(uint64_t h) {
    if (h % 4 == 0) return 0;
    return (size_t)((h >> 8) % (h % 4 == 1 ? 300000 : 300));
}

/* ---- memory with poison around it ---------------------------------------------------------------- */

/* Where the host finds it, with all that lay on the stream done. */
static unsigned char *core_view(const exchange_core *c, const void *at) {
    device_finish(c->memory);
    return device_view(c->memory, at);
}

/* `bytes` bytes of the device between two that must stay as they are. */
static char *core_take(exchange_core *c, size_t bytes) {
    char *const at = device_take(c->memory, bytes + 128);
    memset(core_view(c, at), POISON, bytes + 128);
    return at + 64;
}

static bool poisoned(const exchange_core *c, const char *at, size_t bytes) {
    const unsigned char *view = core_view(c, at);
    for (size_t i = 0; i < bytes; i++)
        if (view[i] != POISON) return false;
    return true;
}

static bool core_intact(const exchange_core *c, const char *at, size_t bytes) {
    return poisoned(c, at - 64, 64) && poisoned(c, at + bytes, 64);
}

static void core_fill(const exchange_core *c, char *at, uint64_t stream, size_t n) {
    unsigned char *view = core_view(c, at);
    for (size_t i = 0; i < n; i++) view[i] = byte_of(stream, i);
}

/* The same on the device's stream: the bytes come from memory that is taken for it. */
static void core_put(exchange_core *c, char *at, uint64_t stream, size_t n) {
    const wb_exchange_memory functions = device_memory(c->memory);
    char *const from = core_take(c, n);
    core_fill(c, from, stream, n);
    CHECK_STATUS(c, WB_OK, functions.copy(functions.context, at, from, n));
}

static void core_finish(exchange_core *c) {
    const wb_exchange_memory functions = device_memory(c->memory);
    CHECK_STATUS(c, WB_OK, functions.to_host(functions.context, NULL, NULL, 0));
}

static bool core_bytes_are(const exchange_core *c, const char *at, uint64_t stream, size_t n) {
    const unsigned char *view = core_view(c, at);
    for (size_t i = 0; i < n; i++)
        if (view[i] != byte_of(stream, i)) return false;
    return true;
}

#endif
