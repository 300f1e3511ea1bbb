/* reward_child.h - a program of the user's as a child process: text in, text out, as long as the run lasts.
 * Refuses: what the text means (reward.c). */
#ifndef GRPO_REWARD_CHILD_H
#define GRPO_REWARD_CHILD_H

#include "wb_base.h"

#include <sys/types.h>

typedef struct reward_child {
    pid_t pid;    /* 0: not running */
    int to, from; /* its standard input and output; -1: closed */
} reward_child;

typedef enum child_event {
    CHILD_TALKED, /* bytes were sent or received */
    CHILD_CLOSED, /* its output is at its end, or it has ended and no more comes */
    CHILD_QUIET,  /* nothing came within the time, or a signal did */
} child_event;

/* Starts `command` by sh -c, in a process group of its own: a Ctrl-C is the trainer's to deal with. The group
 * does not outlive this thread, however it ends. */
wb_status child_start(const char *command, reward_child *child);
/* Waits at most `seconds`, and at most one, for room in its input or for output. Sends of data [n] from *sent
 * on, which it moves, and receives at most `bytes` into `received`; both at once, so that neither side waits
 * for the other with full pipes. Once it reads no more, it is judged by what it answers. */
wb_status child_talk(reward_child *child, const char *data, size_t n, size_t *sent, char *received,
                     size_t bytes, double seconds, size_t *received_out, child_event *event_out);
void child_end_input(reward_child *child);
/* Whether it ends within `seconds`. */
bool child_wait(const reward_child *child, double seconds);
/* Of a child that has ended: its exit status, or IO where a signal killed it. Its group is gone. */
wb_status child_judge(reward_child *child, int *exit_out);
/* Kills its group. Nothing running is fine. */
void child_kill(reward_child *child);

#endif
