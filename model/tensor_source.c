/* tensor_source.c - see tensor_source.h. */
#include "tensor_source.h"
#include "fused_experts.h"
#include "layers/moe/moe.h"
#include "wb_checkpoint.h"
#include "wb_tensor_io.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

/* What is looked for: the files, the tensor, and what is found of it. */
typedef struct search {
    const wb_model *model;
    const wb_safetensors *files;
    const char *dir;
    const wb_tensor *tensor;
    wb_tensor_source *found;
} search;

/* ---- shapes ---------------------------------------------------------------------------------- */

wb_shape wb_shape_text(int32_t n_dims, const int64_t *shape) {
    wb_shape s = {"["};
    size_t used = 1;
    for (int32_t d = 0; d < n_dims && used < sizeof s.text - 32; d++)
        used +=
            (size_t)snprintf(s.text + used, sizeof s.text - used, "%s%" PRId64, d > 0 ? ", " : "", shape[d]);
    snprintf(s.text + used, sizeof s.text - used, "]");
    return s;
}

static wb_status check_shape(const wb_tensor_view *view, int32_t n_dims, const int64_t *shape) {
    bool same = view->n_dims == n_dims;
    for (int32_t d = 0; same && d < n_dims; d++) same = view->shape[d] == shape[d];
    if (same) return WB_OK;
    return wb_fail(WB_MISMATCH, "%s: tensor %s: expected shape %s, found %s", view->file, view->name,
                   wb_shape_text(n_dims, shape).text, wb_shape_text(view->n_dims, view->shape).text);
}

static wb_status wrong_dtype(const wb_tensor_view *view, const char *expected) {
    return wb_fail(WB_UNSUPPORTED, "%s: tensor %s %s: expected dtype %s, found %s", view->file, view->name,
                   wb_shape_text(view->n_dims, view->shape).text, expected, wb_dtype_name(view->dtype));
}

static bool is_float(wb_dtype dtype) {
    return dtype == WB_F32 || dtype == WB_BF16 || dtype == WB_F16;
}

/* ---- names ----------------------------------------------------------------------------------- */

/* Of a tensor, or its name where it is that of a model of text within a model of text and images. */
static size_t look_up(const wb_model *model, const wb_safetensors *files, const char *name) {
    static const char usual[] = "model.";
    const char *nested = model->family->nested_prefix;
    char other[2 * WB_TENSOR_NAME_BYTES];
    const size_t index = wb_safetensors_lookup(files, name);
    if (index != SIZE_MAX || !nested || strncmp(name, usual, sizeof usual - 1) != 0) return index;
    snprintf(other, sizeof other, "%s%s", nested, name + sizeof usual - 1);
    return wb_safetensors_lookup(files, other);
}

/* ---- by itself: plain, FP8 or FP4 ------------------------------------------------------------- */

/* Exponents of powers of two; u8 is how files have them that know no dtype of them. */
static bool is_exponent(wb_dtype dtype) {
    return dtype == WB_F8_E8M0 || dtype == WB_U8;
}

/* "<name>_scale_inv", or of "<stem>weight" "<stem>scale" as DeepSeek-V4 is released. */
static wb_status look_up_scales(const search *s, const char *name, size_t *index_out) {
    static const char weight[] = "weight";
    char behind[WB_TENSOR_NAME_BYTES + 16], instead[WB_TENSOR_NAME_BYTES + 16];
    const size_t length = strlen(name), tail = sizeof weight - 1;
    const bool is_weight = length >= tail && strcmp(name + length - tail, weight) == 0;
    snprintf(behind, sizeof behind, "%s_scale_inv", name);
    snprintf(instead, sizeof instead, "%.*sscale", (int)(is_weight ? length - tail : 0), name);
    *index_out = look_up(s->model, s->files, behind);
    if (*index_out == SIZE_MAX && is_weight) *index_out = look_up(s->model, s->files, instead);
    if (*index_out != SIZE_MAX) return WB_OK;
    return wb_fail(WB_NOT_FOUND, "%s: missing tensor %s%s%s", s->dir, behind, is_weight ? " or " : "",
                   is_weight ? instead : "");
}

/* A scale for each block that a matrix is cut into from its first row and column on. */
static wb_status take_scales(const search *s, const char *name, int32_t block_rows, int32_t block_columns) {
    wb_tensor_source *f = s->found;
    const int64_t shape[2] = {(s->tensor->shape[0] + block_rows - 1) / block_rows,
                              (s->tensor->shape[1] + block_columns - 1) / block_columns};
    WB_TRY(look_up_scales(s, name, &f->scales_index));
    WB_TRY(wb_safetensors_get(s->files, f->scales_index, &f->scales));
    f->block_rows = block_rows;
    f->block_columns = block_columns;
    return check_shape(&f->scales, 2, shape);
}

