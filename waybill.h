/* waybill.h - all of Waybill's public headers. The MPI adapter, which needs mpi.h, is wb_comm_mpi.h.
 *
 * NULL is a no-op for every function that closes an object and for every one that initialises a struct,
 * wb_request_init and wb_<name>_options_init. */
#ifndef WAYBILL_H
#define WAYBILL_H

#include "wb_base.h"
#include "wb_comm.h"
#include "wb_eplb.h"
#include "wb_exchange.h"
#include "wb_export.h"
#include "wb_formats.h"
#include "wb_import.h"
#include "wb_kernels.h"
#include "wb_model.h"
#include "wb_pack.h"
#include "wb_replay.h"
#include "wb_rollout.h"
#include "wb_train_hooks.h"

#endif
