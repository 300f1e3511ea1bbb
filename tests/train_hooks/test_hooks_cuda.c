/* test_hooks_cuda.c - a foreign trainer's step with its tensors on a CUDA device: what the CPU gives, bit for
 * bit, by calls and by a graph of them; what a dispatcher does otherwise and weights that are no numbers are
 * told by the end of the step.
 * A plain program, so that it needs no test library; 77, with the reason, where there is no CUDA device. */
#include "wb_device.h"
#include "wb_train_hooks.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SKIP = 77, E = 32, K = 4, L = 2, TOKENS = 40, PADDING = 9, T = TOKENS + PADDING };

static uint32_t tokens[TOKENS];
static uint8_t routes[TOKENS - 1][L][K];
static float logits[T][E];

static void fail(const char *what) {
    fprintf(stderr, "FAILED: %s: %s\n", what, wb_error_message());
    exit(1);
}

static void must(wb_status status, const char *what) {
    if (status != WB_OK) fail(what);
}

static void must_be(wb_status expected, wb_status status, const char *message, const char *what) {
    if (status != expected || !strstr(wb_error_message(), message)) fail(what);
}

/* A trainer whose tensors are on `dev`. */
typedef struct trainer {
    wb_device *dev;
    wb_replay *replay;
    wb_hooks *hooks;
    void *logits, *ids, *weights; /* device [T][E], [T][K] u16, [T][K] */
} trainer;

static void open_trainer(trainer *f, wb_device *dev) {
    static const uint32_t layers[L] = {0, 1};
    static const wb_route_rows run = {0, TOKENS - 1, routes, NULL};
    const wb_route_model model = {.name = "tiny",
                                  .fingerprint = "0123456789abcdef0123456789abcdef",
                                  .router = "sigmoid",
                                  .num_hidden_layers = L,
                                  .n_moe_layers = L,
                                  .moe_layers = layers,
                                  .num_experts = E,
                                  .top_k = K};
    const wb_record record = {
        .rid = "r", .prompt_len = 1, .n_tokens = TOKENS, .tokens = tokens, .n_routes = 1, .routes = &run};
    wb_hooks_options options = wb_hooks_options_default();
    f->dev = dev;
    must(wb_replay_open(&model, NULL, &f->replay), "replay");
    must(wb_replay_add(f->replay, &model, &record), "record");
    options.device = dev;
    options.replay = f->replay;
    options.router = (wb_router){WB_ROUTER_SIGMOID, E, K, 1, 1, true, 1.5f};
    must(wb_hooks_open(&options, &f->hooks), "hooks");
    must(wb_device_alloc(dev, sizeof logits, &f->logits), "alloc");
    must(wb_device_alloc(dev, T * K * sizeof(uint16_t), &f->ids), "alloc");
    must(wb_device_alloc(dev, T * K * sizeof(float), &f->weights), "alloc");
    must(dev->to_device(dev, f->logits, logits, sizeof logits), "logits");
}

static void close_trainer(trainer *f) {
    wb_device_free(f->dev, f->logits);
    wb_device_free(f->dev, f->ids);
    wb_device_free(f->dev, f->weights);
    wb_hooks_close(f->hooks);
    wb_replay_close(f->replay);
    wb_device_close(f->dev);
}

static void begin(trainer *f) {
    must(wb_hooks_step_begin(f->hooks, WB_REPLAY_ROLLOUT, 1), "begin");
    const wb_segment s[2] = {wb_replay_segment(f->replay, "r", 0, TOKENS, tokens),
                             {WB_SEGMENT_PADDING, NULL, 0, PADDING, NULL}};
    must(wb_replay_plan(f->replay, 0, 2, s), "plan");
}

static wb_status gate(trainer *f, int32_t l) {
    return wb_hooks_gate_forward(f->hooks, 0, l, 0, T, f->logits, (wb_ids){f->ids, WB_U16, K}, f->weights);
}

static wb_status dispatched(trainer *f, int32_t l) {
    return wb_hooks_dispatched(f->hooks, 0, l, 0, T, (wb_ids){f->ids, WB_U16, K});
}

static void write_logit(trainer *f, size_t row, size_t expert, float value) {
    float *at = (float *)f->logits + row * E + expert;
    must(f->dev->to_device(f->dev, at, &value, sizeof value), "a logit");
}

/* What a gate gave, on the host. */
typedef struct gate_out {
    uint16_t ids[T][K];
    float weights[T][K];
} gate_out;

static gate_out read_gate(trainer *f) {
    gate_out out;
    must(f->dev->to_host(f->dev, out.ids, f->ids, sizeof out.ids), "ids");
    must(f->dev->to_host(f->dev, out.weights, f->weights, sizeof out.weights), "weights");
    return out;
}

static void test_a_step_is_the_cpus(trainer *cpu, trainer *cuda) {
    begin(cpu);
    begin(cuda);
    for (int pass = 0; pass < 2; pass++)
        for (int32_t l = 0; l < L; l++) {
            must(gate(cpu, l), "the CPU's gate");
            must(gate(cuda, l), "the gate");
            gate_out expected = read_gate(cpu), found = read_gate(cuda);
            if (memcmp(&expected, &found, sizeof found) != 0) fail("ids or weights differ from the CPU's");
            must(dispatched(cpu, l), "the CPU's dispatch");
            must(dispatched(cuda, l), "dispatch");
        }
    wb_replay_metrics of_cpu, of_cuda;
    must(wb_hooks_step_end(cpu->hooks, &of_cpu), "the CPU's end");
    must(wb_hooks_step_end(cuda->hooks, &of_cuda), "end");
    if (memcmp(&of_cpu, &of_cuda, sizeof of_cpu) != 0) fail("metrics differ from the CPU's");
}

