/* cost_model.c - the figures that predictions are made with: the default ones and the check of others.
 * Refuses: the predictions (simulate.c, move_stage.c, solve_incremental.c). */
#include "cost/cost_model.h"
#include "wb_check.h"

#include <math.h>

wb_cost_model wb_cost_model_of(uint32_t hidden, uint32_t expert_width) {
    const double weights = 3.0 * hidden * expert_width; /* of one expert; 2 operations and 2 bytes each */
    return (wb_cost_model){.seconds_per_token = 2 * weights / 400e12,
                           .seconds_per_expert = 2 * weights / 4.3e12,
                           .bytes_per_token = 2.0 * hidden,
                           .expert_bytes = 2 * weights,
                           .node_bytes_per_second = 400e9,
                           .network_bytes_per_second = 50e9,
                           .local_bytes_per_second = 4.3e12 / 2, /* read and written */
                           .seconds_per_group = 20e-6};
}

wb_cost_model wb_cost_model_default(void) {
    return wb_cost_model_of(7168, 2048);
}

wb_status wb_cost_model_check(const wb_cost_model *cost, const char *what) {
    const struct {
        const char *name;
        double value;
        bool rate; /* divided by: above 0 */
    } fields[] = {{"seconds_per_token", cost->seconds_per_token, false},
                  {"seconds_per_expert", cost->seconds_per_expert, false},
                  {"bytes_per_token", cost->bytes_per_token, false},
                  {"expert_bytes", cost->expert_bytes, false},
                  {"seconds_per_group", cost->seconds_per_group, false},
                  {"local_bytes_per_second", cost->local_bytes_per_second, true},
                  {"node_bytes_per_second", cost->node_bytes_per_second, true},
                  {"network_bytes_per_second", cost->network_bytes_per_second, true}};
    for (size_t i = 0; i < sizeof fields / sizeof fields[0]; i++) {
        double value = fields[i].value;
        if (!isfinite(value) || value < 0 || (fields[i].rate && value == 0))
            return wb_fail(WB_INVALID_ARGUMENT, "%s: cost model: %s: expected a number %s 0, found %g", what,
                           fields[i].name, fields[i].rate ? "above" : "of at least", value);
    }
    return WB_OK;
}
