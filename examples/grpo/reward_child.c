/* reward_child.c - see reward_child.h. */
#include "reward_child.h"
#include "grpo.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

static void close_end(int *fd) {
    if (*fd >= 0) close(*fd);
    *fd = -1;
}

/* The kernel signals a dead process's children, not theirs, and a shell runs what it is given as a child of
 * its own: this one kills its whole group when the trainer is gone. It holds no end of its pipes. */
static const char keeper[] = "trap 'kill -9 0' TERM; exec 3<&0 </dev/null; sh -c \"$1\" <&3 3<&- & "
                             "exec >&- 3<&-; wait $!";

/* In the child; never returns. */
static void become(const char *command, int in, int out, pid_t parent) {
    setpgid(0, 0);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    prctl(PR_SET_PDEATHSIG, SIGTERM);
    if (getppid() != parent) _exit(127);
    execl("/bin/sh", "sh", "-c", keeper, "sh", command, (char *)NULL);
    _exit(127);
}

wb_status child_start(const char *command, reward_child *child) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0) return wb_fail(WB_IO, "pipe: %m");
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        return wb_fail(WB_IO, "pipe: %m");
    }
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(command, in[0], out[1], parent);
    close(in[0]);
    close(out[1]);
    *child = (reward_child){pid, in[1], out[0]};
    if (pid > 0) {
        setpgid(pid, pid); /* whichever of the two comes first */
        fcntl(child->to, F_SETFL, O_NONBLOCK);
        return WB_OK;
    }
    close_end(&child->to);
    close_end(&child->from);
    child->pid = 0;
    return wb_fail(WB_IO, "fork: %m");
}

/* Looks, and leaves its number and its group in being. */
static bool has_ended(const reward_child *child) {
    siginfo_t info = {0};
    return waitid(P_PID, (id_t)child->pid, &info, WEXITED | WNOHANG | WNOWAIT) == 0 && info.si_pid != 0;
}

/* What is ready to be sent to and received from. An ended child whose output something else holds open is
 * silent for ever. */
static wb_status look(const reward_child *child, struct pollfd ends[2], bool sends, double seconds,
                      child_event *event_out) {
    int wait_ms = seconds >= 1 ? 1000 : seconds > 0 ? (int)(1000 * seconds) + 1 : 0;
    int ready = poll(ends, sends ? 2 : 1, wait_ms);
    if (ready < 0 && errno != EINTR) return wb_fail(WB_IO, "poll: %m");
    *event_out = ready > 0 ? CHILD_TALKED : ready == 0 && has_ended(child) ? CHILD_CLOSED : CHILD_QUIET;
    return WB_OK;
}

wb_status child_talk(reward_child *child, const char *data, size_t n, size_t *sent, char *received,
                     size_t bytes, double seconds, size_t *received_out, child_event *event_out) {
    bool sends = child->to >= 0 && *sent < n;
    struct pollfd ends[2] = {{child->from, POLLIN, 0}, {child->to, POLLOUT, 0}};
    *received_out = 0;
    WB_TRY(look(child, ends, sends, seconds, event_out));
    if (*event_out != CHILD_TALKED) return WB_OK;
    if (sends && ends[1].revents != 0) {
        ssize_t done = write(child->to, data + *sent, n - *sent);
        if (done > 0) *sent += (size_t)done;
        if (done < 0 && errno != EAGAIN && errno != EINTR) close_end(&child->to);
    }
    if (ends[0].revents == 0) return WB_OK;
    ssize_t got = read(child->from, received, bytes);
    if (got < 0 && errno != EINTR) return wb_fail(WB_IO, "read: %m");
    if (got == 0) *event_out = CHILD_CLOSED;
    *received_out = got > 0 ? (size_t)got : 0;
    return WB_OK;
}

void child_end_input(reward_child *child) {
    close_end(&child->to);
}

bool child_wait(const reward_child *child, double seconds) {
    double end = now_seconds() + seconds;
    while (!has_ended(child)) {
        if (now_seconds() >= end) return false;
        poll(NULL, 0, 5);
    }
    return true;
}

/* With all that it has started: its number is its group's until it is waited for. */
static int kill_group(reward_child *child) {
    int how = 0;
    kill(-child->pid, SIGKILL);
    while (waitpid(child->pid, &how, 0) < 0 && errno == EINTR) continue;
    close_end(&child->to);
    close_end(&child->from);
    child->pid = 0;
    return how;
}

void child_kill(reward_child *child) {
    if (child->pid > 0) kill_group(child);
}

wb_status child_judge(reward_child *child, int *exit_out) {
    int how = kill_group(child);
    /* The keeper's status is the command's, 128 + N after signal N. */
    int number = WIFSIGNALED(how) ? WTERMSIG(how) : WEXITSTATUS(how) - 128;
    if (number > 0 && number < NSIG) return wb_fail(WB_IO, "was killed by signal %d", number);
    *exit_out = WEXITSTATUS(how);
    return WB_OK;
}
