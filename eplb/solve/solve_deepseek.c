/* solve_deepseek.c - the placement that DeepSeek's eplb.py computes, byte for byte, replica order
 * included.
 *
 * Owns: its packing and replication in float32 and in its order of additions, comparisons and ties,
 * torch's order of summation among them. Refuses: what eplb.py refuses (shapes that do not divide, fewer
 * slots than experts), and what it has no idea of: dead ranks, uneven slots, and in hierarchical mode
 * nodes of unequal size.
 *
 * A layer: groups of experts are packed into nodes; inside each node the expert with the largest load a
 * replica gets the next replica, until the slots are used up; the replicas are packed into the node's
 * ranks. Global mode is the same with one group and one node. Packing n items into m packs of n / m:
 * heaviest first, each into the lightest pack with room.
 *
 * Both greedy choices are tournaments over integer keys (float order above, index below), so that a choice
 * costs log2(n) comparisons without branches and ties go to the lowest index. */
#include <math.h>
#include <stdlib.h>
#include <string.h>

#include "placement/placement_internal.h"
#include "wb_memory.h"

/* ---- the shape ------------------------------------------------------------------------------- */

/* In global mode one group and one node. */
typedef struct shape {
    uint32_t n_experts, n_groups, n_nodes;
    uint32_t group_experts, node_groups;
    uint32_t node_experts, node_slots, node_ranks;
} shape;

static bool is_hierarchical(const wb_topology *topology, uint32_t n_groups) {
    return n_groups % topology->n_nodes == 0;
}

static wb_status check_even(const wb_topology *topology, bool hierarchical) {
    const uint32_t rank_slots = topology->n_slots / topology->n_ranks;
    const uint32_t node_ranks = topology->n_ranks / topology->n_nodes;
    for (uint32_t p = 0; p < topology->n_ranks; p++) {
        if (topology->dead != NULL && topology->dead[p])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "deepseek: rank %u is dead, expected live ranks: the others take dead ones", p);
        if (topology->slots_of_rank != NULL && topology->slots_of_rank[p] != rank_slots)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "deepseek: rank %u: expected %u slots as on every rank, found %u", p, rank_slots,
                           topology->slots_of_rank[p]);
        if (hierarchical && topology->node_of_rank != NULL && topology->node_of_rank[p] != p / node_ranks)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "deepseek: rank %u: expected node %u, nodes of %u ranks each, found node %u", p,
                           p / node_ranks, node_ranks, topology->node_of_rank[p]);
    }
    return WB_OK;
}

wb_status wb_solve_deepseek_check(const wb_topology *topology, uint32_t n_experts, uint32_t n_groups) {
    const uint32_t S = topology->n_slots, R = topology->n_ranks, N = topology->n_nodes;
    if (n_experts == 0 || n_groups == 0 || R == 0 || N == 0)
        return wb_fail(
            WB_INVALID_ARGUMENT,
            "deepseek: expected at least one of each, found %u experts, %u groups, %u ranks, %u nodes",
            n_experts, n_groups, R, N);
    const bool hierarchical = is_hierarchical(topology, n_groups);
    if (hierarchical && n_experts % n_groups != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "deepseek: %u experts do not divide into %u groups", n_experts,
                       n_groups);
    if (hierarchical && R % N != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "deepseek: %u ranks do not divide over %u nodes", R, N);
    if (S % R != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "deepseek: %u slots do not divide over %u ranks", S, R);
    if (S < n_experts)
        return wb_fail(WB_INVALID_ARGUMENT, "deepseek: %u slots do not hold %u experts", S, n_experts);
    return check_even(topology, hierarchical);
}

static shape shape_of(const wb_layer_problem *problem) {
    const wb_topology *topology = &problem->frame->topology;
    const uint32_t E = problem->frame->n_experts, G = problem->options->n_groups;
    const bool hierarchical = is_hierarchical(topology, G);
    shape s = {
        .n_experts = E, .n_groups = hierarchical ? G : 1, .n_nodes = hierarchical ? topology->n_nodes : 1};
    s.group_experts = E / s.n_groups;
    s.node_groups = s.n_groups / s.n_nodes;
    s.node_experts = E / s.n_nodes;
    s.node_slots = topology->n_slots / s.n_nodes;
    s.node_ranks = topology->n_ranks / s.n_nodes;
    return s;
}

/* ---- memory of one layer --------------------------------------------------------------------- */

typedef struct expert_state {
    float load, share; /* share: load / replicas */
    uint32_t replicas;
} expert_state;

/* What is packed: a group of experts into a node, or a replica into a rank. */
typedef struct item {
    float weight;
    uint32_t place;           /* pack x items a pack + number in the pack */
    uint32_t expert, replica; /* of a replica: which of the node's experts, and its number there */
} item;

typedef struct pack {
    float weight;
    uint32_t n_items;
} pack;

typedef struct workspace {
    float *loads;          /* [E] */
    uint32_t *expert_at;   /* [E] experts in the order of nodes: node x experts of a node + i */
    expert_state *experts; /* [experts of a node] */
    item *items;           /* [groups or slots of a node] */
    pack *packs;           /* [nodes or ranks of a node] */
    uint64_t *keys;        /* [2 x items] sorting */
    uint64_t *tournament;  /* [2 x players], experts or packs */
} workspace;

