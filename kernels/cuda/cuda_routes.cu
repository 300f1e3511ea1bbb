/* cuda_routes.cu - ids of a route tensor moved between views, and looked at after a dispatcher took them.
 * Refuses: choosing (cuda_topk.cu), weights of ids (cuda_gate.cu). */
#include "cuda/cuda_fault.h"
#include "cuda/cuda_ids.h"
#include "cuda/cuda_operands.h"

namespace {

__global__ void copy_each(int64_t T, int32_t K, wb_ids from, wb_ids to) {
    const int64_t i = thread_number();
    if (i >= T * K) return;
    const int64_t t = i / K;
    const int32_t k = static_cast<int32_t>(i - t * K);
    store_id(to, t, k, load_id(from, t, k));
}

/* The twin of the CPU's look_at_choice. */
__device__ wb_fault look_at_choice(const wb_route_check &args, int64_t t, int32_t k) {
    wb_fault fault = {};
    fault.op = WB_OP_check_routes;
    fault.row = args.row + t;
    fault.choice = k;
    fault.limit = args.n_experts;
    fault.micro_batch = args.micro_batch;
    fault.layer = args.layer;
    if (args.weights && !isfinite(args.weights[t * args.top_k + k])) {
        fault.kind = WB_FAULT_WEIGHT;
        fault.found = wb_float_bits(args.weights[t * args.top_k + k]);
    }
    if (!args.taken.data) return fault;
    const uint32_t id = load_id(args.taken, t, k);
    bool planned = false;
    for (int32_t j = 0; j < args.top_k; j++) planned = planned || load_id(args.planned, t, j) == id;
    for (int32_t j = 0; j < k; j++) planned = planned && load_id(args.taken, t, j) != id;
    if (planned) return fault;
    fault.kind = id >= static_cast<uint32_t>(args.n_experts) ? WB_FAULT_ROUTE_ID : WB_FAULT_ROUTE;
    fault.found = id;
    return fault;
}

__global__ void check_each(wb_route_check args, wb_fault *word) {
    const int64_t i = thread_number();
    if (i >= args.T * args.top_k) return;
    const int64_t t = i / args.top_k;
    const wb_fault fault = look_at_choice(args, t, static_cast<int32_t>(i - t * args.top_k));
    if (fault.kind != WB_FAULT_NONE) set_fault(word, fault);
}

} // namespace

extern "C" {

wb_status wb_cuda_copy_ids(wb_device *dev, int64_t T, int32_t K, wb_ids from, wb_ids to) {
    if (to.dtype == WB_U8 && from.dtype != WB_U8)
        return wb_fail(WB_INVALID_ARGUMENT, "copy_ids: to: expected u16, found u8");
    LAUNCH(dev, "copy_ids", T, K, copy_each, T, K, from, to);
}

wb_status wb_cuda_check_routes(wb_device *dev, const wb_route_check *args) {
    LAUNCH(dev, "check_routes", args->T, args->top_k, check_each, *args, fault_of(dev));
}
}
