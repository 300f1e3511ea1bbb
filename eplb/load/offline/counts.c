/* counts.c - counts of tokens from files of any origin, summed over files. Owns: which rows of a file are
 * MoE layers, and what a row of zeros means. Refuses: bytes (number_file.c), what is made of the counts
 * (solvers, the simulator). */
#include "load/offline/counts_file.h"
#include "placement/offline/placement_file.h"
#include "wb_check.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

/* What SGLang's recorder saves of passes or tokens, which are not counts of logical experts. */
#define RECORDS_KEY "records"

struct wb_counts {
    wb_owner memory;
    wb_counts_info info;
    uint32_t *layers;
    uint8_t *informed;
    double *loads; /* [n_passes][L][E] */
};

static wb_status no_memory_for(uint64_t n) {
    return wb_fail(WB_CAPACITY, "counts: expected sizes below 2^32, found %" PRIu64, n);
}

/* ---- one file ------------------------------------------------------------------------------------ */

/* What a file holds: [passes][rows][E]. */
typedef struct counts_file {
    wb_table table;
    size_t n_passes, n_rows, n_experts;
    const char *layout;
} counts_file;

static wb_status read_table(const wb_number_file *source, uint32_t n_layers, uint32_t n_experts,
                            counts_file *file) {
    const wb_number_node root = wb_number_root(source);
    const bool alone = wb_number_is_array(root), torch = !source->tree;
    const wb_number_node counts = alone ? root : wb_number_get(source, root, WB_COUNT_KEY);
    const wb_table_wish wish = {.name = alone ? "array" : WB_COUNT_KEY,
                                .kind = WB_TABLE_COUNTS,
                                .min_dims = 2,
                                .max_dims = 3,
                                .units = {"passes", "layers", "experts"},
                                .shape = {0, n_layers, n_experts}};
    if (!wb_number_is(counts) && wb_number_is(wb_number_get(source, root, RECORDS_KEY)))
        return wb_fail(WB_UNSUPPORTED,
                       "expected " WB_COUNT_KEY ", found \"" RECORDS_KEY
                       "\" of SGLang's recorder modes per_pass and per_token: record with mode stat "
                       "(--expert-distribution-recorder-mode stat)");
    if (!wb_number_is(counts))
        return wb_fail(WB_NOT_FOUND, "expected a key " WB_COUNT_KEY " or an array of counts, found neither");
    if (counts.tree && json_is_array(counts.tree) && json_array_size(counts.tree) == 0)
        return wb_fail(WB_MISMATCH, "%s is empty, expected counts of one pass or several", wish.name);
    WB_TRY(wb_table_read(source, counts, &wish, &file->table));
    const size_t *shape = file->table.shape + file->table.n_dims - 2;
    file->n_passes = file->table.n_dims == 3 ? file->table.shape[0] : 1;
    file->n_rows = shape[0];
    file->n_experts = shape[1];
    const bool recorder = torch && !alone && wb_number_is(wb_number_get(source, root, "rank"));
    file->layout = recorder ? "SGLang recorder, logical_count"
                   : torch  ? !alone                                 ? "PyTorch, logical_count"
                              : root.torch->kind == WB_PICKLE_TENSOR ? "PyTorch tensor"
                                                                     : "PyTorch list"
                   : alone  ? "bare array"
                            : "logical_count";
    if (file->n_passes > UINT32_MAX) return no_memory_for(file->n_passes);
    if (file->n_rows > UINT32_MAX) return no_memory_for(file->n_rows);
    if (file->n_experts > UINT32_MAX) return no_memory_for(file->n_experts);
    return WB_OK;
}

static wb_status read_file(const char *path, counts_file *file) {
    wb_number_file source = {0};
    WB_TRY(wb_number_file_open(path, &source));
    const wb_status status = read_table(&source, 0, 0, file);
    wb_number_file_close(&source);
    return status == WB_OK ? WB_OK : wb_fail_context(status, "%s", path);
}

/* ---- rows and layers ----------------------------------------------------------------------------- */

