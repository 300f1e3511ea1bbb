/* test_plan_cuda.c - moe_plan and moe_group on CUDA against the CPU: the same rows for every pair, from no
 * token to more than one part of a plan, with few slots and with more than shared memory holds.
 *
 * The verdict is equality of all numbers, of what lies behind them and, beyond the last row, of the poison.
 * A plain program; 77, with the reason, where there is no CUDA device. argv[1]: the seed. */
#include "cuda_twins.h"
#include "wb_dispatch_rules.h"

enum { CASES = 40, MAX_REPLICAS = 3 };

/* ---- moe_plan ---------------------------------------------------------------------------------- */

typedef struct plan_case {
    int64_t T;
    int32_t K, E, S, weightless; /* of E, the last ones */
    bool dynamic, padded, skewed;
    wb_dtype dtype;
    int64_t stride;
} plan_case;

static plan_case random_case(int number) {
    static const int64_t tokens[] = {0, 1, 31, 128, 511, 513, 3000, 17000};
    plan_case c = {.T = tokens[number % 8] + (number >= 8 && number % 8 > 1 ? rng_range(-20, 20) : 0),
                   .K = (int32_t)rng_range(1, 10)};
    c.S = (int32_t)rng_range(1, number % 5 == 0 ? 9000 : number % 5 == 1 ? 1500 : 300);
    c.dynamic = rng_range(0, 1) == 1;
    c.E = (int32_t)rng_range(1, c.dynamic && c.S > 3 ? c.S / MAX_REPLICAS : c.S);
    if (c.dynamic && c.S <= 3) c.E = 1;
    c.weightless = rng_range(0, 1) == 1 ? (int32_t)rng_range(0, c.E / 2) : 0;
    c.padded = rng_range(0, 1) == 1;
    c.skewed = rng_range(0, 2) == 0;
    c.dtype = c.E > 256 || rng_range(0, 1) == 0 ? WB_U16 : WB_U8;
    c.stride = c.K * rng_range(1, 3);
    return c;
}

static void fill_ids(const plan_case *c, void *ids) {
    for (int64_t i = 0; i < c->T * c->stride; i++) {
        const int64_t most = c->skewed && rng_range(0, 7) > 0 ? (c->E + 15) / 16 : c->E;
        const int64_t id = rng_range(0, most - 1);
        if (c->dtype == WB_U8)
            ((uint8_t *)ids)[i] = (uint8_t)id;
        else
            ((uint16_t *)ids)[i] = (uint16_t)id;
    }
}

/* Replicas of each expert and their slots, which are any; or a slot for each expert. */
static int64_t fill_table(const plan_case *c, int32_t *table) {
    int32_t n = 0;
    if (!c->dynamic) {
        for (int32_t e = 0; e < c->E; e++) table[e] = (int32_t)rng_range(0, c->S - 1);
        return c->E;
    }
    for (int32_t e = 0; e <= c->E; e++) {
        table[e] = n;
        n += e < c->E ? (int32_t)rng_range(1, MAX_REPLICAS) : 0;
    }
    for (int32_t i = 0; i < n; i++) table[c->E + 1 + i] = (int32_t)rng_range(0, c->S - 1);
    return c->E + 1 + n;
}

typedef struct plan_twins {
    twin table, tokens, pos, direction, ids, pair_row, row_token, offsets;
} plan_twins;

static plan_twins make_plan_twins(const plan_case *c) {
    const size_t T = (size_t)c->T;
    plan_twins p = {.table = make_twin(((size_t)c->E * (1 + MAX_REPLICAS) + 1) * 4),
                    .tokens = make_twin(T * 4),
                    .pos = make_twin(T * 4),
                    .direction = make_twin(T),
                    .ids = make_twin(T * (size_t)c->stride * wb_dtype_size(c->dtype)),
                    .pair_row = make_output(c->T * c->K),
                    .row_token = make_output(c->T * c->K),
                    .offsets = make_output(c->S + 1)};
    memset(p.table.host, 0, p.table.bytes);
    fill_table(c, p.table.host);
    fill_ids(c, p.ids.host);
    for (size_t t = 0; t < T; t++) {
        ((int32_t *)p.tokens.host)[t] = (int32_t)rng_range(0, 150000);
        ((int32_t *)p.pos.host)[t] = (int32_t)rng_range(0, 40000);
        ((uint8_t *)p.direction.host)[t] = rng_range(0, 4) == 0 ? WB_ROW_PADDING : (uint8_t)rng_range(0, 1);
    }
    const twin *inputs[] = {&p.table, &p.tokens, &p.pos, &p.direction, &p.ids};
    for (size_t i = 0; i < sizeof inputs / sizeof *inputs; i++) upload(inputs[i]);
    return p;
}

