/* counts_file.h - counts of a file that is open already, for the placement that begins with them. */
#ifndef WB_COUNTS_FILE_H
#define WB_COUNTS_FILE_H

#include "files/offline/number_file.h"
#include "wb_load.h"

/* As wb_counts_read, of one file and without its path in messages. n_layers and n_experts: what is
 * expected of a file whose rows are the MoE layers, 0: any. */
wb_status wb_counts_from_file(const wb_number_file *file, const wb_moe_layers *layers, uint32_t n_layers,
                              uint32_t n_experts, wb_counts **counts_out);

#endif
