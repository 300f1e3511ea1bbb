/* reward.c - asks a program of the user's for rewards: completions as JSON lines in, a number a line out.
 * Owns: the child process of one batch, its pipes, and saying clearly what it did wrong. */
#include "grpo.h"
#include "wb_memory.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

typedef struct text {
    char *data;
    size_t n, capacity;
} text;

static wb_status text_reserve(text *t, size_t more) {
    return WB_GROW(t->data, t->n + more, &t->capacity, "--reward-cmd: text");
}

/* ---- the lines that the program reads -------------------------------------------------------- */

static json_t *token_list(const uint32_t *tokens, uint32_t n) {
    json_t *list = json_array();
    for (uint32_t i = 0; list && i < n; i++)
        if (json_array_append_new(list, json_integer(tokens[i])) != 0) {
            json_decref(list);
            return NULL;
        }
    return list;
}

/* {"rid", "group", "sample", "prompt": [...], "completion": [...], "finish", "item": the task's line} */
static wb_status add_line(text *t, const task *tasks, uint64_t step, const wb_record *record) {
    json_t *line = json_pack(
        "{s:s, s:I, s:i, s:o, s:o, s:s}", "rid", record->rid, "group", (json_int_t)record->group, "sample",
        (int)record->sample, "prompt", token_list(record->tokens, record->prompt_len), "completion",
        token_list(record->tokens + record->prompt_len, record->n_tokens - record->prompt_len), "finish",
        wb_finish_name(record->finish));
    const char *item = task_item(tasks, step, record->group);
    if (line && item) json_object_set_new(line, "item", json_loads(item, 0, NULL));
    char *dumped = line ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (!dumped) return wb_fail(WB_OUT_OF_MEMORY, "--reward-cmd: the line of request %s", record->rid);
    size_t n = strlen(dumped);
    wb_status status = text_reserve(t, n + 2);
    if (status == WB_OK) {
        memcpy(t->data + t->n, dumped, n);
        t->data[t->n + n] = '\n';
        t->n += n + 1;
    }
    free(dumped);
    return status;
}

/* A line of the answer may have this many bytes; a program that writes more a line is not answering
 * rewards. */
enum { ANSWER_BYTES = 4096 };

/* ---- the child ------------------------------------------------------------------------------- */

typedef struct child {
    pid_t pid;
    int to, from; /* its standard input and output; -1: closed */
} child;

static void close_end(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

static wb_status child_start(const char *command, child *c) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0) return wb_fail(WB_IO, "--reward-cmd: pipe: %m");
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        return wb_fail(WB_IO, "--reward-cmd: pipe: %m");
    }
    c->pid = fork();
    if (c->pid == 0) {
        dup2(in[0], STDIN_FILENO);
        dup2(out[1], STDOUT_FILENO);
        signal(SIGPIPE, SIG_DFL);
        execl("/bin/sh", "sh", "-c", command, (char *)NULL);
        _exit(127);
    }
    close(in[0]);
    close(out[1]);
    c->to = in[1];
    c->from = out[0];
    if (c->pid > 0) return WB_OK;
    close_end(&c->to);
    close_end(&c->from);
    return wb_fail(WB_IO, "--reward-cmd: fork: %m");
}

/* Feeds `in` and collects `out`, of at most `limit` bytes, at the same time, so that neither side waits
 * for the other with full pipes. A program that stops reading is judged by its answer and its exit status. */
