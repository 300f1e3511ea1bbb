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

/* In the child; never returns. */
static void become(const char *command, int in, int out, pid_t parent) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    if (getppid() != parent) _exit(127);
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    for (int number = 1; number < NSIG; number++) signal(number, SIG_DFL);
    execl("/bin/sh", "sh", "-c", command, (char *)NULL);
    _exit(127);
}

wb_status child_start(const char *command, reward_child *child) {
    int in[2], out[2];
    if (pipe2(in, O_CLOEXEC) != 0) return wb_fail(WB_IO, "--reward-cmd: pipe: %m");
    if (pipe2(out, O_CLOEXEC) != 0) {
        close(in[0]);
        close(in[1]);
        return wb_fail(WB_IO, "--reward-cmd: pipe: %m");
    }
    pid_t parent = getpid(), pid = fork();
    if (pid == 0) become(command, in[0], out[1], parent);
    close(in[0]);
    close(out[1]);
    *child = (reward_child){command, pid, in[1], out[0]};
    if (pid > 0) {
        setpgid(pid, pid); /* whichever of the two comes first */
        fcntl(child->to, F_SETFL, O_NONBLOCK);
        return WB_OK;
    }
    close_end(&child->to);
    close_end(&child->from);
    child->pid = 0;
    return wb_fail(WB_IO, "--reward-cmd: fork: %m");
}

wb_status child_talk(reward_child *child, const char *data, size_t n, size_t *sent, char *received,
                     size_t bytes, double seconds, size_t *received_out, child_event *event_out) {
    bool sends = child->to >= 0 && *sent < n;
    struct pollfd ends[2] = {{child->from, POLLIN, 0}, {child->to, POLLOUT, 0}};
    *received_out = 0;
    int ready = poll(ends, sends ? 2 : 1, seconds > 0 ? (int)(1000 * seconds) + 1 : 0);
    if (ready < 0 && errno != EINTR) return wb_fail(WB_IO, "--reward-cmd: poll: %m");
    *event_out = ready == 0 ? CHILD_TIMEOUT : CHILD_TALKED;
    if (ready <= 0) return WB_OK;
    if (sends && ends[1].revents != 0) {
        ssize_t done = write(child->to, data + *sent, n - *sent);
        if (done > 0) *sent += (size_t)done;
        if (done < 0 && errno != EAGAIN && errno != EINTR) close_end(&child->to);
    }
    if (ends[0].revents == 0) return WB_OK;
    ssize_t got = read(child->from, received, bytes);
    if (got < 0 && errno != EINTR) return wb_fail(WB_IO, "--reward-cmd: read: %m");
    if (got == 0) *event_out = CHILD_CLOSED;
    *received_out = got > 0 ? (size_t)got : 0;
    return WB_OK;
}

/* Whether it has ended, within the time. */
static bool wait_end(reward_child *child, double seconds, int *how_out) {
    double end = now_seconds() + seconds;
    for (;;) {
        pid_t done = waitpid(child->pid, how_out, WNOHANG);
        if (done == child->pid) return true;
        if ((done < 0 && errno != EINTR) || now_seconds() >= end) return false;
        poll(NULL, 0, 5);
    }
}

/* With all that it has started. */
static void kill_group(reward_child *child, bool ended) {
    kill(-child->pid, SIGKILL);
    if (!ended) waitpid(child->pid, NULL, 0);
    close_end(&child->to);
    close_end(&child->from);
    child->pid = 0;
}

void child_kill(reward_child *child) {
    if (child->pid > 0) kill_group(child, false);
}

wb_status child_end(reward_child *child, double seconds) {
    int how = 0;
    if (child->pid <= 0) return WB_OK;
    close_end(&child->to);
    bool ended = wait_end(child, seconds, &how);
    kill_group(child, ended);
    if (!ended)
        return wb_fail(WB_IO, "--reward-cmd '%s' did not end within %g s of the end of its input",
                       child->command, seconds);
    if (WIFSIGNALED(how))
        return wb_fail(WB_IO, "--reward-cmd '%s' was killed by signal %d", child->command, WTERMSIG(how));
    if (WEXITSTATUS(how) != 0)
        return wb_fail(WB_IO, "--reward-cmd '%s' ended with exit status %d", child->command,
                       WEXITSTATUS(how));
    return WB_OK;
}
