/* attention_keys.h - which keys a query of an attention sees, and where they and their values lie (not
 * installed): rules that both backends share. Refuses: what a call is checked for (attention_check.h). */
#ifndef WB_ATTENTION_KEYS_H
#define WB_ATTENTION_KEYS_H

#include "wb_host_device.h"
#include "wb_ops_attention.h"

/* Scores are taken to the base 2 where exponentials are, and a logarithm back to the base e. */
#define WB_LOG2_E 1.44269504f
#define WB_LN_2 0.693147181f

/* The first position that the query at position `pos` sees; pos is the last. */
static WB_HD int32_t attention_first_key(const wb_attention *args, int32_t pos) {
    return args->window > 0 && pos >= args->window ? pos - args->window + 1 : 0;
}

/* The pool's row of a sequence's position j; blocks: the sequence's. */
static WB_HD int64_t position_row(const int32_t *blocks, int32_t block_size, int64_t j) {
    return (int64_t)blocks[j / block_size] * block_size + j % block_size;
}

/* Whether values are the beginning of keys. Those of one address and one width need no rule. */
static WB_HD bool attention_values_in_keys(const wb_attention *args) {
    return args->v.data == args->k.data && args->value_dim != args->head_dim;
}

/* Elements of the pool from the values of one kv head to the next one's. */
static WB_HD int32_t attention_value_step(const wb_attention *args) {
    return attention_values_in_keys(args) ? args->head_dim : args->value_dim;
}

#endif
