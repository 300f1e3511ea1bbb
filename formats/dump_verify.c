/* dump_verify.c - the full check of a dump: everything that opening and first access check, and every id.
 * Refuses: to repair. */
#include "wb_check.h"
#include "wb_formats.h"

#include <inttypes.h>

wb_status wb_dump_verify_record(wb_dump *dump, uint64_t i) {
    wb_record record;
    WB_TRY(wb_dump_record(dump, i, &record));
    wb_status status = wb_record_check(wb_dump_model(dump), &record, true);
    wb_dump_release(dump, i);
    if (status == WB_OK) return WB_OK;
    wb_dump_entry entry;
    WB_TRY(wb_dump_get_entry(dump, i, &entry));
    return wb_fail_context(WB_CORRUPT, "%s: byte %" PRIu64, entry.path, entry.offset);
}

wb_status wb_dump_verify(const char *path, void (*progress)(void *ctx, uint64_t done, uint64_t total),
                         void *ctx, wb_dump_info *info_out) {
    if (!info_out) return wb_fail(WB_INVALID_ARGUMENT, "wb_dump_verify: NULL");
    wb_dump *dump = NULL;
    WB_TRY(wb_dump_open(path, &dump));
    wb_dump_info info = wb_dump_get_info(dump);
    wb_status status = WB_OK;
    for (uint64_t i = 0; i < info.records && status == WB_OK; i++) {
        status = wb_dump_verify_record(dump, i);
        if (status == WB_OK && progress) progress(ctx, i + 1, info.records);
    }
    wb_dump_close(dump);
    if (status == WB_OK) *info_out = info;
    return status;
}
