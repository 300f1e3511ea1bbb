/* torch_sum.c - see the header. */
#include "solve/torch_sum.h"

#include <string.h>

/* torch.sum over the last, contiguous dimension of a float32 tensor on any x86-64 (as torch 2.15 does with
 * its AVX2 and its default kernels; AVX-512 machines run the AVX2 one). Fewer than 8 numbers are rows of
 * one lane, others rows of 8 lanes and a tail. Row i belongs to chain i mod 4; rows left when 4 does not
 * divide go to chain 0 in the end. A chain adds up in blocks of 2^p rows, 2^p blocks make a sum of the
 * next of four levels, where p is max(4, ceil(log2(rows of a chain)) / 4). Then levels fold into the
 * lowest, chains into chain 0, and the lanes are added to the sum of the tail. Neither other dimensions
 * nor threads matter. */
enum { LANES = 8, CHAINS = 4, LEVELS = 4 };

static void add_to(float *sums, const float *x, size_t n) {
    for (size_t i = 0; i < n; i++) sums[i] += x[i];
}

/* sums_out [CHAINS x lanes] of rounds of CHAINS rows. */
static void sum_chains(const float *x, size_t rounds, size_t lanes, float *sums_out) {
    const size_t width = CHAINS * lanes;
    float levels[LEVELS][CHAINS * LANES] = {0};
    uint32_t log2_rounds = 0;
    while ((size_t)1 << log2_rounds < rounds) log2_rounds++;
    const uint32_t power = log2_rounds / LEVELS > 4 ? log2_rounds / LEVELS : 4;
    for (size_t i = 1; i <= rounds; i++) {
        add_to(levels[0], x + (i - 1) * width, width);
        for (uint32_t level = 1; level < LEVELS && i % ((size_t)1 << level * power) == 0; level++) {
            add_to(levels[level], levels[level - 1], width);
            memset(levels[level - 1], 0, width * sizeof(float));
        }
    }
    for (int level = 1; level < LEVELS; level++) add_to(levels[0], levels[level], width);
    memcpy(sums_out, levels[0], width * sizeof(float));
}

float wb_torch_sum(const float *x, size_t n) {
    const size_t lanes = n < LANES ? 1 : LANES, rows = n / lanes, rounds = rows / CHAINS;
    float sums[CHAINS * LANES], total = 0;
    sum_chains(x, rounds, lanes, sums);
    for (size_t row = rounds * CHAINS; row < rows; row++) add_to(sums, x + row * lanes, lanes);
    for (size_t chain = 1; chain < CHAINS; chain++) add_to(sums, sums + chain * lanes, lanes);
    for (size_t i = rows * lanes; i < n; i++) total += x[i];
    for (size_t lane = 0; lane < lanes; lane++) total += sums[lane];
    return total;
}
