/* wb_threads.h - how many threads a program may be told to take (not installed).
 *
 * Owns: the number of the host's cores, and the rule of every --threads. Refuses: which cores a process is
 * bound to. */
#ifndef WB_THREADS_H
#define WB_THREADS_H

#include "wb_base.h"

/* The cores of this host, at least 1; all of them, whatever this process is bound to. */
int wb_host_cores(void);

/* INVALID_ARGUMENT, named `what`, for more threads than the host has cores: they would only wait for each
 * other. 0, a default, is fine. */
wb_status wb_threads_check(uint64_t threads, const char *what);

#endif
