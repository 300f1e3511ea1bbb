/* python_structs.h - structs of the public headers that the Python package reads or fills, and of these the
 * fields that it uses.
 *
 * Refuses: fields that Python does not use; it knows from the struct's bytes that they are there. */
#ifndef WB_PYTHON_STRUCTS_H
#define WB_PYTHON_STRUCTS_H

#include "waybill.h"

/* S(type), then F(type, C type, field) of its fields, where they come. */
#define WB_PYTHON_STRUCTS(S, F)                             \
    S(wb_route_model)                                       \
    F(wb_route_model, char[64], name)                       \
    F(wb_route_model, char[33], fingerprint)                \
    F(wb_route_model, char[16], router)                     \
    F(wb_route_model, uint32_t, num_hidden_layers)          \
    F(wb_route_model, uint32_t, n_moe_layers)               \
    F(wb_route_model, const uint32_t *, moe_layers)         \
    F(wb_route_model, uint32_t, num_experts)                \
    F(wb_route_model, uint32_t, top_k)                      \
    F(wb_route_model, const uint32_t *, layer_top_k)        \
    F(wb_route_model, uint32_t, n_weightless)               \
    F(wb_route_model, uint32_t, n_hash_layers)              \
    F(wb_route_model, const uint32_t *, hash_layers)        \
    F(wb_route_model, uint32_t, n_indexer_layers)           \
    F(wb_route_model, uint32_t, indexer_k)                  \
    F(wb_route_model, uint32_t, indexer_rate)               \
    F(wb_route_model, const uint32_t *, indexer_layers)     \
    F(wb_route_model, const uint32_t *, indexer_source)     \
    S(wb_indexer_rows)                                      \
    F(wb_indexer_rows, uint32_t, start)                     \
    F(wb_indexer_rows, uint32_t, rows)                      \
    F(wb_indexer_rows, const uint32_t *, counts)            \
    F(wb_indexer_rows, const uint64_t *, ends)              \
    F(wb_indexer_rows, const uint32_t *, positions)         \
    S(wb_route_rows)                                        \
    F(wb_route_rows, uint32_t, start)                       \
    F(wb_route_rows, uint32_t, rows)                        \
    F(wb_route_rows, const void *, ids)                     \
    F(wb_route_rows, const uint8_t *, valid)                \
    S(wb_span)                                              \
    F(wb_span, uint32_t, start)                             \
    F(wb_span, uint32_t, end)                               \
    F(wb_span, uint64_t, weight_version)                    \
    S(wb_sampling)                                          \
    F(wb_sampling, float, temperature)                      \
    F(wb_sampling, uint32_t, top_k)                         \
    F(wb_sampling, float, top_p)                            \
    S(wb_record)                                            \
    F(wb_record, const char *, rid)                         \
    F(wb_record, uint64_t, group)                           \
    F(wb_record, uint32_t, sample)                          \
    F(wb_record, uint32_t, prompt_len)                      \
    F(wb_record, uint32_t, n_tokens)                        \
    F(wb_record, const uint32_t *, tokens)                  \
    F(wb_record, const float *, logprobs)                   \
    F(wb_record, wb_finish, finish)                         \
    F(wb_record, uint32_t, n_spans)                         \
    F(wb_record, const wb_span *, spans)                    \
    F(wb_record, uint32_t, n_routes)                        \
    F(wb_record, const wb_route_rows *, routes)             \
    F(wb_record, const wb_sampling *, sampling)             \
    F(wb_record, const float *, sampling_logprobs)          \
    F(wb_record, const uint32_t *, mask_ids)                \
    F(wb_record, const uint32_t *, mask_ends)               \
    F(wb_record, const wb_indexer_rows *, indexer)          \
    S(wb_dump_options)                                      \
    F(wb_dump_options, wb_codec, codec)                     \
    F(wb_dump_options, int, zstd_level)                     \
    F(wb_dump_options, size_t, chunk_bytes)                 \
    F(wb_dump_options, const char *, producer)              \
    F(wb_dump_options, bool, trust_ids)                     \
    S(wb_dump_info)                                         \
    F(wb_dump_info, uint64_t, files)                        \
    F(wb_dump_info, uint64_t, records)                      \
    F(wb_dump_info, uint64_t, bytes)                        \
    F(wb_dump_info, uint64_t, files_without_index)          \
    F(wb_dump_info, uint64_t, lost_bytes)                   \
    F(wb_dump_info, char[1024], lost_where)                 \
    F(wb_dump_info, uint64_t, files_cut)                    \
    S(wb_replay_options)                                    \
    F(wb_replay_options, wb_missing_policy, missing)        \
    F(wb_replay_options, int32_t, n_ranks)                  \
    F(wb_replay_options, int32_t, first_layer)              \
    F(wb_replay_options, int32_t, n_layers)                 \
    F(wb_replay_options, const wb_placement *, placement)   \
    F(wb_replay_options, wb_dispatch_policy, dispatch)      \
    F(wb_replay_options, bool, indexer)                     \
    S(wb_replay_indexer_slice)                              \
    F(wb_replay_indexer_slice, bool, any_forced)            \
    F(wb_replay_indexer_slice, bool, any_native)            \
    F(wb_replay_indexer_slice, bool, want_used)             \
    F(wb_replay_indexer_slice, bool, want_native)           \
    S(wb_replay_indexer_metrics)                            \
    F(wb_replay_indexer_metrics, double, tokens)            \
    F(wb_replay_indexer_metrics, double, overlap)           \
    F(wb_replay_indexer_metrics, double, differ)            \
    S(wb_segment)                                           \
    F(wb_segment, wb_segment_kind, kind)                    \
    F(wb_segment, const char *, rid)                        \
    F(wb_segment, uint32_t, start)                          \
    F(wb_segment, uint32_t, rows)                           \
    F(wb_segment, const uint32_t *, tokens)                 \
    S(wb_replay_slice)                                      \
    F(wb_replay_slice, uint32_t, rows)                      \
    F(wb_replay_slice, const void *, ids)                   \
    F(wb_replay_slice, int64_t, stride)                     \
    F(wb_replay_slice, const uint8_t *, direction)          \
    F(wb_replay_slice, bool, any_forced)                    \
    F(wb_replay_slice, bool, any_native)                    \
    F(wb_replay_slice, bool, undecided)                     \
    F(wb_replay_slice, bool, want_chosen)                   \
    F(wb_replay_slice, bool, want_used)                     \
    F(wb_replay_slice, bool, want_native)                   \
    S(wb_replay_metrics)                                    \
    F(wb_replay_metrics, double, rows)                      \
    F(wb_replay_metrics, double, forced_rows)               \
    F(wb_replay_metrics, double, fallback_rows)             \
    F(wb_replay_metrics, double, padding_rows)              \
    F(wb_replay_metrics, double, fallback_share)            \
    F(wb_replay_metrics, double, token_differ)              \
    F(wb_replay_metrics, double, decision_differ)           \
    F(wb_replay_metrics, double, logprobs)                  \
    F(wb_replay_metrics, double, kl_k1)                     \
    F(wb_replay_metrics, double, kl_k3)                     \
    F(wb_replay_metrics, double, ratio_outside)             \
    F(wb_replay_metrics, double, forced_balancedness)       \
    F(wb_replay_metrics, double, native_balancedness)       \
    S(wb_replay_layer_metrics)                              \
    F(wb_replay_layer_metrics, double, tokens)              \
    F(wb_replay_layer_metrics, double, overlap)             \
    F(wb_replay_layer_metrics, double, differ)              \
    F(wb_replay_layer_metrics, double, forced_balancedness) \
    F(wb_replay_layer_metrics, double, native_balancedness) \
    S(wb_router)                                            \
    F(wb_router, wb_router_type, type)                      \
    F(wb_router, int32_t, n_experts)                        \
    F(wb_router, int32_t, top_k)                            \
    F(wb_router, int32_t, n_group)                          \
    F(wb_router, int32_t, topk_group)                       \
    F(wb_router, bool, normalize)                           \
    F(wb_router, float, scale)                              \
    S(wb_ids)                                               \
    F(wb_ids, void *, data)                                 \
    F(wb_ids, wb_dtype, dtype)                              \
    F(wb_ids, int64_t, stride)                              \
    S(wb_hooks_options)                                     \
    F(wb_hooks_options, wb_device *, device)                \
    F(wb_hooks_options, wb_replay *, replay)                \
    F(wb_hooks_options, wb_router, router)                  \
    F(wb_hooks_options, const float *const *, bias)         \
    S(wb_pack_cost)                                         \
    F(wb_pack_cost, double, per_row)                        \
    F(wb_pack_cost, double, per_pair)                       \
    F(wb_pack_cost, double, per_choice)                     \
    S(wb_pack_options)                                      \
    F(wb_pack_options, int64_t, max_rows)                   \
    F(wb_pack_options, uint32_t, n_updates)                 \
    F(wb_pack_options, wb_pack_cost, cost)                  \
    S(wb_pack_sequence)                                     \
    F(wb_pack_sequence, const wb_record *, record)          \
    F(wb_pack_sequence, uint32_t, rows)                     \
    F(wb_pack_sequence, uint32_t, update)                   \
    S(wb_pack_place)                                        \
    F(wb_pack_place, uint32_t, home)                        \
    F(wb_pack_place, uint32_t, index)                       \
    F(wb_pack_place, uint32_t, rank)                        \
    F(wb_pack_place, uint32_t, micro_batch)                 \
    F(wb_pack_place, uint32_t, rows)                        \
    S(wb_topology)                                          \
    F(wb_topology, uint32_t, n_ranks)                       \
    F(wb_topology, uint32_t, n_nodes)                       \
    F(wb_topology, uint32_t, n_slots)                       \
    F(wb_topology, const uint32_t *, slots_of_rank)         \
    F(wb_topology, const uint32_t *, node_of_rank)          \
    F(wb_topology, const uint8_t *, dead)                   \
    S(wb_physical_id)                                       \
    F(wb_physical_id, uint32_t, slot)                       \
    S(wb_layer_map)                                         \
    F(wb_layer_map, const int32_t *, expert_of_slot)        \
    F(wb_layer_map, const uint32_t *, replica_of_slot)      \
    F(wb_layer_map, uint64_t, epoch)                        \
    S(wb_cost_model)                                        \
    F(wb_cost_model, double, seconds_per_token)             \
    F(wb_cost_model, double, seconds_per_expert)            \
    F(wb_cost_model, double, bytes_per_token)               \
    F(wb_cost_model, double, expert_bytes)                  \
    F(wb_cost_model, double, node_bytes_per_second)         \
    F(wb_cost_model, double, network_bytes_per_second)      \
    F(wb_cost_model, double, local_bytes_per_second)        \
    F(wb_cost_model, double, seconds_per_group)             \
    S(wb_eplb_options)                                      \
    F(wb_eplb_options, wb_eplb_algorithm, algorithm)        \
    F(wb_eplb_options, uint32_t, n_groups)                  \
    F(wb_eplb_options, uint32_t, trials)                    \
    F(wb_eplb_options, const wb_placement *, current)       \
    F(wb_eplb_options, uint32_t, max_changes)               \
    F(wb_eplb_options, double, target)                      \
    F(wb_eplb_options, double, horizon_steps)               \
    F(wb_eplb_options, wb_cost_model, cost)                 \
    F(wb_eplb_options, uint32_t, threads)                   \
    S(wb_moe_layers)                                        \
    F(wb_moe_layers, uint32_t, n_hidden)                    \
    F(wb_moe_layers, uint32_t, n_moe)                       \
    F(wb_moe_layers, const uint32_t *, layers)              \
    S(wb_counts_info)                                       \
    F(wb_counts_info, uint32_t, n_passes)                   \
    F(wb_counts_info, uint32_t, n_layers)                   \
    F(wb_counts_info, uint32_t, n_experts)                  \
    F(wb_counts_info, const uint32_t *, layers)             \
    F(wb_counts_info, const uint8_t *, informed)            \
    F(wb_counts_info, const char *, layout)                 \
    S(wb_move)                                              \
    F(wb_move, uint32_t, layer)                             \
    F(wb_move, uint32_t, expert)                            \
    F(wb_move, wb_move_kind, kind)                          \
    F(wb_move, wb_physical_id, from)                        \
    F(wb_move, wb_physical_id, to)                          \
    S(wb_move_group)                                        \
    F(wb_move_group, uint32_t, layer)                       \
    F(wb_move_group, bool, last)                            \
    F(wb_move_group, uint64_t, begin)                       \
    F(wb_move_group, uint64_t, end)                         \
    S(wb_move_options)                                      \
    F(wb_move_options, uint32_t, n_shadow)                  \
    F(wb_move_options, uint32_t, group_moves)               \
    F(wb_move_options, wb_cost_model, cost)                 \
    S(wb_move_plan)                                         \
    F(wb_move_plan, uint64_t, n_moves)                      \
    F(wb_move_plan, const wb_move *, moves)                 \
    F(wb_move_plan, uint32_t, n_groups)                     \
    F(wb_move_plan, const wb_move_group *, groups)          \
    F(wb_move_plan, double, local_bytes)                    \
    F(wb_move_plan, double, node_bytes)                     \
    F(wb_move_plan, double, network_bytes)                  \
    F(wb_move_plan, double, reload_bytes)                   \
    F(wb_move_plan, double, seconds)

#endif
