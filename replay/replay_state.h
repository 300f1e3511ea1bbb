/* replay_state.h - the handle and the rows of a micro-batch, shared by the files of this room (internal).
 *
 * Owns: how the plan lies in memory, and what every file needs of it: finding a micro-batch, a slice of its
 * rows, a record. A row's direction is kept per layer, because the layers of a row that chooses natively
 * arrive one by one; `direction` is the summary over the stage's layers. */
#ifndef WB_REPLAY_STATE_H
#define WB_REPLAY_STATE_H

#include "wb_check.h"
#include "wb_memory.h"
#include "wb_replay.h"
#include "wb_string_table.h"

/* Where a row comes from and what has been counted of it. */
enum {
    ROW_REPLAYED = 1, /* `ids` hold what a record says of it */
    ROW_RECORDED = 2, /* of a RECORD segment: `ids` hold its choice once that has been stored */
    ROW_MEASURED = 4, /* counted in SUM_MEASURED */
    ROW_DIFFERS = 8   /* counted in SUM_DIFFER */
};

/* What is known of a row in one layer. */
enum {
    NOTED_MEASURED = 1, /* it is in the layer's metrics */
    NOTED_FOLLOWED = 2  /* it was told to have gone where the plan says */
};

typedef struct segment_plan {
    wb_segment_kind kind;
    const char *rid;         /* of the record; REPLAY, else NULL */
    uint32_t start;          /* position in the record; REPLAY */
    uint32_t rows;           /* of the micro-batch */
    uint32_t missing;        /* rows that the record should have and has not */
    uint32_t missing_listed; /* the same of what indexers chose */
    const wb_record *record; /* REPLAY; valid while planning only: the table of records may move */
    const uint32_t *tokens;  /* [rows] or NULL; valid while planning only */
} segment_plan;

/* What one row looks at by one indexer. */
typedef struct listed_cell {
    const uint32_t *positions; /* of the record; NULL: kept, or all of the first `count` */
    uint64_t kept_at;          /* of the micro-batch's `kept`, where is_kept */
    uint32_t count;
    uint8_t direction; /* WB_ROW_* */
    uint8_t noted;     /* NOTED_* */
    bool is_kept;
    bool has_plan; /* positions, count are what a record says or the row chose */
} listed_cell;
_Static_assert(sizeof(listed_cell) == WB_REPLAY_LISTED_BYTES, "the public size of a cell");

typedef struct micro_batch {
    bool planned;
    uint32_t T;
    int32_t n_segments;
    wb_host_buffer segments; /* segment_plan [n_segments] */
    wb_host_buffer block;    /* holds the arrays below */
    uint32_t *pending;       /* [T] layers of the stage in which the row has no ids yet */
    uint8_t *ids;            /* [T][L][K] of the handle's dtype; 0 where there are none yet */
    uint8_t *direction;      /* [T] WB_ROW_*; NATIVE while pending */
    uint8_t *by_layer;       /* [n_layers][T] WB_ROW_* of each layer */
    uint8_t *noted;          /* [n_layers][T] NOTED_* */
    uint8_t *flags;          /* [T] ROW_* */
    uint32_t *followed;      /* [n_layers] rows with NOTED_FOLLOWED */
    int32_t *tokens, *pos;   /* [T] 0 where not known */
    bool all_tokens;         /* known of every row that is not padding */

    /* Where indexers are replayed: listed_cell [columns][T], and the positions of rows that chose. */
    wb_host_buffer listed;
    uint32_t *kept; /* [n_kept] from malloc */
    size_t n_kept, kept_capacity;

    /* Of wb_replay_plan_dispatch, in a block of its own. */
    uint32_t n_layer_plans; /* layers that are planned on all ranks */
    wb_host_buffer dispatch;
    wb_planned_layer *layer_plans; /* [n_layers] */
} micro_batch;

/* The doubles of wb_replay_metric_sums; then SUMS_PER_LAYER for each of the L layers and of the indexers that
 * are replayed; then the load of both maps, [L][N_MAPS][E]. */
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
    SUM_LISTED_FALLBACK,
    SUMS_FIXED
};
enum { LAYER_TOKENS, LAYER_OVERLAP, LAYER_DIFFER, SUMS_PER_LAYER };
enum { MAP_FORCED, MAP_NATIVE, N_MAPS };

/* Where padding rows of one layer go, experts without weights left out: to each of the first `n_always`
 * experts in every row, and for the other choices in turn to each of `n_turns` ranks, whose experts begin at
 * starts[] of `experts`. */
typedef struct padding_order {
    uint32_t *experts; /* [E] */
    uint32_t *starts;  /* [n_turns + 1] */
    uint32_t n_always, n_turns;
} padding_order;

/* Tables of the placement's maps, and scratch of wb_replay_plan_dispatch. */
typedef struct dispatch_state {
    int32_t rank;              /* that the tables are of; -1: none */
    size_t table_length;       /* int32 a layer */
    int32_t *tables;           /* [n_layers] of wb_dispatch_fill_table */
    wb_host_buffer send, recv; /* int32 */
    /* [R] */
    size_t *send_bytes, *send_offsets, *recv_bytes, *recv_offsets;
} dispatch_state;

struct wb_replay {
    wb_owner memory; /* all arrays but `records` and `micro_batches` */
    wb_route_model model;
    wb_dtype dtype;
    size_t row_bytes;
    size_t *layer_at;          /* [L + 1] bytes of a row before each layer's ids */
    wb_replay_options options; /* n_layers resolved */
    uint32_t n_columns;        /* indexers that are replayed; 0 without options.indexer */

