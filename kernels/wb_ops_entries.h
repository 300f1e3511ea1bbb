/* wb_ops_entries.h - attention over compressed entries: the compressor that makes an entry of several
 * positions, the indexer that chooses entries, and the attention that sees them beside a window of keys.
 *
 * What all ops have in common is said in wb_kernels.h. */
#ifndef WB_OPS_ENTRIES_H
#define WB_OPS_ENTRIES_H

#include "wb_ops_attention.h"
#include "wb_ops_recurrent.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Of every R positions of a sequence one entry, for each channel a sum of `values` weighted by the softmax of
 * gates + bias: over the positions wR .. wR + R - 1 of entry w; or, where it overlaps, over those of entry w
 * - 1 too, which come first and for which values, gates and bias have D channels of their own in front of the
 * D of entry w. Each channel is one chain over ascending positions (compress_rules.h), which ends at the
 * entry's last position: an entry has the same bits however its positions are cut into calls. */
typedef struct wb_compress {
    /* a state is [1 or, where it overlaps, 2 entries that have not ended][3, D] (compress_rules.h) */
    wb_sequences of;
    /* D */
    int64_t width;
    /* R, 1 or more */
    int32_t ratio;
    bool overlaps;
    /* [T, C], C = D, or 2 D where it overlaps */
    wb_rows values, gates;
    /* device [R, C], by position in an entry's R */
    const float *bias;
    /* device [T] */
    const int32_t *pos;
} wb_compress;

static inline int64_t wb_compress_state_bytes(int64_t width, bool overlaps) {
    return (overlaps ? 2 : 1) * 3 * width * (int64_t)sizeof(float);
}

/* entries[T,D] (=): row t is the entry that ends at token t, zeros where none does.
 * Backward, without states: dvalues and dgates [T,C] (=), zeros at positions of which no entry is made;
 * dbias[R,C] (+=) the sum of dgates over ascending tokens. dentries: rows in which no entry ends are not
 * read. */
typedef wb_status wb_compress_forward_fn(wb_device *dev, const wb_compress *args, wb_rows entries);
typedef wb_status wb_compress_backward_fn(wb_device *dev, const wb_compress *args, wb_rows dentries,
                                          wb_rows dvalues, wb_rows dgates, float *dbias);

/* Where entries lie, beside the rows of positions (wb_attention): entry w ends at position p = wR + R - 1,
 * and is row blocks[seq * max_blocks + p / block_size] * n + p % block_size / R, where a block has the
 * entries that can end in it, n = (block_size + R - 1) / R. A query at position p sees the entries w < (p +
 * 1) / R. */
typedef struct wb_entries {
    /* R; 0: there are none */
    int32_t ratio;
    wb_rows rows;
    /* elements from a row to the next one, of which an entry has the first */
    int64_t stride;
} wb_entries;

/* The entries that attention of a token is to see, where these are chosen: the top_k of the largest
 *   sum over ascending heads h of weights_h max(<q_h, key of the entry>, 0)
 * in which a score is one fma chain over a head's dimensions. Order: score descending, then entry ascending,
 * NaN last. No gradient passes through a choice. CUDA takes n_heads * (head_dim + 1) of at most 12,000. */
typedef struct wb_indexer {
    int64_t T;
    int32_t n_heads, head_dim, top_k;
    /* [T, n_heads * head_dim] */
    wb_rows q;
    /* device [T, n_heads] */
    const float *weights;
    /* of head_dim elements, of q's dtype, or bf16 */
    wb_entries keys;
    /* as of wb_attention; padding has no entries */
    const int32_t *seq, *pos, *blocks;
    int32_t max_blocks, block_size;
    /* that any token of the call sees, at most */
    int64_t max_entries;
    /* device [T] wb_row_direction: a row that is not native keeps its list; NULL: all rows are native */
    const uint8_t *direction;
    /* device [T, top_k], in for rows that keep theirs, out for the others: ascending, then -1 */
    int32_t *listed;
    /* out, optional: what every row, native or not, would choose */
    int32_t *native;
} wb_indexer;
typedef wb_status wb_indexer_topk_fn(wb_device *dev, const wb_indexer *args);

/* Attention whose heads share one row, key and value at once: over the last `window` rows of a sequence, as
 * `raw` says, and then over entries, ascending, in one softmax. Both are keys of one list, over whose places
 * sums go: scores are chains over dimensions, exponentials are summed in lane order, an element of out is one
 * chain over the list. */
typedef struct wb_entry_attention {
    /* n_kv_heads 1, value_dim = head_dim, v = k, log_sums NULL; out is not read */
    wb_attention raw;
    /* of head_dim elements, of k's dtype */
    wb_entries entries;
    /* device [T, max_listed]: which entries a token sees, ascending, then -1; an entry that it cannot see is
     * INVALID_ARGUMENT. NULL: all of them. */
    const int32_t *listed;
    int32_t max_listed;
} wb_entry_attention;

/* out[T, n_heads * head_dim] (=). Backward, in which each sequence is whole: its tokens are adjacent, at the
 * positions 0, 1, 2 and so on, as rows and entries are counted by tokens of the call; nothing checks it. dq
 * (=), dk like k and dentries like the entries' rows (+=): a row's gradient as key and as value, over
 * ascending queries, of each of which what comes by its scores goes before what comes by its weights, over
 * ascending heads. dsinks as in attention_backward. */
typedef wb_status wb_entry_attention_forward_fn(wb_device *dev, const wb_entry_attention *args, wb_rows out);
typedef wb_status wb_entry_attention_backward_fn(wb_device *dev, const wb_entry_attention *args, wb_rows dout,
                                                 wb_rows dq, wb_rows dk, wb_rows dentries, float *dsinks);

#ifdef __cplusplus
}
#endif
#endif
