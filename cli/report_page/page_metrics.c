/* page_metrics.c - see page_metrics.h. */
#include "report_page/page_metrics.h"
#include "report_page/page_text.h"
#include "wb_check.h"
#include "wb_file.h"
#include "wb_json.h"

#include <inttypes.h>
#include <math.h>
#include <stdlib.h>
#include <string.h>

#define MAX_BYTES ((size_t)1 << 30)

/* Where a line has it: the key of an object, NULL for the line itself, and the key in it. */
static const struct {
    const char *object, *key, *name;
} sources[METRICS_N_SERIES] = {
    [METRICS_REWARD] = {NULL, "reward", "mean"},
    [METRICS_REWARD_STD] = {NULL, "reward_std", "standard deviation"},
    [METRICS_KL_K1] = {"fidelity", "kl_k1", "k1"},
    [METRICS_KL_K3] = {"fidelity", "kl_k3", "k3"},
    [METRICS_KL_K3_OFF] = {"fidelity_replay_off", "kl_k3", "k3, replay off"},
    [METRICS_KL_REFERENCE] = {NULL, "kl_reference", "to the reference"},
    [METRICS_DIFFER] = {"fidelity", "routed_differently", "first forward"},
    [METRICS_DIFFER_OFF] = {"fidelity_replay_off", "routed_differently", "replay off"},
};

static wb_status add_values(metrics *m, const json_t *line) {
    int32_t step = 0;
    WB_TRY(wb_json_int(line, "step", WB_JSON_REQUIRED, &step));
    WB_TRY(WB_GROW(m->labels, m->n + (size_t)1, &m->capacity[METRICS_N_SERIES], "metrics"));
    snprintf(m->labels[m->n], PLOT_LABEL_BYTES, "%" PRId32, step);
    for (int s = 0; s < METRICS_N_SERIES; s++) {
        const json_t *object = sources[s].object ? wb_json_value(line, sources[s].object) : line;
        WB_TRY(WB_GROW(m->values[s], m->n + (size_t)1, &m->capacity[s], "metrics"));
        m->values[s][m->n] = NAN;
        if (object && !json_is_object(object))
            return wb_json_wrong_type(sources[s].object, object, "an object");
        if (object) WB_TRY(wb_json_number(object, sources[s].key, (double)NAN, &m->values[s][m->n]));
    }
    m->n++;
    return WB_OK;
}

static wb_status read_line(metrics *m, const char *text, size_t bytes, const char *where) {
    json_t *line = NULL;
    WB_TRY(wb_json_parse(text, bytes, where, &line));
    wb_status status = add_values(m, line);
    if (status != WB_OK) status = wb_fail_context(status, "%s", where);
    json_decref(line);
    return status;
}

wb_status metrics_read(const char *path, metrics *m) {
    char *text = NULL;
    size_t bytes = 0;
    *m = (metrics){0};
    WB_TRY(wb_file_read(path, MAX_BYTES, &text, &bytes));
    wb_status status = WB_OK;
    uint64_t number = 1;
    for (const char *at = text, *end; status == WB_OK && (end = strchr(at, '\n')); at = end + 1, number++) {
        char where[1024];
        snprintf(where, sizeof where, "%.900s: line %" PRIu64, path, number);
        if (end > at) status = read_line(m, at, (size_t)(end - at), where);
    }
    free(text);
    return status;
}

void metrics_close(metrics *m) {
    for (int s = 0; s < METRICS_N_SERIES; s++) free(m->values[s]);
    free(m->labels);
}

static bool has_values(const metrics *m, int s) {
    for (uint32_t i = 0; i < m->n; i++)
        if (isfinite(m->values[s][i])) return true;
    return false;
}

/* Of the series from `first` on those that have a value. */
static void draw(FILE *out, const metrics *m, const char *id, const char *title, int first, int end) {
    plot p = {.id = id,
              .title = title,
              .x_name = "step",
              .n_points = m->n,
              .labels = (const plot_label *)m->labels};
    for (int s = first; s < end; s++)
        if (has_values(m, s)) p.series[p.n_series++] = (plot_series){sources[s].name, m->values[s]};
    if (p.n_series > 0) page_plot(out, &p);
}

void page_metrics(FILE *out, const metrics *m, const char *path) {
    page_section_begin(out, "training", "Training");
    fputs("<p class=\"note\">From ", out);
    page_text(out, path);
    fputs("</p>\n", out);
    draw(out, m, "reward", "Reward", METRICS_REWARD, METRICS_KL_K1);
    draw(out, m, "kl", "KL in nats, rollout to trainer and to the reference", METRICS_KL_K1, METRICS_DIFFER);
    draw(out, m, "differ", "Share of rows that the trainer routed differently", METRICS_DIFFER,
         METRICS_N_SERIES);
    page_section_end(out);
}
