/* model_load.c - a checkpoint's tensors into this rank's storages.
 * Every tensor of the registry is looked up and checked on every rank; only what lives here is read.
 * An expert with several replicas here is read once.
 * Refuses: tensors that are missing, surplus, of another shape or of no floating-point dtype. */
#include "elements.h"
#include "hash_tables.h"
#include "registry.h"
#include "tensor_source.h"
#include "wb_hash.h"
#include "wb_tensor_io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define CHUNK_ELEMENTS ((int64_t)1 << 18)
#define PART_ELEMENTS ((int64_t)1 << 13)
#define SAMPLE_BYTES ((size_t)4096)

typedef struct loader {
    wb_model *model;
    const wb_safetensors *files;
    const char *dir;
    bool *used;            /* [wb_safetensors_count(files)] */
    float *scratch;        /* [CHUNK_ELEMENTS] of the widest dtype */
    float *values;         /* [CHUNK_ELEMENTS] */
    const char *quantized; /* the first tensor that is; owner: files */
    size_t n_passed_over;  /* tensors that the family passes over */
    wb_owner memory;
} loader;

/* ---- reading --------------------------------------------------------------------------------- */

/* Elements as they lie in the file, of which some may be converted on the way. */
static wb_status upload_bytes(const loader *ld, const wb_tensor *t, const unsigned char *from,
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

/* A part of a source as f32, in `values`: threads share its rows. */
static void read_values(const loader *ld, const wb_tensor_source *from, int64_t first, int64_t n) {
    const int64_t n_parts = (n + PART_ELEMENTS - 1) / PART_ELEMENTS;
#pragma omp parallel for schedule(static) if (n_parts > 1)
    for (int64_t part = 0; part < n_parts; part++) {
        const int64_t at = part * PART_ELEMENTS, left = n - at;
        wb_tensor_source_read(from, first + at, left < PART_ELEMENTS ? left : PART_ELEMENTS, ld->values + at);
    }
}

static wb_status upload_values(const loader *ld, const wb_tensor *t, const wb_tensor_source *from) {
    wb_device *dev = ld->model->device;
    const size_t size = wb_dtype_size(t->dtype);
    for (int64_t done = 0; done < t->n; done += CHUNK_ELEMENTS) {
        const int64_t n = t->n - done < CHUNK_ELEMENTS ? t->n - done : CHUNK_ELEMENTS;
        read_values(ld, from, done, n);
        wb_convert(n, ld->values, WB_F32, ld->scratch, t->dtype);
        WB_TRY(dev->to_device(dev, (char *)t->data + (size_t)done * size, ld->scratch, (size_t)n * size));
    }
    return WB_OK;
}

/* What ranks compare: all of what each of them reads, and of an expert, which its owner alone does, the
 * middle; of what is made on the way, the values. */
static uint64_t digest_of(const loader *ld, const wb_tensor *t, const wb_tensor_source *from,
                          const unsigned char *bytes) {
    const size_t size = bytes ? wb_dtype_size(from->view.dtype) : sizeof(float);
    const bool sampled = t->expert >= 0 && (size_t)t->n * size > SAMPLE_BYTES;
    const int64_t n = sampled ? (int64_t)(SAMPLE_BYTES / size) : t->n, first = (t->n - n) / 2;
    wb_hash hash;
    if (bytes) return wb_hash64(bytes + (size_t)first * size, (size_t)n * size);
    wb_hash_start(&hash);
    for (int64_t done = 0; done < n; done += CHUNK_ELEMENTS) {
        const int64_t count = n - done < CHUNK_ELEMENTS ? n - done : CHUNK_ELEMENTS;
        read_values(ld, from, first + done, count);
        wb_hash_add(&hash, ld->values, (size_t)count * sizeof(float));
    }
    return wb_hash_value(&hash);
}

static wb_status load_tensor(loader *ld, const wb_model *model, const wb_tensor *t, wb_dtype *file_dtype_out,
                             uint64_t *digest_out) {
    wb_tensor_source from;
    WB_TRY(wb_tensor_source_find(model, ld->files, ld->dir, t, &from));
    ld->used[from.index] = true;
    *file_dtype_out = from.view.dtype;
    if (from.scales_index != SIZE_MAX) ld->used[from.scales_index] = true;
    if (from.form != WB_SOURCE_PLAIN && !ld->quantized) ld->quantized = from.view.name;
    const void *bytes = wb_tensor_source_bytes(&from);
    *digest_out = digest_of(ld, t, &from, bytes);
    if (!t->data) return WB_OK;
    return bytes ? upload_bytes(ld, t, bytes, from.view.dtype) : upload_values(ld, t, &from);
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

/* Of a layer behind the decoder's: what such layers are, for the message. */
static void surplus_layer(const loader *ld, const char *name, char *text_out, size_t size) {
    const wb_config *c = &ld->model->config;
    int layer = -1;
    text_out[0] = '\0';
    if (sscanf(name, "model.layers.%d.", &layer) == 1 && layer >= c->n_layers)
        snprintf(text_out, size,
                 "; layers from %d on are for multi-token prediction (MTP), of which there are %d by "
                 "num_nextn_predict_layers",
                 c->n_layers, c->n_mtp_layers);
}

static bool is_passed_over(const loader *ld, const char *name) {
    const char *beginning = ld->model->family->passed_over;
    return beginning && strncmp(name, beginning, strlen(beginning)) == 0;
}

static wb_status check_surplus(loader *ld) {
    const char *first = NULL;
    size_t surplus = 0;
    for (size_t i = 0; i < wb_safetensors_count(ld->files); i++) {
        const char *name = wb_safetensors_name(ld->files, i);
        if (ld->used[i] || harmless(ld->model, name)) continue;
        if (is_passed_over(ld, name)) {
            ld->n_passed_over++;
            continue;
        }
        if (!first) first = name;
        surplus++;
    }
    if (surplus == 0) return WB_OK;
    wb_tensor_view view = {0};
    char layers[160];
    WB_TRY(wb_safetensors_find(ld->files, first, &view));
    surplus_layer(ld, first, layers, sizeof layers);
    return wb_fail(WB_MISMATCH, "%s: surplus tensor %s %s: not of this %s model (%zu such tensors)%s",
                   view.file, first, wb_shape_text(view.n_dims, view.shape).text,
                   ld->model->family->model_type, surplus, layers);
}

/* What a person should know of what was read. */
static wb_status make_notes(const loader *ld) {
    if (ld->n_passed_over > 0)
        WB_TRY(wb_model_add_note(ld->model, "%s: %zu tensors %s* were passed over, and are not saved",
                                 ld->dir, ld->n_passed_over, ld->model->family->passed_over));
    if (!ld->quantized) return WB_OK;
    return wb_model_add_note(ld->model, "%s: tensor %s: quantized weights were widened, and are saved as %s",
                             ld->dir, ld->quantized, wb_dtype_name(ld->model->dtype));
}

/* The tensor of the decoder that has all of a storage. */
static const wb_tensor *tensor_of(const wb_model *decoder, const wb_param *param) {
    int32_t i = 0;
    while (&decoder->params[decoder->tensors[i].param] != param) i++;
    return &decoder->tensors[i];
}

/* Of an MTP layer's embedding or head, which are the decoder's: that the copy in the files is one. */
static wb_status check_copy(loader *ld, const wb_tensor *t, const wb_tensor *original) {
    const size_t at = wb_safetensors_lookup(ld->files, t->name);
    wb_tensor_view copy = {0}, view = {0};
    if (at == SIZE_MAX) return WB_OK;
    ld->used[at] = true;
    WB_TRY(wb_safetensors_get(ld->files, at, &copy));
    WB_TRY(wb_safetensors_find(ld->files, original->name, &view));
    if (copy.dtype == view.dtype && copy.bytes == view.bytes && memcmp(copy.data, view.data, view.bytes) == 0)
        return WB_OK;
    return wb_model_add_note(ld->model, "%s: tensor %s is no copy of %s, which is used for it", copy.file,
                             t->name, original->name);
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
        WB_TRY(load_tensor(ld, model, &t, &model->tensors[i].file_dtype, &digests_out[i]));
        WB_TRY(wb_model_fill_replicas(model, i));
    }
    return model->mtp ? load_all(ld, model->mtp, digests_out + model->n_tensors) : WB_OK;
}

static bool has_bf16_matrix(const wb_model *model) {
    for (int32_t i = 0; i < model->n_tensors; i++)
        if (model->tensors[i].n_dims == 2 && model->tensors[i].file_dtype == WB_BF16) return true;
    return false;
}

/* What was quantized counts as bf16 where the files have matrices of bf16: the model is one of bf16, and a
 * save as it was opened has one dtype. */
static void count_quantized_as_bf16(wb_model *model) {
    for (int32_t i = 0; i < model->n_tensors; i++) {
        wb_dtype *dtype = &model->tensors[i].file_dtype;
        if (*dtype == WB_F8_E4M3 || *dtype == WB_U8 || *dtype == WB_I8) *dtype = WB_BF16;
    }
    if (model->mtp) count_quantized_as_bf16(model->mtp);
}

wb_status wb_model_load(wb_model *model, const wb_safetensors *files, const char *dir,
                        uint64_t *digests_out) {
    loader ld = {.model = model, .files = files, .dir = dir};
    wb_status status = WB_OWN(&ld.memory, ld.used, wb_safetensors_count(files), dir);
    if (status == WB_OK) status = WB_OWN(&ld.memory, ld.scratch, (size_t)CHUNK_ELEMENTS, dir);
    if (status == WB_OK) status = WB_OWN(&ld.memory, ld.values, (size_t)CHUNK_ELEMENTS, dir);
    if (status == WB_OK) status = load_all(&ld, model, digests_out);
    if (status == WB_OK) status = wb_hash_tables_load(model, files, dir, ld.used);
    if (status == WB_OK) status = check_surplus(&ld);
    if (status == WB_OK && ld.quantized && has_bf16_matrix(model)) count_quantized_as_bf16(model);
    if (status == WB_OK) status = make_notes(&ld);
    wb_owner_close(&ld.memory);
    return status;
}