static wb_status take_fp8(const search *s, const char *name) {
    wb_tensor_source *f = s->found;
    const int32_t *block = s->model->config.weight_block;
    if (block[0] == 0)
        return wb_fail(WB_UNSUPPORTED,
                       "%s: tensor %s: dtype f8_e4m3, without quantization_config.weight_block_size in "
                       "config.json",
                       f->view.file, name);
    f->form = WB_SOURCE_FP8;
    WB_TRY(take_scales(s, name, block[0], block[1]));
    if (is_float(f->scales.dtype) || is_exponent(f->scales.dtype)) return WB_OK;
    return wrong_dtype(&f->scales, "f32, bf16, f16, f8_e8m0 or u8");
}

static wb_status check_groups(const wb_tensor_source *f) {
    if (f->columns % WB_FP4_GROUP == 0) return WB_OK;
    return wb_fail(WB_UNSUPPORTED, "%s: tensor %s: expected columns in groups of %d, found %" PRId64,
                   f->view.file, f->view.name, WB_FP4_GROUP, f->columns);
}

static wb_status take_fp4(const search *s, const char *name) {
    wb_tensor_source *f = s->found;
    const int64_t packed[2] = {s->tensor->shape[0], f->columns / 2};
    WB_TRY(check_groups(f));
    WB_TRY(check_shape(&f->view, 2, packed));
    f->form = WB_SOURCE_FP4;
    f->row_stride = 1;
    WB_TRY(take_scales(s, name, 1, WB_FP4_GROUP));
    return is_exponent(f->scales.dtype) ? WB_OK : wrong_dtype(&f->scales, "f8_e8m0 or u8");
}

/* Whether two numbers lie in a byte. A tensor of bytes that has as many as there are numbers is of a form
 * that nobody reads here, and its dtype says so. */
static bool is_packed(const wb_tensor_view *view, const wb_tensor *t) {
    return (view->dtype == WB_I8 || view->dtype == WB_U8) && t->n_dims == 2 &&
           !(view->n_dims == 2 && view->shape[1] == t->shape[1]);
}

static wb_status take_single(const search *s, const char *name, size_t index) {
    const wb_tensor *t = s->tensor;
    wb_tensor_source *f = s->found;
    f->index = index;
    f->row_stride = f->columns;
    f->column_stride = 1;
    WB_TRY(wb_safetensors_get(s->files, index, &f->view));
    if (is_packed(&f->view, t)) return take_fp4(s, name);
    WB_TRY(check_shape(&f->view, t->n_dims, t->shape));
    if (f->view.dtype == WB_F8_E4M3 && t->n_dims == 2) return take_fp8(s, name);
    if (is_float(f->view.dtype)) return WB_OK;
    return wrong_dtype(&f->view, t->n_dims == 2 ? "f32, bf16, f16 or f8_e4m3" : "f32, bf16 or f16");
}

/* ---- all experts of a layer in one tensor ---------------------------------------------------- */

static wb_status take_fused(const search *s, size_t index, const wb_fused_place *p) {
    wb_tensor_source *f = s->found;
    f->index = index;
    f->first = s->tensor->expert * p->part + p->first;
    f->row_stride = p->row_stride;
    f->column_stride = p->column_stride;
    WB_TRY(wb_safetensors_get(s->files, index, &f->view));
    WB_TRY(check_shape(&f->view, p->n_dims, p->shape));
    return is_float(f->view.dtype) ? WB_OK : wrong_dtype(&f->view, "f32, bf16 or f16");
}

/* gate_up_proj [E, 2F, H], rows gate before up, and down_proj [E, H, F]; with or without ".weight". */
static size_t find_rows(const search *s, wb_fused_place *p) {
    static const char *const names[2][2] = {
        {"mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj.weight"},
        {"mlp.experts.down_proj", "mlp.experts.down_proj.weight"},
    };
    const wb_model *m = s->model;
    const int64_t H = m->config.hidden_size, F = m->config.expert_width;
    const wb_moe_weights *w = m->layers[s->tensor->layer].feed_forward.weights;
    const bool down = s->tensor->param == w->down;
    *p = (wb_fused_place){.n_dims = 3,
                          .shape = {wb_config_weighted(&m->config), down ? H : 2 * F, down ? F : H},
                          .part = (down ? 1 : 2) * F * H,
                          .first =
                              s->tensor->offset % m->params[s->tensor->param].slot_elements != 0 ? F * H : 0,
                          .row_stride = down ? F : H,
                          .column_stride = 1};
    size_t index = SIZE_MAX;
    for (size_t i = 0; i < 2 && index == SIZE_MAX; i++) {
        wb_registry_full_name(m, s->tensor->layer, -1, names[down][i], p->name);
        index = look_up(s->model, s->files, p->name);
    }
    return index;
}

