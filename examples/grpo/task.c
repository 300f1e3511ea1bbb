/* task.c - where prompts come from and how the built-in task is judged. Owns: the addition of numbers
 * below 20 over a 16-character vocabulary, and token-id prompts from a JSON-lines file.
 * Everything is a function of (seed, step, group): ranks agree, and a resumed run sees the same prompts. */
#include "grpo.h"
#include "wb_hash.h"
#include "wb_memory.h"
#include "wb_random.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* A line of the jsonl file. */
typedef struct item {
    size_t number;    /* of the line, from 1 */
    char *line;       /* without its end */
    uint32_t *prompt; /* [prompt_len] */
    uint32_t prompt_len;
} item;

struct task {
    const char *option; /* that it is given by, for messages */
    bool arithmetic;
    uint64_t seed;
    item *items; /* [n_items] jsonl */
    size_t n_items, capacity;
    int64_t n_long; /* prompts that did not fit */
    bool in_order;  /* an evaluation set */
    stop_tokens stops;
};

static void free_item(item *i) {
    free(i->line);
    free(i->prompt);
}

/* token ids: '0'..'9' are 0..9, then these; the rest of the vocabulary is unused */
enum { PLUS = 10, EQUALS = 11 };
enum { OPERANDS = 20 }; /* a and b are below this */
enum { EVALUATION_SUMS = 256 };

/* ---- arithmetic ------------------------------------------------------------------------------ */

/* Digits of a number, least significant first: the order in which a sum can be written without looking
 * ahead. */
static uint32_t put_number(uint32_t value, uint32_t *tokens) {
    uint32_t n = 0;
    do tokens[n++] = value % 10;
    while ((value /= 10) != 0);
    return n;
}

uint32_t task_arithmetic_example(uint64_t seed, uint64_t index, uint32_t *tokens, uint32_t *prompt_len_out) {
    uint64_t random = wb_mix64(wb_mix64(seed) ^ index);
    uint32_t a = (uint32_t)(random % OPERANDS), b = (uint32_t)((random >> 32) % OPERANDS);
    uint32_t n = put_number(a, tokens);
    tokens[n++] = PLUS;
    n += put_number(b, tokens + n);
    tokens[n++] = EQUALS;
    *prompt_len_out = n;
    n += put_number(a + b, tokens + n);
    tokens[n++] = TASK_STOP;
    return n;
}

/* Reads a number written by put_number that ends before `end`; -1 when there is none. */
static int64_t get_number(const uint32_t *tokens, uint32_t *at, uint32_t n, uint32_t end) {
    int64_t value = 0, scale = 1;
    uint32_t i = *at;
    for (; i < n && tokens[i] < 10 && scale < 1000000; i++, scale *= 10) value += (int64_t)tokens[i] * scale;
    if (i == *at || i == n || tokens[i] != end) return -1;
    *at = i + 1;
    return value;
}

wb_status task_reward(const task *t, const wb_record *record, double *reward_out) {
    if (!t->arithmetic)
        return wb_fail(WB_UNSUPPORTED, "the task has no reward of its own: --reward-cmd is needed");
    uint32_t at = 0;
    int64_t a = get_number(record->tokens, &at, record->prompt_len, PLUS);
    int64_t b = get_number(record->tokens, &at, record->prompt_len, EQUALS);
    if (a < 0 || b < 0)
        return wb_fail(WB_INVALID_ARGUMENT, "request %s: its prompt is not a sum", record->rid);
    uint32_t answer[TASK_MAX_TOKENS];
    uint32_t n = put_number((uint32_t)(a + b), answer), right = 0;
    answer[n++] = TASK_STOP;
    const uint32_t *response = record->tokens + record->prompt_len;
    uint32_t n_response = record->n_tokens - record->prompt_len;
    while (right < n && right < n_response && response[right] == answer[right]) right++;
    *reward_out = right == n && n_response == n ? 1.0 : 0.0;
    return WB_OK;
}

/* ---- jsonl ----------------------------------------------------------------------------------- */

