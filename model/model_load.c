/* model_load.c - a checkpoint's tensors into this rank's storages.
 * Every tensor of the registry is looked up and checked on every rank; only what lives here is read.
 * An expert with several replicas here is read once.
 * Refuses: tensors that are missing, surplus, of another shape or of no floating-point dtype. */
#include "elements.h"
#include "layers/moe/moe.h"
#include "registry.h"
#include "wb_hash.h"
#include "wb_tensor_io.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_ELEMENTS ((int64_t)1 << 18)
#define SAMPLE_BYTES ((size_t)4096)

/* Where a tensor of the registry lies in the files. */
typedef struct source {
    size_t index;   /* tensor of the files */
    int32_t n_dims; /* shape that it must have there */
    int64_t shape[WB_MAX_DIMS];
    int64_t offset; /* first element in it */
} source;

typedef struct loader {
    wb_model *model;
    const wb_safetensors *files;
    const char *dir;
    bool *used;     /* [wb_safetensors_count(files)] */
    float *scratch; /* [CHUNK_ELEMENTS] of the widest dtype */
    wb_owner memory;
} loader;

/* ---- finding --------------------------------------------------------------------------------- */

/* "[16, 32]" for messages. */
typedef struct shape_text {
    char text[128];
} shape_text;

static shape_text show_shape(int32_t n_dims, const int64_t *shape) {
    shape_text s = {"["};
    size_t used = 1;
    for (int32_t d = 0; d < n_dims && used < sizeof s.text - 32; d++)
        used +=
            (size_t)snprintf(s.text + used, sizeof s.text - used, "%s%" PRId64, d > 0 ? ", " : "", shape[d]);
    snprintf(s.text + used, sizeof s.text - used, "]");
    return s;
}

/* All experts of a layer in one tensor: gate_up_proj [E, 2F, H], rows gate before up, and down_proj [E, H,
 * F]; with or without ".weight". */
static bool find_fused(const loader *ld, const wb_tensor *t, source *out) {
    const wb_config *c = &ld->model->config;
    const wb_moe_weights *w = ld->model->layers[t->layer].feed_forward.weights;
    const int64_t H = c->hidden_size, F = c->expert_width;
    const bool down = t->param == w->down, up = !down && t->offset % (2 * F * H) != 0;
    static const char *const names[2][2] = {
        {"mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj.weight"},
        {"mlp.experts.down_proj", "mlp.experts.down_proj.weight"},
    };
    for (size_t i = 0; i < 2; i++) {
        char name[WB_TENSOR_NAME_BYTES];
        wb_registry_full_name(ld->model, t->layer, -1, names[down][i], name);
        const size_t index = wb_safetensors_lookup(ld->files, name);
        if (index == SIZE_MAX) continue;
        *out = (source){.index = index,
                        .n_dims = 3,
                        .shape = {c->router.n_experts, down ? H : 2 * F, down ? F : H},
                        .offset = down ? t->expert * H * F : t->expert * 2 * F * H + (up ? F * H : 0)};
        return true;
    }
    return false;
}

static wb_status find_source(const loader *ld, const wb_tensor *t, source *out) {
    size_t index = wb_safetensors_lookup(ld->files, t->name);
    if (index != SIZE_MAX) {
        *out =
            (source){.index = index, .n_dims = t->n_dims, .shape = {t->shape[0], t->shape[1]}, .offset = 0};
        return WB_OK;
    }
    if (t->expert >= 0 && find_fused(ld, t, out)) return WB_OK;
    return wb_fail(WB_NOT_FOUND, "%s: missing tensor %s %s", ld->dir, t->name,
                   show_shape(t->n_dims, t->shape).text);
}

