/* test_router_cuda.c - the router on CUDA against the CPU: the same ids, the same bits of weights and of
 * dlogits.
 *
 * Owns: topk, gate_forward, gate_backward and the memory ops of wb_device_open_cuda. The verdict is
 * equality of bytes, without a tolerance: both sides follow router_rules.h and sum in one order. A NaN
 * equals only a NaN, and only where the logits hold NaN or infinity; finite logits must give finite
 * numbers. Outputs are poisoned before and compared with all that lies between and behind them. A plain
 * program, so that it needs no test library; 77, with the reason, where there is no CUDA device. argv[1]:
 * the seed.
 */
#include "wb_device.h"
#include "wb_exact_math.h"
#include "wb_random.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SKIP = 77, LAYERS = 3, LAYER = 1, VOCABULARY = 97, POISON = 0xcd, GUARD = 64 };

/* NEAR: logits of which some pairs, and a few threes, of a row differ in their last bits alone. */
typedef enum logit_kind { NORMAL, TIES, NEAR, SPECIALS, LOGIT_KINDS } logit_kind;
static const char *const kind_names[LOGIT_KINDS] = {"normal", "ties", "near", "specials"};

typedef struct shape {
    wb_router_type type;
    int32_t E, K, n_group, topk_group;
    int64_t T;
} shape;

/* The last ones have so many rows that each has but eight lanes, where it can. */
static const shape shapes[] = {
    {WB_ROUTER_SOFTMAX_NORM, 8, 2, 1, 1, 301},    {WB_ROUTER_SOFTMAX_NORM, 128, 8, 1, 1, 301},
    {WB_ROUTER_SOFTMAX_NORM, 512, 10, 1, 1, 77},  {WB_ROUTER_SOFTMAX_NORM, 1024, 64, 1, 1, 33},
    {WB_ROUTER_SOFTMAX_NORM, 1500, 17, 1, 1, 21}, {WB_ROUTER_SOFTMAX_NORM, 65536, 4, 1, 1, 2},
    {WB_ROUTER_SOFTMAX, 1, 1, 1, 1, 33},          {WB_ROUTER_SOFTMAX, 60, 4, 1, 1, 203},
    {WB_ROUTER_SOFTMAX, 64, 8, 1, 1, 203},        {WB_ROUTER_SOFTMAX, 128, 33, 1, 1, 101},
    {WB_ROUTER_SOFTMAX, 160, 6, 8, 3, 101},       {WB_ROUTER_SOFTMAX, 200, 16, 1, 1, 101},
    {WB_ROUTER_SOFTMAX, 300, 5, 4, 2, 51},        {WB_ROUTER_SOFTMAX, 2000, 20, 1, 1, 9},
    {WB_ROUTER_TOPK_SOFTMAX, 32, 4, 1, 1, 301},   {WB_ROUTER_TOPK_SOFTMAX, 37, 37, 1, 1, 101},
    {WB_ROUTER_SIGMOID, 256, 8, 8, 4, 101},       {WB_ROUTER_SIGMOID, 128, 8, 128, 11, 51},
    {WB_ROUTER_SIGMOID, 64, 8, 4, 1, 101},        {WB_ROUTER_SIGMOID, 384, 8, 1, 1, 51},
    {WB_ROUTER_SIGMOID, 1024, 32, 32, 3, 21},     {WB_ROUTER_SIGMOID, 3072, 9, 64, 5, 7},
    {WB_ROUTER_SQRTSOFTPLUS, 256, 6, 1, 1, 101},  {WB_ROUTER_SQRTSOFTPLUS, 160, 6, 8, 3, 51},
    {WB_ROUTER_SQRTSOFTPLUS, 384, 6, 1, 1, 51},   {WB_ROUTER_HASH, 256, 6, 1, 1, 301},
    {WB_ROUTER_HASH, 384, 6, 1, 1, 101},          {WB_ROUTER_SOFTMAX_NORM, 128, 8, 1, 1, 3073},
    {WB_ROUTER_SOFTMAX_NORM, 256, 8, 1, 1, 3073}, {WB_ROUTER_SOFTMAX, 64, 8, 1, 1, 3075},
    {WB_ROUTER_TOPK_SOFTMAX, 60, 4, 1, 1, 3072},  {WB_ROUTER_SOFTMAX_NORM, 33, 1, 1, 1, 3199},
    {WB_ROUTER_SOFTMAX, 101, 7, 1, 1, 3077},      {WB_ROUTER_SIGMOID, 160, 6, 1, 1, 3100},
    {WB_ROUTER_SQRTSOFTPLUS, 250, 5, 1, 1, 3073}, {WB_ROUTER_SIGMOID, 128, 8, 1, 1, 3080},
    {WB_ROUTER_SIGMOID, 256, 8, 8, 4, 3073},      {WB_ROUTER_SQRTSOFTPLUS, 256, 3, 8, 1, 3074},
    {WB_ROUTER_SOFTMAX, 256, 8, 8, 3, 3073},
};
enum { SHAPES = sizeof shapes / sizeof shapes[0] };

