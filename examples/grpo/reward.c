/* reward.c - asks a program of the user's for rewards: completions as JSON lines in, a number a line out,
 * over all steps of a run. Owns: what is sent, what an answer is, saying clearly what the program did wrong
 * and at which request. */
#include "grpo.h"
#include "reward_child.h"
#include "wb_memory.h"

#include <float.h>
#include <inttypes.h>
#include <jansson.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef struct text {
    char *data;
    size_t n, capacity;
} text;

static wb_status text_reserve(text *t, size_t more) {
    return WB_GROW(t->data, t->n + more, &t->capacity, "lines of the reward program");
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
    if (line && item && json_object_set_new(line, "item", json_loads(item, 0, NULL)) != 0) {
        json_decref(line);
        line = NULL;
    }
    char *dumped = line ? json_dumps(line, JSON_COMPACT) : NULL;
    json_decref(line);
    if (!dumped) return wb_fail(WB_OUT_OF_MEMORY, "the line of request %s", record->rid);
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

/* ---- the answers ----------------------------------------------------------------------------- */

/* A line of the answer may have this many bytes; a program that writes more is not answering rewards. */
enum { ANSWER_BYTES = 4096, COMMAND_BYTES = 100, END_SECONDS = 10 };

struct reward_program {
    const options *o;
    reward_child child;
    char answer[ANSWER_BYTES]; /* what has come of the next line */
    size_t n_answer;
};

/* A batch of n records on its way. */
typedef struct asked {
    const wb_record *const *records; /* [n] */
    int64_t n, answered;
    double *rewards;
} asked;

wb_status reward_open(const options *o, reward_program **program_out) {
    WB_TRY(WB_NEW(*program_out, 1, "reward program"));
    (*program_out)->o = o;
    return WB_OK;
}

void reward_close(reward_program *program) {
    if (program) child_kill(&program->child);
    free(program);
}

/* Puts the program, of which the first bytes are enough, before the message. */
static wb_status blame(const reward_program *p, wb_status status) {
    const char *command = p->o->reward_cmd;
    bool whole = strlen(command) <= COMMAND_BYTES;
    if (status == WB_OK) return WB_OK;
    return wb_fail_context(status, "--reward-cmd '%.*s'%s", COMMAND_BYTES, command, whole ? "" : "...");
}

static wb_status blame_batch(const reward_program *p, bool dumped, wb_status status) {
    if (blame(p, status) == WB_OK || p->o->no_dump || !dumped) return status;
    return wb_fail(status, "%s (the batch's records are in %s/dump)", wb_error_message(), p->o->out_dir);
}

/* A complete line of the answer: NUL-terminated at line_end. */
static wb_status take_answer(const char *line, const char *line_end, asked *a) {
    if (a->answered == a->n)
        return wb_fail(WB_MISMATCH, "expected %" PRId64 " lines, found more: '%.40s'", a->n, line);
    char *end;
    double value = strtod(line, &end);
    if (end == line || end + strspn(end, " \t\r") != line_end || !isfinite(value))
        return wb_fail(WB_MISMATCH,
                       "line %" PRId64 " of %" PRId64
                       " (request %s): expected a finite number, found '%.40s'",
                       a->answered + 1, a->n, a->records[a->answered]->rid, line);
    /* Metrics have the squares of rewards, and TensorBoard's numbers are floats. */
    if (fabs(value) > FLT_MAX)
        return wb_fail(WB_MISMATCH,
                       "line %" PRId64 " of %" PRId64
                       " (request %s): expected a number of at most %.3g either way, found '%.40s'",
                       a->answered + 1, a->n, a->records[a->answered]->rid, (double)FLT_MAX, line);
    a->rewards[a->answered++] = value;
    return WB_OK;
}

/* The lines that are complete by now. */
static wb_status take_answers(reward_program *p, asked *a) {
    char *line = p->answer;
    for (char *end; (end = memchr(line, '\n', p->n_answer - (size_t)(line - p->answer))); line = end + 1) {
        *end = '\0';
        WB_TRY(take_answer(line, end, a));
    }
    p->n_answer -= (size_t)(line - p->answer);
    memmove(p->answer, line, p->n_answer);
    if (p->n_answer == ANSWER_BYTES)
        return wb_fail(WB_MISMATCH, "expected a number a line, found a line of %d bytes", ANSWER_BYTES);
    return WB_OK;
}

/* No more answers come: the program has ended, or has only closed its output. */
static wb_status closed(reward_program *p, const asked *a) {
    int code = 0;
    bool ended = child_wait(&p->child, 1);
    wb_status status = ended ? child_judge(&p->child, &code) : wb_fail(WB_MISMATCH, "closed its output");
    if (status == WB_OK)
        status = wb_fail(WB_MISMATCH, "ended with exit status %d%s", code,
                         code == 0 ? " (it is started once and kept over all steps)" : "");
    return wb_fail(
        status, "%s; expected %" PRId64 " lines, found %" PRId64 ": none for line %" PRId64 " (request %s)",
        wb_error_message(), a->n, a->answered, a->answered + 1, a->records[a->answered]->rid);
}

static wb_status silent(const reward_program *p, const asked *a) {
    return wb_fail(WB_IO,
                   "no answer to line %" PRId64 " of %" PRId64 " (request %s) within %" PRId64
                   " s (--reward-timeout): expected a number for each line as it comes, flushed; a program "
                   "that first reads to the end of its input waits for ever",
                   a->answered + 1, a->n, a->records[a->answered]->rid, p->o->reward_timeout);
}

/* Sends the lines and takes the answers; the limit is of the time to the next answer. A rank that was told to
 * stop waits for none: it kills the program and leaves rewards out. */
static wb_status talk(reward_program *p, const text *lines, asked *a) {
    size_t sent = 0, got;
    double limit = (double)p->o->reward_timeout, last = now_seconds();
    while (a->answered < a->n) {
        child_event event;
        int64_t before = a->answered;
        WB_TRY(child_talk(&p->child, lines->data, lines->n, &sent, p->answer + p->n_answer,
                          ANSWER_BYTES - p->n_answer, limit - (now_seconds() - last), &got, &event));
        p->n_answer += got;
        WB_TRY(take_answers(p, a));
        if (a->answered == a->n) break;
        if (event == CHILD_CLOSED) return closed(p, a);
        if (a->answered > before) last = now_seconds();
        if (now_seconds() - last >= limit) return silent(p, a);
        if (interrupt_signal() != 0) {
            child_kill(&p->child);
            break;
        }
    }
    return WB_OK;
}

/* For `seconds`, or until the program closes its output, it must say nothing: a number that no line asked for
 * means that those before it were of other lines, too. */
static wb_status check_quiet(reward_program *p, double seconds) {
    size_t sent = 0, got;
    child_event event;
    double end = now_seconds() + seconds;
    do {
        WB_TRY(child_talk(&p->child, NULL, 0, &sent, p->answer + p->n_answer, ANSWER_BYTES - p->n_answer,
                          end - now_seconds(), &got, &event));
        p->n_answer += got;
    } while (p->n_answer == 0 && event != CHILD_CLOSED && now_seconds() < end);
    if (p->n_answer == 0) return WB_OK;
    p->answer[p->n_answer < ANSWER_BYTES ? p->n_answer : ANSWER_BYTES - 1] = '\0';
    return wb_fail(
        WB_MISMATCH,
        "expected one number for each line, found more: '%.*s'; the rewards before it may be of other "
        "lines",
        (int)strcspn(p->answer, "\n") < 40 ? (int)strcspn(p->answer, "\n") : 40, p->answer);
}

static wb_status ask(reward_program *p, const task *t, uint64_t step, asked *a) {
    text lines = {0};
    wb_status status = WB_OK;
    for (int64_t i = 0; status == WB_OK && i < a->n; i++) status = add_line(&lines, t, step, a->records[i]);
    if (status == WB_OK && p->child.pid == 0) status = child_start(p->o->reward_cmd, &p->child);
    if (status == WB_OK) status = check_quiet(p, 0);
    if (status == WB_OK) status = talk(p, &lines, a);
    free(lines.data);
    return status;
}

wb_status reward_batch(reward_program *program, const task *t, uint64_t step, int64_t n,
                       const wb_record *const *records, double *rewards_out) {
    asked a = {.records = records, .n = n, .rewards = rewards_out};
    if (n == 0) return WB_OK;
    return blame_batch(program, !task_is_evaluation(t), ask(program, t, step, &a));
}

wb_status reward_check(reward_program *program) {
    if (!program || program->child.pid == 0) return WB_OK;
    return blame_batch(program, true, check_quiet(program, 0));
}

static wb_status end(reward_program *p) {
    int code = 0;
    child_end_input(&p->child);
    WB_TRY(check_quiet(p, END_SECONDS));
    if (!child_wait(&p->child, END_SECONDS))
        return wb_fail(WB_IO, "did not end within %d s of the end of its input", END_SECONDS);
    WB_TRY(child_judge(&p->child, &code));
    return code == 0 ? WB_OK : wb_fail(WB_IO, "ended with exit status %d", code);
}

wb_status reward_end(reward_program *program) {
    if (!program || program->child.pid == 0) return WB_OK;
    return blame(program, end(program));
}