    wb_string_table rids; /* rid -> index of its record */
    wb_record *records;   /* [n_records] */
    size_t n_records, record_capacity;

    wb_replay_mode mode;        /* of the step */
    bool in_step;               /* begun, and neither ended nor dropped */
    micro_batch *micro_batches; /* [micro_batch_capacity]; the plan has the first n_micro_batches */
    int32_t n_micro_batches;
    size_t micro_batch_capacity;
    uint64_t placement_hash; /* of the maps that padding and tables are of; 0 where there is no placement */
    /* [n_padding]: one for each of the L layers, or one for all where there is no placement and one K */
    padding_order *padding;
    uint32_t n_padding;
    uint64_t *padding_keys; /* [E] scratch */
    dispatch_state dispatch;

    double *sums;    /* [wb_replay_sums_count] */
    uint64_t *marks; /* [E] the value of `mark` when an expert was last seen: a set that empties by ++mark */
    uint64_t mark;
};

/* ---- replay_state.c --------------------------------------------------------------------------- */

size_t wb_replay_sums_count(const wb_replay *replay);

wb_status wb_replay_check_index(const wb_replay *replay, int32_t micro_batch);

/* Rows of one layer of a micro-batch, checked. */
typedef struct layer_rows {
    micro_batch *batch;
    int32_t index;        /* of the micro-batch */
    uint32_t layer;       /* of the model's MoE layers */
    uint32_t stage_layer; /* the same from the stage's first */
    uint32_t row, rows;
    uint8_t *direction; /* [rows] of the layer */
    uint8_t *noted;     /* [rows] of the layer */
    uint32_t K;         /* of the layer */
    size_t layer_bytes; /* K ids */
    uint8_t *ids;       /* first id; rows are row_bytes apart */
} layer_rows;

/* The first layer of `layer`, one layer or WB_ALL_LAYERS; *n_layers_out says how many there are. */
wb_status wb_replay_find_rows(const wb_replay *replay, int32_t micro_batch, int32_t layer, uint32_t row,
                              uint32_t rows, layer_rows *first_out, uint32_t *n_layers_out);
/* Moves on to the next layer. */
void wb_replay_next_layer(const wb_replay *replay, layer_rows *rows);

/* ---- replay_records.c ------------------------------------------------------------------------- */

const wb_record *wb_replay_find_record(const wb_replay *replay, const char *rid); /* NULL: unknown */

/* ---- replay_fill.c ---------------------------------------------------------------------------- */

/* Memory for the segments, and for the arrays of T rows, whose pointers are then set. */
wb_status wb_replay_reserve_segments(wb_replay *replay, micro_batch *batch, int32_t n_segments);
wb_status wb_replay_reserve_rows(wb_replay *replay, micro_batch *batch, uint32_t T);
/* Ids, directions and flags of all rows, from the segments; none is followed or measured yet. */
void wb_replay_fill(const wb_replay *replay, micro_batch *batch, int32_t index);

/* ---- replay_placement.c ----------------------------------------------------------------------- */

/* That options.placement, if there is one, is of the handle's model. */
wb_status wb_replay_open_placement(wb_replay *replay);
/* Where the placement's maps are others than when last asked: padding is put in order again, and tables are
 * made anew at their next use. */
void wb_replay_refresh_placement(wb_replay *replay);

/* ---- replay_padding.c ------------------------------------------------------------------------- */

/* Memory; the handle's model and options are set. */
wb_status wb_replay_open_padding(wb_replay *replay);
/* The order of every layer, from the placement as it is now or from blocks. */
void wb_replay_order_padding(wb_replay *replay);
/* The ids [K] in `layer` of the padding row that comes `turn`-th; ids of neighbouring turns are spread. */
void wb_replay_padding_row(const wb_replay *replay, uint32_t layer, uint64_t turn, uint8_t *ids_out);

/* ---- replay_dispatch.c ------------------------------------------------------------------------ */

/* Checks options.dispatch; memory where there is a placement. */
wb_status wb_replay_open_dispatch(wb_replay *replay);

/* ---- replay_listed.c -------------------------------------------------------------------------- */

/* Counts the rows at positions [start, end) of which the record does not say what indexers chose;
 * MISSING_ROUTES under strict. */
wb_status wb_replay_resolve_listed(const wb_replay *replay, const wb_segment *segment,
                                   const wb_record *record, uint32_t end, uint32_t *missing_out);
/* Memory for the cells of T rows, and the cells from the segments. */
wb_status wb_replay_reserve_listed(wb_replay *replay, micro_batch *batch, uint32_t T);
void wb_replay_fill_listed(const wb_replay *replay, micro_batch *batch);
/* MISMATCH naming the first row of the micro-batch that was not told. */
wb_status wb_replay_check_listed(const wb_replay *replay, int32_t micro_batch);

/* ---- metrics.c -------------------------------------------------------------------------------- */

void wb_replay_count_segment(wb_replay *replay, const segment_plan *segment);
/* Whether native ids of one of the rows would still feed the metrics. */
bool wb_replay_unmeasured(const layer_rows *rows);
/* Compares the native choice of rows with the ids in the plan. Ids must be in range. */
void wb_replay_measure_rows(wb_replay *replay, const layer_rows *rows, const uint8_t *native,
                            size_t native_stride_bytes);

#endif
