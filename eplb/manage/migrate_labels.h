/* migrate_labels.h - what a sender says of each expert of a round before it sends it, and whether what
 * arrives is that. Refuses: moving experts. */
#ifndef WB_MIGRATE_LABELS_H
#define WB_MIGRATE_LABELS_H

#include "manage/migrate.h"

/* migration->sent (=) of what this rank sends, made before it travels; and memory for what it receives. */
wb_status wb_migrate_write_labels(wb_migration *migration);

/* migration->received (=) of what this rank will receive. Collective. */
wb_status wb_migrate_send_labels(wb_migration *migration);

/* MISMATCH for an expert that has other parts than the slot that it is for; CORRUPT for one that has arrived,
 * in its shadow slot, with another checksum. */
wb_status wb_migrate_compare_shapes(wb_migration *migration);
wb_status wb_migrate_compare_checksums(wb_migration *migration);

#endif
