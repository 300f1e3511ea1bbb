/* test_dispatch_rules_cuda.cu - the rule of wb_dispatch_rules.h inside a kernel against the same functions on
 * the host: the same slot for every pair of token and expert, under static and dynamic tables.
 *
 * A plain program, so that it needs no test library; 77, with the reason, where there is no CUDA device.
 * argv[1]: the seed.
 */
#include "wb_dispatch_rules.h"

#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <cuda_runtime.h>

namespace {

enum { SKIP = 77, ROUNDS = 20, T = 257, MAX_E = 300, MAX_REPLICAS = 8, POISON = 0xcd };
constexpr size_t TABLE = MAX_E + 1 + MAX_E * MAX_REPLICAS;

void need(cudaError_t status, const char *what) {
    if (status == cudaSuccess) return;
    std::fprintf(stderr, "%s: %s\n", what, cudaGetErrorString(status));
    std::exit(1);
}

/* slots[t, e]: where token t goes for expert e. */
__global__ void look_up(wb_dispatch_rule rule, uint32_t n_experts, const uint64_t *keys, int32_t *slots) {
    for (uint32_t e = threadIdx.x; e < n_experts; e += blockDim.x)
        slots[blockIdx.x * n_experts + e] = wb_dispatch_slot(&rule, e, keys[blockIdx.x]);
}

/* A dynamic table of 1..8 replicas an expert, with slots that no other place in the table holds. */
size_t fill_dynamic(uint32_t n_experts, uint64_t *random, int32_t *table) {
    int32_t n = 0;
    table[0] = 0;
    for (uint32_t e = 0; e < n_experts; e++)
        table[e + 1] = n += 1 + static_cast<int32_t>(wb_random_below(random, MAX_REPLICAS));
    for (int32_t j = 0; j < n; j++) table[n_experts + 1 + static_cast<uint32_t>(j)] = (1 << 24) - 1 - j;
    return n_experts + 1 + static_cast<size_t>(n);
}

struct problem {
    uint32_t n_experts, layer;
    int32_t table[TABLE];
    size_t length;
    uint64_t keys[T];
    bool dynamic;
};

wb_dispatch_rule rule_over(const problem &p, const int32_t *table) {
    return wb_dispatch_table_rule(p.dynamic, table, p.n_experts, p.layer);
}

/* The number of pairs for which the device's slot is not the host's. */
int compare(const problem &p, uint64_t seed) {
    size_t pairs = static_cast<size_t>(T) * p.n_experts;
    int32_t *table = nullptr, *slots = nullptr, *found = static_cast<int32_t *>(std::malloc(pairs * 4));
    uint64_t *keys = nullptr;
    int faults = 0;
    if (!found) std::exit(1);
    need(cudaMalloc(&table, p.length * sizeof *table), "table");
    need(cudaMalloc(&slots, pairs * sizeof *slots), "slots");
    need(cudaMalloc(&keys, sizeof p.keys), "keys");
    need(cudaMemcpy(table, p.table, p.length * sizeof *table, cudaMemcpyHostToDevice), "table");
    need(cudaMemcpy(keys, p.keys, sizeof p.keys, cudaMemcpyHostToDevice), "keys");
    need(cudaMemset(slots, POISON, pairs * sizeof *slots), "slots");
    look_up<<<T, 64>>>(rule_over(p, table), p.n_experts, keys, slots);
    need(cudaGetLastError(), "launch");
    need(cudaMemcpy(found, slots, pairs * sizeof *slots, cudaMemcpyDeviceToHost), "slots");
    const wb_dispatch_rule rule = rule_over(p, p.table);
    for (size_t i = 0; i < pairs; i++) {
        uint32_t e = static_cast<uint32_t>(i % p.n_experts);
        int32_t expected = wb_dispatch_slot(&rule, e, p.keys[i / p.n_experts]);
        if (found[i] == expected || faults++ > 0) continue;
        std::fprintf(stderr,
                     "seed %" PRIu64 ", %s, layer %" PRIu32 ", expert %" PRIu32 ", key %" PRIx64
                     ": expected slot %" PRId32 ", found %" PRId32 "\n",
                     seed, p.dynamic ? "dynamic" : "static", p.layer, e, p.keys[i / p.n_experts], expected,
                     found[i]);
    }
    std::free(found);
    need(cudaFree(table), "table");
    need(cudaFree(slots), "slots");
    need(cudaFree(keys), "keys");
    return faults;
}

} // namespace

int main(int argc, char **argv) {
    uint64_t seed = argc > 1 ? std::strtoull(argv[1], nullptr, 10) : 20261, random = wb_mix64(seed);
    int n_devices = 0, faults = 0;
    static problem p;
    std::printf("seed %" PRIu64 "\n", seed);
    if (cudaGetDeviceCount(&n_devices) != cudaSuccess || n_devices == 0) {
        std::printf("skip: no CUDA device\n");
        return SKIP;
    }
    for (int round = 0; round < ROUNDS; round++) {
        p.n_experts = 1 + wb_random_below(&random, MAX_E);
        p.layer = wb_random_below(&random, 100);
        p.dynamic = round % 2 == 0;
        p.length = fill_dynamic(p.n_experts, &random, p.table);
        if (!p.dynamic) { /* any numbers: the slots of the dynamic table */
            std::memmove(p.table, p.table + p.n_experts + 1, p.n_experts * sizeof *p.table);
            p.length = p.n_experts;
        }
        for (uint64_t &key : p.keys) key = wb_random(&random);
        faults += compare(p, seed);
    }
    if (faults > 0) std::fprintf(stderr, "%d slots differ\n", faults);
    return faults > 0;
}
