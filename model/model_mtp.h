/* model_mtp.h - a model's layers for multi-token prediction, which stand behind its decoder's in a checkpoint
 * and guess the token after the next: a model of their own, wb_model.mtp.
 *
 * So they have a layer space of their own: routes, counts, placement and dispatch of the decoder do not know
 * them, no record has their choices, and no rebalance moves their experts, which lie in blocks over the live
 * ranks for good. Embedding and head are the decoder's: a checkpoint may have copies of them, which are
 * written again and not read. Some families number these layers behind the decoder's, others have them under
 * mtp., with one norm of each kind and one projection for all (wb_family_rules.own_mtp_names).
 *
 * What a layer gets of the decoder is its output behind the last norm, as vLLM hands it on.
 *
 * Only layer 0 drafts, behind the decoder's output (wb_infer_draft) and, for later tokens, behind its own
 * (wb_infer_draft_further), as engines do where there is one such layer. So it is the only one that inference
 * runs, and its norm is the model's final one. */
#ifndef WB_MODEL_MTP_H
#define WB_MODEL_MTP_H

#include "model_weights.h"

/* What such a layer has before its block: [H], [H], [H, 2 H]; and behind it: [H]. */
typedef struct wb_mtp_layer {
    int32_t enorm, hnorm, eh_proj, norm;
} wb_mtp_layer;

/* Builds model->mtp where its configuration says so, without memory for it. `placement`: the caller's, which
 * says which ranks are dead; or NULL. */
wb_status wb_mtp_build(wb_model *model, const wb_placement *placement);
void wb_mtp_close(wb_model *mtp); /* NULL is a no-op */

/* Places its memory, and fills its tables: parts of those of its model. */
void wb_mtp_layout(wb_model *model, wb_arena *arena);
wb_status wb_mtp_fill_tables(wb_model *model);

#endif
