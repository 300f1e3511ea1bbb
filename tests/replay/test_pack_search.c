/* test_pack_search.c - how good packings are: beside the best of all of small problems, and where a
 * perfect one is known; that it is worth what the answer says; what is kept by a sketch. Argument 1 sets
 * the seed. */
#include "pack_fixture.h"
#include "pack_search.h"
#include "pack_state.h"
#include "support/test_seed.h"

#include <math.h>

enum { WIDTH = 12, MOST = 64 };

typedef struct problem {
    pack_problem p;
    uint32_t rows[MOST];
    double attention[MOST];
    int32_t sketches[MOST * WIDTH];
    uint32_t bins[MOST];
    pack_answer answer;
} problem;

/* Each sequence has rows of its own and a mixture of two topics. */
static void deal(problem *q, uint32_t n, uint32_t n_ranks, uint64_t seed) {
    uint64_t state = wb_mix64(seed);
    *q = (problem){.p = {.n = n, .n_ranks = n_ranks, .width = WIDTH, .seed = seed}};
    q->p.rows = q->rows;
    q->p.attention = q->attention;
    q->p.sketches = q->sketches;
    q->p.unevenness = 0.1 * wb_random_below(&state, 40);
    for (uint32_t i = 0; i < n; i++) {
        q->rows[i] = 1 + wb_random_below(&state, 30);
        q->attention[i] = q->rows[i] + 0.02 * q->rows[i] * q->rows[i];
        const uint32_t topic = wb_random_below(&state, 2) * WIDTH / 2;
        for (uint32_t t = 0; t < q->rows[i]; t++)
            q->sketches[i * WIDTH + (topic + wb_random_below(&state, WIDTH * 2 / 3)) % WIDTH]++;
    }
}

/* By the definition in wb_pack.h. */
static double cost_of(const problem *q, const uint32_t *bins, uint32_t M, pack_answer *parts_out) {
    double all[WIDTH] = {0}, rows = 0;
    pack_answer parts = {.n_micro_batches = M};
    for (uint32_t i = 0; i < q->p.n; i++) {
        rows += q->rows[i];
        for (uint32_t j = 0; j < WIDTH; j++) all[j] += q->sketches[i * WIDTH + j];
    }
    for (uint32_t m = 0; m < M; m++) {
        double own[WIDTH] = {0}, own_rows = 0, square = 0, attention[MOST] = {0}, max = 0;
        for (uint32_t i = 0; i < q->p.n; i++) {
            if (bins[i] / q->p.n_ranks != m) continue;
            own_rows += q->rows[i];
            attention[bins[i] % q->p.n_ranks] += q->attention[i];
            for (uint32_t j = 0; j < WIDTH; j++) own[j] += q->sketches[i * WIDTH + j];
        }
        for (int j = 0; j < WIDTH; j++) square += pow(own[j] - all[j] * own_rows / rows, 2);
        for (uint32_t r = 0; r < q->p.n_ranks; r++) {
            max = fmax(max, attention[r]);
            parts.mean_attention += attention[r] / q->p.n_ranks;
        }
        parts.max_attention += max;
        parts.distance += sqrt(square);
    }
    if (parts_out) *parts_out = parts;
    return parts.max_attention + q->p.unevenness * parts.distance;
}

static bool has_room(const problem *q, const uint32_t *bins, uint32_t M) {
    int64_t rows[MOST] = {0};
    for (uint32_t i = 0; i < q->p.n; i++) {
        rows[bins[i]] += q->rows[i];
        if (rows[bins[i]] > q->p.max_rows) return false;
    }
    return M * q->p.n_ranks <= MOST;
}

static void solve(problem *q) {
    MUST(wb_pack_search(&q->p, q->bins, &q->answer));
}

/* Within what centred sketches lose as f32. */
static bool near(double a, double b) {
    return fabs(a - b) <= 1e-5 * (1 + fabs(b));
}

static void expect_worth_what_it_says(const problem *q) {
    pack_answer parts;
    cost_of(q, q->bins, q->answer.n_micro_batches, &parts);
    EXPECT(has_room(q, q->bins, q->answer.n_micro_batches));
    EXPECT(near(parts.mean_attention, q->answer.mean_attention));
    EXPECT(near(parts.max_attention, q->answer.max_attention));
    EXPECT(near(parts.distance, q->answer.distance));
}

