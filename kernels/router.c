/* router.c - the names of the router types, and what makes a router valid. */
#include "wb_check.h"
#include "wb_ops_moe.h"

static const char *const router_names[] = {
    [WB_ROUTER_SOFTMAX] = "softmax",           [WB_ROUTER_SOFTMAX_NORM] = "softmax_norm",
    [WB_ROUTER_TOPK_SOFTMAX] = "topk_softmax", [WB_ROUTER_SIGMOID] = "sigmoid",
    [WB_ROUTER_SQRTSOFTPLUS] = "sqrtsoftplus", [WB_ROUTER_HASH] = "hash",
};
enum { ROUTER_TYPES = sizeof router_names / sizeof router_names[0], MAX_EXPERTS = 65536, MAX_TOP_K = 64 };

const char *wb_router_name(wb_router_type type) {
    return (unsigned)type < ROUTER_TYPES ? router_names[type] : "unknown";
}

static wb_status check_groups(const wb_router *router) {
    int32_t E = router->n_experts, n_group = router->n_group, kept = router->topk_group;
    if (router->type == WB_ROUTER_HASH)
        return wb_fail(WB_INVALID_ARGUMENT, "router.n_group: a hash router has no groups, found %d", n_group);
    if (E % n_group != 0)
        return wb_fail(WB_INVALID_ARGUMENT, "router.n_group: expected a divisor of %d experts, found %d", E,
                       n_group);
    if (kept < 1 || kept > n_group)
        return wb_fail(WB_INVALID_ARGUMENT, "router.topk_group: expected 1..%d, found %d", n_group, kept);
    if (router->top_k > kept * (E / n_group))
        return wb_fail(WB_INVALID_ARGUMENT, "router.top_k: expected at most %d (%d groups of %d), found %d",
                       kept * (E / n_group), kept, E / n_group, router->top_k);
    return WB_OK;
}

wb_status wb_router_check(const wb_router *router) {
    int32_t E = router->n_experts, K = router->top_k;
    if ((unsigned)router->type >= ROUTER_TYPES)
        return wb_fail(WB_INVALID_ARGUMENT, "router.type: unknown value %d", (int)router->type);
    if (E < 1 || E > MAX_EXPERTS)
        return wb_fail(WB_INVALID_ARGUMENT, "router.n_experts: expected 1..%d, found %d", MAX_EXPERTS, E);
    int32_t max_k = E < MAX_TOP_K ? E : MAX_TOP_K;
    if (K < 1 || K > max_k)
        return wb_fail(WB_INVALID_ARGUMENT, "router.top_k: expected 1..%d, found %d", max_k, K);
    if (!(router->scale > -3.4e38f && router->scale < 3.4e38f))
        return wb_fail(WB_INVALID_ARGUMENT, "router.scale: expected a finite number, found %g",
                       (double)router->scale);
    return router->n_group > 1 ? check_groups(router) : WB_OK;
}
