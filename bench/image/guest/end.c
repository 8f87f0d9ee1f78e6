/* The rest of PID 1's life: it reaps what ends, and ends the guest when it is asked to. */

#define _GNU_SOURCE
#include "guest.h"

#include <signal.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define TERMINATE_DEADLINE_MS 5000
#define KILL_DEADLINE_MS 5000

void hold_signals(sigset_t *awaited)
{
    sigemptyset(awaited);
    sigaddset(awaited, SIGCHLD);
    sigaddset(awaited, POWER_OFF_SIGNAL);
    sigprocmask(SIG_BLOCK, awaited, NULL);
}

/* Whether every process has ended within the time. */
static int await_all(const sigset_t *awaited, int deadline_ms)
{
    uint64_t deadline = now_ns() + deadline_ms * 1000000ull;
    for (;;) {
        pid_t ended = waitpid(-1, NULL, WNOHANG);
        if (ended < 0)
            return 1;
        uint64_t now = now_ns();
        if (ended == 0 && now >= deadline)
            return 0;
        struct timespec left = {(time_t)((deadline - now) / 1000000000u), (long)((deadline - now) % 1000000000u)};
        if (ended == 0)
            sigtimedwait(awaited, NULL, &left);
    }
}

/* Ends what runs, lets go of the scratch disk and turns the machine off, in the order in which any init does. */
static _Noreturn void power_off(const sigset_t *awaited)
{
    kill(-1, SIGTERM);
    kill(-1, SIGCONT);
    if (!await_all(awaited, TERMINATE_DEADLINE_MS)) {
        kill(-1, SIGKILL);
        await_all(awaited, KILL_DEADLINE_MS);
    }
    umount2("/scratch", MNT_DETACH);
    sync();
    for (;;)
        reboot(RB_POWER_OFF);
}

_Noreturn void reap(pid_t agent, const sigset_t *awaited)
{
    for (;;) {
        int status;
        pid_t ended;
        while ((ended = waitpid(-1, &status, WNOHANG)) > 0) {
            if (ended == agent && parameters.line != NULL)
                power_off(awaited);
            if (ended == agent && WIFSIGNALED(status))
                say("failed the guest agent was ended by signal %d", WTERMSIG(status));
            else if (ended == agent)
                say("failed the guest agent ended with status %d", WEXITSTATUS(status));
        }
        if (sigwaitinfo(awaited, NULL) == POWER_OFF_SIGNAL)
            power_off(awaited);
    }
}
