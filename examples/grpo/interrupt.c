/* interrupt.c - signals that ask a run to stop: noted here, and acted on where all ranks can agree. Refuses:
 * what stopping means (training.c). */
#include "grpo.h"

#include <signal.h>

static volatile sig_atomic_t received;

/* Who asks twice does not want to wait. */
static void note(int number) {
    if (received != 0) {
        signal(number, SIG_DFL);
        raise(number);
    }
    received = number;
}

void interrupt_watch(void) {
    struct sigaction action = {.sa_handler = note, .sa_flags = SA_RESTART | SA_NODEFER};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
    sigaction(SIGUSR1, &action, NULL);
}

int interrupt_signal(void) {
    return received;
}

wb_status interrupt_agree(wb_comm *comm, int *signal_out) {
    uint64_t number = (uint64_t)received;
    WB_TRY(wb_comm_all_reduce_max_u64(comm, &number));
    *signal_out = (int)number;
    return WB_OK;
}
