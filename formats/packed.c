/* packed.c - see the header. Owns: the order of the experts in each layer and the frame; packed_ranks.h has
 * what is between them. */
#include "packed.h"
#include "codec.h"
#include "packed_ranks.h"
#include "wb_isa.h"
#include "wb_memory.h"

#include <string.h>

/* The frame's literals are all that there is to gain, and zstd finds them at its fastest. */
enum { LEVEL = 1, EXPERTS = WB_PACKED_EXPERTS, LAST_CLASS = 15 };

bool wb_packed_fits(const wb_route_model *m) {
    return m->num_experts <= EXPERTS && m->top_k <= WB_PACKED_CHOICES && !m->layer_top_k;
}

static const wb_packed_table *lanes_table(void) {
    static const wb_packed_table *const of_isa[WB_ISAS] = WB_ISA_EACH(wb_packed);
    return of_isa[wb_isa_of_machine()];
}

/* Bytes of a frame's content: a class for each expert of each layer, then a symbol for each id. */
static size_t class_bytes(const wb_route_model *m) {
    return (size_t)m->n_moe_layers * m->num_experts;
}

size_t wb_packed_bound(const wb_route_model *m, size_t rows) {
    return wb_zstd_bound(class_bytes(m) + rows * wb_route_row_bytes(m));
}

/* ---- the order of the experts ------------------------------------------------------------------- */

/* How popular an expert is, 0 the most: half octaves below the layer's largest count. */
static uint8_t class_of(uint64_t count, uint64_t max) {
    uint64_t bar = max * max, square = count * count;
    uint8_t class = 0;
    for (; class < LAST_CLASS && square < bar; class ++) bar >>= 1;
    return class;
}

/* A layer's experts by ascending class and, within one, by id. The ranks after the last expert's are those of
 * expert 0, for symbols that no encoder makes. */
static void order_experts(const uint8_t *class, uint32_t E, uint8_t expert_at_out[EXPERTS]) {
    uint32_t begin[EXPERTS + 1] = {0};
    for (uint32_t e = 0; e < E; e++) begin[class[e] + 1]++;
    for (uint32_t c = 1; c <= EXPERTS; c++) begin[c] += begin[c - 1];
    memset(expert_at_out, 0, EXPERTS);
    for (uint32_t e = 0; e < E; e++) expert_at_out[begin[class[e]]++] = (uint8_t)e;
}

/* Counts a layer's ids of one row; false when one is not below E or there twice. `seen` [EXPERTS] holds for
 * each expert the last row and layer, `now`, in which it was found. */
static bool count_ids(const uint8_t *ids, const wb_route_model *m, uint64_t now, uint64_t *seen,
                      uint64_t *count) {
    bool ok = true;
    for (uint32_t k = 0; k < m->top_k; k++) {
        ok &= ids[k] < m->num_experts && seen[ids[k]] != now;
        seen[ids[k]] = now;
        count[ids[k]]++;
    }
    return ok;
}

/* counts_out [L][EXPERTS], zero on entry. */
static bool count_rows(const wb_route_model *m, const uint8_t *ids, size_t rows, const uint8_t *valid,
                       uint64_t *counts_out) {
    uint64_t seen[EXPERTS] = {0}, now = 0;
    bool ok = true;
    for (size_t r = 0; r < rows && ok; r++) {
        if (!wb_row_valid(valid, r)) continue;
        const uint8_t *row = ids + r * wb_route_row_bytes(m);
        for (uint32_t l = 0; l < m->n_moe_layers; l++)
            ok &= count_ids(row + (size_t)l * m->top_k, m, ++now, seen, counts_out + (size_t)l * EXPERTS);
    }
    return ok;
}

static void fill_classes(const wb_route_model *m, const uint64_t *counts, uint8_t *classes_out) {
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        const uint64_t *count = counts + (size_t)l * EXPERTS;
        uint64_t max = 0;
        for (uint32_t e = 0; e < m->num_experts; e++) max = count[e] > max ? count[e] : max;
        for (uint32_t e = 0; e < m->num_experts; e++) *classes_out++ = class_of(count[e], max);
    }
}

/* ---- encoding ----------------------------------------------------------------------------------- */

/* What encoding allocates. */
typedef struct encoder {
    uint64_t *counts;                        /* [L][EXPERTS] */
    uint8_t *content, *rank_of, *valid_bits; /* the frame's; [L][EXPERTS]; [(rows + 7) / 8] */
} encoder;