static void test_a_dispatcher_is_found(trainer *f) {
    begin(f);
    must(gate(f, 0), "the gate");
    gate_out out = read_gate(f);
    uint16_t other = (uint16_t)(out.ids[7][1] == out.ids[7][0] ? 0 : out.ids[7][0]);
    void *at = (uint16_t *)f->ids + 7 * K + 1;
    must(f->dev->to_device(f->dev, at, &other, sizeof other), "an id");
    must(dispatched(f, 0), "dispatch");
    must_be(WB_MISMATCH, wb_hooks_step_end(f->hooks, NULL), "MoE layer 0, row 7 was not routed as planned",
            "another expert passes");
    wb_hooks_step_abort(f->hooks);
    begin(f);
    must(gate(f, 0), "the gate");
    must(dispatched(f, 0), "dispatch");
    must_be(WB_MISMATCH, wb_hooks_step_end(f->hooks, NULL), "MoE layer 1", "a layer left out passes");
    wb_hooks_step_abort(f->hooks);
}

/* And an aborted step takes what was found along. */
static void test_weights_that_are_no_numbers_are_seen(trainer *f) {
    const size_t row = 7, expert = routes[row][0][1];
    for (int end = 0; end < 2; end++) {
        begin(f);
        write_logit(f, row, expert, NAN);
        must(gate(f, 0), "the gate");
        if (end)
            must_be(WB_INVALID_ARGUMENT, wb_hooks_step_end(f->hooks, NULL),
                    "MoE layer 0, row 7: expected finite logits", "NaN passes");
        wb_hooks_step_abort(f->hooks);
        write_logit(f, row, expert, logits[row][expert]);
    }
}

/* Where nothing is forced nothing else waits for the device, and the next step must hear nothing of it. */
static void test_mode_off_waits_too(trainer *f) {
    for (int end = 0; end < 2; end++) {
        must(wb_hooks_step_begin(f->hooks, WB_REPLAY_OFF, 1), "begin");
        for (size_t e = 0; e < E; e++) write_logit(f, 7, e, NAN);
        must(gate(f, 0), "the gate");
        if (end) {
            must_be(WB_INVALID_ARGUMENT, wb_hooks_step_end(f->hooks, NULL), "expected finite logits",
                    "NaN passes");
            must_be(WB_INVALID_ARGUMENT, wb_hooks_step_end(f->hooks, NULL), "refused before",
                    "a second end passes");
        }
        wb_hooks_step_abort(f->hooks);
        for (size_t e = 0; e < E; e++) write_logit(f, 7, e, logits[7][e]);
        must(f->dev->to_host(f->dev, NULL, NULL, 0), "what was found before");
    }
}

static void run(trainer *f) {
    for (int32_t l = 0; l < L; l++) {
        must(gate(f, l), "the gate");
        must(dispatched(f, l), "dispatch");
    }
}

/* Captured in the first step, launched in two, with other logits in the second. */
static void test_a_graph_is_the_cpus_step(trainer *cpu, trainer *cuda) {
    void *graph = NULL;
    for (int step = 0; step < 2; step++) {
        wb_replay_metrics of_cpu, of_cuda;
        begin(cpu);
        begin(cuda);
        for (size_t e = 0; e < E; e++) {
            write_logit(cpu, 5, e, (float)(e * (size_t)(step + 3) % E));
            write_logit(cuda, 5, e, (float)(e * (size_t)(step + 3) % E));
        }
        must(wb_hooks_upload(cuda->hooks, 0), "upload");
        if (step == 0) must(cuda->dev->graph_begin(cuda->dev), "a capture");
        if (step == 0) run(cuda);
        if (step == 0) must(cuda->dev->graph_end(cuda->dev, &graph), "the end of a capture");
        must(cuda->dev->graph_launch(cuda->dev, graph), "a launch");
        if (step > 0) must(wb_hooks_launched(cuda->hooks, 0), "launched");
        run(cpu);
        gate_out expected = read_gate(cpu), found = read_gate(cuda);
        if (memcmp(&expected, &found, sizeof found) != 0) fail("a launch differs from the CPU's step");
        must(wb_hooks_step_end(cpu->hooks, &of_cpu), "the CPU's end");
        must(wb_hooks_step_end(cuda->hooks, &of_cuda), "end");
        if (memcmp(&of_cpu, &of_cuda, sizeof of_cpu) != 0) fail("metrics of a launch differ from the CPU's");
    }
    cuda->dev->graph_free(cuda->dev, graph);
}

int main(void) {
    wb_device *device;
    if (wb_device_open_cuda(0, NULL, &device) != WB_OK) {
        printf("skipped: %s\n", wb_error_message());
        return SKIP;
    }
    for (size_t i = 0; i < TOKENS; i++) tokens[i] = (uint32_t)(i * 7);
    for (size_t i = 0; i < sizeof routes; i++)
        (&routes[0][0][0])[i] = (uint8_t)((i / K * 11 + i % K * 5) % E);
    for (size_t i = 0; i < (size_t)T * E; i++) logits[i / E][i % E] = (float)(i * 2654435761u % 1000) * 0.01f;
    trainer cpu, cuda;
    open_trainer(&cuda, device);
    must(wb_device_open_cpu(1, &device), "the CPU");
    open_trainer(&cpu, device);
    test_a_step_is_the_cpus(&cpu, &cuda);
    test_a_graph_is_the_cpus_step(&cpu, &cuda);
    test_a_dispatcher_is_found(&cuda);
    test_weights_that_are_no_numbers_are_seen(&cuda);
    test_mode_off_waits_too(&cuda);
    close_trainer(&cpu);
    close_trainer(&cuda);
    printf("passed\n");
    return 0;
}
