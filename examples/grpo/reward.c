/* reward.c - asks a program of the user's for rewards: completions as JSON lines in, a number a line out, over
 * all steps of a run. Owns: what is sent, what an answer is, and saying clearly what the program did wrong and
 * at which request. */
#include "grpo.h"
#include "reward_child.h"
#include "wb_memory.h"

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

/* ---- the answers ----------------------------------------------------------------------------- */

/* A line of the answer may have this many bytes; a program that writes more is not answering rewards. */
enum { ANSWER_BYTES = 4096 };

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

wb_status reward_end(reward_program *program) {
    return program ? child_end(&program->child, 10) : WB_OK;
}

void reward_close(reward_program *program) {
    if (program) child_kill(&program->child);
    free(program);
}

/* A complete line of the answer, NUL-terminated. */
static wb_status take_answer(const reward_program *p, const char *line, asked *a) {
    const char *command = p->o->reward_cmd;
    if (a->answered == a->n)
        return wb_fail(WB_MISMATCH, "--reward-cmd '%s': expected %" PRId64 " lines, found more: '%.40s'",
                       command, a->n, line);
    char *end;
    double value = strtod(line, &end);
    if (end == line || end[strspn(end, " \t\r")] != '\0' || !isfinite(value))
        return wb_fail(WB_MISMATCH,
                       "--reward-cmd '%s': line %" PRId64
                       " (request %s): expected a finite number, found '%.40s'",
                       command, a->answered + 1, a->records[a->answered]->rid, line);
    a->rewards[a->answered++] = value;
    return WB_OK;
}

/* The lines that are complete by now. */
static wb_status take_answers(reward_program *p, asked *a) {
    char *line = p->answer;
    for (char *end; (end = memchr(line, '\n', p->n_answer - (size_t)(line - p->answer))); line = end + 1) {
        *end = '\0';
        WB_TRY(take_answer(p, line, a));
    }
    p->n_answer -= (size_t)(line - p->answer);
    memmove(p->answer, line, p->n_answer);
    if (p->n_answer == ANSWER_BYTES)
        return wb_fail(WB_MISMATCH, "--reward-cmd '%s': expected a number a line, found a line of %d bytes",
                       p->o->reward_cmd, ANSWER_BYTES);
    return WB_OK;
}

/* Why no more answers come: how the program ended, or that it only closed its output. */
static wb_status closed(reward_program *p, const asked *a) {
    wb_status status = child_end(&p->child, 1);
    if (status == WB_OK) status = wb_fail(WB_MISMATCH, "--reward-cmd '%s' ended", p->o->reward_cmd);
    return wb_fail(status, "%s; expected %" PRId64 " lines, found %" PRId64, wb_error_message(), a->n,
                   a->answered);
}

static wb_status silent(const reward_program *p, const asked *a) {
    return wb_fail(
        WB_IO,
        "--reward-cmd '%s': no answer to line %" PRId64 " of %" PRId64 " (request %s) within %" PRId64
        " s (--reward-timeout): expected a number for each line as it comes, flushed; a program that "
        "first reads to the end of its input waits for ever",
        p->o->reward_cmd, a->answered + 1, a->n, a->records[a->answered]->rid, p->o->reward_timeout);
}

/* Sends the lines and takes the answers; the limit is of the time to the next answer. */
static wb_status talk(reward_program *p, const text *lines, asked *a) {
    size_t sent = 0, got;
    double limit = (double)p->o->reward_timeout, last = now_seconds();
    /* Once all are answered, a last look: what has come too is one too many. */
    for (bool done = false; !done;) {
        child_event event;
        int64_t before = a->answered;
        done = a->answered == a->n;
        double left = done ? 0 : limit - (now_seconds() - last);
        WB_TRY(child_talk(&p->child, lines->data, lines->n, &sent, p->answer + p->n_answer,
                          ANSWER_BYTES - p->n_answer, left, &got, &event));
        p->n_answer += got;
        WB_TRY(take_answers(p, a));
        if (event == CHILD_CLOSED && !done) return closed(p, a);
        if (a->answered > before) last = now_seconds();
        if (!done && a->answered < a->n && now_seconds() - last >= limit) return silent(p, a);
    }
    return WB_OK;
}

/* A program that answers before it is asked has answered something else. */
static wb_status check_quiet(reward_program *p) {
    size_t sent = 0, got;
    child_event event;
    WB_TRY(child_talk(&p->child, NULL, 0, &sent, p->answer, ANSWER_BYTES, 0, &got, &event));
    p->n_answer += got;
    if (p->n_answer == 0) return WB_OK;
    p->answer[p->n_answer < ANSWER_BYTES ? p->n_answer : ANSWER_BYTES - 1] = '\0';
    size_t line = strcspn(p->answer, "\n");
    return wb_fail(WB_MISMATCH,
                   "--reward-cmd '%s': expected no line before the next batch, found more: '%.*s'",
                   p->o->reward_cmd, (int)(line < 40 ? line : 40), p->answer);
}

static wb_status ask(reward_program *p, const task *t, uint64_t step, asked *a) {
    text lines = {0};
    wb_status status = WB_OK;
    for (int64_t i = 0; status == WB_OK && i < a->n; i++) status = add_line(&lines, t, step, a->records[i]);
    if (status == WB_OK && p->child.pid == 0) status = child_start(p->o->reward_cmd, &p->child);
    if (status == WB_OK) status = check_quiet(p);
    if (status == WB_OK) status = talk(p, &lines, a);
    free(lines.data);
    return status;
}

wb_status reward_batch(reward_program *program, const task *t, uint64_t step, int64_t n,
                       const wb_record *const *records, double *rewards_out) {
    asked a = {.records = records, .n = n, .rewards = rewards_out};
    if (n == 0) return WB_OK;
    wb_status status = ask(program, t, step, &a);
    if (status == WB_OK || program->o->no_dump) return status;
    return wb_fail(status, "%s (the batch's records are in %s/dump)", wb_error_message(),
                   program->o->out_dir);
}
