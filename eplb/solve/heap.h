/* heap.h - a binary heap of indices, ordered by a function over what they stand for. The order is total,
 * so the result never depends on how the heap was built. */
#ifndef WB_HEAP_H
#define WB_HEAP_H

#include <stdbool.h>
#include <stdint.h>

typedef struct wb_heap {
    uint32_t *items; /* items[0] comes first; the caller's memory */
    uint32_t n;
    bool (*before)(const void *ctx, uint32_t a, uint32_t b);
    const void *ctx;
} wb_heap;

/* Moves items[0] down to where it belongs, after its key has changed for the later. */
static inline void wb_heap_sink(wb_heap *heap) {
    uint32_t i = 0, item = heap->items[0];
    for (uint32_t child; (child = 2 * i + 1) < heap->n; i = child) {
        if (child + 1 < heap->n && heap->before(heap->ctx, heap->items[child + 1], heap->items[child]))
            child++;
        if (!heap->before(heap->ctx, heap->items[child], item)) break;
        heap->items[i] = heap->items[child];
    }
    heap->items[i] = item;
}

static inline void wb_heap_push(wb_heap *heap, uint32_t item) {
    uint32_t i = heap->n++;
    for (uint32_t parent; i > 0; i = parent) {
        parent = (i - 1) / 2;
        if (!heap->before(heap->ctx, item, heap->items[parent])) break;
        heap->items[i] = heap->items[parent];
    }
    heap->items[i] = item;
}

static inline void wb_heap_pop(wb_heap *heap) {
    heap->items[0] = heap->items[--heap->n];
    if (heap->n > 0) wb_heap_sink(heap);
}

/* Leaves the items in order and the heap empty. */
static inline void wb_heap_sort(wb_heap *heap) {
    uint32_t n = heap->n;
    while (heap->n > 0) {
        uint32_t first = heap->items[0];
        wb_heap_pop(heap);
        heap->items[heap->n] = first;
    }
    for (uint32_t i = 0; i < n / 2; i++) {
        uint32_t swap = heap->items[i];
        heap->items[i] = heap->items[n - 1 - i];
        heap->items[n - 1 - i] = swap;
    }
}

#endif
