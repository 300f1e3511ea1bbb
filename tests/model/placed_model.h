/* placed_model.h - ranks as threads, each with a device whose memory is poisoned, and what a model holds
 * under a placement against a model of one rank. A failure ends the process: the test is then red. */
#ifndef PLACED_MODEL_H
#define PLACED_MODEL_H

#include "model_weights.h"
#include "placement_fixture.h"
#include "support/temp_files.h"
#include "support/test_seed.h"

#include <pthread.h>

enum { MAX_RANKS = 4, POISON = 0xA5 };

static uint64_t base_seed;

/* In a thread that is no rank of cmocka's: ends the process, as MUST does. */
#define EXPECT(condition)                                                                                \
    do {                                                                                                 \
        if (!(condition)) {                                                                              \
            fprintf(stderr, "%s:%d: seed %" PRIu64 ": %s\n", __FILE__, __LINE__, base_seed, #condition); \
            exit(1);                                                                                     \
        }                                                                                                \
    } while (0)

#define EXPECT_MESSAGE(part)                                                                       \
    do {                                                                                           \
        if (!strstr(wb_error_message(), part)) fprintf(stderr, "found: %s\n", wb_error_message()); \
        EXPECT(strstr(wb_error_message(), part));                                                  \
    } while (0)

/* ---- ranks --------------------------------------------------------------------------------------- */

typedef struct rank {
    wb_comm *comm, *self; /* self: of a whole model on this rank alone */
    wb_device *device;
    int number, of;
    uint64_t state;         /* random numbers, the same on every rank */
    const char *dir, *save; /* of the test's files, or NULL */
    void (*work)(struct rank *);
} rank;

/* A missed write shows, and one too many. */
static wb_mem_alloc_fn *real_alloc;

static inline wb_status poisoning_alloc(wb_device *dev, size_t bytes, void **out) {
    const wb_status status = real_alloc(dev, bytes, out);
    if (status == WB_OK) memset(*out, POISON, bytes);
    return status;
}

static inline void *run_rank(void *arg) {
    rank *r = arg;
    MUST(wb_device_open_cpu(1, &r->device));
    MUST(wb_comm_open_self(&r->self));
    r->device->mem_alloc = poisoning_alloc;
    r->number = wb_comm_rank(r->comm);
    r->of = wb_comm_size(r->comm);
    r->work(r);
    wb_comm_close(r->self);
    wb_device_close(r->device);
    return NULL;
}

static inline void on_ranks(int R, uint64_t seed, void (*work)(rank *), const char *dir, const char *save) {
    wb_comm *comms[MAX_RANKS];
    pthread_t threads[MAX_RANKS];
    rank ranks[MAX_RANKS];
    MUST(wb_comm_open_threads(R, comms));
    for (int i = 0; i < R; i++) {
        ranks[i] = (rank){.comm = comms[i], .state = seed, .dir = dir, .save = save, .work = work};
        assert_int_equal(pthread_create(&threads[i], NULL, run_rank, &ranks[i]), 0);
    }
    for (int i = 0; i < R; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < R; i++) wb_comm_close(comms[i]);
}

static inline wb_model_options options_of(const rank *r, const wb_placement *placement) {
    wb_model_options options = wb_model_options_default();
    options.device = r->device;
    options.comm = r->comm;
    options.dtype = fixture_dtype;
    options.activations = fixture_activations;
    options.placement = placement;
    return options;
}

/* Of this rank alone, with the default placement. */
static inline wb_model_options whole_options(const rank *r) {
    wb_model_options options = options_of(r, NULL);
    options.comm = r->self;
    return options;
}

/* ---- what a model holds -------------------------------------------------------------------------- */

static inline void expect_replica(const wb_model *m, const wb_tensor *t, int32_t k, const wb_tensor *whole) {
    const wb_param *param = &m->params[t->param];
    const size_t size = wb_dtype_size(t->dtype);
    if (t->expert < 0) {
        EXPECT(t->rank == -1 && t->slot.slot == WB_NO_SLOT && t->data);
    } else {
        const wb_layer_map map = wb_placement_layer(m->placement, (uint32_t)param->moe_layer);
        EXPECT(map.expert_of_slot[t->slot.slot] == t->expert);
        EXPECT(map.replica_of_slot[t->slot.slot] == (uint32_t)k);
        EXPECT(t->rank == (int32_t)wb_placement_rank_of(m->placement, t->slot));
        EXPECT((t->data != NULL) == (t->rank == wb_comm_rank(m->comm)));
    }
    if (!t->data) return;
    const int64_t slot = t->expert < 0 ? 0 : (int64_t)t->slot.slot - wb_model_first_slot(m);
    const int64_t inside = whole->offset - (t->expert < 0 ? 0 : whole->slot.slot * param->slot_elements);
    EXPECT(t->offset == slot * param->slot_elements + inside);
    EXPECT(t->offset >= 0 && t->offset + t->n <= param->n);
    EXPECT(t->data == (char *)param->memory.data + (size_t)t->offset * size);
    EXPECT(memcmp(t->data, whole->data, (size_t)t->n * size) == 0);
}

static inline void expect_empty_slots_untouched(const wb_model *m) {
    for (int32_t i = 0; i < m->n_params; i++) {
        const wb_param *param = &m->params[i];
        if (param->moe_layer < 0) continue;
        const wb_layer_map map = wb_placement_layer(m->placement, (uint32_t)param->moe_layer);
        const size_t bytes = (size_t)param->slot_elements * wb_dtype_size(param->dtype);
        for (int64_t s = 0; s < wb_model_local_slots(m); s++) {
            const uint8_t *slot = (const uint8_t *)param->memory.data + (size_t)s * bytes;
            if (map.expert_of_slot[wb_model_first_slot(m) + s] >= 0) continue;
            for (size_t b = 0; b < bytes; b++) EXPECT(slot[b] == POISON);
        }
    }
}

/* Every replica is where the placement says and has the weights of `whole`, a model of one rank. */
static inline void expect_weights(const wb_model *m, const wb_model *whole) {
    EXPECT(wb_model_n_tensors(m) == wb_model_n_tensors(whole));
    for (int32_t i = 0; i < wb_model_n_tensors(m); i++) {
        const wb_tensor first = wb_model_tensor(m, i), expected = wb_model_tensor(whole, i);
        int32_t first_here = 0;
        EXPECT(wb_model_n_replicas(m, i) >= 1 && wb_model_n_replicas(m, i) <= MAX_REPLICAS);
        for (int32_t k = wb_model_n_replicas(m, i) - 1; k >= 0; k--) {
            const wb_tensor replica = wb_model_replica(m, i, k);
            expect_replica(m, &replica, k, &expected);
            if (replica.data) first_here = k;
        }
        const wb_tensor replica = wb_model_replica(m, i, first_here);
        EXPECT(first.data == replica.data && first.rank == replica.rank);
        EXPECT(first.slot.slot == replica.slot.slot && first.offset == replica.offset);
    }
    if (m->mtp) expect_weights(m->mtp, whole->mtp);
}

/* Reads the seed of argument 1, or takes one, and prints it. */
static inline void placed_model_begin(int argc, char **argv) {
    wb_device *device;
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    MUST(wb_device_open_cpu(1, &device));
    real_alloc = device->mem_alloc;
    wb_device_close(device);
}

#endif