static uint32_t max_u32(uint32_t a, uint32_t b) {
    return a > b ? a : b;
}

static void *take(char *block, size_t *used, size_t n, size_t size) {
    const size_t at = *used;
    *used += (n * size + 7) / 8 * 8;
    return block != NULL ? block + at : NULL;
}

/* Bytes of the block; with a block, where everything lies in it. No count is above 2^24: the sum is below
 * 2^31. */
static size_t lay_out(const shape *s, char *block, workspace *w) {
    const size_t items = max_u32(s->n_groups, s->node_slots), packs = max_u32(s->n_nodes, s->node_ranks);
    const size_t players = packs > s->node_experts ? packs : s->node_experts;
    size_t used = 0;
    w->keys = take(block, &used, 2 * items, sizeof *w->keys);
    w->tournament = take(block, &used, 2 * players, sizeof *w->tournament);
    w->items = take(block, &used, items, sizeof *w->items);
    w->experts = take(block, &used, s->node_experts, sizeof *w->experts);
    w->packs = take(block, &used, packs, sizeof *w->packs);
    w->loads = take(block, &used, s->n_experts, sizeof *w->loads);
    w->expert_at = take(block, &used, s->n_experts, sizeof *w->expert_at);
    return used;
}

/* ---- keys and tournaments -------------------------------------------------------------------- */

/* Unsigned order is that of the floats. Not for NaN or -0. */
static uint32_t ascending(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits & 0x80000000U ? ~bits : bits | 0x80000000U;
}

/* The larger float first, -0 as 0; NaN before all, as torch sorts. */
static uint32_t descending(float x) {
    return isnan(x) ? 0 : ~ascending(x + 0.0F);
}

static uint64_t key_of(uint32_t order, uint32_t index) {
    return (uint64_t)order << 32 | index;
}

static uint32_t index_of(uint64_t key) {
    return (uint32_t)key;
}

#define OUT_OF_PLAY UINT64_MAX

/* nodes [2n]: leaf i is nodes[n + i], every other nodes[j] the smaller of nodes[2j] and nodes[2j + 1].
 * Returns nodes[1], the winner. */
static uint64_t start_tournament(uint64_t *nodes, uint32_t n) {
    for (size_t j = n - 1; j >= 1; j--)
        nodes[j] = nodes[2 * j] < nodes[2 * j + 1] ? nodes[2 * j] : nodes[2 * j + 1];
    return nodes[1];
}

/* Leaf i has a new key. Returns the winner. */
static uint64_t play(uint64_t *nodes, uint32_t n, uint32_t i, uint64_t key) {
    size_t at = (size_t)n + i;
    nodes[at] = key;
    while (at > 1) {
        const uint64_t other = nodes[at ^ 1];
        key = other < key ? other : key;
        at /= 2;
        nodes[at] = key;
    }
    return key;
}

static uint32_t digit_of(uint64_t key, int digit) {
    return (uint32_t)(key >> (32 + 8 * digit)) & 255;
}

/* keys [2n], the first n filled: returns n sorted ones, in the first or in the second half. By the upper
 * 32 bits, a digit of 8 bits at a time from the lowest; equal ones keep their order. */
static const uint64_t *sort_keys(uint64_t *keys, uint32_t n) {
    uint32_t begin[256][4] = {0}, sum[4] = {0}; /* by value, then digit: the four are summed side by side */
    for (uint32_t i = 0; i < n; i++)
        for (int digit = 0; digit < 4; digit++) begin[digit_of(keys[i], digit)][digit]++;
    bool differs[4];
    for (int digit = 0; digit < 4; digit++) differs[digit] = begin[digit_of(keys[0], digit)][digit] < n;
    for (int value = 0; value < 256; value++) {
        for (int digit = 0; digit < 4; digit++) {
            const uint32_t count = begin[value][digit];
            begin[value][digit] = sum[digit];
            sum[digit] += count;
        }
    }
    uint64_t *from = keys, *to = keys + n;
    for (int digit = 0; digit < 4; digit++) {
        if (!differs[digit]) continue;
        for (uint32_t i = 0; i < n; i++) to[begin[digit_of(from[i], digit)][digit]++] = from[i];
        uint64_t *sorted = to;
        to = from;
        from = sorted;
    }
    return from;
}

/* ---- torch's sum ----------------------------------------------------------------------------- */

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
    const uint32_t power = max_u32(4, log2_rounds / LEVELS);
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

static float sum_as_torch(const float *x, size_t n) {
    const size_t lanes = n < LANES ? 1 : LANES, rows = n / lanes, rounds = rows / CHAINS;
    float sums[CHAINS * LANES], total = 0;
    sum_chains(x, rounds, lanes, sums);
    for (size_t row = rounds * CHAINS; row < rows; row++) add_to(sums, x + row * lanes, lanes);
    for (size_t chain = 1; chain < CHAINS; chain++) add_to(sums, sums + chain * lanes, lanes);
    for (size_t i = rows * lanes; i < n; i++) total += x[i];
    for (size_t lane = 0; lane < lanes; lane++) total += sums[lane];
    return total;
}

