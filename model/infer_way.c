/* infer_way.c - before a step's first exchange the ranks agree that they go, and by which way the rows of its
 * experts travel: into each other's mailboxes, where they have such and no step is too long, else by the
 * exchange. Refuses: what a rank checks alone (infer_batch.c). */
#include "infer_state.h"
#include "layers/block.h"

/* What a rank says of its step. */
struct wb_way_word {
    int64_t status;
    int64_t T, max_T; /* its tokens; what its mailbox and buffers hold, if each rank had as many */
};

wb_status wb_infer_open_way(wb_infer *infer) {
    return WB_OWN(&infer->memory.host, infer->words, (size_t)infer->model->n_ranks, "words of the ranks");
}

/* Rows that a rank sends another for a token, at most. */
static int64_t rows_of_token(const wb_model *model) {
    const int64_t K = model->config.router.top_k, here = wb_model_local_slots(model);
    return K < here ? K : here;
}

static wb_way_word word_of(const wb_infer *infer, int64_t T, wb_status status) {
    const wb_model *model = infer->model;
    const int64_t each = rows_of_token(model) * model->n_ranks;
    const int64_t held = each > 0 ? infer->sizes.expert_rows / each : INT64_MAX;
    const int64_t most = model->mailboxes.max_tokens;
    return (wb_way_word){.status = status, .T = T, .max_T = held < most ? held : most};
}

/* Whether every step fits all mailboxes; *T_out: the tokens of the longest one. */
static bool all_fit(const wb_way_word *words, int32_t R, int64_t *T_out) {
    int64_t T = 0, max_T = INT64_MAX;
    for (int32_t r = 0; r < R; r++) {
        T = words[r].T > T ? words[r].T : T;
        max_T = words[r].max_T < max_T ? words[r].max_T : max_T;
    }
    *T_out = T;
    return T <= max_T;
}

/* For steps of T tokens at most, of which graphs go by sizes: no less than 1, for a step without rows is
 * an exchange too. */
static void take_way(wb_infer *infer, int64_t T, wb_pass *pass) {
    wb_model *model = infer->model;
    const int64_t rows =
        wb_graph_rows(T, model->mailboxes.max_tokens) * rows_of_token(model) * model->n_ranks;
    const int64_t held = infer->sizes.expert_rows;
    pass->mailbox_rows = rows < 1 ? 1 : rows < held ? rows : held;
    infer->graph_size.mailbox_rows = pass->mailbox_rows;
    model->mailboxes.boxes.timeout = wb_comm_timeout(model->comm);
}

wb_status wb_infer_agree(wb_infer *infer, int64_t T, wb_status taken, wb_pass *pass) {
    const wb_model *model = infer->model;
    int64_t longest = 0;
    if (!wb_has_mailboxes(&model->mailboxes)) return wb_comm_agree(model->comm, taken);
    const wb_way_word own = word_of(infer, T, taken);
    const wb_status gathered = wb_comm_all_gather(model->comm, &own, sizeof own, infer->words);
    bool failed = gathered != WB_OK;
    for (int32_t r = 0; r < model->n_ranks && !failed; r++) failed = infer->words[r].status != WB_OK;
    /* All ranks see it, and a second round tells them which one it was. */
    if (failed) return wb_comm_agree(model->comm, taken == WB_OK ? gathered : taken);
    if (all_fit(infer->words, model->n_ranks, &longest)) take_way(infer, longest, pass);
    return WB_OK;
}
