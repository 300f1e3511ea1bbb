/* model_open.c - a model from a checkpoint directory. Refuses: what is in the files (model_load.c). */
#include "config.h"
#include "hash_tables.h"
#include "packed_weights.h"
#include "registry.h"
#include "wb_memory.h"
#include "wb_tensor_io.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char no_mtp[] = "the files have no MTP layers, of which the configuration speaks";

/* How many layers there are by names of their own: the number behind the largest of them. */
static int32_t count_named_mtp(const wb_safetensors *files) {
    int32_t n = 0;
    for (size_t i = 0; i < wb_safetensors_count(files); i++) {
        int l;
        if (sscanf(wb_safetensors_name(files, i), "mtp.layers.%d.", &l) == 1 && l >= n && l < WB_MAX_LAYERS)
            n = l + 1;
    }
    return n;
}

/* A checkpoint whose configuration has MTP layers may have none: who saves the decoder alone leaves the key.
 * *note_out: what that means, or NULL. */
static void find_mtp_layers(const wb_safetensors *files, wb_config *config, const char **note_out) {
    char first[WB_TENSOR_NAME_BYTES];
    *note_out = NULL;
    if (wb_family_rules_of(config->family)->own_mtp_names) {
        const int32_t said = config->n_mtp_layers, n = count_named_mtp(files);
        if (n > 0 && said > 0) return;
        config->n_mtp_layers = n;
        if (said > 0) *note_out = no_mtp;
        return;
    }
    if (config->n_mtp_layers == 0) return;
    snprintf(first, sizeof first, "model.layers.%d.", config->n_layers);
    for (size_t i = 0; i < wb_safetensors_count(files); i++)
        if (strncmp(wb_safetensors_name(files, i), first, strlen(first)) == 0) return;
    config->n_mtp_layers = 0;
    *note_out = no_mtp;
}

/* What was passed over, in files and beside them. */
static wb_status make_note(wb_model *m, const wb_safetensors *files, const char *mtp) {
    const char *const notes[] = {wb_safetensors_note(files), mtp, wb_companions_note(m->companions)};
    for (size_t i = 0; i < sizeof notes / sizeof notes[0]; i++)
        if (notes[i]) WB_TRY(wb_model_add_note(m, "%s", notes[i]));
    return WB_OK;
}

static wb_status open_local(const char *dir, const wb_model_options *options, wb_safetensors **files,
                            wb_model **model) {
    wb_config config;
    const char *mtp_note = NULL;
    char *text = NULL;
    if (!dir) return wb_fail(WB_INVALID_ARGUMENT, "model directory: NULL");
    WB_TRY(wb_config_read(dir, &config, &text));
    wb_status status = wb_safetensors_open(dir, NULL, files);
    if (status == WB_OK) find_mtp_layers(*files, &config, &mtp_note);
    if (status == WB_OK) status = wb_model_new(&config, wb_family_rules_of(config.family), options, model);
    if (status != WB_OK) {
        free(text);
        return status;
    }
    (*model)->source_config = text;
    if ((*model)->rank == 0) WB_TRY(wb_companions_read(dir, &(*model)->companions));
    return make_note(*model, *files, mtp_note);
}

/* Those of its MTP layers too. */
static int32_t n_tensors_of(const wb_model *m) {
    return m->n_tensors + (m->mtp ? m->mtp->n_tensors : 0);
}

static const char *name_of(const wb_model *m, int32_t i) {
    return i < m->n_tensors ? m->tensors[i].name : m->mtp->tensors[i - m->n_tensors].name;
}

static wb_status load_local(wb_model *m, const wb_safetensors *files, const char *dir, uint64_t **digests) {
    WB_TRY(WB_NEW(*digests, (size_t)n_tensors_of(m), dir));
    WB_TRY(wb_model_load(m, files, dir, *digests));
    return wb_model_pack_weights(m);
}

/* All at once, and where they differ one by one, so that the error names the tensor. Collective. */
static wb_status check_weights(const wb_model *m, const uint64_t *digests) {
    const size_t bytes = (size_t)n_tensors_of(m) * sizeof *digests;
    const uint64_t tables = wb_hash_tables_digest(m);
    WB_TRY(wb_comm_check_equal(m->comm, &tables, sizeof tables, "tables of hash-routed layers"));
    const wb_status status = wb_comm_check_equal(m->comm, digests, bytes, "weights");
    if (status != WB_PEER) return status;
    for (int32_t i = 0; i < n_tensors_of(m); i++)
        WB_TRY(wb_comm_check_equal(m->comm, &digests[i], sizeof digests[i], name_of(m, i)));
    return status;
}

wb_status wb_model_open(const char *dir, const wb_model_options *options, wb_model **model_out) {
    wb_model_options own;
    wb_model *m = NULL;
    wb_safetensors *files = NULL;
    uint64_t *digests = NULL;
    wb_status status;
    WB_TRY(wb_model_read_options(options, &own));
    WB_GOTO(wb_comm_agree(own.comm, open_local(dir, &own, &files, &m)), close);
    const uint64_t headers = wb_safetensors_digest(files);
    WB_GOTO(wb_model_check_peers(m, &headers, sizeof headers), close);
    WB_GOTO(wb_model_open_exchange(m), close);
    WB_GOTO(wb_comm_agree(own.comm, load_local(m, files, dir, &digests)), close);
    WB_GOTO(check_weights(m, digests), close);
    *model_out = m;
    m = NULL;
close:
    free(digests);
    wb_safetensors_close(files);
    wb_model_close(m);
    return status;
}
