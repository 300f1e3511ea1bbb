/* eplb_oracle.c - the deepseek solver against a directory of reference placements written by DeepSeek's
 * eplb.py.
 *
 * Owns: the exact comparison of maps and replica counts, of what is refused, the times side by side, and
 * the verdict as exit code. Refuses: tolerances.
 *
 * DIR holds eplb.json and eplb.safetensors (make_eplb_oracle.py says what is in them). */
#define ORACLE "eplb_oracle"
#include "tools/oracle_exit.h"
#include "wb_eplb.h"
#include "wb_model.h"

#include <inttypes.h>
#include <jansson.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static const char usage[] = "usage: eplb_oracle DIR\n"
                            "Solves every case of DIR (eplb.json, eplb.safetensors) by the deepseek solver "
                            "on one thread and compares "
                            "phy2log,\n"
                            "log2phy and logcnt exactly with what eplb.py wrote; what eplb.py refused must "
                            "be refused. Times are of the "
                            "fastest run.\n"
                            "Exit code: 0 all equal, 1 not, 2 usage or unreadable input.\n";

/* ---- reference data -------------------------------------------------------------------------- */

typedef struct oracle_case {
    char name[128]; /* "<case>.<kind>", the beginning of its tensors' names */
    uint32_t L, E, S, G, N, R;
    bool refused;   /* by eplb.py */
    double seconds; /* that eplb.py took; 0 where not said */
} oracle_case;

static uint32_t number_of(const json_t *entry, const char *name, const char *key) {
    const json_t *value = json_object_get(entry, key);
    if (!json_is_integer(value) || json_integer_value(value) < 0 || json_integer_value(value) > UINT32_MAX)
        die("eplb.json: case %s: \"%s\": expected a whole number 0..2^32-1", name, key);
    return (uint32_t)json_integer_value(value);
}

static void name_case(const json_t *entry, size_t i, char *name, size_t size) {
    const json_t *number = json_object_get(entry, "case"), *kind = json_object_get(entry, "kind");
    if (!json_is_string(kind) || !(json_is_integer(number) || json_is_string(number)))
        die("eplb.json: entry %zu: expected \"case\", a number or a string, and \"kind\", a string", i);
    int length;
    if (json_is_integer(number))
        length = snprintf(name, size, "%" JSON_INTEGER_FORMAT ".%s", json_integer_value(number),
                          json_string_value(kind));
    else
        length = snprintf(name, size, "%s.%s", json_string_value(number), json_string_value(kind));
    if (length < 0 || (size_t)length >= size) die("eplb.json: entry %zu: the name is too long", i);
}

static oracle_case read_case(const json_t *entry, size_t i) {
    oracle_case c = {0};
    if (!json_is_object(entry)) die("eplb.json: entry %zu: expected an object", i);
    name_case(entry, i, c.name, sizeof c.name);
    c.L = number_of(entry, c.name, "L");
    c.E = number_of(entry, c.name, "E");
    c.S = number_of(entry, c.name, "R");
    c.G = number_of(entry, c.name, "G");
    c.N = number_of(entry, c.name, "N");
    c.R = number_of(entry, c.name, "P");
    if ((uint64_t)c.L * c.E > UINT32_MAX || (uint64_t)c.L * c.S > UINT32_MAX)
        die("eplb.json: case %s: %u layers of %u experts in %u slots are too many", c.name, c.L, c.E, c.S);
    const json_t *error = json_object_get(entry, "error");
    c.refused = error && !json_is_null(error);
    c.seconds = json_number_value(json_object_get(entry, "seconds"));
    return c;
}

static bool find(const wb_safetensors *file, const oracle_case *c, const char *what, char name[static 160],
                 wb_tensor_view *view_out) {
    snprintf(name, 160, "%s.%s", c->name, what);
    return wb_safetensors_find(file, name, view_out) == WB_OK;
}

/* n_dims sizes follow; the last one of -1 is any. Returns the number of elements. */
static size_t check_dims(const wb_tensor_view *view, const char *name, int32_t n_dims, const int64_t *dims) {
    size_t n = 1;
    if (view->n_dims != n_dims) die("%s: expected %d dimensions, found %d", name, n_dims, view->n_dims);
    for (int32_t d = 0; d < n_dims; d++) {
        if (dims[d] != view->shape[d] && dims[d] != -1)
            die("%s: dimension %d: expected %" PRId64 ", found %" PRId64, name, d, dims[d], view->shape[d]);
        n *= (size_t)view->shape[d];
    }
    return n;
}

/* i32 or i64, any alignment. */
static int64_t integer_at(const wb_tensor_view *view, size_t i) {
    int64_t wide;
    int32_t narrow;
    if (view->dtype == WB_I64) {
        memcpy(&wide, (const char *)view->data + i * sizeof wide, sizeof wide);
        return wide;
    }
    memcpy(&narrow, (const char *)view->data + i * sizeof narrow, sizeof narrow);
    return narrow;
}

