/* python_abi.h - the lists of what the Python package uses of the public headers: enums and functions here,
 * structs in python_structs.h. To use one more from Python, write its line there.
 *
 * Refuses: what is not in a public header. */
#ifndef WB_PYTHON_ABI_H
#define WB_PYTHON_ABI_H

#include "python_structs.h"

/* Line i of the text, false beyond the last one. kind: "status" (name, meaning, value), "enum" (constant,
 * type, value), "struct" (type, "", bytes), "field" ("type.field", C type, offset, bytes) or "function"
 * (name, "result|(parameters)"). Strings are static. */
WB_API bool wb_python_abi_line(int i, const char **kind_out, const char **name_out, const char **text_out,
                               long long *first_out, long long *second_out);

/* X(type, constant) */
#define WB_PYTHON_ENUMS(X)                     \
    X(wb_status, WB_OK)                        \
    X(int, WB_ROUTE_LISTS_MAX)                 \
    X(wb_dtype, WB_U8)                         \
    X(wb_dtype, WB_U16)                        \
    X(wb_finish, WB_FINISH_NONE)               \
    X(wb_finish, WB_FINISH_STOP)               \
    X(wb_finish, WB_FINISH_LENGTH)             \
    X(wb_finish, WB_FINISH_ABORT)              \
    X(wb_codec, WB_CODEC_RAW)                  \
    X(wb_codec, WB_CODEC_ZSTD)                 \
    X(wb_codec, WB_CODEC_PACKED)               \
    X(wb_import_layout, WB_IMPORT_VLLM)        \
    X(wb_export_layout, WB_EXPORT_NPZ)         \
    X(wb_missing_policy, WB_MISSING_STRICT)    \
    X(wb_missing_policy, WB_MISSING_NATIVE)    \
    X(wb_missing_policy, WB_MISSING_DROP)      \
    X(wb_replay_mode, WB_REPLAY_OFF)           \
    X(wb_replay_mode, WB_REPLAY_RECORD)        \
    X(wb_replay_mode, WB_REPLAY_ROLLOUT)       \
    X(wb_segment_kind, WB_SEGMENT_REPLAY)      \
    X(wb_segment_kind, WB_SEGMENT_RECORD)      \
    X(wb_segment_kind, WB_SEGMENT_PADDING)     \
    X(wb_dispatch_policy, WB_DISPATCH_STATIC)  \
    X(wb_dispatch_policy, WB_DISPATCH_DYNAMIC) \
    X(wb_dispatch_policy, WB_DISPATCH_QUOTA)   \
    X(wb_dispatch_policy, WB_DISPATCH_FAKE)    \
    X(wb_eplb_algorithm, WB_EPLB_DEEPSEEK)     \
    X(wb_eplb_algorithm, WB_EPLB_BALANCED)     \
    X(wb_eplb_algorithm, WB_EPLB_INCREMENTAL)  \
    X(wb_eplb_algorithm, WB_EPLB_MICROBATCH)   \
    X(wb_map_layout, WB_MAP_SGLANG)            \
    X(wb_map_layout, WB_MAP_VLLM)              \
    X(wb_map_layout, WB_MAP_TRTLLM)            \
    X(wb_map_layout, WB_MAP_ASCEND)            \
    X(wb_move_kind, WB_MOVE_LOCAL)             \
    X(wb_move_kind, WB_MOVE_NODE)              \
    X(wb_move_kind, WB_MOVE_NETWORK)           \
    X(wb_move_kind, WB_MOVE_RELOAD)            \
    X(wb_router_type, WB_ROUTER_SOFTMAX)       \
    X(wb_router_type, WB_ROUTER_SOFTMAX_NORM)  \
    X(wb_router_type, WB_ROUTER_TOPK_SOFTMAX)  \
    X(wb_router_type, WB_ROUTER_SIGMOID)       \
    X(wb_router_type, WB_ROUTER_SQRTSOFTPLUS)  \
    X(wb_router_type, WB_ROUTER_HASH)