/* One problem, on the host. */
typedef struct problem {
    wb_router router;
    logit_kind kind;
    int64_t T;
    size_t shift; /* floats by which logits and dlogits start off alignment */
    wb_dtype dtype;
    float *logits, *bias, *dweights;
    int32_t *table, *tokens;
    uint8_t *forced; /* NULL: none */
    bool native;     /* ask for the native ids */
    bool with_bias;
    size_t id_bytes; /* of the route tensor [T][LAYERS][K], guard included */
    void *ids;       /* what it holds before topk */
    void *chosen;    /* ids for the gate, repeated ones too */
} problem;

/* What a device made of it, guards included. */
typedef struct answer {
    uint8_t *ids, *native;
    uint8_t *weights, *dlogits;
    size_t id_bytes, native_bytes, weight_bytes, dlogit_bytes;
} answer;

static uint64_t rng_state;

static uint64_t rng_next(void) {
    return wb_random(&rng_state);
}

static uint32_t rng_below(uint32_t n) {
    return (uint32_t)(rng_next() % n);
}

static float rng_unit(void) {
    return (float)(rng_next() >> 40) * 0x1p-24f;
}

static float rng_normal(void) {
    float sum = -6.0f;
    for (int i = 0; i < 12; i++) sum += rng_unit();
    return sum;
}

static void must(wb_status status, const char *what) {
    if (status == WB_OK) return;
    fprintf(stderr, "%s: %s: %s\n", what, wb_status_string(status), wb_error_message());
    exit(1);
}

static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s\n", what);
    exit(1);
}

static void *must_alloc(size_t bytes) {
    void *memory = malloc(bytes ? bytes : 1);
    if (!memory) fail("host memory");
    return memory;
}

/* ---- problems -------------------------------------------------------------------------------- */

static float make_logit(logit_kind kind) {
    static const float specials[] = {NAN, INFINITY, -INFINITY, 0.0f, -0.0f, 1e-40f, -120.0f, 3e38f};
    if (kind == TIES) return (float)(int)rng_below(5) * 0.5f - 1.0f;
    if (kind == NEAR)
        return wb_bits_float((wb_float_bits(0.01f * (float)((int)rng_below(500) - 250)) & ~0xffu) |
                             rng_below(200));
    if (kind == SPECIALS && rng_below(4) == 0) return specials[rng_below(sizeof specials / sizeof *specials)];
    return 3.0f * rng_normal();
}

static void put_id(void *ids, wb_dtype dtype, size_t at, uint32_t id) {
    if (dtype == WB_U8)
        ((uint8_t *)ids)[at] = (uint8_t)id;
    else
        ((uint16_t *)ids)[at] = (uint16_t)id;
}

/* The route tensor's view of layer LAYER. */
static wb_ids layer_view(const problem *p, void *base) {
    wb_ids ids = {base, p->dtype, (int64_t)LAYERS * p->router.top_k};
    ids.data = (uint8_t *)base + (size_t)LAYER * (size_t)p->router.top_k * wb_dtype_size(p->dtype);
    return ids;
}

static void *make_ids(const problem *p) {
    size_t count = (size_t)p->T * LAYERS * (size_t)p->router.top_k;
    uint8_t *ids = must_alloc(p->id_bytes);
    memset(ids, POISON, p->id_bytes);
    for (size_t i = 0; i < count; i++) put_id(ids, p->dtype, i, rng_below((uint32_t)p->router.n_experts));
    return ids;
}

/* Native, padding, or forced by any other number. */
static uint8_t random_direction(void) {
    if (rng_below(3) > 0) return WB_ROW_NATIVE;
    return (uint8_t)(rng_below(2) == 0 ? WB_ROW_PADDING : 1 + rng_below(255));
}

