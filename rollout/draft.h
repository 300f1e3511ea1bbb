/* draft.h - which tokens a request may go on with, guessed from its own text: what followed the last time
 * that it ended as it does now. Refuses: whether they are right, which the model says (engine_step.c). */
#ifndef WB_DRAFT_H
#define WB_DRAFT_H

#include "wb_base.h"

/* What followed the latest earlier place, among the last 4096, with the last three tokens of `tokens` [n],
 * else with the last two: at most `max` tokens into drafts_out [max], which may lie behind them. Returns how
 * many; 0 where there is no such place. */
uint32_t wb_draft_find(const uint32_t *tokens, uint32_t n, uint32_t max, uint32_t *drafts_out);

#endif
