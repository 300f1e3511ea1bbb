/* wb_rebalance.h - experts that move while a model works: a manager that counts the load, decides when
 * another placement pays, has it solved beside the passes, moves the weights a round at a time, and flips the
 * maps.
 *
 * Online. Letters and common rules: as in wb_eplb.h.
 *
 *     record -> decide -> solve and plan in a thread -> move a round -> flip its layers -> ... -> record
 *
 * All ranks have a manager each, of the same options, and call wb_rebalance_boundary together, between two
 * passes. At one boundary one round of moves is made at most: a group, or groups of several layers where no
 * rank sends for two of them or receives for two. Each rank receives up to n_shadow experts into shadow
 * slots, all ranks agree, and then copy them into the slots and take over the maps. So generation waits as
 * for one group of moves and never longer, whatever the number of layers and the window of the counts, and a
 * map and the weights that it names change together, on all ranks or on none.
 *
 * Who makes the passes can have experts travel beside one: wb_rebalance_begin_boundary starts a round, the
 * pass runs under the maps that there are, wb_rebalance_end_boundary takes over. Between ranks whose devices
 * reach each other's memory copy engines move them (wb_expert_store.put), which takes no multiprocessor from
 * the pass; between others the exchange does.
 *
 * What is moved is asked for at each move: a weight that was replaced since the solver began moves as it is
 * now. A move that fails, a checksum that does not fit or a solver that does not end leaves the last map,
 * under which everything works; wb_rebalance_stats says so. */
#ifndef WB_REBALANCE_H
#define WB_REBALANCE_H

#include "wb_base.h"
#include "wb_exchange.h"
#include "wb_load.h"
#include "wb_move.h"
#include "wb_placement.h"
#include "wb_solve.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- what is moved ------------------------------------------------------------------------------- */

/* A part of what an expert is: one of its tensors. */
typedef struct wb_expert_part {
    void *data; /* device */
    size_t bytes;
} wb_expert_part;

/* A model's experts, as a manager reaches them (wb_model_expert_store). `context` is the first argument of
 * its functions. All are set where nothing else is said. */
typedef struct wb_expert_store {
    size_t size; /* sizeof(wb_expert_store), as the caller was compiled; another is refused */
    void *context;
    wb_exchange *exchange;     /* the store's; its communicator is the manager's */
    wb_exchange_memory memory; /* how parts are copied */
    /* The map that the model works under. While a rebalance goes on the manager alone changes it; at another
     * time others may, and the manager follows. */
    const wb_placement *(*placement)(void *context);
    /* The parts of a slot of this rank in a layer, as they are now: *n_out of them, of which the first `max`
     * are in parts_out. All slots of a layer, on all ranks, have as many parts of the same sizes. */
    wb_status (*slot)(void *context, uint32_t layer, wb_physical_id slot, size_t max,
                      wb_expert_part *parts_out, size_t *n_out);
    /* *shadow_out: device memory of `bytes` bytes, the store's, until the next call: n_shadow times a slot,
     * or 0 on a rank without slots, at open and, if slots have more parts by then, at a move. reached_out:
     * host [R], whether put reaches that of rank r, and rank r this one's; not of this rank. Collective. */
    wb_status (*shadow)(void *context, size_t bytes, void **shadow_out, bool *reached_out);
    /* Starts the copy of data[bytes], device, to byte `offset` of what shadow gave rank `rank`, beside what
     * the device does meanwhile; settle returns when all of them have come. Both NULL: no rank is ever
     * reached. */
    wb_status (*put)(void *context, uint32_t rank, size_t offset, const void *data, size_t bytes);
    wb_status (*settle)(void *context);
    /* *digest_out: a number of data[bytes], device, that tells other bytes apart, the same on every rank. */
    wb_status (*digest)(void *context, const void *data, size_t bytes, uint64_t *digest_out);
    /* Takes over the layers that are at a later epoch. Collective. */
    wb_status (*take)(void *context, const wb_placement *placement);
} wb_expert_store;