/* ---- the algorithm --------------------------------------------------------------------------- */

/* Places n items in n_packs packs of n / n_packs. One item a pack: item i in pack i whatever its weight.
 * The pack is the one that Python's min() finds: the lightest with room, the lowest index of equals.
 * Nothing is less than NaN and NaN less than nothing: a NaN pack (inf - inf) is found only as the first
 * with room, and then always. */
static void pack_items(workspace *w, uint32_t n, uint32_t n_packs) {
    const uint32_t room = n / n_packs;
    if (room == 1) {
        for (uint32_t i = 0; i < n; i++) w->items[i].place = i;
        return;
    }
    for (uint32_t i = 0; i < n; i++) w->keys[i] = key_of(descending(w->items[i].weight), i);
    const uint64_t *sorted = sort_keys(w->keys, n);
    for (uint32_t p = 0; p < n_packs; p++) {
        w->packs[p] = (pack){0};
        w->tournament[n_packs + p] = key_of(ascending(0), p);
    }
    uint64_t lightest = start_tournament(w->tournament, n_packs);
    uint32_t first_open = 0;
    for (uint32_t i = 0; i < n; i++) {
        item *it = &w->items[index_of(sorted[i])];
        while (w->packs[first_open].n_items == room) first_open++;
        const uint32_t p = isnan(w->packs[first_open].weight) ? first_open : index_of(lightest);
        pack *to = &w->packs[p];
        it->place = p * room + to->n_items++;
        to->weight += it->weight;
        const bool plays = to->n_items < room && !isnan(to->weight);
        const uint64_t key = plays ? key_of(ascending(to->weight), p) : OUT_OF_PLAY;
        lightest = play(w->tournament, n_packs, p, key);
    }
}

/* Fills expert_at. Groups are whole in nodes, and experts keep their order in groups. */
static void place_groups(const shape *s, workspace *w) {
    for (uint32_t g = 0; g < s->n_groups; g++)
        w->items[g].weight = sum_as_torch(w->loads + (size_t)g * s->group_experts, s->group_experts);
    pack_items(w, s->n_groups, s->n_nodes);
    for (uint32_t g = 0; g < s->n_groups; g++)
        for (uint32_t i = 0; i < s->group_experts; i++)
            w->expert_at[w->items[g].place * s->group_experts + i] = g * s->group_experts + i;
}

/* Each of n experts gets one of the node's slots, each slot left the expert with the largest load a
 * replica. */
static void replicate(workspace *w, uint32_t n, uint32_t n_slots) {
    for (uint32_t e = 0; e < n; e++) {
        w->items[e].expert = e;
        w->items[e].replica = 0;
        w->tournament[n + e] = key_of(descending(w->experts[e].load), e);
    }
    uint64_t most = start_tournament(w->tournament, n);
    for (uint32_t slot = n; slot < n_slots; slot++) {
        const uint32_t e = index_of(most);
        expert_state *state = &w->experts[e];
        w->items[slot].expert = e;
        w->items[slot].replica = state->replicas++;
        state->share = state->load / (float)state->replicas;
        most = play(w->tournament, n, e, key_of(descending(state->share), e));
    }
    for (uint32_t slot = 0; slot < n_slots; slot++)
        w->items[slot].weight = w->experts[w->items[slot].expert].share;
}

static void solve_node(const shape *s, workspace *w, uint32_t node, int32_t *expert_of_slot_out,
                       uint32_t *replica_of_slot_out) {
    const uint32_t *expert_at = w->expert_at + (size_t)node * s->node_experts;
    for (uint32_t i = 0; i < s->node_experts; i++) {
        const float load = w->loads[expert_at[i]];
        w->experts[i] = (expert_state){.load = load, .share = load, .replicas = 1};
    }
    replicate(w, s->node_experts, s->node_slots);
    pack_items(w, s->node_slots, s->node_ranks);
    for (uint32_t i = 0; i < s->node_slots; i++) {
        const item *it = &w->items[i];
        const size_t slot = (size_t)node * s->node_slots + it->place;
        expert_of_slot_out[slot] = (int32_t)expert_at[it->expert];
        replica_of_slot_out[slot] = it->replica;
    }
}

wb_status wb_solve_deepseek(const wb_layer_problem *problem, int32_t *expert_of_slot_out,
                            uint32_t *replica_of_slot_out) {
    const shape s = shape_of(problem);
    workspace w;
    void *block;
    WB_TRY(WB_ALLOC(block, lay_out(&s, NULL, &w), 1, "deepseek's workspace"));
    lay_out(&s, block, &w);
    for (uint32_t e = 0; e < s.n_experts; e++) w.loads[e] = (float)problem->loads[e];
    place_groups(&s, &w);
    for (uint32_t node = 0; node < s.n_nodes; node++)
        solve_node(&s, &w, node, expert_of_slot_out, replica_of_slot_out);
    free(block);
    return WB_OK;
}
