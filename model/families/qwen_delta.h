/* qwen_delta.h - what the families qwen3_next and qwen3_5_moe share: keys and names of tensors. */
#ifndef WB_QWEN_DELTA_H
#define WB_QWEN_DELTA_H

#include "families/family.h"

wb_status wb_qwen_delta_read(const json_t *root, wb_config *config);
wb_status wb_qwen_delta_check(const wb_config *config);
int wb_qwen_delta_write(const wb_config *config, json_t *root);
extern const wb_rename wb_qwen_delta_renames[];

#endif