static wb_status check_view(const wb_tensor_view *view, const source *expected) {
    bool same = view->n_dims == expected->n_dims;
    for (int32_t d = 0; same && d < view->n_dims; d++) same = view->shape[d] == expected->shape[d];
    if (!same)
        return wb_fail(WB_MISMATCH, "%s: tensor %s: expected shape %s, found %s", view->file, view->name,
                       show_shape(expected->n_dims, expected->shape).text,
                       show_shape(view->n_dims, view->shape).text);
    if (view->dtype != WB_F32 && view->dtype != WB_BF16 && view->dtype != WB_F16)
        return wb_fail(WB_UNSUPPORTED, "%s: tensor %s %s: expected dtype f32, bf16 or f16, found %s",
                       view->file, view->name, show_shape(view->n_dims, view->shape).text,
                       wb_dtype_name(view->dtype));
    return WB_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */

static wb_status upload(const loader *ld, const wb_tensor *t, const unsigned char *from,
                        wb_dtype from_dtype) {
    wb_device *dev = ld->model->device;
    size_t from_size = wb_dtype_size(from_dtype), to_size = wb_dtype_size(t->dtype);
    if (from_dtype == t->dtype) return dev->to_device(dev, t->data, from, (size_t)t->n * to_size);
    for (int64_t done = 0; done < t->n; done += CHUNK_ELEMENTS) {
        int64_t n = t->n - done < CHUNK_ELEMENTS ? t->n - done : CHUNK_ELEMENTS;
        wb_convert(n, from + (size_t)done * from_size, from_dtype, ld->scratch, t->dtype);
        WB_TRY(
            dev->to_device(dev, (char *)t->data + (size_t)done * to_size, ld->scratch, (size_t)n * to_size));
    }
    return WB_OK;
}

/* What ranks compare: all of what each of them reads, and of an expert, which its owner alone does, the
 * middle. */
static uint64_t digest_of(const wb_tensor *t, const unsigned char *data, size_t bytes) {
    if (t->expert < 0 || bytes <= SAMPLE_BYTES) return wb_hash64(data, bytes);
    return wb_hash64(data + (bytes - SAMPLE_BYTES) / 2, SAMPLE_BYTES);
}

static wb_status load_tensor(const loader *ld, const wb_tensor *t, wb_dtype *file_dtype_out,
                             uint64_t *digest_out) {
    source from = {0};
    wb_tensor_view view = {0};
    WB_TRY(find_source(ld, t, &from));
    WB_TRY(wb_safetensors_get(ld->files, from.index, &view));
    WB_TRY(check_view(&view, &from));
    ld->used[from.index] = true;
    *file_dtype_out = view.dtype;
    const size_t size = wb_dtype_size(view.dtype);
    const unsigned char *data = (const unsigned char *)view.data + (size_t)from.offset * size;
    *digest_out = digest_of(t, data, (size_t)t->n * size);
    return t->data ? upload(ld, t, data, view.dtype) : WB_OK;
}

/* ---- surplus --------------------------------------------------------------------------------- */

/* Tensors that checkpoints carry and nobody needs: tables that the model computes, the copy of a tied
 * weight. */
static bool harmless(const wb_model *model, const char *name) {
    static const char ending[] = "rotary_emb.inv_freq";
    size_t length = strlen(name);
    if (length >= sizeof ending - 1 && strcmp(name + length - (sizeof ending - 1), ending) == 0) return true;
    return model->config.tie_word_embeddings && strcmp(name, wb_registry_name(model, "lm_head.weight")) == 0;
}

static wb_status check_surplus(const loader *ld) {
    const char *first = NULL;
    size_t surplus = 0;
    for (size_t i = 0; i < wb_safetensors_count(ld->files); i++) {
        const char *name = wb_safetensors_name(ld->files, i);
        if (ld->used[i] || harmless(ld->model, name)) continue;
        if (!first) first = name;
        surplus++;
    }
    if (surplus == 0) return WB_OK;
    wb_tensor_view view = {0};
    WB_TRY(wb_safetensors_find(ld->files, first, &view));
    return wb_fail(WB_MISMATCH, "%s: surplus tensor %s %s: not of this %s model (%zu such tensors)",
                   view.file, first, show_shape(view.n_dims, view.shape).text, ld->model->family->model_type,
                   surplus);
}

wb_status wb_model_load(wb_model *model, const wb_safetensors *files, const char *dir,
                        uint64_t *digests_out) {
    loader ld = {.model = model, .files = files, .dir = dir};
    wb_status status = WB_OWN(&ld.memory, ld.used, wb_safetensors_count(files), dir);
    if (status == WB_OK) status = WB_OWN(&ld.memory, ld.scratch, (size_t)CHUNK_ELEMENTS, dir);
    for (int32_t i = 0; status == WB_OK && i < model->n_tensors; i++) {
        wb_tensor t = wb_model_tensor(model, i);
        status = load_tensor(&ld, &t, &model->tensors[i].file_dtype, &digests_out[i]);
        if (status == WB_OK) status = wb_model_fill_replicas(model, i);
    }
    if (status == WB_OK) status = check_surplus(&ld);
    wb_owner_close(&ld.memory);
    return status;
}