static problem make_problem(const shape *s, logit_kind kind, unsigned variant) {
    problem p = {.kind = kind, .T = s->T};
    wb_router router = {s->type, s->E, s->K, s->n_group, s->topk_group, (variant & 1u) == 0, 1.0f};
    if (variant & 2u) router.scale = 2.5f;
    size_t T = (size_t)s->T, E = (size_t)s->E, K = (size_t)s->K;
    p.router = router;
    p.shift = (variant & 4u) ? 1 : 0;
    p.dtype = s->E > 256 || (variant & 8u) ? WB_U16 : WB_U8;
    p.native = (variant & 1u) == 0;
    p.with_bias = (variant & 2u) == 0;
    p.logits = must_alloc(T * E * sizeof(float));
    for (size_t i = 0; i < T * E; i++) p.logits[i] = make_logit(kind);
    p.bias = must_alloc(E * sizeof(float));
    for (size_t i = 0; i < E; i++)
        p.bias[i] = kind == TIES ? 0.25f * (float)rng_below(3) : 0.3f * rng_normal();
    p.dweights = must_alloc(T * K * sizeof(float));
    for (size_t i = 0; i < T * K; i++) p.dweights[i] = rng_normal();
    p.table = must_alloc(VOCABULARY * K * sizeof(int32_t));
    for (size_t i = 0; i < VOCABULARY * K; i++) p.table[i] = (int32_t)rng_below((uint32_t)E);
    p.tokens = must_alloc(T * sizeof(int32_t));
    for (size_t i = 0; i < T; i++) p.tokens[i] = (int32_t)rng_below(VOCABULARY);
    if (variant & 4u) {
        p.forced = must_alloc(T);
        for (size_t i = 0; i < T; i++) p.forced[i] = random_direction();
    }
    p.id_bytes = T * LAYERS * K * wb_dtype_size(p.dtype) + GUARD;
    p.ids = make_ids(&p);
    p.chosen = make_ids(&p);
    return p;
}

static void free_problem(problem *p) {
    void *parts[] = {p->logits, p->bias, p->dweights, p->table, p->tokens, p->forced, p->ids, p->chosen};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) free(parts[i]);
}

/* ---- answers --------------------------------------------------------------------------------- */

/* Device memory of `before` + `bytes`; the last `bytes` are filled from `host`, or with poison for NULL. */
static void *upload(wb_device *dev, const void *host, size_t before, size_t bytes) {
    void *device = NULL, *poison = must_alloc(bytes);
    must(dev->mem_alloc(dev, before + bytes, &device), "mem_alloc");
    memset(poison, POISON, bytes);
    must(dev->to_device(dev, (uint8_t *)device + before, host ? host : poison, bytes), "to_device");
    free(poison);
    return device;
}

static uint8_t *download(wb_device *dev, const void *device, size_t bytes) {
    uint8_t *host = must_alloc(bytes);
    must(dev->to_host(dev, host, device, bytes), "to_host");
    return host;
}

static void run_topk(wb_device *dev, const problem *p, float *logits, answer *a) {
    size_t T = (size_t)p->T, E = (size_t)p->router.n_experts, K = (size_t)p->router.top_k;
    a->id_bytes = p->id_bytes;
    a->native_bytes = T * K * sizeof(uint16_t) + GUARD;
    void *bias = upload(dev, p->bias, 0, E * sizeof(float));
    void *table = upload(dev, p->table, 0, VOCABULARY * K * sizeof(int32_t));
    void *tokens = upload(dev, p->tokens, 0, T * sizeof(int32_t));
    void *forced = p->forced ? upload(dev, p->forced, 0, T) : NULL;
    void *ids = upload(dev, p->ids, 0, a->id_bytes);
    void *native = upload(dev, NULL, 0, a->native_bytes);
    wb_topk args = {.router = p->router, .T = p->T, .logits = logits, .table = table, .tokens = tokens};
    args.bias = p->with_bias ? bias : NULL;
    args.direction = forced;
    args.ids = layer_view(p, ids);
    if (p->native) args.native = (wb_ids){native, WB_U16, p->router.top_k};
    must(dev->topk(dev, &args), "topk");
    a->ids = download(dev, ids, a->id_bytes);
    a->native = download(dev, native, a->native_bytes);
    void *parts[] = {bias, table, tokens, forced, ids, native};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) dev->mem_free(dev, parts[i]);
}