static void run_plan(wb_device *dev, const plan_case *c, const plan_twins *p, bool on_host) {
#define OF(name) (on_host ? p->name.host : p->name.device)
    wb_moe_plan plan = {
        .T = c->T, .top_k = c->K, .n_experts = c->E, .n_slots = c->S, .n_weightless = c->weightless};
    plan.rule = wb_dispatch_table_rule(c->dynamic, OF(table), (uint32_t)c->E, 7);
    plan.tokens = c->dynamic ? OF(tokens) : NULL;
    plan.pos = c->dynamic ? OF(pos) : NULL;
    plan.direction = c->padded ? OF(direction) : NULL;
    plan.ids = (wb_ids){OF(ids), c->dtype, c->stride};
    plan.pair_row = OF(pair_row), plan.row_token = OF(row_token), plan.offsets = OF(offsets);
    must(dev->moe_plan(dev, &plan), "moe_plan");
#undef OF
}

static void test_plan(int number) {
    const plan_case c = random_case(number);
    plan_twins p = make_plan_twins(&c);
    twin *all[] = {&p.table, &p.tokens, &p.pos, &p.direction, &p.ids, &p.pair_row, &p.row_token, &p.offsets};
    char of[200];
    snprintf(of, sizeof of, "plan of T %" PRId64 " K %d E %d (%d weightless) S %d%s%s%s %s stride %" PRId64,
             c.T, c.K, c.E, c.weightless, c.S, c.dynamic ? " dynamic" : "", c.padded ? " padded" : "",
             c.skewed ? " skewed" : "", wb_dtype_name(c.dtype), c.stride);
    run_plan(cpu, &c, &p, true);
    run_plan(cuda, &c, &p, false);
    compare(&p.offsets, "offsets", of);
    compare(&p.pair_row, "pair_row", of);
    compare(&p.row_token, "row_token", of);
    for (size_t i = 0; i < sizeof all / sizeof *all; i++) free_twin(all[i]);
}

/* ---- moe_group ----------------------------------------------------------------------------------- */

static void test_group(int number) {
    const int32_t R = (int32_t)rng_range(1, 9), n = (int32_t)rng_range(1, number % 4 == 0 ? 700 : 40);
    twin counts = make_twin((size_t)R * (size_t)n * 4), offsets = make_output(n + 1);
    int32_t *count = counts.host;
    int64_t rows = 0;
    for (int64_t i = 0; i < (int64_t)R * n; i++)
        rows += count[i] = (int32_t)(rng_range(0, 2) == 0 ? 0 : rng_range(0, number % 3 == 0 ? 600 : 9));
    twin received = make_output(rows), grouped = make_output(rows);
    upload(&counts);
    const wb_moe_group host = {R, n, counts.host, offsets.host, received.host, grouped.host};
    const wb_moe_group device = {R, n, counts.device, offsets.device, received.device, grouped.device};
    must(cpu->moe_group(cpu, &host), "moe_group");
    must(cuda->moe_group(cuda, &device), "moe_group");
    compare(&offsets, "offsets", "group");
    compare(&received, "to_received", "group");
    compare(&grouped, "to_grouped", "group");
    free_twin(&counts), free_twin(&offsets), free_twin(&received);
    free_twin(&grouped);
}

int main(int argc, char **argv) {
    if (!open_twins(argc, argv, 20261127)) return SKIP;
    for (int i = 0; i < CASES; i++) test_plan(i);
    for (int i = 0; i < CASES; i++) test_group(i);
    printf("%d plans and %d groups: the numbers of the CPU\n", (int)CASES, (int)CASES);
    close_twins();
    return 0;
}
