/* solve_deepseek.c - the placement that DeepSeek's eplb.py computes, byte for byte, replica order
 * included.
 *
 * Owns: its packing and replication in float32 and in its order of additions, comparisons and ties.
 * Refuses: what eplb.py refuses (shapes that do not divide, fewer slots than experts), and what it knows
 * nothing of: dead ranks, uneven slots, and in hierarchical mode nodes of unequal size.
 *
 * A layer: groups of experts are packed into nodes; inside each node the expert with the largest load a
 * replica gets the next replica, until the slots are used up; the replicas are packed into the node's
 * ranks. Global mode is the same with one group and one node. Packing n items into m packs of n / m:
 * heaviest first, each into the lightest pack with room.
 *
 * Both greedy choices are tournaments over integer keys (float order above, index below), so that a
 * choice costs log2(n) comparisons without branches and ties go to the lowest index. */
#include "solve/solver.h"
#include "solve/torch_sum.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

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
    for (uint32_t r = 0; r < topology->n_ranks; r++) {
        if (topology->dead && topology->dead[r])
            return wb_fail(
                WB_INVALID_ARGUMENT,
                "deepseek: rank %" PRIu32 " is dead, expected live ranks: the others take dead ones", r);
        if (topology->slots_of_rank && topology->slots_of_rank[r] != rank_slots)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "deepseek: rank %" PRIu32 ": expected %" PRIu32
                           " slots as on every rank, found %" PRIu32,
                           r, rank_slots, topology->slots_of_rank[r]);
        if (hierarchical && topology->node_of_rank && topology->node_of_rank[r] != r / node_ranks)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "deepseek: rank %" PRIu32 ": expected node %" PRIu32 ", nodes of %" PRIu32
                           " ranks each, found node %" PRIu32,
                           r, r / node_ranks, node_ranks, topology->node_of_rank[r]);
    }
    return WB_OK;
}

wb_status wb_solve_deepseek_check(const wb_topology *topology, uint32_t n_experts, uint32_t n_groups) {
    const uint32_t S = topology->n_slots, R = topology->n_ranks, N = topology->n_nodes;
    if (n_experts == 0 || n_groups == 0 || R == 0 || N == 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "deepseek: expected at least one of each, found %" PRIu32 " experts, %" PRIu32
                       " groups, %" PRIu32 " ranks, %" PRIu32 " nodes",
                       n_experts, n_groups, R, N);
    const bool hierarchical = is_hierarchical(topology, n_groups);
    if (hierarchical && n_experts % n_groups != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "deepseek: %" PRIu32 " experts do not divide into %" PRIu32 " groups", n_experts,
                       n_groups);
    if (hierarchical && R % N != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "deepseek: %" PRIu32 " ranks do not divide over %" PRIu32 " nodes", R, N);
    if (S % R != 0)
        return wb_fail(WB_INVALID_ARGUMENT,
                       "deepseek: %" PRIu32 " slots do not divide over %" PRIu32 " ranks", S, R);
    if (S < n_experts)
        return wb_fail(WB_INVALID_ARGUMENT, "deepseek: %" PRIu32 " slots do not hold %" PRIu32 " experts", S,
                       n_experts);
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

/* All memory belongs to `memory`. */
static wb_status open_workspace(const shape *s, wb_owner *memory, workspace *w) {
    const char *what = "deepseek's workspace";
    const size_t items = max_u32(s->n_groups, s->node_slots), packs = max_u32(s->n_nodes, s->node_ranks);
    const size_t players = packs > s->node_experts ? packs : s->node_experts;
    WB_TRY(WB_OWN(memory, w->keys, 2 * items, what));
    WB_TRY(WB_OWN(memory, w->tournament, 2 * players, what));
    WB_TRY(WB_OWN(memory, w->items, items, what));
    WB_TRY(WB_OWN(memory, w->experts, s->node_experts, what));
    WB_TRY(WB_OWN(memory, w->packs, packs, what));
    WB_TRY(WB_OWN(memory, w->loads, s->n_experts, what));
    return WB_OWN(memory, w->expert_at, s->n_experts, what);
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
        w->items[g].weight = wb_torch_sum(w->loads + (size_t)g * s->group_experts, s->group_experts);
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
    uint64_t neediest = start_tournament(w->tournament, n);
    for (uint32_t slot = n; slot < n_slots; slot++) {
        const uint32_t e = index_of(neediest);
        expert_state *state = &w->experts[e];
        w->items[slot].expert = e;
        w->items[slot].replica = state->replicas++;
        state->share = state->load / (float)state->replicas;
        neediest = play(w->tournament, n, e, key_of(descending(state->share), e));
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
    workspace w = {0};
    wb_owner memory = {0};
    wb_status status = open_workspace(&s, &memory, &w);
    if (status == WB_OK) {
        for (uint32_t e = 0; e < s.n_experts; e++) w.loads[e] = (float)problem->loads[e];
        place_groups(&s, &w);
        for (uint32_t node = 0; node < s.n_nodes; node++)
            solve_node(&s, &w, node, expert_of_slot_out, replica_of_slot_out);
    }
    wb_owner_close(&memory);
    return status;
}