static void run_gate(wb_device *dev, const problem *p, float *logits, answer *a) {
    size_t T = (size_t)p->T, E = (size_t)p->router.n_experts, K = (size_t)p->router.top_k;
    size_t shift = p->shift * sizeof(float);
    a->weight_bytes = T * K * sizeof(float) + GUARD;
    a->dlogit_bytes = T * E * sizeof(float) + GUARD;
    void *ids = upload(dev, p->chosen, 0, p->id_bytes);
    void *dweights = upload(dev, p->dweights, 0, T * K * sizeof(float));
    void *weights = upload(dev, NULL, 0, a->weight_bytes);
    void *dlogits = upload(dev, NULL, shift, a->dlogit_bytes);
    uint8_t *dlogits_at = (uint8_t *)dlogits + shift;
    wb_ids view = layer_view(p, ids);
    uint8_t *direction = p->forced ? upload(dev, p->forced, 0, T) : NULL;
    must(dev->gate_forward(dev, &p->router, p->T, logits, direction, view, weights), "gate_forward");
    must(dev->gate_backward(dev, &p->router, p->T, logits, direction, view, dweights,
                            (float *)(void *)dlogits_at),
         "gate_backward");
    a->weights = download(dev, weights, a->weight_bytes);
    a->dlogits = download(dev, dlogits_at, a->dlogit_bytes);
    void *parts[] = {ids, dweights, weights, dlogits, direction};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) dev->mem_free(dev, parts[i]);
}

static answer run(wb_device *dev, const problem *p) {
    answer a = {0};
    size_t shift = p->shift * sizeof(float);
    void *memory = upload(dev, p->logits, shift, (size_t)p->T * (size_t)p->router.n_experts * sizeof(float));
    float *logits = (float *)memory + p->shift;
    run_topk(dev, p, logits, &a);
    run_gate(dev, p, logits, &a);
    dev->mem_free(dev, memory);
    return a;
}

static void free_answer(answer *a) {
    free(a->ids), free(a->native), free(a->weights), free(a->dlogits);
}

/* ---- comparison ------------------------------------------------------------------------------ */

static void report(const problem *p, const char *what, size_t at) {
    fprintf(
        stderr,
        "FAILED: %s differ at %zu: router %s E %d K %d groups %d/%d T %" PRId64 " logits %s %s shift %zu\n",
        what, at, wb_router_name(p->router.type), p->router.n_experts, p->router.top_k, p->router.topk_group,
        p->router.n_group, p->T, kind_names[p->kind], wb_dtype_name(p->dtype), p->shift);
    exit(1);
}

static void compare_bytes(const problem *p, const char *what, const uint8_t *cpu, const uint8_t *cuda,
                          size_t bytes) {
    for (size_t i = 0; i < bytes; i++)
        if (cpu[i] != cuda[i]) report(p, what, i);
}

/* Bit for bit, guard included; finite where the logits are. */
static void compare_floats(const problem *p, const char *what, const uint8_t *cpu, const uint8_t *cuda,
                           size_t bytes) {
    size_t values = (bytes - GUARD) / sizeof(float);
    for (size_t i = 0; i < values; i++) {
        float a, b;
        memcpy(&a, cpu + i * sizeof a, sizeof a);
        memcpy(&b, cuda + i * sizeof b, sizeof b);
        if (p->kind == SPECIALS && isnan(a) && isnan(b)) continue;
        if (!(p->kind == SPECIALS || isfinite(b)) || memcmp(&a, &b, sizeof a) != 0) {
            fprintf(stderr, "expected %.9g, found %.9g\n", (double)a, (double)b);
            report(p, what, i);
        }
    }
    compare_bytes(p, "guards", cpu + values * sizeof(float), cuda + values * sizeof(float), GUARD);
}

static void compare(const problem *p, const answer *cpu, const answer *cuda) {
    compare_bytes(p, "ids", cpu->ids, cuda->ids, cpu->id_bytes);
    compare_bytes(p, "native ids", cpu->native, cuda->native, cpu->native_bytes);
    compare_floats(p, "weights", cpu->weights, cuda->weights, cpu->weight_bytes);
    compare_floats(p, "dlogits", cpu->dlogits, cuda->dlogits, cpu->dlogit_bytes);
}

/* ---- tests ----------------------------------------------------------------------------------- */

static void test_same_bits(wb_device *cpu, wb_device *cuda) {
    for (unsigned s = 0; s < SHAPES; s++)
        for (int kind = 0; kind < LOGIT_KINDS; kind++)
            for (unsigned round = 0; round < 3; round++) {
                problem p = make_problem(&shapes[s], (logit_kind)kind, rng_below(16));
                answer expected = run(cpu, &p), found = run(cuda, &p);
                compare(&p, &expected, &found);
                free_answer(&expected);
                free_answer(&found);
                free_problem(&p);
            }
    printf("ids, weights, dlogits: %d shapes, the same bits\n", (int)SHAPES);
}

