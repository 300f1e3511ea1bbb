/* test_packed.c - codec `packed`: rows come back in their order, in few bytes, the same from every
 * instruction set; ids that cannot be packed and bytes that are no chunk are refused. Usage: [SEED] */
#include "codec.h"
#include "dump_fixture.h"
#include "packed.h"
#include "packed_ranks.h"
#include "support/test_seed.h"
#include "wb_isa.h"

#include <inttypes.h>
#include <setjmp.h>
#include <stdarg.h>
// clang-format off
#include <cmocka.h>
// clang-format on

static uint64_t seed;

static wb_packed_scratch scratch; /* freed by main() */

enum { POISON = 0xa5, MARGIN = 64 };

/* Rows of which each choice is, more often than not, one of the row before; a random bitmap. */
typedef struct sample {
    fixture_model f;
    size_t rows, bytes, first;
    uint8_t *ids, *valid; /* bit first + r is row r */
} sample;

static void fill_layer(const wb_route_model *m, const uint8_t *before, uint8_t *ids, fixture_rng *rng) {
    bool taken[256] = {false};
    for (uint32_t k = 0; k < m->top_k; k++) {
        uint32_t id = before && fixture_below(rng, 3) > 0 ? before[fixture_below(rng, m->top_k)]
                                                          : fixture_below(rng, m->num_experts);
        while (taken[id]) id = (id + 1) % m->num_experts;
        taken[id] = true;
        ids[k] = (uint8_t)id;
    }
}

static sample make_sample(uint32_t L, uint32_t E, uint32_t K, size_t rows, fixture_rng *rng) {
    sample s = {.rows = rows, .first = fixture_below(rng, 20)};
    fixture_model_init(&s.f, L, E, K);
    size_t row = wb_route_row_bytes(&s.f.model);
    s.bytes = rows * row;
    s.ids = malloc(s.bytes + 1);
    s.valid = malloc((s.first + rows) / 8 + 1);
    assert_true(s.ids && s.valid);
    for (size_t i = 0; i <= (s.first + rows) / 8; i++) s.valid[i] = (uint8_t)fixture_next(rng);
    for (size_t r = 0; r < rows; r++)
        for (size_t l = 0; l < L; l++) {
            uint8_t *ids = s.ids + r * row + l * K;
            fill_layer(&s.f.model, r > 0 ? ids - row : NULL, ids, rng);
        }
    return s;
}

static void free_sample(sample *s) {
    free(s->ids);
    free(s->valid);
}

static sample random_sample(fixture_rng *rng) {
    uint32_t E = 1 + fixture_below(rng, 256), K = 1 + fixture_below(rng, E < 16 ? E : 16);
    if (fixture_below(rng, 3) == 0) E = E < 8 ? 8 : E, K = 8;
    return make_sample(1 + fixture_below(rng, 140), E, K, fixture_below(rng, 90), rng);
}

/* Packs the sample and takes it out of a block with a margin that nobody writes to. */
static void round_trip(const sample *s, bool all_valid) {
    const wb_route_model *m = &s->f.model;
    size_t capacity = wb_packed_bound(m, s->rows), size = 0, used = 0, row = wb_route_row_bytes(m);
    uint8_t *packed = malloc(capacity), *out = malloc(s->bytes + MARGIN);
    assert_true(packed && out);
    memset(out, POISON, s->bytes + MARGIN);
    const uint8_t *valid = all_valid ? NULL : s->valid;
    assert_int_equal(wb_packed_encode(m, s->ids, s->rows, valid, s->first, packed, capacity, &size), WB_OK);
    assert_true(size > 0 && size <= capacity);
    assert_int_equal(wb_packed_decode(m, packed, size, &scratch, out, s->bytes, &used), WB_OK);
    assert_int_equal(used, s->bytes);
    for (size_t r = 0; r < s->rows; r++)
        if (wb_row_valid(valid, s->first + r)) assert_memory_equal(out + r * row, s->ids + r * row, row);
    for (size_t i = 0; i < MARGIN; i++) assert_int_equal(out[s->bytes + i], POISON);
    /* A row more than there is room for is refused before anything is written. */
    if (s->rows > 0) {
        memset(out, POISON, s->bytes);
        assert_int_equal(wb_packed_decode(m, packed, size, &scratch, out, s->bytes - 1, &used), WB_CORRUPT);
        for (size_t i = 0; i < s->bytes; i++) assert_int_equal(out[i], POISON);
    }
    free(packed);
    free(out);
}

static void test_round_trip(void **state) {
    (void)state;
    fixture_rng rng = {seed};
    for (int i = 0; i < 150; i++) {
        sample s = random_sample(&rng);
        round_trip(&s, i % 2);
        free_sample(&s);
    }
}