/* [L, E] as eplb.py sees it, in float32: an i64 is rounded once. A refused case may come without loads. */
static double *read_loads(const wb_safetensors *file, const oracle_case *c) {
    double *loads = allocate((size_t)c->L * c->E, sizeof(double));
    char name[160];
    wb_tensor_view view;
    if (!find(file, c, "weight", name, &view)) {
        if (!c->refused) die("%s", wb_error_message());
        return loads;
    }
    const size_t n = check_dims(&view, name, 2, (const int64_t[]){c->L, c->E});
    if (view.dtype != WB_F32 && view.dtype != WB_I32 && view.dtype != WB_I64)
        die("%s: expected f32, i32 or i64, found %s", name, wb_dtype_name(view.dtype));
    for (size_t i = 0; i < n; i++) {
        float value;
        if (view.dtype == WB_F32)
            memcpy(&value, (const char *)view.data + i * sizeof value, sizeof value);
        else
            value = (float)integer_at(&view, i);
        loads[i] = (double)value;
    }
    return loads;
}

/* ---- comparison ------------------------------------------------------------------------------ */

typedef struct outcome {
    bool holds;
    double seconds; /* of the fastest run; 0 where refused */
    char text[256]; /* what differs, or why it was refused */
} outcome;

/* dims: [L, E or S, X], X 0 for two dimensions. Says where the first difference is; `place` is what a row
 * of a layer is called. */
static bool compare(const wb_safetensors *file, const oracle_case *c, const char *what, const char *place,
                    const int64_t dims[3], const int32_t *found, outcome *o) {
    char name[160];
    wb_tensor_view view;
    if (!find(file, c, what, name, &view)) die("%s", wb_error_message());
    if (view.dtype != WB_I32 && view.dtype != WB_I64)
        die("%s: expected i32 or i64, found %s", name, wb_dtype_name(view.dtype));
    const int32_t n_dims = dims[2] > 0 ? 3 : 2;
    check_dims(&view, name, n_dims, (const int64_t[]){dims[0], dims[1], -1});
    const size_t X = n_dims == 3 ? (size_t)dims[2] : 1, n = (size_t)(dims[0] * dims[1]) * X;
    if (n_dims == 3 && view.shape[2] != dims[2]) {
        snprintf(o->text, sizeof o->text, "%s: expected up to %" PRId64 " replicas, found %" PRId64, what,
                 view.shape[2], dims[2]);
        return false;
    }
    for (size_t i = 0; i < n; i++) {
        const int64_t expected = integer_at(&view, i);
        if (expected == found[i]) continue;
        const size_t row = i / X, rows = (size_t)dims[1];
        char replica[40] = "";
        if (n_dims == 3) snprintf(replica, sizeof replica, ", replica %zu", i % X);
        snprintf(o->text, sizeof o->text, "%s: layer %zu, %s %zu%s: expected %" PRId64 ", found %d", what,
                 row / rows, place, row % rows, replica, expected, found[i]);
        return false;
    }
    return true;
}

static void compare_maps(const wb_safetensors *file, const oracle_case *c, const wb_placement *placement,
                         outcome *o) {
    const size_t X = wb_placement_max_replicas(placement), experts = (size_t)c->L * c->E;
    int32_t *phy2log = allocate((size_t)c->L * c->S, sizeof(int32_t));
    int32_t *log2phy = allocate(experts * X, sizeof(int32_t)), *logcnt = allocate(experts, sizeof(int32_t));
    for (uint32_t l = 0; l < c->L; l++)
        memcpy(phy2log + (size_t)l * c->S, wb_placement_layer(placement, l).expert_of_slot,
               c->S * sizeof(int32_t));
    wb_placement_export(placement, log2phy, logcnt);
    const int64_t L = c->L, E = c->E, S = c->S;
    o->holds = compare(file, c, "phy2log", "slot", (const int64_t[]){L, S, 0}, phy2log, o) &&
               compare(file, c, "logcnt", "expert", (const int64_t[]){L, E, 0}, logcnt, o) &&
               compare(file, c, "log2phy", "expert", (const int64_t[]){L, E, (int64_t)X}, log2phy, o);
    free(phy2log);
    free(log2phy);
    free(logcnt);
}

/* ---- the run --------------------------------------------------------------------------------- */

static double now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Global mode has no nodes, and eplb.py takes any number of them there; a topology has no more than ranks. */
static void set_nodes(const oracle_case *c, wb_topology *topology, wb_eplb_options *options) {
    const bool surplus = c->N > c->R && c->G % c->N != 0;
    topology->n_nodes = surplus ? 1 : c->N;
    options->n_groups = surplus ? 1 : c->G;
}

