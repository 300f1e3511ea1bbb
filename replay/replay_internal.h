/* replay_internal.h - the handle and the rows of a micro-batch, shared by replay.c, plan.c and metrics.c
 * (internal).
 *
 * Owns: how the plan lies in memory. A row is told how to be routed per layer (layer_state), because the
 * layers of a row that chooses natively arrive one by one; `state` is the summary over the stage's layers. */
#ifndef WB_REPLAY_INTERNAL_H
#define WB_REPLAY_INTERNAL_H

#include "wb_check.h"
#include "wb_replay.h"
#include "wb_string_table.h"

/* What metrics may ask of a row. */
enum {
    ROW_REPLAYED = 1, /* forced by a record: measured */
    ROW_RECORDED = 2, /* of a RECORD segment: measured once its choice has been stored */
    ROW_MEASURED = 4, /* counted in SUM_MEASURED */
    ROW_DIFFERS = 8   /* counted in SUM_DIFFER */
};

typedef struct segment_plan {
    wb_segment_kind kind;
    uint32_t start, rows;    /* in the record; `start` of REPLAY only */
    uint32_t missing;        /* rows that the record should have and has not */
    const wb_record *record; /* REPLAY; valid while planning only: the table of records may move */
} segment_plan;

typedef struct micro_batch {
    bool planned;
    uint32_t T;
    segment_plan *segments; /* [n_segments], grow-only */
    int32_t n_segments, segment_capacity;

    void *block; /* holds the arrays below; grow-only */
    size_t block_bytes;
    uint32_t *pending;    /* [T] layers of the stage in which the row has no ids yet */
    uint8_t *ids;         /* [T][L][K] of the handle's dtype; 0 where there are none yet */
    uint8_t *state;       /* [T] WB_ROW_*; NATIVE while pending */
    uint8_t *layer_state; /* [n_layers][T] WB_ROW_* */
    uint8_t *measured;    /* [n_layers][T] 1: in the layer's metrics */
    uint8_t *flags;       /* [T] ROW_* */
    uint8_t *used;        /* [n_layers] */
} micro_batch;

/* The doubles of wb_replay_metric_sums; then SUMS_PER_LAYER for each of the L layers. */
enum {
    SUM_ROWS,
    SUM_FORCED,
    SUM_FALLBACK,
    SUM_PADDING,
    SUM_MEASURED,
    SUM_DIFFER,
    SUM_LOGPROBS,
    SUM_K1,
    SUM_K3,
    SUM_OUTSIDE,
    SUMS_FIXED
};
enum { LAYER_TOKENS, LAYER_OVERLAP, LAYER_DIFFER, SUMS_PER_LAYER };

struct wb_replay {
    wb_route_model model;
    uint32_t *moe_layers; /* [L], what model.moe_layers points to */
    wb_dtype dtype;
    size_t layer_bytes, row_bytes; /* K ids; L * K ids */
    wb_replay_options options;     /* n_layers resolved */

    wb_string_table rids; /* rid -> index of its record */
    wb_record *records;   /* [n_records] */
    size_t n_records, record_capacity;

    micro_batch
        *micro_batches; /* [micro_batch_capacity], grow-only; the plan has the first n_micro_batches */
    int32_t n_micro_batches, micro_batch_capacity;
    uint32_t *padding_order; /* [E] experts such that neighbours are on different ranks */

    double *sums;    /* [SUMS_FIXED + L * SUMS_PER_LAYER] */
    uint64_t *marks; /* [E] the value of `mark` when an expert was last seen: a set that empties by ++mark */
    uint64_t mark;
};

/* replay.c */
const wb_record *wb_replay_find_record(const wb_replay *replay, const char *rid); /* NULL: unknown */

/* plan.c */
void wb_replay_drop_plan(wb_replay *replay); /* the micro-batches keep their memory */
void wb_replay_free_micro_batch(micro_batch *batch);

/* metrics.c */
size_t wb_replay_sums_count(const wb_replay *replay);
void wb_replay_clear_sums(wb_replay *replay);
void wb_replay_count_segment(wb_replay *replay, const segment_plan *segment);
/* `stage_layer`: from the stage's first. Ids must be in range. */
void wb_replay_measure_rows(wb_replay *replay, micro_batch *batch, uint32_t stage_layer, uint32_t row,
                            uint32_t rows, const uint8_t *native, size_t native_stride_bytes);

#endif