/* X(result, name, (parameters)) */
#define WB_PYTHON_FUNCTIONS(X)                                                                               \
    X(const char *, wb_version, (void))                                                                      \
    X(const char *, wb_error_message, (void))                                                                \
    X(wb_dtype, wb_route_dtype, (uint32_t num_experts))                                                      \
    X(wb_status, wb_route_model_check, (const wb_route_model *model))                                        \
    X(wb_status, wb_route_model_match, (const wb_route_model *expected, const wb_route_model *found))        \
    X(const char *, wb_finish_name, (wb_finish finish))                                                      \
    X(uint64_t, wb_tokens_digest, (const uint32_t *tokens, uint32_t n))                                      \
    X(wb_status, wb_record_check, (const wb_route_model *model, const wb_record *record, bool deep))         \
    X(void, wb_record_count,                                                                                 \
      (const wb_route_model *model, const wb_record *record, uint32_t first, uint32_t end,                   \
       uint64_t *counts))                                                                                    \
    X(void, wb_dump_options_init, (wb_dump_options * options_out, size_t size))                              \
    X(wb_status, wb_dump_create,                                                                             \
      (const char *path, const wb_route_model *model, const wb_dump_options *options,                        \
       wb_dump_writer **writer_out))                                                                         \
    X(wb_status, wb_dump_append, (wb_dump_writer * writer, const wb_record *record))                         \
    X(wb_status, wb_dump_finish, (wb_dump_writer * writer))                                                  \
    X(void, wb_dump_abandon, (wb_dump_writer * writer))                                                      \
    X(wb_status, wb_dump_open, (const char *path, wb_dump **dump_out))                                       \
    X(void, wb_dump_close, (wb_dump * dump))                                                                 \
    X(const wb_route_model *, wb_dump_model, (const wb_dump *dump))                                          \
    X(wb_dump_info, wb_dump_get_info, (const wb_dump *dump))                                                 \
    X(wb_status, wb_dump_record, (wb_dump * dump, uint64_t i, wb_record * record_out))                       \
    X(wb_status, wb_dump_index, (const wb_dump *dump, const char *rid, uint64_t *i_out))                     \
    X(void, wb_dump_release, (wb_dump * dump, uint64_t i))                                                   \
    X(wb_status, wb_dump_verify,                                                                             \
      (const char *path, void (*progress)(void *ctx, uint64_t done, uint64_t total), void *ctx,              \
       wb_dump_info *info_out))                                                                              \
    X(wb_status, wb_routes_of_folder,                                                                        \
      (const char *dir, uint32_t *moe_layers_out, wb_route_model *model_out, uint32_t *vocab_size_out))      \
    X(void, wb_import_set_vocab_size, (wb_import * import, uint32_t vocab_size))                             \
    X(wb_status, wb_import_layout_find, (const char *name, wb_import_layout *layout_out))                    \
    X(wb_status, wb_import_open,                                                                             \
      (const char *name, const void *bytes, size_t size, wb_import_layout layout,                            \
       const wb_route_model *model, wb_import **import_out))                                                 \
    X(void, wb_import_close, (wb_import * import))                                                           \
    X(wb_status, wb_import_next, (wb_import * import, wb_record * record_out, bool *found_out))              \
    X(bool, wb_import_has_tokens, (const wb_import *import))                                                 \
    X(uint64_t, wb_import_indexers_left_out, (const wb_import *import))                                      \
    X(wb_status, wb_export_layout_find, (const char *name, wb_export_layout *layout_out))                    \
    X(bool, wb_export_keeps_indexer, (wb_export_layout layout))                                              \
    X(wb_status, wb_export_dump,                                                                             \
      (wb_dump * dump, wb_export_layout layout, wb_export_write_fn * write, void *ctx,                       \
       wb_export_skip_fn *skip, void (*progress)(void *ctx, uint64_t done, uint64_t total),                  \
       void *callback_ctx))                                                                                  \
    X(void, wb_replay_options_init, (wb_replay_options * options_out, size_t size))                          \
    X(wb_status, wb_replay_open,                                                                             \
      (const wb_route_model *model, const wb_replay_options *options, wb_replay **replay_out))               \
    X(void, wb_replay_close, (wb_replay * replay))                                                           \
    X(wb_status, wb_replay_add, (wb_replay * replay, const wb_route_model *from, const wb_record *record))   \
    X(void, wb_replay_clear, (wb_replay * replay))                                                           \
    X(wb_status, wb_replay_begin, (wb_replay * replay, wb_replay_mode mode, int32_t n_micro_batches))        \
    X(wb_segment, wb_replay_segment,                                                                         \
      (const wb_replay *replay, const char *rid, uint32_t start, uint32_t rows, const uint32_t *tokens))     \
    X(wb_status, wb_replay_plan,                                                                             \
      (wb_replay * replay, int32_t micro_batch, int32_t n_segments, const wb_segment *segments))             \
    X(bool, wb_replay_planned, (const wb_replay *replay, int32_t micro_batch))                               \
    X(bool, wb_replay_dropped, (const wb_replay *replay, int32_t micro_batch, int32_t segment))              \
    X(wb_status, wb_replay_rows,                                                                             \
      (wb_replay * replay, int32_t micro_batch, int32_t layer, uint32_t row, uint32_t rows,                  \
       wb_replay_slice * slice_out))                                                                         \
    X(wb_status, wb_replay_store,                                                                            \
      (wb_replay * replay, int32_t micro_batch, int32_t layer, uint32_t row, uint32_t rows,                  \
       const void *used, int64_t used_stride, const void *native, int64_t native_stride))                    \
    X(wb_status, wb_replay_choose,                                                                           \
      (wb_replay * replay, int32_t micro_batch, int32_t layer, uint32_t row, uint32_t rows,                  \
       const void *chosen, int64_t chosen_stride, const void *native, int64_t native_stride))                \
    X(wb_status, wb_replay_counts,                                                                           \
      (const wb_replay *replay, int32_t micro_batch, int32_t layer, uint32_t row, uint32_t rows,             \
       int64_t *counts_out))                                                                                 \
    X(wb_status, wb_replay_indexer_rows,                                                                     \
      (wb_replay * replay, int32_t micro_batch, uint32_t i, uint32_t row, uint32_t rows,                     \
       int32_t * listed_out, uint8_t * direction_out, wb_replay_indexer_slice * slice_out))                  \
    X(wb_status, wb_replay_indexer_store,                                                                    \
      (wb_replay * replay, int32_t micro_batch, uint32_t i, uint32_t row, uint32_t rows,                     \
       const int32_t *used, const int32_t *native))                                                          \
    X(void, wb_replay_get_indexer_metrics,                                                                   \
      (const wb_replay *replay, double *fallback_rows_out, wb_replay_indexer_metrics *layers_out))           \
    X(wb_status, wb_replay_end, (wb_replay * replay))                                                        \
    X(void, wb_replay_abort, (wb_replay * replay))                                                           \
    X(wb_status, wb_replay_observe_logprobs,                                                                 \
      (wb_replay * replay, size_t n, const float *rollout, const float *trainer, const uint8_t *mask))       \
    X(void, wb_replay_get_metrics,                                                                           \
      (const wb_replay *replay, wb_replay_metrics *metrics_out, wb_replay_layer_metrics *layers_out))        \
    X(wb_status, wb_replay_get_load,                                                                         \
      (const wb_replay *replay, int32_t layer, double *forced_out, double *native_out))                      \
    X(double *, wb_replay_metric_sums, (wb_replay * replay, size_t * n_out))                                 \
    X(wb_status, wb_comm_open_self, (wb_comm * *comm_out))                                                   \
    X(void, wb_comm_close, (wb_comm * comm))                                                                 \
    X(void, wb_pack_options_init, (wb_pack_options * options_out, size_t size))                              \
    X(wb_status, wb_pack_open,                                                                               \
      (wb_comm * comm, const wb_route_model *model, const wb_pack_options *options, uint32_t n,              \
       const wb_pack_sequence *sequences, wb_pack **pack_out))                                               \
    X(void, wb_pack_close, (wb_pack * pack))                                                                 \
    X(int32_t, wb_pack_micro_batches, (const wb_pack *pack))                                                 \
    X(int32_t, wb_pack_first, (const wb_pack *pack, uint32_t update))                                        \
    X(const wb_pack_place *, wb_pack_places, (const wb_pack *pack, uint32_t *n_out))                         \
    X(const double *, wb_pack_loads, (const wb_pack *pack))                                                  \
    X(wb_status, wb_device_open_cpu, (int threads, wb_device **device_out))                                  \
    X(wb_status, wb_device_open_cuda, (int index, void *stream, wb_device **device_out))                     \
    X(void, wb_device_close, (wb_device * device))                                                           \
    X(void, wb_hooks_options_init, (wb_hooks_options * options_out, size_t size))                            \
    X(wb_status, wb_hooks_open, (const wb_hooks_options *options, wb_hooks **hooks_out))                     \
    X(void, wb_hooks_close, (wb_hooks * hooks))                                                              \
    X(wb_status, wb_hooks_step_begin, (wb_hooks * hooks, wb_replay_mode mode, int32_t n_micro_batches))      \
    X(void, wb_hooks_step_abort, (wb_hooks * hooks))                                                         \
    X(wb_status, wb_hooks_gate_forward,                                                                      \
      (wb_hooks * hooks, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T, const float *logits,   \
       wb_ids ids_out, float *weights_out))                                                                  \
    X(wb_status, wb_hooks_dispatched,                                                                        \
      (wb_hooks * hooks, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T, wb_ids ids))           \
    X(wb_status, wb_hooks_gate_backward,                                                                     \
      (wb_hooks * hooks, int32_t micro_batch, int32_t layer, uint32_t row, int64_t T, const float *logits,   \
       const float *dweights, float *dlogits_out))                                                           \
    X(wb_status, wb_hooks_step_end, (wb_hooks * hooks, wb_replay_metrics * metrics_out))                     \
    X(wb_status, wb_hooks_settle, (wb_hooks * hooks))                                                        \
    X(wb_status, wb_hooks_upload, (wb_hooks * hooks, int32_t micro_batch))                                   \
    X(wb_status, wb_hooks_launched, (wb_hooks * hooks, int32_t micro_batch))                                 \
    X(wb_status, wb_placement_open,                                                                          \
      (const wb_topology *topology, uint32_t n_layers, uint32_t n_experts, wb_placement **placement_out))    \
    X(wb_status, wb_placement_clone, (const wb_placement *placement, wb_placement **placement_out))          \
    X(void, wb_placement_close, (wb_placement * placement))                                                  \
    X(uint32_t, wb_placement_layers, (const wb_placement *placement))                                        \
    X(uint32_t, wb_placement_experts, (const wb_placement *placement))                                       \
    X(const wb_topology *, wb_placement_topology, (const wb_placement *placement))                           \
    X(wb_layer_map, wb_placement_layer, (const wb_placement *placement, uint32_t layer))                     \
    X(void, wb_placement_rank_loads,                                                                         \
      (const wb_placement *placement, uint32_t layer, const double *loads, double *rank_loads_out))          \
    X(double, wb_placement_balancedness, (const wb_placement *placement, const double *rank_loads))          \
    X(wb_status, wb_placement_set_layer,                                                                     \
      (wb_placement * placement, uint32_t layer, const int32_t *expert_of_slot,                              \
       const uint32_t *replica_of_slot, uint64_t epoch))                                                     \
    X(uint64_t, wb_placement_hash, (const wb_placement *placement))                                          \
    X(uint32_t, wb_placement_max_replicas, (const wb_placement *placement))                                  \
    X(void, wb_placement_export, (const wb_placement *placement, int32_t *log2phy_out, int32_t *logcnt_out)) \
    X(wb_status, wb_placement_save,                                                                          \
      (const wb_placement *placement, const char *path, wb_map_layout layout, const uint32_t *layers))       \
    X(wb_cost_model, wb_cost_model_of, (uint32_t hidden, uint32_t expert_width))                             \
    X(void, wb_eplb_options_init, (wb_eplb_options * options_out, size_t size))                              \
    X(wb_status, wb_eplb_solve_counts,                                                                       \
      (const wb_topology *topology, uint32_t n_layers, uint32_t n_experts, uint32_t n_batches,               \
       const double *loads, const wb_eplb_options *options, wb_placement **placement_out))                   \
    X(wb_status, wb_placement_read,                                                                          \
      (const char *path, const wb_topology *topology, uint32_t n_layers, uint32_t n_experts,                 \
       const uint32_t *layers, const wb_eplb_options *options, const char **layout_out,                      \
       wb_placement **placement_out))                                                                        \
    X(wb_status, wb_counts_read,                                                                             \
      (uint32_t n_paths, const char *const *paths, const wb_moe_layers *layers, wb_counts **counts_out))     \
    X(void, wb_counts_close, (wb_counts * counts))                                                           \
    X(wb_counts_info, wb_counts_get_info, (const wb_counts *counts))                                         \
    X(const double *, wb_counts_loads, (const wb_counts *counts))                                            \
    X(wb_status, wb_dump_counts_open,                                                                        \
      (wb_dump * dump, const uint64_t *records, uint64_t n_records, uint32_t n_batches,                      \
       const wb_topology *topology, void (*progress)(void *ctx, uint64_t done, uint64_t total),              \
       void *progress_ctx, wb_dump_counts **counts_out))                                                     \
    X(void, wb_dump_counts_close, (wb_dump_counts * counts))                                                 \
    X(const double *, wb_dump_counts_loads, (const wb_dump_counts *counts))                                  \
    X(wb_status, wb_dispatch_table_length,                                                                   \
      (const wb_placement *placement, wb_dispatch_policy policy, size_t *length_out))                        \
    X(wb_status, wb_dispatch_fill_table,                                                                     \
      (const wb_placement *placement, wb_dispatch_policy policy, uint32_t rank, uint32_t layer,              \
       int32_t *table_out))                                                                                  \
    X(wb_status, wb_dispatch_quota,                                                                          \
      (const wb_placement *placement, uint32_t layer, const uint32_t *counts, uint32_t *shares_out))         \
    X(void, wb_move_options_init, (wb_move_options * options_out, size_t size))                              \
    X(wb_status, wb_move_plan_open,                                                                          \
      (const wb_placement *from, const wb_placement *to, uint32_t n, const uint32_t *layers,                 \
       const wb_move_options *options, wb_move_plan **plan_out))                                             \
    X(void, wb_move_plan_close, (wb_move_plan * plan))                                                       \
    X(wb_status, wb_move_apply_group,                                                                        \
      (const wb_move_plan *plan, uint32_t group, uint64_t epoch, wb_placement *placement))

#endif
