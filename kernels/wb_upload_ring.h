/* wb_upload_ring.h - the small inputs of a step on their way to the device: written by the host into one
 * block, and copied at once (not installed).
 *
 * The arrays of a step are walked over like the buffers of an arena: at open with the most that a step may
 * have, which measures the ring, and at each step with what it has. Two host blocks take turns, so that the
 * next step can be written while the copy of this one still runs; on the device there is one, which is the
 * stream's. Where an array lies depends on the sizes of the step alone. The host blocks are ordinary memory:
 * a copy from pinned memory (host_alloc) would be waited for.
 *
 *     WB_TRY(wb_upload_begin(&ring, walk, user));      places each wb_input
 *     memcpy(tokens.host, ...);                        fills them
 *     WB_TRY(wb_upload_send(&ring, dev));              one copy; then tokens.device is the same
 */
#ifndef WB_UPLOAD_RING_H
#define WB_UPLOAD_RING_H

#include "wb_arena.h"

/* One array of a step. `host` stays as it is until the second step after. */
typedef struct wb_input {
    void *host, *device;
} wb_input;

typedef struct wb_upload_ring {
    wb_buffer device;
    char *host[2];
    size_t bytes; /* of the device's block and of each of the host's */
    size_t used;  /* by the latest step */
    int turn;     /* the host block of the latest step */
} wb_upload_ring;

/* In a walk over a step's inputs: `count` elements of `size` bytes. */
void wb_place_input(wb_arena *step, wb_input *input, int64_t count, size_t size);

/* The ring's place in an arena, for steps of at most what `inputs` walks over now. */
void wb_place_ring(wb_arena *arena, wb_upload_ring *ring, wb_layout_fn *inputs, void *user);

/* CAPACITY when a step's inputs are more than the ring is for. */
wb_status wb_upload_begin(wb_upload_ring *ring, wb_layout_fn *inputs, void *user);
wb_status wb_upload_send(wb_upload_ring *ring, wb_device *dev);

#endif
