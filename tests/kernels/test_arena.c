/* test_arena.c - one walk measures and places: buffers are aligned and apart, the inputs of a step arrive as
 * they were written, and sizes that overflow are refused. */
#include "support/test_seed.h"
#include "wb_random.h"
#include "wb_upload_ring.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
// clang-format off
#include <cmocka.h>
// clang-format on

enum { MAX_BUFFERS = 20, MAX_BYTES = 700 };

static uint64_t base_seed;

typedef struct things {
    int n;
    int64_t rows[MAX_BUFFERS];
    wb_buffer buffers[MAX_BUFFERS];
    char *host[MAX_BUFFERS];
    wb_input inputs[MAX_BUFFERS];
} things;

static things draw(uint64_t *state) {
    things t = {.n = 1 + (int)(wb_mix64(*state += WB_RANDOM_STEP) % MAX_BUFFERS)};
    for (int i = 0; i < t.n; i++) t.rows[i] = (int64_t)(wb_mix64(*state += WB_RANDOM_STEP) % (MAX_BYTES / 7));
    return t;
}

static void walk(void *user, wb_arena *arena) {
    things *t = user;
    for (int i = 0; i < t->n; i++) {
        wb_place(arena, &t->buffers[i], t->rows[i], 7, 1);
        WB_PLACE_HOST(arena, t->host[i], t->rows[i]);
    }
}

static void walk_inputs(void *user, wb_arena *step) {
    things *t = user;
    for (int i = 0; i < t->n; i++) wb_place_input(step, &t->inputs[i], t->rows[i], 7);
}

static void assert_all(const char *bytes, int64_t n, int expected) {
    for (int64_t i = 0; i < n; i++) assert_int_equal((unsigned char)bytes[i], expected);
}

static void test_buffers_are_apart_and_within(void **unused) {
    (void)unused;
    wb_device *device;
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    uint64_t state = base_seed;
    for (int round = 0; round < 50; round++) {
        things t = draw(&state);
        wb_workspace memory = {.device = device};
        wb_arena measured = {.device = device};
        walk(&t, &measured);
        assert_null(t.buffers[0].data);
        assert_null(t.host[0]);
        assert_int_equal(wb_arena_open(&memory, walk, &t), WB_OK);
        assert_int_equal(memory.arena.bytes, measured.device_bytes);
        for (int i = 0; i < t.n; i++) assert_all(t.host[i], t.rows[i], 0);
        for (int i = 0; i < t.n; i++) {
            assert_int_equal((uintptr_t)t.buffers[i].data % WB_ARENA_ALIGNMENT, 0);
            assert_true(t.buffers[i].bytes >= (size_t)t.rows[i] * 7 && t.buffers[i].bytes > 0);
            assert_true((char *)t.buffers[i].data + t.buffers[i].bytes <=
                        (char *)memory.arena.data + memory.arena.bytes);
            memset(t.buffers[i].data, i + 1, t.buffers[i].bytes);
            memset(t.host[i], i + 1, (size_t)t.rows[i]);
        }
        for (int i = 0; i < t.n; i++) {
            assert_all(t.buffers[i].data, (int64_t)t.buffers[i].bytes, i + 1);
            assert_all(t.host[i], t.rows[i], i + 1);
        }
        wb_workspace_close(&memory);
    }
    wb_device_close(device);
}

static void overflow(void *user, wb_arena *arena) {
    wb_buffer *buffers = user;
    wb_place(arena, &buffers[0], 1, 1, 1);
    wb_place(arena, &buffers[1], INT64_MAX / 2, 1, 1);
    wb_place(arena, &buffers[2], INT64_MAX / 2, 1, 1);
    wb_place(arena, &buffers[3], 1, 1, 1);
}

static void negative(void *user, wb_arena *arena) {
    wb_place(arena, user, -1, 1, 1);
}

static void test_sizes_that_overflow(void **unused) {
    (void)unused;
    wb_device *device;
    wb_buffer buffers[4] = {{0}};
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    wb_workspace memory = {.device = device};
    assert_int_equal(wb_arena_open(&memory, overflow, buffers), WB_CAPACITY);
    assert_int_equal(wb_arena_open(&memory, negative, buffers), WB_CAPACITY);
    assert_null(memory.arena.data);
    wb_workspace_close(&memory);
    wb_device_close(device);
}

typedef struct ring_user {
    wb_upload_ring ring;
    things most;
} ring_user;

static void walk_ring(void *user, wb_arena *arena) {
    ring_user *u = user;
    wb_place_ring(arena, &u->ring, walk_inputs, &u->most);
}

/* Steps of any sizes up to the most; what the step before wrote is still in its host block. */
static void test_a_step_goes_up_at_once(void **unused) {
    (void)unused;
    wb_device *device;
    assert_int_equal(wb_device_open_cpu(1, &device), WB_OK);
    uint64_t state = base_seed;
    ring_user u = {.most = {.n = MAX_BUFFERS}};
    for (int i = 0; i < MAX_BUFFERS; i++) u.most.rows[i] = MAX_BYTES / 7;
    wb_workspace memory = {.device = device};
    assert_int_equal(wb_arena_open(&memory, walk_ring, &u), WB_OK);
    things before = {0};
    for (int round = 1; round < 60; round++) {
        things t = draw(&state);
        assert_int_equal(wb_upload_begin(&u.ring, walk_inputs, &t), WB_OK);
        for (int i = 0; i < t.n; i++) memset(t.inputs[i].host, (round * 7 + i) % 251, (size_t)t.rows[i] * 7);
        memset(u.ring.device.data, 0xFF, u.ring.bytes);
        assert_int_equal(wb_upload_send(&u.ring, device), WB_OK);
        for (int i = 0; i < t.n; i++) assert_all(t.inputs[i].device, t.rows[i] * 7, (round * 7 + i) % 251);
        for (int i = 0; i < before.n; i++)
            assert_all(before.inputs[i].host, before.rows[i] * 7, ((round - 1) * 7 + i) % 251);
        before = t;
    }
    things larger = u.most;
    larger.rows[3] += (int64_t)WB_ARENA_ALIGNMENT;
    assert_int_equal(wb_upload_begin(&u.ring, walk_inputs, &larger), WB_CAPACITY);
    wb_workspace_close(&memory);
    wb_device_close(device);
}

int main(int argc, char **argv) {
    base_seed = test_seed(argc, argv);
    printf("seed %llu\n", (unsigned long long)base_seed);
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_buffers_are_apart_and_within),
                                       cmocka_unit_test(test_sizes_that_overflow),
                                       cmocka_unit_test(test_a_step_goes_up_at_once)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