/* ---- as docs/format.md has it --------------------------------------------------------------------- */

/* The experts of a layer of E, by ascending class and id. */
static void described_order(const uint8_t *class, uint32_t E, uint8_t *order_out) {
    uint32_t n = 0;
    for (uint32_t c = 0; c < 256; c++)
        for (uint32_t e = 0; e < E; e++)
            if (class[e] == c) order_out[n++] = (uint8_t)e;
}

/* One layer's ranks of a row from its symbols, `plane` bytes apart; ranks: in the row before, out this. */
static void described_row(const uint8_t *symbols, size_t plane, uint32_t K, uint32_t E, uint8_t *ranks) {
    uint8_t list[512];
    uint32_t n = K;
    memcpy(list, ranks, K);
    for (uint32_t rank = 0; rank < E; rank++)
        if (!memchr(ranks, (int)rank, K)) list[n++] = (uint8_t)rank;
    for (uint32_t k = 0; k < K; k++) {
        uint32_t at = symbols[k * plane];
        assert_true(at < n);
        ranks[k] = list[at];
        memmove(list + at, list + at + 1, --n - at);
    }
}

static void test_as_described(void **state) {
    (void)state;
    fixture_rng rng = {seed + 5};
    for (int i = 0; i < 20; i++) {
        sample s = random_sample(&rng);
        const wb_route_model *m = &s.f.model;
        const uint32_t L = m->n_moe_layers, E = m->num_experts, K = m->top_k;
        size_t capacity = wb_packed_bound(m, s.rows), size = 0, found = 0;
        uint8_t *packed = malloc(capacity), *content = malloc(capacity + (size_t)L * E + s.bytes);
        assert_true(packed && content);
        assert_int_equal(wb_packed_encode(m, s.ids, s.rows, NULL, 0, packed, capacity, &size), WB_OK);
        assert_int_equal(wb_zstd_decode(packed, size, content, (size_t)L * E + s.bytes, &found), WB_OK);
        assert_int_equal(found, (size_t)L * E + s.bytes);
        for (uint32_t l = 0; l < L; l++) {
            uint8_t order[256], ranks[16];
            described_order(content + (size_t)l * E, E, order);
            for (uint32_t k = 0; k < K; k++) ranks[k] = (uint8_t)k;
            for (size_t r = 0; r < s.rows; r++) {
                described_row(content + (size_t)L * E + r * L + l, s.rows * L, K, E, ranks);
                for (uint32_t k = 0; k < K; k++)
                    assert_int_equal(order[ranks[k]], s.ids[(r * L + l) * K + k]);
            }
        }
        free(packed);
        free(content);
        free_sample(&s);
    }
}

/* ---- instruction sets --------------------------------------------------------------------------- */

static const wb_packed_table *const table[WB_ISAS] = WB_ISA_EACH(wb_packed);

/* Symbols of a real encoder and any bytes at all give the same from all of them. */
static void compare_tables(const sample *s, fixture_rng *rng) {
    const size_t n = (size_t)wb_isa_of_machine() + 1;
    const uint32_t E = s->f.model.num_experts;
    wb_packed_shape shape = {s->rows, s->f.model.n_moe_layers, s->f.model.top_k, E};
    size_t orders = (size_t)shape.L * WB_PACKED_EXPERTS;
    uint8_t *order = malloc(orders), *symbols = calloc(s->bytes + WB_PACKED_BEYOND, 1),
            *expected = malloc(s->bytes + 1), *found = malloc(s->bytes + 1);
    assert_true(order && symbols && expected && found);
    for (size_t i = 0; i < orders; i++) order[i] = (uint8_t)(E <= 128 ? i % 128 : i);
    for (size_t i = 0; i < n; i++) {
        table[i]->encode(shape, order, s->ids, NULL, i == 0 ? expected : found);
        if (i > 0) assert_memory_equal(found, expected, s->bytes);
    }
    memcpy(symbols, expected, s->bytes);
    for (int any = 0; any < 2; any++) {
        for (size_t i = 0; i < n; i++) {
            table[i]->decode(shape, order, symbols, i == 0 ? expected : found);
            if (i > 0) assert_memory_equal(found, expected, s->bytes);
        }
        if (!any) assert_memory_equal(expected, s->ids, s->bytes);
        for (size_t i = 0; i < s->bytes; i++) symbols[i] = (uint8_t)fixture_next(rng);
    }
    free(order);
    free(symbols);
    free(expected);
    free(found);
}

static void test_every_instruction_set(void **state) {
    (void)state;
    fixture_rng rng = {seed + 1};
    for (int i = 0; i < 60; i++) {
        sample s = random_sample(&rng);
        compare_tables(&s, &rng);
        free_sample(&s);
    }
}

