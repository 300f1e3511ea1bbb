/* wb_dispatch_rules.h - which of an expert's replicas a token goes to, as functions for host and device (not
 * installed).
 *
 * Owns: the rule that eplb, which makes the tables, the plan of a replayed step and the ops of both backends
 * must agree on by a bit: if two of them differed, a rank would send a token to a slot whose rank does not
 * expect it. Refuses: making tables (eplb/dispatch/), policies for which a token's slot hangs on the tokens
 * before it (quota, fake), checks of ids, floats, memory.
 */
#ifndef WB_DISPATCH_RULES_H
#define WB_DISPATCH_RULES_H

#include "wb_host_device.h"
#include "wb_ops_moe.h"
#include "wb_random.h"

/* The rule over a table of wb_dispatch_fill_table (wb_dispatch.h) for a layer of E experts, which lies in one
 * block. The block has to outlive the rule. dynamic: whether it is a table of that policy, or of static. */
static WB_HD wb_dispatch_rule wb_dispatch_table_rule(bool dynamic, const int32_t *table, uint32_t n_experts,
                                                     uint32_t layer) {
    wb_dispatch_rule rule = {NULL, NULL, NULL, layer};
    if (dynamic) {
        rule.replica_begin = table;
        rule.replica_slots = table + n_experts + 1;
    } else {
        rule.slot_of_expert = table;
    }
    return rule;
}

/* The key of a token that a model goes by: token id and absolute position, which every rank that plans for
 * the token knows, before a step as in it. */
static WB_HD uint64_t wb_dispatch_key(int32_t token, int32_t pos) {
    return (uint64_t)(uint32_t)token << 32 | (uint32_t)pos;
}

/* dynamic: which of n >= 1 replicas, 0..n-1: a hash of key, layer and expert, scaled to n. The key goes
 * through a mix of its own with the layer, so that keys in steps of 2 or 8 are as good as any and neither two
 * layers nor two experts of a token pick alike. No rank enters: all ranks that know the key pick the same. */
static WB_HD uint32_t wb_dispatch_replica(uint64_t key, uint32_t layer, uint32_t expert, uint32_t n) {
    uint64_t token_hash = wb_mix64(key ^ wb_mix64(layer));
    return (uint32_t)((wb_mix64(token_hash ^ expert) >> 32) * n >> 32);
}

/* The slot of one choice of a token: expert 0..E-1, which is not checked; key: the token's, the same wherever
 * the token is known (static: not read). */
static WB_HD int32_t wb_dispatch_slot(const wb_dispatch_rule *rule, uint32_t expert, uint64_t key) {
    if (rule->slot_of_expert) return rule->slot_of_expert[expert];
    int32_t begin = rule->replica_begin[expert];
    uint32_t n = (uint32_t)(rule->replica_begin[expert + 1] - begin);
    return rule->replica_slots[begin + (int64_t)wb_dispatch_replica(key, rule->layer, expert, n)];
}

#endif
