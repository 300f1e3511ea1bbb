/* compressed.h - the steps of attention over compressed entries. With H the hidden width, d a head's and rope
 * the rotation of its last dimensions, which are a head's rotated ones:
 *
 *   low of a token    norm(Wqa x)
 *   q of head h       rope(n(a part of Wqb low)), n a norm without weights
 *   key of a token    rope(norm(Wkv x)), one for all heads, and the value too
 *   entry             rope(norm(sum over its positions of softmax(Wg x + bias) Wv x)), a key and value
 *   likewise y                 Wob [Woa_g of the heads of group g], a head's sum of values rotated back
 *
 * Layers are of three kinds. A window layer sees keys alone, the last `window` of them. A heavy layer sees
 * all entries besides. Of a sparse layer's entries an indexer, with heads and entries of its own, chooses
 * some for each token, unless the caller says which (wb_routing.listed); no gradient comes by a choice, so
 * that its weights have none.
 *
 * Training goes through the same ops as inference, so that both have the same bits. */
#ifndef WB_COMPRESSED_H
#define WB_COMPRESSED_H

#include "layers/layer.h"

/* Of a compressor: [C, H] twice, [R, C], [D]; C is 2 D where entries overlap, else D. */
typedef struct wb_compressor_weights {
    int32_t values, gates, bias, norm;
} wb_compressor_weights;

/* Parameters; those of `entry` are there in layers with entries, and those of the indexer in sparse ones. */
typedef struct wb_compressed_weights {
    int32_t q_a, q_norm, q_b; /* [rank, H], [rank], [nh d, rank] */
    int32_t kv, kv_norm;      /* [d, H], [d] */
    int32_t o_a, o_b;         /* [groups o_rank, nh d / groups], [H, groups o_rank] */
    int32_t sinks;            /* [nh] */
    wb_compressor_weights entry, index;
    int32_t index_q, index_weights; /* [heads index_dim, rank], [heads, H] */
    int64_t index_column;           /* of the model's indexers, which this one is */
} wb_compressed_weights;

/* What a compressor makes, of width D. */
typedef struct wb_compressor {
    int64_t width; /* D; 0: the layer has none */
    bool overlaps;
    wb_buffer values, gates; /* [T, C] */
    wb_buffer raw, entries;  /* [T, D] before the norm, and normed and rotated */
} wb_compressor;

typedef struct wb_compressed {
    wb_model *model;
    int32_t ratio; /* positions to an entry; 0: a window layer */
    bool sparse;

    /* Kept by a forward for its backward. Without one, norms are made in place. */
    wb_buffer low, low_normed; /* [T, rank] */
    wb_buffer q_raw, q;        /* [T, nh d] */
    wb_buffer kv_raw, kv;      /* [T, d] */
    wb_compressor entry, index;
    wb_buffer listed;   /* int32 [T, index_top_k], where the caller has no lists */
    wb_buffer out, mid; /* [T, nh d], rotated back; [T, groups o_rank] */

    /* Scratch of a forward. */
    wb_buffer index_q, index_weights; /* [T, heads index_dim], f32 [T, heads] */
    wb_buffer joined;                 /* [T, d + index_dim] a row of the table of entries, in inference */

    /* Scratch of a backward: like what they are gradients of. */
    wb_buffer dlow, dq, dkv, dentries, dvalues, dgates, dout, dmid;
} wb_compressed;

/* The tables of a sequence's state: a row a position; and a row an entry, its index key behind it. */
enum { WB_COMPRESSED_KEYS, WB_COMPRESSED_ENTRIES, WB_COMPRESSED_N_TABLES };

/* Tokens before those of the layer's indexer, where the caller has what all indexers choose. */
static inline int64_t wb_compressed_first_list(const wb_compressed_weights *w, const wb_pass *pass) {
    return w->index_column * pass->T;
}

/* Whether the rows of a sparse layer's indexer choose. What an earlier forward left in the caller's lists is
 * followed by the recompute, which needs no indexer. */
static inline bool wb_compressed_chooses(const wb_compressed *a, const wb_pass *pass) {
    const bool listed = pass->routing && pass->routing->listed;
    return a->sparse && !(listed && pass->recompute);
}

/* ---- rotation and norms (compressed_steps.c) --------------------------------------------------- */

/* n heads of x, `head` wide, of which the last dimensions are rotated; ratio: as of wb_rope. */
wb_status wb_compressed_rotate(const wb_compressed *a, const wb_pass *pass, int32_t n, int64_t head,
                               int32_t ratio, bool inverse, wb_rows x);

/* The norm of n rows of `raw`; w NULL: it has no weights. */
wb_status wb_compressed_norm(const wb_compressed *a, int64_t n, int64_t width, const float *w, wb_rows raw,
                             wb_rows normed);

/* ---- entries (compressed_entries.c) ---------------------------------------------------------- */

void wb_compressor_layout(wb_compressor *c, const wb_model *model, int64_t width, bool overlaps, int64_t T,
                          bool keeps_steps, wb_arena *arena);

/* Products that make values and gates, for a list of them; how many. */
int wb_compressor_products(const wb_compressed *a, const wb_compressor *c, const wb_compressor_weights *w,
                           int64_t T, wb_rows x, wb_matmul *list);

/* The op's arguments; `states`: of the pass's sequences, or NULL. */
wb_compress wb_compressor_args(const wb_compressed *a, const wb_compressor *c, const wb_compressor_weights *w,
                               const wb_pass *pass, char *states, int64_t stride);

/* From values and gates the entries, into the table of `state` where there is one, and of a sparse layer the
 * lists of which a token sees. */
wb_status wb_compressed_entries(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass,
                                const wb_state *state);

/* Bytes that a sequence has of entries that have not ended: those of attention, and then the indexer's. */
static inline int64_t wb_compressed_sequence_bytes(int64_t width, int64_t index_width, bool sparse) {
    return wb_compress_state_bytes(width, sparse) + (sparse ? wb_compress_state_bytes(index_width, true) : 0);
}

/* ---- attention and output (compressed_steps.c) ---------------------------------------------- */

/* Which entries each token of a sparse layer sees, [T, index_top_k]: of the caller, or the worker's. */
int32_t *wb_compressed_listed(const wb_compressed *a, const wb_compressed_weights *w, const wb_pass *pass);

/* Attention over the keys and entries of `state`, or where there is none of the batch. */
wb_entry_attention wb_compressed_attention(const wb_compressed *a, const wb_compressed_weights *w,
                                           const wb_pass *pass, const wb_state *state);

/* mid (=) out by Woa; dout (=) and grads (+=) from dmid. */
wb_status wb_compressed_groups(const wb_compressed *a, const wb_compressed_weights *w, int64_t T);
wb_status wb_compressed_groups_backward(const wb_compressed *a, const wb_compressed_weights *w, int64_t T,
                                        float *const *grads);

/* ---- backward (compressed_backward.c) -------------------------------------------------------- */

/* As wb_layer_kind.backward. */
wb_status wb_compressed_backward(void *worker, const void *weights, const wb_pass *pass, wb_rows x,
                                 wb_rows dy, float *const *grads, wb_rows dx);

#endif