static void test_memory(wb_device *cuda) {
    uint8_t text[1000], back[1000];
    for (size_t i = 0; i < sizeof text; i++) text[i] = (uint8_t)rng_next();
    void *a = NULL, *b = NULL, *empty = NULL;
    must(cuda->mem_alloc(cuda, sizeof text, &a), "mem_alloc");
    must(cuda->mem_alloc(cuda, sizeof text, &b), "mem_alloc");
    must(cuda->mem_alloc(cuda, 0, &empty), "mem_alloc of 0 bytes");
    if (!empty || (uintptr_t)a % 64 != 0) fail("mem_alloc: NULL or not aligned");
    must(cuda->to_device(cuda, a, text, sizeof text), "to_device");
    must(cuda->copy(cuda, b, a, sizeof text), "copy");
    must(cuda->zero(cuda, (uint8_t *)b + 10, 20), "zero");
    must(cuda->to_host(cuda, back, b, sizeof back), "to_host");
    memset(text + 10, 0, 20);
    if (memcmp(text, back, sizeof text) != 0) fail("memory: to_device, copy, zero, to_host");
    void *huge = text;
    if (cuda->mem_alloc(cuda, (size_t)1 << 60, &huge) != WB_OUT_OF_MEMORY || huge != text)
        fail("mem_alloc of 2^60 bytes: expected out of memory, output untouched");
    cuda->mem_free(cuda, a);
    cuda->mem_free(cuda, b);
    cuda->mem_free(cuda, empty);
    cuda->mem_free(cuda, NULL);
    must(cuda->zero(cuda, NULL, 0), "zero of 0 bytes");
    printf("memory: ok\n");
}

static void expect_invalid(wb_status status, const char *what) {
    if (status != WB_INVALID_ARGUMENT) fail(what);
}

static void test_refusals(wb_device *cuda) {
    wb_router router = {WB_ROUTER_SOFTMAX_NORM, 300, 8, 1, 1, false, 1.0f}, bad = router;
    wb_ids u8 = {NULL, WB_U8, 8}, u16 = {NULL, WB_U16, 8}, i32 = {NULL, WB_I32, 8};
    wb_topk topk = {.router = router, .ids = u8};
    expect_invalid(cuda->topk(cuda, &topk), "topk takes u8 ids for 300 experts");
    topk.ids = i32;
    expect_invalid(cuda->topk(cuda, &topk), "topk takes i32 ids");
    topk.ids = u16;
    must(cuda->topk(cuda, &topk), "topk of no rows");
    topk.router.type = WB_ROUTER_HASH;
    expect_invalid(cuda->topk(cuda, &topk), "topk takes a hash router without a table");
    bad.top_k = 301;
    expect_invalid(cuda->gate_forward(cuda, &bad, 0, NULL, NULL, u16, NULL), "gate_forward takes K > E");
    expect_invalid(cuda->gate_forward(cuda, &router, 0, NULL, NULL, u8, NULL),
                   "gate_forward takes u8 for 300 experts");
    expect_invalid(cuda->gate_backward(cuda, &router, -1, NULL, NULL, u16, NULL, NULL),
                   "gate_backward takes T < 0");
    must(cuda->gate_forward(cuda, &router, 0, NULL, NULL, u16, NULL), "gate_forward of no rows");
    must(cuda->gate_backward(cuda, &router, 0, NULL, NULL, u16, NULL, NULL), "gate_backward of no rows");
    wb_device *none = cuda;
    if (wb_device_open_cuda(4096, NULL, &none) != WB_UNSUPPORTED || none != cuda)
        fail("device 4096: expected unsupported, output untouched");
    printf("refusals: ok\n");
}

int main(int argc, char **argv) {
    wb_device *cuda = NULL, *cpu = NULL;
    wb_status status = wb_device_open_cuda(0, NULL, &cuda);
    if (status == WB_UNSUPPORTED) {
        printf("skipped: %s\n", wb_error_message());
        return SKIP;
    }
    must(status, "wb_device_open_cuda");
    must(wb_device_open_cpu(0, &cpu), "wb_device_open_cpu");
    rng_state = argc > 1 ? strtoull(argv[1], NULL, 0) : 20260801;
    printf("seed %" PRIu64 ", %s against %s\n", rng_state, cuda->name, cpu->name);
    test_memory(cuda);
    test_refusals(cuda);
    test_same_bits(cpu, cuda);
    wb_device_close(cpu);
    wb_device_close(cuda);
    return 0;
}