static wb_status check_layers(const wb_moe_layers *m) {
    if (m->n_moe < 1 || !m->layers)
        return wb_fail(WB_INVALID_ARGUMENT, "MoE layers: expected 1 and more, found none");
    for (uint32_t i = 0; i < m->n_moe; i++) {
        if (i > 0 && m->layers[i] <= m->layers[i - 1])
            return wb_fail(WB_INVALID_ARGUMENT,
                           "MoE layers: expected ascending numbers, found %" PRIu32 " after %" PRIu32,
                           m->layers[i], m->layers[i - 1]);
        if (m->n_hidden > 0 && m->layers[i] >= m->n_hidden)
            return wb_fail(WB_INVALID_ARGUMENT,
                           "MoE layers: expected numbers below the %" PRIu32 " hidden layers, found %" PRIu32,
                           m->n_hidden, m->layers[i]);
    }
    return WB_OK;
}

/* Whether the rows are all hidden layers; else they are the MoE layers. */
static wb_status tell_rows(const wb_moe_layers *m, size_t n_rows, bool *hidden_out) {
    const uint32_t last = m->layers[m->n_moe - 1];
    *hidden_out = n_rows != m->n_moe;
    if (!*hidden_out || (m->n_hidden > 0 ? n_rows == m->n_hidden : n_rows > last)) return WB_OK;
    if (m->n_hidden > 0)
        return wb_fail(WB_MISMATCH,
                       "expected a row for each of %" PRIu32 " MoE layers or of %" PRIu32
                       " hidden layers, found %zu rows",
                       m->n_moe, m->n_hidden, n_rows);
    return wb_fail(WB_MISMATCH,
                   "expected a row for each of %" PRIu32
                   " MoE layers or of all hidden layers, of which the last "
                   "MoE layer is %" PRIu32 ", found %zu rows",
                   m->n_moe, last, n_rows);
}

static bool is_zero(const double *row, size_t n) {
    for (size_t i = 0; i < n; i++)
        if (row[i] != 0) return false;
    return true;
}

/* A dense layer has no experts to count: rows of counts there are of another model, or MoE layers that were
 * forgotten. */
static wb_status check_dense(const counts_file *file, const wb_moe_layers *m) {
    for (size_t p = 0; p < file->n_passes; p++)
        for (uint32_t row = 0, next = 0; row < file->n_rows; row++) {
            const bool moe = next < m->n_moe && m->layers[next] == row;
            next += moe;
            if (moe ||
                is_zero(file->table.values + (p * file->n_rows + row) * file->n_experts, file->n_experts))
                continue;
            return wb_fail(WB_MISMATCH,
                           "expected no counts in hidden layer %" PRIu32
                           ", which is no MoE layer, found some in pass %zu",
                           row, p);
        }
    return WB_OK;
}

/* ---- all files ----------------------------------------------------------------------------------- */

/* Sizes and layers, from the first file. */
static wb_status set_shape(const counts_file *file, const wb_moe_layers *m, wb_counts *c) {
    const uint32_t L = m ? m->n_moe : (uint32_t)file->n_rows;
    WB_TRY(WB_OWN(&c->memory, c->layers, L, "counts"));
    WB_TRY(WB_OWN(&c->memory, c->informed, L, "counts"));
    for (uint32_t l = 0; l < L; l++) c->layers[l] = m ? m->layers[l] : l;
    c->info = (wb_counts_info){.n_passes = (uint32_t)file->n_passes,
                               .n_layers = L,
                               .n_experts = (uint32_t)file->n_experts,
                               .layers = c->layers,
                               .informed = c->informed,
                               .layout = file->layout};
    return WB_OWN_ALLOC(&c->memory, c->loads, file->n_passes, (size_t)L * file->n_experts * sizeof *c->loads,
                        "counts");
}

static wb_status check_same_shape(const counts_file *file, const counts_file *first) {
    if (file->n_passes == first->n_passes && file->n_rows == first->n_rows &&
        file->n_experts == first->n_experts)
        return WB_OK;
    return wb_fail(WB_MISMATCH,
                   "expected %zu passes of %zu layers of %zu experts as in the first file, found %zu of "
                   "%zu of %zu",
                   first->n_passes, first->n_rows, first->n_experts, file->n_passes, file->n_rows,
                   file->n_experts);
}