/* ---- the manager --------------------------------------------------------------------------------- */

typedef struct wb_rebalance_options {
    size_t size; /* of this struct; set by the initialiser */
    /* Boundaries between two decisions, 1..; default 1000. */
    uint32_t every;
    /* Nothing is done while the balancedness of the counts, tokens weighted, is above this, (0, 1]; default
     * 1: never too good. */
    double enough;
    /* A layer is moved when the maximum rank load falls by more than noise could explain. Counts of a rank
     * that add up to x, each of Poisson's law, have the standard deviation sqrt(x), with replicas less; the
     * maximum of R such ranks lies up to sqrt(2 ln R) of these above the mean by itself (the bound on the
     * mean of the largest of R normal numbers). The gain must exceed (sqrt(2 ln R) + sigmas) standard
     * deviations of the most loaded rank. 0..; default 2. */
    double sigmas;
    /* And when what it gains over so many passes takes longer than the move (cost). Default 10000. */
    double horizon_passes;
    /* Layers in which a boundary moves experts, at most: 1 moves layer after layer, more, 1.., as many beside
     * each other as find ranks that are free. WB_ALL_MOE_LAYERS, the default: no limit. The end is the
     * same. */
    int64_t layers_per_chunk;
    uint32_t phases;      /* whose counts decide, a set as in wb_load_counts; default WB_PHASES_ALL */
    wb_load_options load; /* window and decay of the counts; window default: 1000 passes */
    /* `current` and `progress` are the manager's own, and so is `cost`, which is move.cost; threads
     * default 1. */
    wb_eplb_options solver;
    /* cost.expert_bytes is not read: an expert weighs what the largest slot does at open. */
    wb_move_options move;
    /* Boundaries after which a solver that has not ended on all ranks is given up, 1..; default 1000. */
    uint32_t patience;
    /* Every `check_every`-th move carries a checksum of the expert, which is compared on arrival: 1, every
     * one, the default; 0: none. */
    uint32_t check_every;
    /* Ids E .. E + n_weightless - 1 of rows that are recorded are of experts without weights, which have no
     * slots: they are not counted. Default 0. */
    uint32_t n_weightless;
    uint8_t reserved[4]; /* zero */
} wb_rebalance_options;
#define WB_ALL_MOE_LAYERS INT64_MAX
WB_API void wb_rebalance_options_init(wb_rebalance_options *options_out, size_t size);
static inline wb_rebalance_options wb_rebalance_options_default(void) {
    wb_rebalance_options options;
    wb_rebalance_options_init(&options, sizeof options);
    return options;
}

/* One rank's manager. Used by one thread at a time, that of its store's communicator. */
typedef struct wb_rebalance wb_rebalance;

/* A manager of the experts of `store`, which is copied and whose context outlives it. options NULL: the
 * defaults. INVALID_ARGUMENT names the option that is out of its range; PEER: ranks have other options or
 * another placement. Collective. */
WB_API wb_status wb_rebalance_open(const wb_expert_store *store, const wb_rebalance_options *options,
                                   wb_rebalance **manager_out);
/* MISMATCH unless it counts L layers of E experts, so that rows of a model of that shape can be counted. */
WB_API wb_status wb_rebalance_check_shape(const wb_rebalance *manager, uint32_t n_layers, uint32_t n_experts);
/* Waits for its solver. NULL is a no-op. Not collective. */
WB_API void wb_rebalance_close(wb_rebalance *manager);

/* What such a manager takes on a rank that has slots, of slot_bytes at most: of the device the shadow slots
 * (in which tensors begin at multiples of 256 bytes: if some are none, a little more; and a device that
 * shares them with others of its host takes whole blocks of 2 MiB, up to 2 MiB and 256 bytes more), of the
 * host the counts and what moves go through. Plans, which come and go, are not in it. */