static void test_an_answer_is_worth_what_it_says(void **unused) {
    (void)unused;
    for (uint64_t i = 0; i < 40; i++) {
        problem q, again;
        deal(&q, 1 + (uint32_t)(i * 7 % 48), 1 + (uint32_t)i % 5, base_seed + i);
        q.p.max_rows = 30 + (int64_t)i;
        solve(&q);
        expect_worth_what_it_says(&q);
        again = q;
        memset(again.bins, 0xA5, sizeof again.bins);
        solve(&again);
        EXPECT(memcmp(q.bins, again.bins, q.p.n * sizeof *q.bins) == 0);
    }
}

/* ---- the best of all ----------------------------------------------------------------------------- */

/* Every packing of n sequences into as many micro-batches as the search took. */
static double best_of_all(const problem *q) {
    const uint32_t n_bins = q->answer.n_micro_batches * q->p.n_ranks;
    uint32_t bins[MOST] = {0};
    double best = INFINITY;
    for (;;) {
        if (has_room(q, bins, q->answer.n_micro_batches))
            best = fmin(best, cost_of(q, bins, q->answer.n_micro_batches, NULL));
        uint32_t i = 0;
        while (i < q->p.n && ++bins[i] == n_bins) bins[i++] = 0;
        if (i == q->p.n) return best;
    }
}

static void test_small_problems_are_solved_nearly_as_well_as_can_be(void **unused) {
    (void)unused;
    double sum = 0, worst = 1;
    enum { PROBLEMS = 40 };
    for (uint64_t i = 0; i < PROBLEMS; i++) {
        problem q;
        deal(&q, 7, 2, base_seed + 1000 + i);
        q.p.max_rows = 45;
        solve(&q);
        const double ratio = cost_of(&q, q.bins, q.answer.n_micro_batches, NULL) / best_of_all(&q);
        sum += ratio;
        worst = fmax(worst, ratio);
    }
    printf("cost over the best: mean %.4f, worst %.4f\n", sum / PROBLEMS, worst);
    /* The mean over random problems is below 1.005. A search that stops at a first local minimum may miss one
     * of them by a fifth, one problem in some ten thousand: the bound of the worst is for what is broken. */
    EXPECT(sum / PROBLEMS < 1.02 && worst < 1.5);
}

/* ---- a perfect packing --------------------------------------------------------------------------- */

/* Two topics and sequences of one length: each micro-batch can have as many of one as of the other. They come
 * sorted by topic, so that a packing which does not look has micro-batches of one topic. */
static void test_topics_are_spread_over_micro_batches(void **unused) {
    (void)unused;
    for (uint32_t R = 1; R <= 4; R *= 2) {
        problem q;
        deal(&q, MOST, R, base_seed);
        q.p.max_rows = (int64_t)(20 * 16 / R);
        q.p.unevenness = 1;
        memset(q.sketches, 0, sizeof q.sketches);
        for (uint32_t i = 0; i < MOST; i++) {
            q.rows[i] = 20;
            q.attention[i] = 20;
            q.sketches[i * WIDTH + (i < MOST / 2 ? 0 : WIDTH - 1)] = 20;
        }
        solve(&q);
        EXPECT(q.answer.n_micro_batches == 4);
        EXPECT(q.answer.distance == 0 && q.answer.max_attention == 20.0 * MOST / R);
    }
}

/* So many that they are exchanged once, without a new beginning: what is kept up from exchange to exchange
 * has to be right. */
static void test_many_sequences_are_spread_too(void **unused) {
    (void)unused;
    enum { MANY = 4096, TOPICS = 4 };
    static uint32_t rows[MANY], bins[MANY];
    static double attention[MANY];
    static int32_t sketches[MANY * WIDTH];
    uint64_t state = wb_mix64(base_seed + 4000);
    for (uint32_t i = 0; i < MANY; i++) {
        rows[i] = 100 + wb_random_below(&state, 400);
        attention[i] = rows[i];
        sketches[i * WIDTH + i / (MANY / TOPICS)] = (int32_t)rows[i];
    }
    pack_problem p = {.n = MANY, .n_ranks = 16, .max_rows = 6000, .width = WIDTH, .unevenness = 1};
    p.rows = rows;
    p.attention = attention;
    p.sketches = sketches;
    pack_answer answer;
    MUST(wb_pack_search(&p, bins, &answer));
    printf("distance %.0f, before %.0f; attention %.4f\n", answer.distance, answer.distance_before,
           answer.mean_attention / answer.max_attention);
    EXPECT(answer.distance < 0.02 * answer.distance_before);
    EXPECT(answer.mean_attention > 0.97 * answer.max_attention);
}

/* Rows that fill all bins to the last leave one packing up to names; it is found, or a micro-batch more
 * taken: never a bin too full, and never more micro-batches than sequences. */
