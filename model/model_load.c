/* model_load.c - a checkpoint's tensors into this rank's storages.
 * Every tensor of the registry is looked up and checked on every rank; only what lives here is read.
 * An expert with several replicas here is read once.
 * Refuses: tensors that are missing, surplus, of another shape or of no floating-point dtype. */
#include "elements.h"
#include "layers/moe/moe.h"
#include "registry.h"
#include "stored_tensor.h"
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
    bool *used;      /* [wb_safetensors_count(files)] */
    float *scratch;  /* [CHUNK_ELEMENTS] of the widest dtype */
    size_t n_scaled; /* tensors that are stored with scales */
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
static bool find_fused(const loader *ld, const wb_model *model, const wb_tensor *t, source *out) {
    const wb_config *c = &model->config;
    const wb_moe_weights *w = model->layers[t->layer].feed_forward.weights;
    const int64_t H = c->hidden_size, F = c->expert_width;
    const bool down = t->param == w->down, up = !down && t->offset % (2 * F * H) != 0;
    static const char *const names[2][2] = {
        {"mlp.experts.gate_up_proj", "mlp.experts.gate_up_proj.weight"},
        {"mlp.experts.down_proj", "mlp.experts.down_proj.weight"},
    };
    for (size_t i = 0; i < 2; i++) {
        char name[WB_TENSOR_NAME_BYTES];
        wb_registry_full_name(model, t->layer, -1, names[down][i], name);
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

static wb_status find_source(const loader *ld, const wb_model *model, const wb_tensor *t, source *out) {
    size_t index = wb_safetensors_lookup(ld->files, t->name);
    if (index != SIZE_MAX) {
        *out =
            (source){.index = index, .n_dims = t->n_dims, .shape = {t->shape[0], t->shape[1]}, .offset = 0};
        return WB_OK;
    }
    if (t->expert >= 0 && find_fused(ld, model, t, out)) return WB_OK;
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
    return WB_OK;
}

/* ---- reading --------------------------------------------------------------------------------- */

static wb_status upload(const loader *ld, const wb_tensor *t, const wb_stored_tensor *from, int64_t first) {
    wb_device *dev = ld->model->device;
    const size_t size = wb_dtype_size(t->dtype);
    if (from->view.dtype == t->dtype) {
        const char *data = (const char *)from->view.data + (size_t)first * size;
        return dev->to_device(dev, t->data, data, (size_t)t->n * size);
    }
    for (int64_t done = 0; done < t->n; done += CHUNK_ELEMENTS) {
        const int64_t n = t->n - done < CHUNK_ELEMENTS ? t->n - done : CHUNK_ELEMENTS;
        wb_stored_read(from, first + done, n, ld->scratch, t->dtype);
        WB_TRY(dev->to_device(dev, (char *)t->data + (size_t)done * size, ld->scratch, (size_t)n * size));
    }
    return WB_OK;
}

/* What ranks compare: all of what each of them reads, and of an expert, which its owner alone does, the
 * middle. */
static uint64_t digest_of(const wb_tensor *t, const wb_stored_tensor *from, int64_t first) {
    const size_t size = wb_dtype_size(from->view.dtype), bytes = (size_t)t->n * size;
    const unsigned char *data = (const unsigned char *)from->view.data + (size_t)first * size;
    const uint64_t scales = from->scales.data ? wb_hash64(from->scales.data, from->scales.bytes) : 0;
    if (t->expert < 0 || bytes <= SAMPLE_BYTES) return wb_hash64_seeded(data, bytes, scales);
    return wb_hash64_seeded(data + (bytes - SAMPLE_BYTES) / 2, SAMPLE_BYTES, scales);
}

/* Of an MTP layer's embedding or head, which are the decoder's: that the copy in the files is one. */
static wb_status check_copy(loader *ld, const wb_tensor *t, const wb_tensor *original) {
    const size_t at = wb_safetensors_lookup(ld->files, t->name);
    wb_tensor_view copy = {0}, view = {0};
    char note[512];
    if (at == SIZE_MAX) return WB_OK;
    ld->used[at] = true;
    WB_TRY(wb_safetensors_get(ld->files, at, &copy));
    WB_TRY(wb_safetensors_find(ld->files, original->name, &view));
    if (copy.dtype == view.dtype && copy.bytes == view.bytes && memcmp(copy.data, view.data, view.bytes) == 0)
        return WB_OK;
    snprintf(note, sizeof note, "%s: tensor %s is no copy of %s, which is used for it", copy.file, t->name,
             original->name);
    return wb_model_add_note(ld->model, note);
}

static wb_status load_tensor(loader *ld, const wb_model *model, const wb_tensor *t, uint64_t *digest_out) {
    source from = {0};
    wb_stored_tensor stored = {0};
    WB_TRY(find_source(ld, model, t, &from));
    WB_TRY(wb_stored_find(ld->files, from.index, &stored));
    WB_TRY(check_view(&stored.view, &from));
    ld->used[from.index] = true;
    if (stored.scales.data) {
        ld->used[stored.scales_index] = true;
        ld->n_scaled++;
    }
    *digest_out = digest_of(t, &stored, from.offset);
    return t->data ? upload(ld, t, &stored, from.offset) : WB_OK;
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

/* The tensor of the decoder that has all of a storage. */
static const wb_tensor *tensor_of(const wb_model *decoder, const wb_param *param) {
    int32_t i = 0;
    while (&decoder->params[decoder->tensors[i].param] != param) i++;
    return &decoder->tensors[i];
}

/* All tensors of a registry, that of MTP layers after that of their decoder. */
static wb_status load_all(loader *ld, wb_model *model, uint64_t *digests_out) {
    for (int32_t i = 0; i < model->n_tensors; i++) {
        const wb_tensor t = wb_model_tensor(model, i);
        const wb_param *shared = model->params[t.param].shared;
        if (shared) {
            WB_TRY(check_copy(ld, &t, tensor_of(model->decoder, shared)));
            continue;
        }
        WB_TRY(load_tensor(ld, model, &t, &digests_out[i]));
        WB_TRY(wb_model_fill_replicas(model, i));
    }
    return model->mtp ? load_all(ld, model->mtp, digests_out + model->n_tensors) : WB_OK;
}

static wb_status note_scaled(const loader *ld) {
    char note[160];
    if (ld->n_scaled == 0) return WB_OK;
    snprintf(note, sizeof note, "%zu tensors are stored in 8 bits with scales: read as %s, and saved so",
             ld->n_scaled, wb_dtype_name(ld->model->dtype));
    return wb_model_add_note(ld->model, note);
}

wb_status wb_model_load(wb_model *model, const wb_safetensors *files, const char *dir,
                        uint64_t *digests_out) {
    loader ld = {.model = model, .files = files, .dir = dir};
    wb_status status = WB_OWN(&ld.memory, ld.used, wb_safetensors_count(files), dir);
    if (status == WB_OK) status = WB_OWN(&ld.memory, ld.scratch, (size_t)CHUNK_ELEMENTS, dir);
    if (status == WB_OK) status = load_all(&ld, model, digests_out);
    if (status == WB_OK) status = check_surplus(&ld);
    if (status == WB_OK) status = note_scaled(&ld);
    wb_owner_close(&ld.memory);
    return status;
}