WB_API wb_status wb_rebalance_measure(const wb_rebalance_options *options, uint32_t n_layers,
                                      uint32_t n_experts, size_t slot_bytes, size_t *device_bytes_out,
                                      size_t *host_bytes_out);

/* Counts rows of one layer of the pass that goes on (wb_load_record): no padding, no draft. Not
 * collective. */
WB_API wb_status wb_rebalance_record(wb_rebalance *manager, wb_phase phase, int32_t layer,
                                     const wb_routed_rows *rows);

/* Between two passes: ends the pass that was counted, and does what is next, which is one round of moves at
 * most. A failure that leaves all ranks with the last map, of a solver or of a move, is not returned but
 * counted (wb_rebalance_stats). Those that are returned end the job: the communicator is dead; PEER names the
 * rank. Collective. */
WB_API wb_status wb_rebalance_boundary(wb_rebalance *manager);

/* The same in two halves, with a pass between them: the first starts a round of moves, the second waits for
 * what travels and takes it over. From the first to the end of the second no weight of an expert changes, or
 * what arrives is not what the slot holds by then; whatever the pass came to, the second half follows on all
 * ranks. Errors as above; INVALID_ARGUMENT: a boundary that was begun and not ended. Collective. */
WB_API wb_status wb_rebalance_begin_boundary(wb_rebalance *manager);
WB_API wb_status wb_rebalance_end_boundary(wb_rebalance *manager);

typedef enum wb_rebalance_stage {
    WB_REBALANCE_RECORDING,
    WB_REBALANCE_SOLVING,
    WB_REBALANCE_MOVING
} wb_rebalance_stage;

/* Why the latest decision was made as it was; while a solver is at work, that of the one before. */
typedef enum wb_rebalance_verdict {
    WB_REBALANCE_UNDECIDED, /* no decision yet */
    WB_REBALANCE_MOVED,     /* layers were moved, or are on their way */
    WB_REBALANCE_NO_LOAD,   /* nothing was counted */
    WB_REBALANCE_BALANCED,  /* above `enough` */
    WB_REBALANCE_NOISE,     /* no layer gains more than noise */
    WB_REBALANCE_NO_GAIN,   /* no layer's gain pays its move */
    WB_REBALANCE_LATE,      /* the solver was given up */
    WB_REBALANCE_FAILED     /* `failure` says what */
} wb_rebalance_verdict;
WB_API const char *wb_rebalance_verdict_name(wb_rebalance_verdict verdict); /* "moved", ...; static */

/* Since open; the same on all ranks but for what is marked "this rank's". */
typedef struct wb_rebalance_stats {
    wb_rebalance_stage stage;
    uint64_t epoch;      /* of the latest flip; 0: none */
    uint64_t boundaries; /* so far */
    uint64_t decisions;  /* with counts looked at */
    uint64_t rebalances; /* that moved something to their end */
    uint64_t failures;   /* solvers and moves that were given up */
    uint64_t groups, moves;
    uint64_t bytes;               /* received by this rank, local copies included */
    double longest_pause;         /* seconds of a boundary, waiting for other ranks included; this rank's */
    double seconds;               /* of all boundaries; this rank's */
    double balancedness;          /* of the counts of the latest decision, under the map of then */
    double expected_balancedness; /* of the same counts, under the map that was solved; 0: none was yet */
    uint32_t layers_without_load; /* at the latest decision: they keep their map */
    /* Whose counts all lie in the block of experts that one of R ranks would have: is everybody counted? */
    uint32_t one_sided_layers;
    wb_rebalance_verdict verdict;
    const char *failure; /* of the latest failure, "" without; owner: the manager, until its next call */
} wb_rebalance_stats;
WB_API wb_rebalance_stats wb_rebalance_get_stats(const wb_rebalance *manager);

#ifdef __cplusplus
}
#endif
#endif