/* The fastest of runs that take 50 ms together, 20 at most. */
static wb_status solve(const oracle_case *c, const double *loads, double *seconds_out,
                       wb_placement **placement_out) {
    wb_topology topology = {.n_ranks = c->R, .n_slots = c->S};
    wb_eplb_options options = wb_eplb_options_default();
    options.algorithm = WB_EPLB_DEEPSEEK;
    options.threads = 1;
    set_nodes(c, &topology, &options);
    double best = 0, all = 0;
    wb_placement *placement = NULL;
    for (int run = 0; run < 20 && all < 0.05; run++) {
        wb_placement_close(placement);
        placement = NULL;
        const double begin = now();
        const wb_status status = wb_eplb_solve(&topology, c->L, c->E, 1, loads, &options, &placement);
        const double took = now() - begin;
        if (status != WB_OK) return status;
        best = run == 0 || took < best ? took : best;
        all += took;
    }
    *seconds_out = best;
    *placement_out = placement;
    return WB_OK;
}

static outcome run_case(const wb_safetensors *file, const oracle_case *c) {
    outcome o = {0};
    double *loads = read_loads(file, c);
    wb_placement *placement = NULL;
    const wb_status status = solve(c, loads, &o.seconds, &placement);
    if (status != WB_OK) {
        o.holds = c->refused && status == WB_INVALID_ARGUMENT;
        snprintf(o.text, sizeof o.text, "%.250s", wb_error_message());
    } else if (c->refused) {
        snprintf(o.text, sizeof o.text, "eplb.py refused it, solved here");
    } else {
        compare_maps(file, c, placement, &o);
    }
    wb_placement_close(placement);
    free(loads);
    return o;
}

typedef struct totals {
    size_t equal, refused, failed;
    double ours, theirs; /* seconds of the equal ones whose time is known */
} totals;

static void report_case(const oracle_case *c, const outcome *o, totals *t) {
    printf("%-12s %3u x %u -> %u, %u groups, %u nodes, %u ranks: ", c->name, c->L, c->E, c->S, c->G, c->N,
           c->R);
    if (!o->holds) {
        printf("FAIL: %s\n", o->text);
        t->failed++;
    } else if (c->refused) {
        printf("ok, refused: %s\n", o->text);
        t->refused++;
    } else {
        printf("ok, %.3f ms", 1e3 * o->seconds);
        if (c->seconds > 0) {
            printf(", eplb.py %.6f s, %.0f x", c->seconds, c->seconds / o->seconds);
            t->ours += o->seconds;
            t->theirs += c->seconds;
        }
        printf("\n");
        t->equal++;
    }
}

static int report_totals(const totals *t) {
    printf("%zu cases: %zu equal, %zu refused as they must be, %zu failed\n",
           t->equal + t->refused + t->failed, t->equal, t->refused, t->failed);
    if (t->theirs > 0)
        printf("one thread: %.3f ms, eplb.py: %.3f ms, %.0f times as long\n", 1e3 * t->ours, 1e3 * t->theirs,
               t->theirs / t->ours);
    return t->failed == 0 && t->equal + t->refused > 0 ? EXIT_PASS : EXIT_DIFFERENT;
}

static char *path_in(const char *dir, const char *file) {
    const size_t size = strlen(dir) + strlen(file) + 2;
    char *path = allocate(size, 1);
    snprintf(path, size, "%s/%s", dir, file);
    return path;
}

static int run(const char *dir) {
    char *json_path = path_in(dir, "eplb.json"), *tensors_path = path_in(dir, "eplb.safetensors");
    json_error_t error;
    json_t *cases = json_load_file(json_path, 0, &error);
    if (!cases) die("%s: line %d: %s", json_path, error.line, error.text);
    if (!json_is_array(cases)) die("%s: expected a list of cases", json_path);
    wb_safetensors *file = NULL;
    if (wb_safetensors_open(tensors_path, NULL, &file) != WB_OK) die("%s", wb_error_message());
    totals t = {0};
    for (size_t i = 0; i < json_array_size(cases); i++) {
        const oracle_case c = read_case(json_array_get(cases, i), i);
        const outcome o = run_case(file, &c);
        report_case(&c, &o, &t);
    }
    wb_safetensors_close(file);
    json_decref(cases);
    free(json_path);
    free(tensors_path);
    return report_totals(&t);
}

int main(int argc, char **argv) {
    if (argc == 2 && strcmp(argv[1], "--help") == 0) {
        fputs(usage, stdout);
        return EXIT_PASS;
    }
    if (argc != 2 || argv[1][0] == '-') {
        fputs(usage, stderr);
        return EXIT_UNREADABLE;
    }
    return run(argv[1]);
}
