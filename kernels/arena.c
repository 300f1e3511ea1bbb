/* arena.c - see wb_arena.h. Refuses: growing, freeing one buffer. */
#include "wb_arena.h"
#include "wb_check.h"

#include <string.h>

/* Adds room for count * size bytes to *bytes; false after an overflow. *offset_out: where it begins. */
static bool take(wb_arena *arena, int64_t rows, int64_t width, size_t size, size_t *bytes,
                 size_t *offset_out) {
    size_t needed = 0;
    if (arena->status != WB_OK) return false;
    arena->status = wb_workspace_bytes(rows, width, size, &needed);
    if (arena->status != WB_OK) return false;
    if (needed < size) needed = size;
    const size_t limit = (size_t)PTRDIFF_MAX - WB_ARENA_ALIGNMENT;
    if (needed > limit || *bytes > limit - needed) {
        arena->status = wb_fail(WB_CAPACITY, "memory: %zu bytes after %zu overflow", needed, *bytes);
        return false;
    }
    *offset_out = *bytes;
    *bytes = (*bytes + needed + WB_ARENA_ALIGNMENT - 1) / WB_ARENA_ALIGNMENT * WB_ARENA_ALIGNMENT;
    return true;
}

void wb_arena_part(wb_arena *arena, const char *name) {
    wb_memory *memory = arena->memory;
    if (!memory) return;
    for (arena->part = 0; arena->part < memory->n_parts; arena->part++)
        if (strcmp(memory->parts[arena->part].name, name) == 0) return;
    if (memory->n_parts == WB_MAX_MEMORY_PARTS) {
        arena->status =
            wb_fail(WB_CAPACITY, "memory: %s: expected at most %d parts", name, WB_MAX_MEMORY_PARTS);
        return;
    }
    memory->parts[memory->n_parts++].name = name;
}

void wb_place(wb_arena *arena, wb_buffer *buffer, int64_t rows, int64_t width, size_t size) {
    size_t offset = 0;
    *buffer = (wb_buffer){0};
    if (!take(arena, rows, width, size, &arena->device_bytes, &offset)) return;
    if (arena->memory) arena->memory->parts[arena->part].bytes += arena->device_bytes - offset;
    if (!arena->device_base) return;
    buffer->data = arena->device_base + offset;
    buffer->bytes = arena->device_bytes - offset;
}

void *wb_place_host(wb_arena *arena, int64_t count, size_t size) {
    size_t offset = 0;
    if (!take(arena, count, 1, size, &arena->host_bytes, &offset) || !arena->host_base) return NULL;
    return arena->host_base + offset;
}

wb_status wb_arena_measure(wb_device *device, wb_layout_fn *layout, void *user, wb_memory *memory_out) {
    wb_memory memory = {0};
    wb_arena arena = {.device = device, .memory = &memory};
    layout(user, &arena);
    WB_TRY(arena.status);
    memory.device_bytes = arena.device_bytes;
    memory.host_bytes = arena.host_bytes;
    *memory_out = memory;
    return WB_OK;
}

wb_status wb_arena_open(wb_workspace *memory, wb_layout_fn *layout, void *user) {
    wb_arena measured = {.device = memory->device}, placed = {.device = memory->device};
    layout(user, &measured);
    WB_TRY(measured.status);
    WB_TRY(wb_reserve(memory, &memory->arena, (int64_t)measured.device_bytes, 1, 1));
    WB_TRY(WB_OWN_ALLOC(&memory->host, placed.host_base, measured.host_bytes, 1, "workspace"));
    placed.device_base = memory->arena.data;
    layout(user, &placed);
    return placed.status;
}
