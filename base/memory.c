/* memory.c - see wb_memory.h. Refuses: device memory. */
#include "wb_check.h"
#include "wb_memory.h"

#include <stdlib.h>
#include <string.h>

static wb_status no_memory(const char *what, size_t count, size_t size) {
    return wb_fail(WB_OUT_OF_MEMORY, "%s: no memory for %zu x %zu bytes", what, count, size);
}

void *wb_alloc(size_t count, size_t size, const char *what) {
    bool fits = size == 0 || count <= SIZE_MAX / size;
    void *block = fits ? calloc(count ? count : 1, size ? size : 1) : NULL;
    if (!block) WB_IGNORE(no_memory(what, count, size));
    return block;
}

/* ---- arrays that grow ------------------------------------------------------------------------ */

enum { FIRST_CAPACITY = 64 };

void *wb_grow(void *block, size_t size, size_t needed, size_t *capacity, const char *what) {
    if (block && needed <= *capacity) return block;
    size_t doubled = *capacity > SIZE_MAX / 2 ? SIZE_MAX : *capacity * 2;
    size_t wanted = doubled > FIRST_CAPACITY ? doubled : FIRST_CAPACITY;
    if (wanted < needed) wanted = needed;
    void *larger = wanted <= SIZE_MAX / size ? realloc(block, wanted * size) : NULL;
    if (!larger) {
        WB_IGNORE(no_memory(what, wanted, size));
        return block;
    }
    *capacity = wanted;
    return larger;
}

/* ---- owners ---------------------------------------------------------------------------------- */

/* What stands before each block of an owner; the size keeps the block's own alignment that of malloc. */
typedef struct wb_owned {
    _Alignas(max_align_t) struct wb_owned *previous, *next;
} wb_owned;

void *wb_own(wb_owner *owner, size_t count, size_t size, const char *what) {
    size_t room = SIZE_MAX - sizeof(wb_owned);
    bool fits = size == 0 || count <= room / size;
    wb_owned *head = fits ? calloc(1, sizeof *head + count * size) : NULL;
    if (!head) {
        WB_IGNORE(no_memory(what, count, size));
        return NULL;
    }
    head->previous = owner->latest;
    if (owner->latest) owner->latest->next = head;
    owner->latest = head;
    return head + 1;
}

static void disown(wb_owner *owner, void *block) {
    if (!block) return;
    wb_owned *head = (wb_owned *)block - 1;
    if (head->previous) head->previous->next = head->next;
    if (head->next) head->next->previous = head->previous;
    if (owner->latest == head) owner->latest = head->previous;
    free(head);
}

void wb_owner_close(wb_owner *owner) {
    for (wb_owned *head = owner->latest, *previous; head; head = previous) {
        previous = head->previous;
        free(head);
    }
    owner->latest = NULL;
}

wb_status wb_host_reserve(wb_owner *owner, wb_host_buffer *buffer, size_t count, size_t size,
                          const char *what) {
    if (size != 0 && count > SIZE_MAX / size) return no_memory(what, count, size);
    size_t bytes = count * size;
    if (buffer->data && bytes <= buffer->bytes) return WB_OK;
    void *larger = wb_own(owner, bytes > 0 ? bytes : 1, 1, what);
    if (!larger) return WB_OUT_OF_MEMORY;
    disown(owner, buffer->data);
    buffer->data = larger;
    buffer->bytes = bytes;
    return WB_OK;
}
