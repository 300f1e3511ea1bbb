/* wb_import.h - routes of other systems' engines and trainers, read into records.
 *
 * Owns: the layouts in which these systems write routes, and what each refuses. Refuses: files (bytes come
 * from the caller), configurations (the caller says which model it is), network.
 *
 * A tape of routes that cannot be is refused, and the message names the request, what was found and what was
 * expected: ids that are no experts or are chosen twice in a row and layer, rows that an engine has left at
 * zero, one row throughout, more rows than tokens - 1, a layer axis that is neither that of all hidden
 * layers nor that of the MoE layers, an element type that cannot hold the model's experts, rows of one
 * choice at another. Whoever trained on one would train the wrong experts, without a word.
 *
 * Every pointer here is host memory, and no call is collective.
 */
#ifndef WB_IMPORT_H
#define WB_IMPORT_H

#include "wb_formats.h"

#ifdef __cplusplus
extern "C" {
#endif

/* X(NAME, name): the layout WB_IMPORT_NAME, which command lines call name. New ones come last.
 *
 * In all of them an answer is a map, in JSON (a document a line, a list of them, or the events of a stream),
 * msgpack or a .npz file of arrays. Rows are those of all hidden layers, of which the MoE layers are taken,
 * or those of the MoE layers alone, in C order, [n - 1 - start, layers, K]. What an engine leaves in dense
 * layers is not looked at. Routes may be nested lists of integers, an array, a whole .npy file (base64 in
 * JSON), or a map {data, shape, dtype, start}; an array of two dimensions is [n - 1 - start, layers * K].
 *
 * vllm: `choices[i].routed_experts`, a .npy file in base64; before 0.22 `prompt_routed_experts` [P, ..] of
 *     the answer and `routed_experts` [G - 1 or G, ..] of each choice.
 * sglang: `meta_info.routed_experts`, base64 of int32, or of the type that `routed_experts_dtype` names,
 *     without a shape; `sglext.routed_experts` of an answer is that of choice 0 alone. `indexer_topk`, base64
 *     of int32 [n - 1 - start, indexer_topk_num_layers, k], -1 behind the last position.
 * nemo-rl: "nrlre1:<type>:<S>x<L>x<K>:<base64>"; a row of -1 is missing. S is n - 1, or n when the last row,
 *     of a token that was never fed, is missing.
 * slime: `rollout_routed_experts` of a sample, int32; `rollout_indexer_topk` as sglang's.
 * verl: `routed_experts` [prompt_pad + response_pad, ..] beside `attention_mask`, which says which places
 *     of `input_ids`, or of `prompts` and `responses`, are no padding; a row of zeros is missing where K > 1.
 * trtllm: `routed_experts`, int16 of the MoE layers; a row of -1 is missing.
 * prime-rl: `routed_experts` {data, shape, dtype} in base85 or base64, or [data, shape, dtype] in msgpack;
 *     without a dtype elements are as wide as the bytes make them. A last row of zeros, of a token never fed,
 *     is left out.
 * megatron: `moe_topk_indices` of the whole text, and `prompt_moe_topk_indices`, a copy of its beginning.
 * dynamo: `routed_experts` {data, shape, dtype, start} in base64, or as sglang.
 *
 * Where MoE layers differ in K, arrays have the largest of them in each, -1 behind a layer's own choices: in
 * layouts where -1 is missing. Of vllm, prime-rl and megatron such a model is UNSUPPORTED. */
#define WB_IMPORT_LIST(X)   \
    X(VLLM, "vllm")         \
    X(SGLANG, "sglang")     \
    X(NEMO_RL, "nemo-rl")   \
    X(SLIME, "slime")       \
    X(VERL, "verl")         \
    X(TRTLLM, "trtllm")     \
    X(PRIME_RL, "prime-rl") \
    X(MEGATRON, "megatron") \
    X(DYNAMO, "dynamo")

#define X(NAME, name) WB_IMPORT_##NAME,
typedef enum wb_import_layout { WB_IMPORT_LIST(X) } wb_import_layout;
#undef X

/* "vllm", a static string; "unknown" for any other value. */
WB_API const char *wb_import_layout_name(wb_import_layout layout);

/* The layout of a name; INVALID_ARGUMENT, with the names there are, for any other. */
WB_API wb_status wb_import_layout_find(const char *name, wb_import_layout *layout_out);

typedef struct wb_import wb_import;

/* Begins to read the answers in `bytes` [size], which stay the caller's and outlive the import. What they are
 * (JSON, msgpack, .npz, .npy) is seen from their beginning. `name` says in messages which file it is;
 * `model` is whose routes they are; both are copied. INVALID_ARGUMENT for a model or layout that is none;
 * CORRUPT or UNSUPPORTED for an archive that cannot be read. */
WB_API wb_status wb_import_open(const char *name, const void *bytes, size_t size, wb_import_layout layout,
                                const wb_route_model *model, wb_import **import_out);
WB_API void wb_import_close(wb_import *import); /* NULL is a no-op */

/* Tokens of the requests that follow are 0..vocab_size - 1: INVALID_ARGUMENT names the first other one, as
 * that of another model's text. 0, as it is at first: any. */
WB_API void wb_import_set_vocab_size(wb_import *import, uint32_t vocab_size);

/* The next request that the answers hold, as a record that has passed wb_record_check with `deep` and lives
 * until the next call; *found_out false: there is none left. A request that was aborted before it had routes
 * is a record without runs. rid is the answer's (`rid`, `id`, `request_id`) with "-<choice>" where an answer
 * has several choices or this is not choice 0, or "request-<number>"; group and sample are the answer's, or
 * the number of the answer among all and that of the choice; logprobs, spans, finish and the mask are the
 * answer's where it has them, and else none or NULL.
 * Refused: CORRUPT for bytes that are not the layout, MISMATCH for a shape or type of another model,
 * INVALID_ARGUMENT for routes that cannot be and for the id of a record that was given out before, NOT_FOUND
 * for what is not there. The call after it goes on with the request after it, so that a caller may count what
 * is refused and keep the rest. */
WB_API wb_status wb_import_next(wb_import *import, wb_record *record_out, bool *found_out);

/* False for a .npy file, which has routes and nothing else. Its records have zeros in place of tokens, one
 * more than rows and all of the prompt: enough to count the load of experts, while a replay, which compares
 * tokens, refuses them. */
WB_API bool wb_import_has_tokens(const wb_import *import);

/* Requests given out so far that say what indexers chose, where the model has none: it has no place in their
 * records. */
WB_API uint64_t wb_import_indexers_left_out(const wb_import *import);

/* How far the import is: the bytes that have been read, of all. A list or an archive, which is read at once,
 * counts by the requests of it that were given out. */
WB_API size_t wb_import_bytes_read(const wb_import *import);

#ifdef __cplusplus
}
#endif
#endif