/* ---- MXFP4 ----------------------------------------------------------------------------------- */

enum { MX_BYTES = WB_FP4_GROUP / 2 };

/* Blocks [E, rows, columns / 32, 16] and scales [E, rows, columns / 32] of output rows. */
static wb_status take_mxfp4(const search *s, size_t blocks, const wb_fused_place *p) {
    wb_tensor_source *f = s->found;
    const int64_t rows = p->shape[2], groups = f->columns / WB_FP4_GROUP;
    char name[WB_TENSOR_NAME_BYTES + 16];
    snprintf(name, sizeof name, "%s_scales", p->name);
    f->form = WB_SOURCE_FP4;
    f->index = blocks;
    f->scales_index = wb_safetensors_lookup(s->files, name);
    if (f->scales_index == SIZE_MAX) return wb_fail(WB_NOT_FOUND, "%s: missing tensor %s", s->dir, name);
    WB_TRY(wb_safetensors_get(s->files, blocks, &f->view));
    WB_TRY(wb_safetensors_get(s->files, f->scales_index, &f->scales));
    WB_TRY(check_groups(f));
    const int64_t shape[4] = {p->shape[0], rows, groups, MX_BYTES};
    WB_TRY(check_shape(&f->view, 4, shape));
    WB_TRY(check_shape(&f->scales, 3, shape));
    if (f->view.dtype != WB_U8) return wrong_dtype(&f->view, "u8");
    if (f->scales.dtype != WB_U8) return wrong_dtype(&f->scales, "u8");
    f->first = s->tensor->expert * rows + p->first;
    f->row_stride = p->row_stride;
    return WB_OK;
}

/* ---- finding --------------------------------------------------------------------------------- */

/* Other forms of an expert's tensor; *found_out: whether it is there in one. */
static wb_status find_in_experts(const search *s, bool *found_out) {
    wb_fused_place p;
    *found_out = true;
    if (wb_fused_place_of(s->model, s->tensor, &p)) {
        char blocks[WB_TENSOR_NAME_BYTES + 16];
        const size_t plain = wb_safetensors_lookup(s->files, p.name);
        if (plain != SIZE_MAX) return take_fused(s, plain, &p);
        snprintf(blocks, sizeof blocks, "%s_blocks", p.name);
        const size_t packed = wb_safetensors_lookup(s->files, blocks);
        if (packed != SIZE_MAX && s->tensor->n_dims == 2) return take_mxfp4(s, packed, &p);
    } else {
        const size_t index = find_rows(s, &p);
        if (index != SIZE_MAX) return take_fused(s, index, &p);
    }
    *found_out = false;
    return WB_OK;
}

size_t wb_tensor_lookup(const wb_model *model, const wb_safetensors *files, const wb_tensor *t) {
    char other[WB_TENSOR_NAME_BYTES];
    size_t at = look_up(model, files, t->name);
    if (at != SIZE_MAX) return at;
    wb_registry_released_name(model, t, other);
    at = look_up(model, files, other);
    if (at != SIZE_MAX) return at;
    wb_registry_usual_name(model, t, other);
    return look_up(model, files, other);
}

wb_status wb_tensor_source_find(const wb_model *model, const wb_safetensors *files, const char *dir,
                                const wb_tensor *t, wb_tensor_source *source_out) {
    *source_out = (wb_tensor_source){.scales_index = SIZE_MAX, .columns = t->n / t->shape[0]};
    const search s = {model, files, dir, t, source_out};
    const size_t own = wb_tensor_lookup(model, files, t);
    if (own != SIZE_MAX) return take_single(&s, wb_safetensors_name(files, own), own);
    if (t->expert >= 0) {
        bool found;
        WB_TRY(find_in_experts(&s, &found));
        if (found) return WB_OK;
    }
    return wb_fail(WB_NOT_FOUND, "%s: missing tensor %s %s", dir, t->name,
                   wb_shape_text(t->n_dims, t->shape).text);
}
