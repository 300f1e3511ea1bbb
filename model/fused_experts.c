/* fused_experts.c - see fused_experts.h. */
#include "fused_experts.h"
#include "layers/moe/moe.h"

/* A vector of gate and up, or of down; the biases have no inputs. */
static void place_bias(const wb_model *model, bool down, wb_fused_place *p) {
    const int64_t H = model->config.hidden_size, F = model->config.expert_width;
    p->n_dims = 2;
    p->part = p->shape[1] = down ? H : 2 * F;
    p->row_stride = down ? 1 : 2;
}

static void place_matrix(const wb_model *model, bool down, wb_fused_place *p) {
    const int64_t H = model->config.hidden_size, F = model->config.expert_width;
    p->n_dims = 3;
    p->shape[1] = down ? F : H;
    p->shape[2] = p->column_stride = down ? H : 2 * F;
    p->part = p->shape[1] * p->shape[2];
    p->row_stride = down ? 1 : 2;
}

bool wb_fused_place_of(const wb_model *model, const wb_tensor *t, wb_fused_place *p) {
    static const char *const names[2][2] = {
        {"mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj_bias"},
        {"mlp.experts.down_proj", "mlp.experts.down_proj_bias"},
    };
    if (t->expert < 0 || !model->family->fused_experts) return false;
    const wb_moe_weights *w = model->layers[t->layer].feed_forward.weights;
    const bool bias = t->n_dims == 1, down = t->param == w->down || t->param == w->down_bias;
    *p = (wb_fused_place){.shape = {wb_config_weighted(&model->config)}};
    wb_registry_full_name(model, t->layer, -1, names[down][bias], p->name);
    if (bias)
        place_bias(model, down, p);
    else
        place_matrix(model, down, p);
    /* The rows of up lie behind those of gate in a slot, and between them here. */
    if (!down && t->offset % model->params[t->param].slot_elements != 0) p->first = 1;
    return true;
}
