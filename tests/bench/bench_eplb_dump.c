/* bench_eplb_dump.c - how fast a step of a dump is counted (wb_dump_counts), and what a simulation of it
 * takes afterwards.
 *
 *   bench_eplb_dump FILE [MIB]      e.g. OMP_NUM_THREADS=2 bench_eplb_dump /dev/shm/routes.wbr 2048
 *
 * Writes FILE unless it is there, and leaves it. Records have 4096 rows, 48 layers, 8 of 128 experts (u8),
 * codec raw; 64 ranks, 8 micro-batches. Prints the best of three runs. */
#include "bench/bench_tools.h"
#include "support/usage.h"
#include "wb_eplb.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>
#include <unistd.h>

enum { TOKENS = 4097, LAYERS = 48, K = 8, E = 128, N_RANKS = 64, N_BATCHES = 8, RUNS = 3 };

static void write_dump(const char *path, size_t bytes) {
    static uint32_t layers[LAYERS], tokens[TOKENS];
    size_t row_bytes = LAYERS * K, record_bytes = (TOKENS - 1) * row_bytes;
    uint8_t *ids = malloc(record_bytes);
    uint64_t x = 88172645463325252u;
    wb_dump_writer *writer = NULL;
    wb_dump_options options = wb_dump_options_default();
    if (!ids) exit(1);
    for (uint32_t l = 0; l < LAYERS; l++) layers[l] = l;
    wb_route_model model = {.name = "bench",
                            .fingerprint = "0123456789abcdef0123456789abcdef",
                            .router = "softmax_norm",
                            .num_hidden_layers = LAYERS,
                            .n_moe_layers = LAYERS,
                            .moe_layers = layers,
                            .num_experts = E,
                            .top_k = K};
    must(wb_dump_create(path, &model, &options, &writer));
    for (size_t i = 0; i < bytes / record_bytes; i++) {
        char rid[32];
        snprintf(rid, sizeof rid, "record-%zu", i);
        for (size_t at = 0; at < record_bytes; at += K) {
            x ^= x << 13, x ^= x >> 7, x ^= x << 17;
            /* Eight different ids: an odd stride walks all of a power of two. */
            for (size_t k = 0; k < K; k++) ids[at + k] = (uint8_t)((x + k * (2 * (x >> 32) + 1)) % E);
        }
        wb_route_rows run = {0, TOKENS - 1, ids, NULL};
        wb_record record = {.rid = rid,
                            .prompt_len = 1,
                            .n_tokens = TOKENS,
                            .tokens = tokens,
                            .finish = WB_FINISH_STOP,
                            .n_routes = 1,
                            .routes = &run};
        must(wb_dump_append(writer, &record));
    }
    must(wb_dump_finish(writer));
    free(ids);
}

static void measure(const char *path) {
    const wb_topology topology = {.n_ranks = N_RANKS, .n_nodes = 8, .n_slots = 2 * E};
    const wb_cost_model cost = wb_cost_model_default();
    double best_count = 1e9, best_simulation = 1e9, gb = 0;
    for (int run = 0; run < RUNS; run++) {
        wb_dump *dump = NULL;
        wb_dump_counts *counts = NULL;
        wb_placement *placement = NULL;
        wb_simulation found;
        must(wb_dump_open(path, &dump)); /* each run with checksums, as the first access is */
        uint64_t n = wb_dump_get_info(dump).records;
        double begin = now();
        must(wb_dump_counts_open(dump, NULL, n, N_BATCHES, &topology, NULL, NULL, &counts));
        double count = now() - begin;
        gb = (double)wb_dump_counts_rows(counts) * LAYERS * K / 1e9;
        must(wb_placement_open(&topology, LAYERS, E, &placement));
        const wb_traffic traffic = {N_BATCHES, wb_dump_counts_fill, counts};
        begin = now();
        must(wb_simulate(placement, WB_DISPATCH_QUOTA, &traffic, &cost, NULL, &found));
        double simulation = now() - begin;
        if (count < best_count) best_count = count;
        if (simulation < best_simulation) best_simulation = simulation;
        wb_placement_close(placement);
        wb_dump_counts_close(counts);
        wb_dump_close(dump);
    }
    printf("%.2f GB of ids counted in %.3f s (%.2f GB/s), a simulation (quota) in %.3f s\n", gb, best_count,
           gb / best_count, best_simulation);
}

int main(int argc, char **argv) {
    int code;
    if (usage_ends(argc, argv, 1, 2, "usage: bench_eplb_dump FILE [MIB]\n", &code)) return code;
    size_t mib = argc > 2 ? (size_t)strtoull(argv[2], NULL, 10) : 512;
    if (access(argv[1], F_OK) != 0) write_dump(argv[1], mib << 20);
    measure(argv[1]);
    return 0;
}