static wb_status encoder_open(const wb_route_model *m, size_t rows, wb_owner *memory, encoder *e) {
    size_t content = class_bytes(m) + rows * wb_route_row_bytes(m);
    WB_TRY(WB_OWN(memory, e->counts, (size_t)m->n_moe_layers * EXPERTS, "counts of experts"));
    WB_TRY(WB_OWN(memory, e->rank_of, (size_t)m->n_moe_layers * EXPERTS, "ranks of experts"));
    WB_TRY(WB_OWN(memory, e->valid_bits, (rows + 7) / 8, "validity bits"));
    return WB_OWN(memory, e->content, content, "rows to pack");
}

static wb_status encode(const wb_route_model *m, const uint8_t *ids, size_t rows, const uint8_t *valid,
                        const encoder *e, uint8_t *dst, size_t capacity, size_t *size_out) {
    *size_out = 0;
    if (!count_rows(m, ids, rows, valid, e->counts)) return WB_OK;
    uint8_t expert_at[EXPERTS];
    fill_classes(m, e->counts, e->content);
    for (uint32_t l = 0; l < m->n_moe_layers; l++) {
        order_experts(e->content + (size_t)l * m->num_experts, m->num_experts, expert_at);
        for (uint32_t i = 0; i < m->num_experts; i++)
            e->rank_of[(size_t)l * EXPERTS + expert_at[i]] = (uint8_t)i;
    }
    wb_packed_shape shape = {rows, m->n_moe_layers, m->top_k};
    lanes_table()->encode(shape, e->rank_of, ids, valid, e->content + class_bytes(m));
    return wb_zstd_encode(e->content, class_bytes(m) + rows * wb_route_row_bytes(m), LEVEL, dst, capacity,
                          size_out);
}

wb_status wb_packed_encode(const wb_route_model *model, const uint8_t *ids, size_t rows, const uint8_t *valid,
                           size_t first, uint8_t *dst, size_t capacity, size_t *size_out) {
    wb_owner memory = {0};
    encoder e = {0};
    size_t size = 0;
    wb_status status = encoder_open(model, rows, &memory, &e);
    if (status == WB_OK) {
        if (valid) wb_row_copy_valid(valid, (uint32_t)first, (uint32_t)rows, e.valid_bits);
        status = encode(model, ids, rows, valid ? e.valid_bits : NULL, &e, dst, capacity, &size);
    }
    wb_owner_close(&memory);
    if (status == WB_OK) *size_out = size;
    return status;
}

/* ---- decoding ----------------------------------------------------------------------------------- */

wb_status wb_packed_decode(const wb_route_model *m, const uint8_t *src, size_t size,
                           wb_packed_scratch *scratch, uint8_t *dst, size_t capacity, size_t *size_out) {
    const size_t classes = class_bytes(m), row_bytes = wb_route_row_bytes(m);
    size_t claimed = 0, found = 0;
    if (!wb_zstd_claims(src, size, &claimed) || claimed < classes || claimed - classes > capacity ||
        (claimed - classes) % row_bytes != 0)
        return wb_fail(WB_CORRUPT, "a packed chunk does not hold whole rows, or more than are left");
    /* The content, what is read beyond it, and the order of the experts. */
    const size_t order = claimed + WB_PACKED_BEYOND;
    WB_TRY(WB_GROW(scratch->bytes, order + (size_t)m->n_moe_layers * EXPERTS, &scratch->capacity,
                   "packed rows"));
    uint8_t *content = scratch->bytes, *expert_at = content + order;
    WB_TRY(wb_zstd_decode(src, size, content, claimed, &found));
    if (found != claimed) return wb_fail(WB_CORRUPT, "a packed chunk is shorter than it claims");
    memset(content + claimed, 0, WB_PACKED_BEYOND);
    for (uint32_t l = 0; l < m->n_moe_layers; l++)
        order_experts(content + (size_t)l * m->num_experts, m->num_experts, expert_at + (size_t)l * EXPERTS);
    wb_packed_shape shape = {(claimed - classes) / row_bytes, m->n_moe_layers, m->top_k};
    lanes_table()->decode(shape, expert_at, content + classes, dst);
    *size_out = claimed - classes;
    return WB_OK;
}
