/* wb_arena.h - the memory of an object whose sizes are known when it is opened: one device allocation and one
 * host block, laid out by one walk over its buffers (not installed).
 *
 * The walk is a function that names each buffer once, with its size. It runs twice over the same code: first
 * without memory, to add up the bytes, then with it, to place. So no size is written in two places, and a
 * walk alone says what an object would need.
 *
 *     static void layout(void *user, wb_arena *arena) {
 *         struct thing *t = user;
 *         wb_place(arena, &t->rows, t->max_rows, t->width, sizeof(float));
 *         WB_PLACE_HOST(arena, t->counts, t->n_ranks);
 *     }
 *     WB_TRY(wb_arena_open(&t->memory, layout, t));     freed by wb_workspace_close(&t->memory)
 *
 * Buffers begin at multiples of WB_ARENA_ALIGNMENT. They never move. Host memory begins as zeros. */
#ifndef WB_ARENA_H
#define WB_ARENA_H

#include "wb_workspace.h"

#define WB_ARENA_ALIGNMENT ((size_t)64)

/* One walk. A zeroed struct with a device measures; without one, for any device that is not the host. */
typedef struct wb_arena {
    wb_device *device;
    char *device_base, *host_base;   /* NULL: measuring */
    size_t device_bytes, host_bytes; /* walked over so far */
    wb_status status;                /* CAPACITY after a size that overflowed, with its message */
    wb_memory *memory;               /* of a measurement, to be filled part by part; or NULL */
    int32_t part;                    /* of memory, that is being walked over */
} wb_arena;

typedef void wb_layout_fn(void *user, wb_arena *arena);

/* Device memory for [rows, width] elements of `size` bytes, at least one. While measuring, and after an
 * overflow, data is NULL. */
void wb_place(wb_arena *arena, wb_buffer *buffer, int64_t rows, int64_t width, size_t size);

/* Host memory for `count` elements of `size` bytes, at least one; NULL while measuring. */
void *wb_place_host(wb_arena *arena, int64_t count, size_t size);

#define WB_PLACE_HOST(arena, pointer, count) ((pointer) = wb_place_host((arena), (count), sizeof *(pointer)))

/* What is walked over from here on is for `name`, a static string. */
void wb_arena_part(wb_arena *arena, const char *name);

/* Measures without memory. */
wb_status wb_arena_measure(wb_device *device, wb_layout_fn *layout, void *user, wb_memory *memory_out);

/* Measures, allocates both blocks from `memory`, which owns them, and places. */
wb_status wb_arena_open(wb_workspace *memory, wb_layout_fn *layout, void *user);

#endif