/* ---- what is refused ---------------------------------------------------------------------------- */

/* Ids that cannot be packed: not below E, or twice in a layer. Where their row is not valid nobody looks. */
static void test_ids_that_cannot_be(void **state) {
    (void)state;
    fixture_rng rng = {seed + 2};
    for (int i = 0; i < 40; i++) {
        sample s = make_sample(1 + fixture_below(&rng, 9), 2 + fixture_below(&rng, 254), 2,
                               1 + fixture_below(&rng, 50), &rng);
        const wb_route_model *m = &s.f.model;
        size_t r = fixture_below(&rng, (uint32_t)s.rows), at = r * wb_route_row_bytes(m), size = 1;
        at += 2 * fixture_below(&rng, m->n_moe_layers);
        s.ids[at + 1] = i % 2 && m->num_experts < 256 ? (uint8_t)m->num_experts : s.ids[at];
        size_t capacity = wb_packed_bound(m, s.rows);
        uint8_t *packed = malloc(capacity);
        assert_non_null(packed);
        wb_row_set_valid(s.valid, s.first + r, true);
        assert_int_equal(wb_packed_encode(m, s.ids, s.rows, s.valid, s.first, packed, capacity, &size),
                         WB_OK);
        assert_int_equal(size, 0);
        wb_row_set_valid(s.valid, s.first + r, false);
        round_trip(&s, false);
        free(packed);
        free_sample(&s);
    }
}

/* Whatever the bytes, decoding ends, in ids below E and inside the block, or in CORRUPT. */
static void test_damage(void **state) {
    (void)state;
    fixture_rng rng = {seed + 3};
    sample s = make_sample(5, 100, 8, 70, &rng);
    const wb_route_model *m = &s.f.model;
    size_t capacity = wb_packed_bound(m, s.rows), size = 0, refused = 0;
    uint8_t *packed = malloc(capacity), *damaged = malloc(capacity), *out = malloc(s.bytes + MARGIN);
    assert_true(packed && damaged && out);
    assert_int_equal(wb_packed_encode(m, s.ids, s.rows, NULL, 0, packed, capacity, &size), WB_OK);
    for (int i = 0; i < 3000; i++) {
        size_t n = i % 3 ? size : fixture_below(&rng, (uint32_t)size), used = 0;
        memcpy(damaged, packed, size);
        damaged[fixture_below(&rng, (uint32_t)size)] ^= (uint8_t)(1u << fixture_below(&rng, 8));
        memset(out, POISON, s.bytes + MARGIN);
        wb_status status = wb_packed_decode(m, damaged, n, &scratch, out, s.bytes, &used);
        assert_true(status == WB_OK || status == WB_CORRUPT);
        refused += status != WB_OK;
        assert_true(status != WB_OK || used <= s.bytes);
        for (size_t b = 0; status == WB_OK && b < used; b++) assert_true(out[b] < m->num_experts);
        for (size_t b = 0; b < MARGIN; b++) assert_int_equal(out[s.bytes + b], POISON);
    }
    assert_true(refused >= 900); /* each third is cut; a frame that is cut is never whole */
    free(packed);
    free(damaged);
    free(out);
    free_sample(&s);
}

/* ---- size --------------------------------------------------------------------------------------- */

/* Two thirds of the choices are tried in the row before: they cost less than 7 bits, and less than zstd
 * finds. The rows are many enough for every seed. */
static void test_size(void **state) {
    (void)state;
    fixture_rng rng = {seed + 4};
    sample s = make_sample(24, 128, 8, 1000, &rng);
    size_t capacity = wb_packed_bound(&s.f.model, s.rows), packed = 0, zstd = 0;
    uint8_t *bytes = malloc(capacity);
    assert_non_null(bytes);
    assert_int_equal(wb_packed_encode(&s.f.model, s.ids, s.rows, NULL, 0, bytes, capacity, &packed), WB_OK);
    assert_int_equal(wb_zstd_encode(s.ids, s.bytes, 3, bytes, capacity, &zstd), WB_OK);
    print_message("raw %zu, zstd %zu, packed %zu bytes\n", s.bytes, zstd, packed);
    assert_true(packed * 10 < zstd * 9);
    assert_true(packed * 4 < s.bytes * 3);
    free(bytes);
    free_sample(&s);
}

int main(int argc, char **argv) {
    seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", seed);
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_round_trip),
        cmocka_unit_test(test_as_described),
        cmocka_unit_test(test_every_instruction_set),
        cmocka_unit_test(test_ids_that_cannot_be),
        cmocka_unit_test(test_damage),
        cmocka_unit_test(test_size),
    };
    int failed = cmocka_run_group_tests(tests, NULL, NULL);
    free(scratch.bytes);
    return failed;
}
