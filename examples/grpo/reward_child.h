/* reward_child.h - a program of the user's as a child process: text in, text out, as long as the run lasts.
 * Refuses: what the text means (reward.c). */
#ifndef GRPO_REWARD_CHILD_H
#define GRPO_REWARD_CHILD_H

#include "wb_base.h"

#include <sys/types.h>

typedef struct reward_child {
    const char *command; /* borrowed */
    pid_t pid;           /* 0: not running */
    int to, from;        /* its standard input and output; -1: closed */
} reward_child;

typedef enum child_event {
    CHILD_TALKED,  /* bytes were sent or received */
    CHILD_CLOSED,  /* its output is at its end */
    CHILD_TIMEOUT, /* nothing came within the time */
} child_event;

/* Starts `command` by sh -c, in a process group of its own: a Ctrl-C is the trainer's to deal with. It does not
 * outlive this process. */
wb_status child_start(const char *command, reward_child *child);
/* Waits at most `seconds` for room in its input or for output. Sends of data [n] from *sent on, which it moves,
 * and receives at most `bytes` into `received`; both at once, so that neither side waits for the other with
 * full pipes. Once it reads no more, it is judged by what it answers. */
wb_status child_talk(reward_child *child, const char *data, size_t n, size_t *sent, char *received,
                     size_t bytes, double seconds, size_t *received_out, child_event *event_out);
/* Closes its input, waits at most `seconds` for its end, then kills its group. OK when it ended by itself, with
 * exit status 0. Nothing running is OK. */
wb_status child_end(reward_child *child, double seconds);
/* Kills it and what it has started, at once. Nothing running is a no-op. */
void child_kill(reward_child *child);

#endif
