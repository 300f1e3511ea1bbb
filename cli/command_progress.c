/* command_progress.c - how far a long command is; see command.h. Also takes the line off the terminal when
 * the command is interrupted: what is printed next, the shell's prompt, then begins at the left. */
#include "command.h"

#include <inttypes.h>
#include <signal.h>
#include <stdarg.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { COLUMNS = 60 };

/* Seconds. */
static const double first_after = 2, on_terminal = 0.2, elsewhere = 10;

#define ERASE "\r                                                            \r" /* COLUMNS blanks */

static volatile sig_atomic_t line_is_shown;

static double seconds_now(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (double)t.tv_sec + 1e-9 * (double)t.tv_nsec;
}

/* Ends as the signal does without a handler, so that the shell sees what happened. */
static void end_by_signal(int number) {
    if (line_is_shown) (void)!write(STDERR_FILENO, ERASE, sizeof ERASE - 1);
    signal(number, SIG_DFL);
    raise(number);
}

cli_progress cli_progress_start(void) {
    static const int signals[] = {SIGINT, SIGTERM, SIGHUP};
    cli_progress p = {.start = seconds_now(), .terminal = isatty(STDERR_FILENO) == 1};
    p.next = p.start + (p.terminal ? first_after : elsewhere);
    for (size_t i = 0; i < sizeof signals / sizeof signals[0] && p.terminal; i++) {
        struct sigaction action = {.sa_handler = end_by_signal}, before;
        sigaction(signals[i], NULL, &before);
        if (before.sa_handler == SIG_DFL) sigaction(signals[i], &action, NULL);
    }
    return p;
}

bool cli_progress_due(const cli_progress *progress) {
    return seconds_now() >= progress->next;
}

/* ", 1m02s left" into text_out; nothing when that is not known. */
static void describe_left(double elapsed, double done, double total, char *text_out, size_t size) {
    const double left = done > 0 && done <= total ? elapsed * (total - done) / done : -1;
    text_out[0] = '\0';
    if (left < 0) return;
    const uint64_t seconds = left < 1e9 ? (uint64_t)(left + 0.5) : 1000000000;
    if (seconds < 60)
        snprintf(text_out, size, ", %" PRIu64 "s left", seconds);
    else if (seconds < 3600)
        snprintf(text_out, size, ", %" PRIu64 "m%02" PRIu64 "s left", seconds / 60, seconds % 60);
    else
        snprintf(text_out, size, ", %" PRIu64 "h%02" PRIu64 "m left", seconds / 3600, seconds / 60 % 60);
}

void cli_progress_show(cli_progress *p, double done, double total, const char *format, ...) {
    char text[COLUMNS + 1], left[32];
    const double now = seconds_now();
    va_list args;
    describe_left(now - p->start, done, total, left, sizeof left);
    va_start(args, format);
    vsnprintf(text, sizeof text - strlen(left), format, args);
    va_end(args);
    strncat(text, left, sizeof text - 1 - strlen(text));
    p->next = now + (p->terminal ? on_terminal : elsewhere);
    line_is_shown = p->terminal;
    fprintf(stderr, p->terminal ? "\r%-*s" : "%-.*s\n", COLUMNS, text);
}

/* "1.2M" */
static void describe_count(uint64_t n, char *text_out, size_t size) {
    static const char *const units[] = {"k", "M", "G", "T"};
    double value = (double)n;
    int u = -1;
    while (u < 3 && value >= 999.5) {
        value /= 1000;
        u++;
    }
    if (u < 0)
        snprintf(text_out, size, "%" PRIu64, n);
    else
        snprintf(text_out, size, "%.3g%s", value, units[u]);
}

void cli_progress_records(cli_progress *p, uint64_t done, uint64_t total, uint64_t tokens) {
    char count[16], of[16], fed[16];
    if (!cli_progress_due(p)) return;
    describe_count(done, count, sizeof count);
    describe_count(total, of, sizeof of);
    describe_count(tokens, fed, sizeof fed);
    cli_progress_show(p, (double)done, (double)total, "%s of %s records%s%s%s", count, of, tokens ? ", " : "",
                      tokens ? fed : "", tokens ? " tokens" : "");
}

void cli_progress_end(const cli_progress *p) {
    if (!p->terminal || !line_is_shown) return;
    fprintf(stderr, ERASE);
    line_is_shown = 0;
}