static wb_status child_talk(child *c, const text *in, size_t limit, text *out) {
    size_t sent = 0;
    fcntl(c->to, F_SETFL, O_NONBLOCK);
    while (c->from >= 0) {
        struct pollfd ends[2] = {{c->from, POLLIN, 0}, {c->to, POLLOUT, 0}};
        if (poll(ends, c->to >= 0 ? 2 : 1, -1) < 0) {
            if (errno == EINTR) continue;
            return wb_fail(WB_IO, "--reward-cmd: poll: %m");
        }
        if (c->to >= 0 && ends[1].revents != 0) {
            ssize_t n = write(c->to, in->data + sent, in->n - sent);
            if (n > 0) sent += (size_t)n;
            if (sent == in->n || (n < 0 && errno != EAGAIN && errno != EINTR)) close_end(&c->to);
        }
        if (ends[0].revents != 0) {
            if (out->n > limit)
                return wb_fail(WB_MISMATCH,
                               "--reward-cmd: expected a number a line, found more than %zu bytes of answer",
                               limit);
            WB_TRY(text_reserve(out, 4096));
            ssize_t n = read(c->from, out->data + out->n, out->capacity - out->n - 1);
            if (n > 0)
                out->n += (size_t)n;
            else if (n == 0)
                close_end(&c->from);
            else if (errno != EINTR)
                return wb_fail(WB_IO, "--reward-cmd: read: %m");
        }
    }
    out->data[out->n] = '\0';
    return WB_OK;
}

/* Closes its pipes and waits for its end. */
static wb_status child_wait(child *c, int *how_out) {
    close_end(&c->to);
    close_end(&c->from);
    while (waitpid(c->pid, how_out, 0) < 0)
        if (errno != EINTR) return WB_IO;
    return WB_OK;
}

static void child_kill(child *c) {
    int how;
    kill(c->pid, SIGKILL);
    child_wait(c, &how);
}

static wb_status child_finish(child *c, const char *command) {
    int how;
    if (child_wait(c, &how) != WB_OK) return wb_fail(WB_IO, "--reward-cmd '%s': wait: %m", command);
    if (WIFSIGNALED(how))
        return wb_fail(WB_IO, "--reward-cmd '%s' was killed by signal %d", command, WTERMSIG(how));
    if (WEXITSTATUS(how) != 0)
        return wb_fail(WB_IO, "--reward-cmd '%s' ended with exit status %d", command, WEXITSTATUS(how));
    return WB_OK;
}

/* ---- the answer ------------------------------------------------------------------------------ */

static wb_status parse_rewards(const char *command, char *answer, int64_t n, double *rewards_out) {
    int64_t found = 0;
    char *rest = answer;
    for (char *line; (line = strsep(&rest, "\n"));) {
        if (*line == '\0' && !rest) break;
        if (found == n)
            return wb_fail(WB_MISMATCH, "--reward-cmd '%s': expected %" PRId64 " lines, found more: '%.40s'",
                           command, n, line);
        char *end;
        double value = strtod(line, &end);
        if (end == line || end[strspn(end, " \t\r")] != '\0' || !isfinite(value))
            return wb_fail(WB_MISMATCH,
                           "--reward-cmd '%s': line %" PRId64 ": expected a finite number, found '%.40s'",
                           command, found + 1, line);
        rewards_out[found++] = value;
    }
    if (found < n)
        return wb_fail(WB_MISMATCH, "--reward-cmd '%s': expected %" PRId64 " lines, found %" PRId64, command,
                       n, found);
    return WB_OK;
}

wb_status reward_command(const char *command, const task *t, uint64_t step, int64_t n,
                         const wb_record *const *records, double *rewards_out) {
    text in = {0}, out = {0};
    child c = {-1, -1, -1};
    wb_status status = WB_OK;
    if (n == 0) return WB_OK;
    for (int64_t i = 0; i < n; i++) WB_GOTO(add_line(&in, t, step, records[i]), free_text);
    WB_GOTO(child_start(command, &c), free_text);
    status = child_talk(&c, &in, (size_t)n * ANSWER_BYTES, &out);
    if (status == WB_OK)
        status = child_finish(&c, command);
    else
        child_kill(&c);
    if (status == WB_OK) status = parse_rewards(command, out.data, n, rewards_out);
free_text:
    free(in.data);
    free(out.data);
    return status;
}