static wb_status parse_prompt(const char *path, size_t line_number, const json_t *list, int32_t vocab_size,
                              item *to) {
    size_t n = json_array_size(list);
    if (!json_is_array(list) || n == 0 || n > UINT32_MAX)
        return wb_fail(WB_CORRUPT, "%s: line %zu: expected {\"prompt\": [token ids, at least one], ...}",
                       path, line_number);
    WB_TRY(WB_NEW(to->prompt, n, "prompt"));
    to->prompt_len = (uint32_t)n;
    for (size_t i = 0; i < n; i++) {
        json_t *id = json_array_get(list, i);
        if (!json_is_integer(id) || json_integer_value(id) < 0 || json_integer_value(id) >= vocab_size)
            return wb_fail(WB_CORRUPT,
                           "%s: line %zu: prompt[%zu] is not a token id below the vocabulary of %" PRId32,
                           path, line_number, i, vocab_size);
        to->prompt[i] = (uint32_t)json_integer_value(id);
    }
    return WB_OK;
}

static wb_status parse_item(const char *path, size_t line_number, int32_t vocab_size, item *to) {
    json_error_t error;
    json_t *object = json_loads(to->line, 0, &error);
    if (!object)
        return wb_fail(WB_CORRUPT, "%s: line %zu, column %d: %s", path, line_number, error.column,
                       error.text);
    wb_status status = parse_prompt(path, line_number, json_object_get(object, "prompt"), vocab_size, to);
    json_decref(object);
    return status;
}

static wb_status read_jsonl(task *t, const char *path, int32_t vocab_size) {
    FILE *file;
    WB_TRY(text_open(path, &file));
    wb_status status;
    char *line = NULL;
    size_t line_bytes = 0;
    int64_t got;
    for (size_t number = 1;; number++) {
        WB_GOTO(text_line(file, path, number, &line, &line_bytes, &got), close_file);
        if (got < 0) break;
        while (got > 0 && (line[got - 1] == '\n' || line[got - 1] == '\r')) line[--got] = '\0';
        if (got == 0) continue;
        WB_GOTO(WB_GROW(t->items, t->n_items + 1, &t->capacity, path), close_file);
        item *to = &t->items[t->n_items++];
        *to = (item){.number = number, .line = line};
        line = NULL; /* it is the task's now */
        line_bytes = 0;
        WB_GOTO(parse_item(path, number, vocab_size, to), close_file);
    }
    if (t->n_items == 0) status = wb_fail(WB_CORRUPT, "%s: has no prompts", path);
close_file:
    free(line);
    fclose(file);
    return status;
}

/* ---- both ------------------------------------------------------------------------------------ */

wb_status task_open(const char *option, const char *spec, uint64_t seed, int32_t vocab_size,
                    task **task_out) {
    task *t;
    WB_TRY(WB_NEW(t, 1, "task"));
    t->option = option;
    t->seed = seed;
    t->arithmetic = strcmp(spec, "arithmetic") == 0;
    wb_status status = WB_OK;
    if (t->arithmetic && vocab_size < TASK_VOCABULARY)
        status = wb_fail(WB_INVALID_ARGUMENT,
                         "the arithmetic task needs a vocabulary of %d tokens, the model has %d",
                         TASK_VOCABULARY, vocab_size);
    else if (!t->arithmetic)
        status = read_jsonl(t, spec + strlen("jsonl:"), vocab_size);
    if (status != WB_OK) {
        task_close(t);
        return status;
    }
    *task_out = t;
    return WB_OK;
}

void task_close(task *t) {
    if (!t) return;
    for (size_t i = 0; i < t->n_items; i++) free_item(&t->items[i]);
    free(t->items);
    free(t);
}

wb_status task_check_spec(const char *option, const char *spec) {
    if (strcmp(spec, "arithmetic") == 0 || strncmp(spec, "jsonl:", 6) == 0) return WB_OK;
    return wb_fail(WB_INVALID_ARGUMENT, "%s %s: expected arithmetic or jsonl:FILE", option, spec);
}

wb_status task_find_stops(task *t, const char *option, const char *dir, int32_t vocab_size,
                          const char **where_out) {
    const uint32_t own = TASK_STOP;
    return stop_tokens_find(option, t->arithmetic ? &own : NULL, dir, vocab_size, &t->stops, where_out);
}

