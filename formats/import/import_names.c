/* import_names.c - see import_names.h. */
#include "import/import_names.h"

#include <stddef.h>

const char *const wb_import_route_names[] = {"routed_experts", "rollout_routed_experts", "moe_topk_indices",
                                             "routing_indices", NULL};

const char *const wb_import_prompt_route_names[] = {"prompt_routed_experts", "prompt_moe_topk_indices", NULL};

const char *const wb_import_prompt_names[] = {"prompt_token_ids", "input_ids", "prompt_ids", "prompt_tokens",
                                              NULL};

const char *const wb_import_output_names[] = {"token_ids",
                                              "output_ids",
                                              "output_token_ids",
                                              "completion_ids",
                                              "completion_token_ids",
                                              "generation_token_ids",
                                              "generated_tokens",
                                              "response_ids",
                                              "response_token_ids",
                                              NULL};

const char *const wb_import_finish_names[] = {"finish_reason", "finish", "status", NULL};
