/* comm_state.h - what a communicator holds (internal): comm.c makes it, comm_verdict.c and comm_reduce.c work
 * in its scratch, which is made when it is opened and is enough for every call. */
#ifndef WB_COMM_STATE_H
#define WB_COMM_STATE_H

#include "wb_comm.h"
#include "wb_memory.h"

/* Up to this many gathered bytes one all-gather is cheaper than two steps. A check of equality compares
 * blocks of this size. */
#define WB_GATHER_BYTES ((size_t)64 * 1024)

/* A sum works through its elements in blocks of this size, which bounds the scratch. */
#define WB_SUM_BYTES ((size_t)4 * 1024 * 1024)

struct wb_comm {
    wb_comm_ops ops;
    int rank, size;
    void *state;    /* the adapter's */
    double timeout; /* seconds */
    wb_owner memory;
    size_t *part_bytes, *part_offsets; /* [size] each, for all_to_all_v; owner: memory */
    unsigned char *scratch;            /* [scratch_bytes], WB_SUM_BYTES and a u64 a rank; owner: memory */
    size_t scratch_bytes;
    wb_comm_count count;
};

/* INVALID_ARGUMENT for a pointer that is NULL although there are bytes to be read or written. */
wb_status wb_comm_check_buffer(const char *call, const char *name, const void *buffer, size_t bytes);

/* The same for each rank's part of an all-to-all-v, `bytes` and `offsets` being [ranks]. */
wb_status wb_comm_check_parts(int ranks, const char *name, const void *buffer, const size_t *bytes,
                              const size_t *offsets);

#endif
