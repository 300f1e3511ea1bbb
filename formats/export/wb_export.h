/* wb_export.h - a dump as what other systems read: lines of JSON, archives of numpy arrays.
 *
 * Owns: which record has a place in which layout. Refuses: files (bytes go to the caller), routes that a
 * layout cannot say: what is exported can be imported again (wb_import.h), and is the same.
 *
 * Every pointer here is host memory, and no call is collective.
 */
#ifndef WB_EXPORT_H
#define WB_EXPORT_H

#include "wb_formats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* X(NAME, name): the layout WB_EXPORT_NAME, which command lines call name. New ones come last. R records, n
 * tokens of a record, of which P are its prompt; rows are those of all hidden layers, zero in dense ones,
 * but in npz.
 *
 * npz: all records one after the other: tokens [sum of n] u32, routes [sum of n][L][K] u8 or u16 of the MoE
 *     layers, valid [sum of n], logprobs [sum of n] f32 (NaN where there is none, as for the prompt); record
 *     i has [offsets[i], offsets[i + 1]) of each. offsets [records + 1], prompt_len, group, sample,
 *     weight_version (of the last span, or -1) [records], rid, finish_reason [records] of text, moe_layers
 *     [L].
 * sglang: a line a record as /generate answers, routes in base64 of int32, a row of -1 where there is none.
 * vllm: a line a record as /v1/completions answers, routes in base64 of a .npy file of uint8 or uint16. Rows
 *     may be missing before a position of the prompt, and nowhere else.
 * verl: a batch, padded left and right: routed_experts [records][P + N][layers][K] of int16 or int32, rows
 *     of zeros where there is none, input_ids, attention_mask [records][P + N], prompts [records][P],
 *     responses, response_mask, rollout_log_probs [records][N]; P and N are the largest numbers of tokens of
 *     a prompt and of new ones. With K = 1 no row may be missing but the last one.
 * slime: a sample's fields under their names and its number: tokens_<i>, response_length_<i>,
 *     rollout_routed_experts_<i> [n - 1][layers][K] of int32, a row of -1 where there is none,
 *     rollout_log_probs_<i>.
 * sglang and vllm carry spans, sampling and kept tokens too; slime spans; verl a weight version where it is
 * one. What indexers chose has sglang as indexer_topk, and slime as rollout_indexer_topk_<i> [n - 1][layers
 * that use an indexer][indexer_k] of int32, -1 behind the last position; a record that does not say so of all
 * its rows has no place there. The others have it nowhere: they leave it out (wb_export_keeps_indexer).
 * Groups and weight versions of 2^63 and more, which signed integers do not hold, have no place.
 * Where MoE layers differ in K, arrays have the largest, -1 behind the choices of the others; npz has routes
 * [sum of n][sum of the layers' K] and layer_top_k [L]; vllm, whose ids are unsigned, has no place. */
#define WB_EXPORT_LIST(X) \
    X(NPZ, "npz")         \
    X(SGLANG, "sglang")   \
    X(VLLM, "vllm")       \
    X(VERL, "verl")       \
    X(SLIME, "slime")

#define X(NAME, name) WB_EXPORT_##NAME,
typedef enum wb_export_layout { WB_EXPORT_LIST(X) } wb_export_layout;
#undef X

/* "npz", a static string; "unknown" for any other value. */
WB_API const char *wb_export_layout_name(wb_export_layout layout);

/* The layout of a name; INVALID_ARGUMENT, with the names there are, for any other. */
WB_API wb_status wb_export_layout_find(const char *name, wb_export_layout *layout_out);

/* Whether the layout has a place for what indexers chose, which is left out otherwise, and not refused. */
WB_API bool wb_export_keeps_indexer(wb_export_layout layout);

/* Takes the next bytes of what is written; anything but OK ends the export. */
typedef wb_status wb_export_write_fn(void *ctx, const void *bytes, size_t size);

/* What the caller makes of a record that is refused; wb_error_message says why, and names it. True: it is
 * left out, and the others are written. */
typedef bool wb_export_skip_fn(void *ctx, wb_status status);

/* Writes all records of a dump. `skip` (NULL: the first record that is refused ends the export) is called
 * before anything is written; what is wrong with the machine is not asked about. `progress` (may be NULL) is
 * called after each record that was gone over, `done` of `total`: some layouts go over all of them several
 * times. UNSUPPORTED: the layout has no place for a record, which is named; NOT_FOUND: all records were left
 * out; the errors of wb_dump_record and of wb_record_check; what `write` returns. */
WB_API wb_status wb_export_dump(wb_dump *dump, wb_export_layout layout, wb_export_write_fn *write, void *ctx,
                                wb_export_skip_fn *skip,
                                void (*progress)(void *ctx, uint64_t done, uint64_t total),
                                void *callback_ctx);

#ifdef __cplusplus
}
#endif
#endif
