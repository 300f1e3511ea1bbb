/* filing.c - see filing.h. */
#include "filing.h"

#include <string.h>

wb_status wb_filing_open(wb_owner *owner, size_t max_parts, wb_filing *filing) {
    return WB_OWN(owner, filing->parts, max_parts, "engine filing");
}

void wb_filing_add(wb_filing *filing, void *to, const void *from, size_t bytes) {
    if (bytes > 0) filing->parts[filing->n++] = (wb_filed_part){to, from, bytes};
}

void wb_filing_finish(wb_filing *filing) {
    for (size_t i = 0; i < filing->n; i++)
        memcpy(filing->parts[i].to, filing->parts[i].from, filing->parts[i].bytes);
    filing->n = 0;
}
