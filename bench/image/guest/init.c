/*
 * PID 1 of tare's guest: from the kernel's first user-space instruction to the guest agent, and then the reaper.
 *
 * It tells the host where it is by lines on the console (ttyS0) that start with "tare: ":
 *
 *   tare: init SECONDS        the first user-space code runs; SECONDS is the guest's own clock
 *   tare: line SECONDS        with tare.line: the line is open
 *   tare: agent SECONDS       the guest agent was started
 *   tare: system SECONDS      with tare.profile=full: systemd becomes PID 1, and starts the agent as one of its services
 *   tare: ready SECONDS       everything that a command may need is in place, the scratch included
 *   tare: failed REASON       this guest is of no use; it powers off
 *
 * What differs between guests is asked for on the kernel's command line (guest.h, struct parameters). Disks are told
 * apart by the serial numbers that the host gave them, ports by their names. With tare.line there are no ports and no
 * agent: a serial line carries the marks and the commands (line.c). A static program and not a shell, because
 * each fork and exec costs 5-20 ms in an emulated guest.
 */

#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mount.h>
#include <sys/stat.h>
#include <unistd.h>

#define AGENT_PORT_NAME "org.qemu.guest_agent.0"
#define COMMAND_PORT_NAME "org.tare.command.0"

/*
 * The cgroup of all commands, with the envelope's bound on processes.
 *
 * In a hierarchy of version 1 that counts processes and nothing else: in any cgroup but the root, version 2 also accounts
 * CPU time and pressure at every switch between tasks, which costs a command 2 % (fio) to 7 % (a pipe between two tasks)
 * that it would not pay when started by hand. systemd wants all controllers in version 2, and has its services pay.
 */
static void bound_commands(int systemd)
{
    const char *top = systemd ? "/sys/fs/cgroup" : RUN_FOLDER "/pids";
    char all[64], max[96], control[96];
    snprintf(all, sizeof all, "%s/tare", top);
    snprintf(max, sizeof max, "%s/pids.max", all);
    snprintf(control, sizeof control, "%s/cgroup.subtree_control", top);
    if (!systemd)
        attach("cgroup", top, "cgroup", MS_NOSUID | MS_NODEV | MS_NOEXEC, "pids");
    int error = mkdir(all, 0755) != 0 ? errno : 0;
    if (error == 0 && systemd)
        error = write_file(control, "+pids");
    if (error == 0 && parameters.pids != NULL)
        error = write_file(max, parameters.pids);
    if (error == 0 && symlink(all, COMMANDS_CGROUP) != 0)
        error = errno;
    if (error != 0)
        fail("making", all, error);
}

static pid_t start_agent(char *port)
{
    int is_own = !find_agent();
    pid_t child = is_own ? fork() : vfork();
    if (child == 0 && is_own) {
        setsid();
        write_file("/proc/self/oom_score_adj", "-1000");
        run_agent(port);
    }
    if (child == 0) {
        char *const arguments[] = {"qemu-ga", "-m", "virtio-serial", "-p", port, "-t", "/run", NULL};
        setsid();
        write_file("/proc/self/oom_score_adj", "-1000"); /* a command's hunger must not cost the guest its agent */
        execvp("qemu-ga", arguments);
        _exit(127);
    }
    if (child < 0)
        fail("starting", "the guest agent", errno);
    return child;
}

static void link_command_port(void)
{
    char port[64];
    await_device(find_port, COMMAND_PORT_NAME, port, sizeof port);
    if (symlink(port, COMMAND_PORT) != 0)
        fail("linking", COMMAND_PORT, errno);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "command") == 0)
        return run_command();
    if (argc > 1 && strcmp(argv[1], "restored") == 0)
        return run_restored(argc - 2, argv + 2);
    if (argc > 1 && strcmp(argv[1], "poweroff") == 0)
        return kill(1, POWER_OFF_SIGNAL) != 0;
    if (argc > 2 && strcmp(argv[1], "tell") == 0)
        return tell(argv + 2);
    say_mark("init");
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    attach("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    attach("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    attach("proc", "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    read_parameters();
    if (parameters.line != NULL) {
        open_line(parameters.line);
        say_mark("line");
    }
    listen_to_devices();
    load_modules();
    mount_root();
    enter_root();
    char port[64];
    int full = parameters.profile != NULL && strcmp(parameters.profile, "full") == 0;
    pid_t agent = -1;
    if (parameters.line == NULL)
        await_device(find_port, AGENT_PORT_NAME, port, sizeof port);
    if (parameters.line == NULL && !full) {
        agent = start_agent(port);
        say_mark("agent");
    }
    finish_file_systems();
    bound_commands(full);
    if (sethostname("tare", 4) != 0)
        fail("setting", "the host name", errno);
    configure_network();
    if (parameters.line == NULL)
        link_command_port();
    mount_scratch();
    if (parameters.line != NULL)
        agent = start_line_server(parameters.line);
    else if (full)
        become_system(port);
    sigset_t awaited;
    hold_signals(&awaited);
    say_mark("ready");
    reap(agent, &awaited);
}