static void test_full_bins(void **unused) {
    (void)unused;
    for (uint64_t i = 0; i < 20; i++) {
        problem q;
        deal(&q, 1 + (uint32_t)i * 3, 3, base_seed + 2000 + i);
        q.p.max_rows = 30;
        for (uint32_t s = 0; s < q.p.n; s++) q.rows[s] = i % 2 == 0 ? 30 : 16; /* no two fit together */
        solve(&q);
        EXPECT(q.answer.n_micro_batches == (q.p.n + 2) / 3 && has_room(&q, q.bins, q.answer.n_micro_batches));
    }
}

/* Costs whose sum no double holds tell nothing, but room is room. */
static void test_costs_beyond_doubles(void **unused) {
    (void)unused;
    problem q;
    deal(&q, 40, 2, base_seed + 6000);
    q.p.max_rows = 60;
    for (uint32_t i = 0; i < q.p.n; i++) q.attention[i] = 1e307 * q.rows[i];
    solve(&q);
    EXPECT(has_room(&q, q.bins, q.answer.n_micro_batches));
}

/* The longest first leaves one without room, the fullest bin first does not. */
static void test_a_tight_fit_is_found(void **unused) {
    (void)unused;
    static const uint32_t rows[] = {6, 5, 4, 3, 2};
    problem q;
    deal(&q, 5, 1, base_seed);
    q.p.max_rows = 10;
    memcpy(q.rows, rows, sizeof rows);
    for (uint32_t i = 0; i < 5; i++) q.attention[i] = rows[i];
    solve(&q);
    EXPECT(q.answer.n_micro_batches == 2 && has_room(&q, q.bins, 2));
}

/* Exchanges may empty a micro-batch that no beginning could do without. */
static void test_no_micro_batch_is_empty(void **unused) {
    (void)unused;
    for (uint64_t i = 0; i < 200; i++) {
        problem q;
        bool any[MOST] = {false};
        deal(&q, 10, 2, base_seed + 5000 + i);
        q.p.max_rows = 31;
        for (uint32_t s = 0; s < q.p.n; s++) q.rows[s] = 5 + q.rows[s] / 2;
        solve(&q);
        for (uint32_t s = 0; s < q.p.n; s++) any[q.bins[s] / 2] = true;
        for (uint32_t m = 0; m < q.answer.n_micro_batches; m++) EXPECT(any[m]);
    }
}

/* ---- sketches ------------------------------------------------------------------------------------ */

/* The distance between counts is that between sketches: exactly where there is a number for each expert, else
 * as a sum of 256 squares of normal deviates is, whose standard deviation is sqrt(2 / 256) of it. */
static void test_sketches_keep_distances(void **unused) {
    (void)unused;
    static uint64_t a[60 * 256], b[60 * 256];
    for (int i = 0; i < 20; i++) {
        const wb_route_model model = {.n_moe_layers = i % 2 ? 60 : 1, .num_experts = 256, .top_k = 8};
        uint64_t state = wb_mix64(base_seed + 3000 + (uint64_t)i);
        int32_t x[256], y[256];
        double exact = 0, found = 0;
        for (size_t j = 0; j < model.n_moe_layers * 256; j++) {
            a[j] = wb_random_below(&state, 500);
            b[j] = i < 10 ? wb_random_below(&state, 500) : 0;
            exact += pow((double)a[j] - (double)b[j], 2);
        }
        EXPECT(wb_pack_sketch_width(&model) == 256);
        wb_pack_sketch(&model, a, 256, x);
        wb_pack_sketch(&model, b, 256, y);
        for (int j = 0; j < 256; j++) found += pow((double)x[j] - y[j], 2);
        if (model.n_moe_layers == 1) EXPECT(found == exact);
        EXPECT(fabs(found / exact - 1) < 6 * sqrt(2.0 / 256));
    }
}

int main(int argc, char **argv) {
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_an_answer_is_worth_what_it_says),
        cmocka_unit_test(test_small_problems_are_solved_nearly_as_well_as_can_be),
        cmocka_unit_test(test_topics_are_spread_over_micro_batches),
        cmocka_unit_test(test_many_sequences_are_spread_too),
        cmocka_unit_test(test_full_bins),
        cmocka_unit_test(test_costs_beyond_doubles),
        cmocka_unit_test(test_a_tight_fit_is_found),
        cmocka_unit_test(test_no_micro_batch_is_empty),
        cmocka_unit_test(test_sketches_keep_distances),
    };
    base_seed = test_seed(argc, argv);
    printf("seed %" PRIu64 "\n", base_seed);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
