/* wb_memory.h - host memory: checked allocation, arrays that grow, and owners that free what was taken
 * from them (not installed).
 *
 * The macros take the pointer itself, so that its type gives the element size and no cast to `void **` is
 * needed:
 *
 *     WB_TRY(WB_NEW(p->rank_of_slot, n_slots, "placement"));            freed with free()
 *     WB_TRY(WB_GROW(list->items, list->n + 1, &list->capacity, path)); freed with free()
 *     WB_TRY(WB_OWN(&s->memory, s->counts, n, "counts"));               freed by wb_owner_close(&s->memory)
 *
 * A workspace of several arrays has an owner: its arrays are listed once, where they are made, and not
 * again where they end. A failure is OUT_OF_MEMORY with a message that begins with `what`.
 */
#ifndef WB_MEMORY_H
#define WB_MEMORY_H

#include "wb_base.h"

#ifdef __cplusplus
extern "C" {
#endif

/* ---- single blocks --------------------------------------------------------------------------- */

/* `count` zeroed objects of `size` bytes, NULL with a message on failure. 0 objects give a valid pointer.
 * Freed with free(). */
void *wb_alloc(size_t count, size_t size, const char *what);

#define WB_ALLOC(pointer, count, size, what) \
    (((pointer) = wb_alloc((count), (size), (what))) ? WB_OK : WB_OUT_OF_MEMORY)

#define WB_NEW(pointer, count, what) WB_ALLOC(pointer, count, sizeof *(pointer), what)

/* ---- arrays that grow ------------------------------------------------------------------------ */

/* The array at `block` (from malloc, or NULL with *capacity 0), moved to have room for at least `needed`
 * elements of `size` bytes: the content is kept, what is new is not initialised, and growth at least
 * doubles. Room for no elements is a valid pointer too. On failure `block` itself is returned with *capacity
 * unchanged and a message set: nothing is lost. */
void *wb_grow(void *block, size_t size, size_t needed, size_t *capacity, const char *what);

/* wb_grow of the array at `pointer`, as a status; `capacity` is a size_t *. */
#define WB_GROW(pointer, needed, capacity, what)                                        \
    (((pointer) = wb_grow((pointer), sizeof *(pointer), (needed), (capacity), (what))), \
     (pointer) && *(capacity) >= (needed) ? WB_OK : WB_OUT_OF_MEMORY)

/* ---- owners ---------------------------------------------------------------------------------- */

/* A zeroed struct owns nothing yet. */
typedef struct wb_owner {
    struct wb_owned *latest;
} wb_owner;

/* As wb_alloc, but the block belongs to the owner: it is freed by wb_owner_close, never with free(). */
void *wb_own(wb_owner *owner, size_t count, size_t size, const char *what);

#define WB_OWN_ALLOC(owner, pointer, count, size, what) \
    (((pointer) = wb_own((owner), (count), (size), (what))) ? WB_OK : WB_OUT_OF_MEMORY)

#define WB_OWN(owner, pointer, count, what) WB_OWN_ALLOC(owner, pointer, count, sizeof *(pointer), what)

/* Frees every block and leaves the owner empty. */
void wb_owner_close(wb_owner *owner);

/* ---- buffers of an owner --------------------------------------------------------------------- */

/* Scratch memory that grows and never shrinks, so that a steady state allocates nothing. Growing loses the
 * content. A zeroed struct is empty; what it holds belongs to the owner of its reserve calls, which is
 * always the same one. */
typedef struct wb_host_buffer {
    void *data;
    size_t bytes;
} wb_host_buffer;

/* Room for `count` elements of `size` bytes, at least one byte. */
wb_status wb_host_reserve(wb_owner *owner, wb_host_buffer *buffer, size_t count, size_t size,
                          const char *what);

#ifdef __cplusplus
}
#endif
#endif