const uint32_t *task_stop_tokens(const task *t, uint32_t *n_out) {
    *n_out = t->stops.n;
    return t->stops.ids;
}

/* ---- groups ---------------------------------------------------------------------------------- */

void task_take_in_order(task *t) {
    t->in_order = true;
}

bool task_is_evaluation(const task *t) {
    return t->in_order;
}

int64_t task_n_prompts(const task *t) {
    return t->arithmetic ? EVALUATION_SUMS : (int64_t)t->n_items;
}

/* Lines are drawn at random, with replacement. */
static size_t item_index(const task *t, uint64_t step, uint64_t group) {
    if (t->in_order) return (size_t)(group % t->n_items);
    return (size_t)(wb_mix64(wb_mix64(wb_mix64(t->seed) ^ step) ^ group) % t->n_items);
}

const char *task_item(const task *t, uint64_t step, uint64_t group) {
    return t->arithmetic ? NULL : t->items[item_index(t, step, group)].line;
}

uint64_t task_digest(const task *t) {
    wb_hash hash;
    wb_hash_start(&hash);
    for (size_t i = 0; i < t->n_items; i++) {
        const item *at = &t->items[i];
        wb_hash_add(&hash, at->line, strlen(at->line) + 1);
        wb_hash_add(&hash, at->prompt, at->prompt_len * sizeof *at->prompt);
    }
    return wb_hash_value(&hash);
}

/* ---- prompts that fit ------------------------------------------------------------------------ */

/* The beginning goes: what is asked stands at the end. */
static void cut_prompt(item *i, uint32_t max) {
    memmove(i->prompt, i->prompt + i->prompt_len - max, max * sizeof *i->prompt);
    i->prompt_len = max;
}

wb_status task_fit_prompts(task *t, long_prompts policy, int64_t max) {
    size_t kept = 0, n = t->n_items;
    if (t->arithmetic && max < TASK_MAX_PROMPT)
        return wb_fail(WB_CAPACITY,
                       "%s arithmetic: prompts of up to %d tokens: with --max-tokens, the KV cache and "
                       "--micro-batch-tokens at most %" PRId64 " fit",
                       t->option, TASK_MAX_PROMPT, max);
    for (size_t i = 0; i < n; i++) {
        item *at = &t->items[i];
        bool is_long = at->prompt_len > max;
        /* Nothing has been taken out of the list under this policy. */
        if (is_long && policy == LONG_PROMPTS_ERROR)
            return wb_fail(
                WB_CAPACITY,
                "%s: line %zu: a prompt of %" PRIu32
                " tokens: with --max-tokens, the KV cache and --micro-batch-tokens at most %" PRId64
                " fit; --long-prompts skip or cut go on without",
                t->option, at->number, at->prompt_len, max);
        t->n_long += is_long;
        if (is_long && policy == LONG_PROMPTS_SKIP) {
            free_item(at);
            continue;
        }
        if (is_long) cut_prompt(at, (uint32_t)max);
        t->items[kept++] = *at;
    }
    t->n_items = kept;
    if (!t->arithmetic && kept == 0)
        return wb_fail(WB_CAPACITY, "%s: none of its %zu prompts has at most %" PRId64 " tokens", t->option,
                       n, max);
    return WB_OK;
}

int64_t task_n_long(const task *t) {
    return t->n_long;
}

wb_status task_prompt(const task *t, uint64_t step, uint64_t group, uint32_t **tokens_out, uint32_t *n_out) {
    uint32_t example[TASK_MAX_TOKENS], n;
    const uint32_t *prompt = example;
    if (t->arithmetic) {
        task_arithmetic_example(wb_mix64(t->seed) ^ (t->in_order ? UINT64_MAX : step), group, example, &n);
    } else {
        const item *chosen = &t->items[item_index(t, step, group)];
        prompt = chosen->prompt;
        n = chosen->prompt_len;
    }
    uint32_t *copy;
    WB_TRY(WB_NEW(copy, n, "prompt"));
    memcpy(copy, prompt, n * sizeof *prompt);
    *tokens_out = copy;
    *n_out = n;
    return WB_OK;
}
