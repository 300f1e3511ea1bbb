/* test_caller_threads.c - devices used inside a parallel region of their caller's: an op works in its own
 * device's scratch, whichever thread of the caller's team calls it. */
#include "ops_test.h"

#include "cpu/cpu_scratch.h"

#ifdef _OPENMP
#include <omp.h>
#endif

enum { CALLERS = 4, M = 70, N = 90, K = 300, POISON = 0xa5 };

typedef struct product {
    float *x, *w, *y;
} product;

static product make_product(void) {
    return (product){random_floats(M * K, -1, 1), random_floats(N * K, -1, 1), floats(M * N)};
}

static void free_product(product *p) {
    free(p->x), free(p->w), free(p->y);
}

static wb_status multiply(wb_device *dev, product p) {
    wb_matmul m = wb_matmul_forward(M, wb_f32_rows(p.x), matrix(p.w, WB_F32, N, K), wb_f32_rows(p.y));
    return dev->matmul(dev, 1, &m);
}

/* Gives a device for one thread the scratch of CALLERS of them, so that what it writes where the scratch of
 * another thread would lie is seen and does no harm. */
static void widen_scratch(wb_device *dev) {
    wb_cpu_device *cpu = (wb_cpu_device *)dev;
    void *wide = NULL;
    assert_true(cpu->scratch_bytes > 0);
    assert_ok(wb_cpu_memory(CALLERS * cpu->scratch_bytes, &wide));
    memset(wide, POISON, CALLERS * cpu->scratch_bytes);
    free(cpu->scratch);
    cpu->scratch = wide;
}

static bool wrote_beyond(const wb_device *dev) {
    const wb_cpu_device *cpu = (const wb_cpu_device *)dev;
    for (size_t i = cpu->scratch_bytes; i < CALLERS * cpu->scratch_bytes; i++)
        if ((unsigned char)cpu->scratch[i] != POISON) return true;
    return false;
}

/* Devices for one thread, each used by another thread of the caller's team. */
static void test_ops_inside_a_parallel_region(void **state) {
    (void)state;
    product serial[CALLERS], parallel[CALLERS];
    wb_device *devices[CALLERS];
    wb_status status[CALLERS];
    for (int i = 0; i < CALLERS; i++) {
        devices[i] = open_cpu(1);
        serial[i] = make_product();
        parallel[i] = serial[i];
        parallel[i].y = floats(M * N);
        assert_ok(multiply(devices[i], serial[i]));
        widen_scratch(devices[i]);
    }
    int team = 1;
#pragma omp parallel for num_threads(CALLERS) schedule(static, 1)
    for (int i = 0; i < CALLERS; i++) {
#ifdef _OPENMP
        if (i == 0) team = omp_get_num_threads();
#endif
        status[i] = multiply(devices[i], parallel[i]);
    }
    for (int i = 0; i < CALLERS; i++) {
        assert_int_equal(status[i], WB_OK);
        assert_same_bits(parallel[i].y, serial[i].y, M * N, "matmul");
        assert_false(wrote_beyond(devices[i]));
        free(parallel[i].y);
        free_product(&serial[i]);
        wb_device_close(devices[i]);
    }
    if (team < CALLERS) {
        printf("skipped: no team of %d threads here\n", CALLERS);
        exit(77);
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {cmocka_unit_test(test_ops_inside_a_parallel_region)};
    rng_open(argc, argv);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
