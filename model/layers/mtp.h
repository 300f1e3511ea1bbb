/* mtp.h - what an MTP layer has before and behind its block. Pointers are device memory. */
#ifndef WB_MTP_H
#define WB_MTP_H

#include "model_mtp.h"

/* x[T,H] (=) the input of MTP layer l of the tokens[T], each the one that follows a row of hidden[T,H], which
 * the last layer of `before` left, the decoder or MTP layers: eh_proj [enorm(embedding) ; hnorm(final norm of
 * hidden)]. scratch[T,H], and hidden is scratch too. */
wb_status wb_mtp_input(const wb_model *mtp, int32_t l, int64_t T, const int32_t *tokens,
                       const wb_model *before, wb_rows hidden, wb_rows scratch, wb_rows x);

#endif