static wb_status add_file(const counts_file *file, const wb_moe_layers *m, wb_counts *c) {
    const size_t L = c->info.n_layers, E = c->info.n_experts;
    bool hidden = false;
    if (m) WB_TRY(tell_rows(m, file->n_rows, &hidden));
    if (hidden) WB_TRY(check_dense(file, m));
    for (size_t p = 0; p < file->n_passes; p++)
        for (size_t l = 0; l < L; l++) {
            const size_t row = hidden ? m->layers[l] : l;
            const double *from = file->table.values + (p * file->n_rows + row) * E;
            double *to = c->loads + (p * L + l) * E;
            for (size_t e = 0; e < E; e++) to[e] += from[e];
            c->informed[l] |= !is_zero(from, E);
        }
    return WB_OK;
}

/* The first file, or one more; its values are freed. */
static wb_status take_file(counts_file *file, const counts_file *first, const wb_moe_layers *m,
                           wb_counts *c) {
    wb_status status = first ? check_same_shape(file, first) : set_shape(file, m, c);
    if (status == WB_OK) status = add_file(file, m, c);
    free(file->table.values);
    return status;
}

/* Files after the first are compared with the shape of the first, whose values are gone by then. */
static wb_status read_files(uint32_t n_paths, const char *const *paths, const wb_moe_layers *m,
                            wb_counts *c) {
    counts_file first = {0};
    for (uint32_t i = 0; i < n_paths; i++) {
        counts_file file = {0};
        WB_TRY(read_file(paths[i], &file));
        const wb_status status = take_file(&file, i > 0 ? &first : NULL, m, c);
        if (status != WB_OK) return wb_fail_context(status, "%s", paths[i]);
        if (i == 0) first = file;
    }
    return WB_OK;
}

/* The counts, or nothing where they are not whole. */
static wb_status finish(wb_counts *c, wb_status status, wb_counts **counts_out) {
    if (status == WB_OK)
        *counts_out = c;
    else
        wb_counts_close(c);
    return status;
}

wb_status wb_counts_read(uint32_t n_paths, const char *const *paths, const wb_moe_layers *layers,
                         wb_counts **counts_out) {
    wb_counts *c = NULL;
    if (n_paths < 1 || !paths || !counts_out)
        return wb_fail(WB_INVALID_ARGUMENT, "counts: expected 1 file and more, found none");
    if (layers) WB_TRY(check_layers(layers));
    WB_TRY(WB_NEW(c, 1, "counts"));
    return finish(c, read_files(n_paths, paths, layers, c), counts_out);
}

wb_status wb_counts_from_file(const wb_number_file *file, const wb_moe_layers *layers, uint32_t n_layers,
                              uint32_t n_experts, wb_counts **counts_out) {
    counts_file found = {0};
    wb_counts *c = NULL;
    if (layers) WB_TRY(check_layers(layers));
    WB_TRY(WB_NEW(c, 1, "counts"));
    wb_status status = read_table(file, layers ? 0 : n_layers, n_experts, &found);
    if (status == WB_OK) status = take_file(&found, NULL, layers, c);
    return finish(c, status, counts_out);
}

void wb_counts_close(wb_counts *counts) {
    if (!counts) return;
    wb_owner_close(&counts->memory);
    free(counts);
}

wb_counts_info wb_counts_get_info(const wb_counts *counts) {
    return counts->info;
}

const double *wb_counts_loads(const wb_counts *counts) {
    return counts->loads;
}

bool wb_counts_in_one_block(const wb_counts *counts, uint32_t layer, uint32_t n_blocks, uint32_t *block_out) {
    const size_t L = counts->info.n_layers, E = counts->info.n_experts;
    bool found = false;
    uint32_t block = 0;
    for (size_t p = 0; p < counts->info.n_passes; p++) {
        const double *row = counts->loads + (p * L + layer) * E;
        uint32_t b = 0;
        if (is_zero(row, E)) continue;
        if (!wb_load_in_one_block((uint32_t)E, row, n_blocks, &b) || (found && b != block)) return false;
        found = true;
        block = b;
    }
    if (found) *block_out = block;
    return found;
}
