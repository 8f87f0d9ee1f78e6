/*
 * PID 1 of tare's guest: from the kernel's first user-space instruction to the guest agent, and then the reaper.
 *
 * It tells the host where it is by lines on the console (ttyS0) that start with "tare: ":
 *
 *   tare: init SECONDS        the first user-space code runs; SECONDS is the guest's own clock
 *   tare: agent SECONDS       the guest agent was started
 *   tare: ready SECONDS       everything that a command may need is in place, the scratch disk included
 *   tare: failed REASON       this guest is of no use; it powers off
 *
 * The root is the image's erofs below a tmpfs. Disks are told apart by the serial numbers that the host gave them,
 * ports by their names. A static program and not a shell, because each fork and exec costs 5-20 ms in an emulated guest.
 */

#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/netlink.h>
#include <net/if.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mount.h>
#include <sys/reboot.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MODULES "/modules"
#define NEW_ROOT "/newroot"
#define DEVICE_DEADLINE_MS 20000
#define TERMINATE_DEADLINE_MS 5000
#define KILL_DEADLINE_MS 5000
#define POWER_OFF_SIGNAL (SIGRTMIN + 4) /* as systemd takes it, so that any guest is asked in the same way */
#define AGENT_PORT_NAME "org.qemu.guest_agent.0"
#define COMMAND_PORT_NAME "org.tare.command.0"

static int uevents = -1;

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

int write_file(const char *path, const char *text)
{
    int file = open(path, O_WRONLY | O_CLOEXEC);
    if (file < 0)
        return errno;
    int error = write(file, text, strlen(text)) < 0 ? errno : 0;
    close(file);
    return error;
}

/* --- telling the host ------------------------------------------------------------------------------------------- */

static void say(const char *format, ...) __attribute__((format(printf, 1, 2)));

static void say(const char *format, ...)
{
    /* Begun with a newline, because a message of the kernel may stand unfinished before it. */
    char line[512] = "\ntare: ";
    size_t start = strlen(line);
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(line + start, sizeof line - start - 1, format, arguments);
    va_end(arguments);
    size_t used = start + (size_t)length;
    if (used > sizeof line - 2)
        used = sizeof line - 2;
    line[used++] = '\n';
    if (write(STDOUT_FILENO, line, used) < 0)
        return;
}

static void say_mark(const char *mark)
{
    uint64_t now = now_ns();
    say("%s %u.%06u", mark, (unsigned)(now / 1000000000u), (unsigned)(now % 1000000000u / 1000u));
}

static _Noreturn void fail(const char *what, const char *which, int error)
{
    say("failed %s %s: %s", what, which, strerror(error));
    tcdrain(STDOUT_FILENO);
    for (;;)
        reboot(RB_POWER_OFF);
}

/* --- modules and devices ------------------------------------------------------------------------------------------ */

static void load_module(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, MODULES "/%s", name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail("opening the kernel module", name, errno);
    if (syscall(SYS_finit_module, file, "", 0) != 0 && errno != EEXIST)
        fail("loading the kernel module", name, errno);
    close(file);
    unlink(path);
}

/* Loads what MODULES/order lists, one file name a line, in that order. */
static void load_modules(void)
{
    char order[4096];
    int file = open(MODULES "/order", O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail("opening", MODULES "/order", errno);
    ssize_t length = read(file, order, sizeof order - 1);
    close(file);
    if (length < 0)
        fail("reading", MODULES "/order", errno);
    order[length] = '\0';
    for (char *rest = order, *name; (name = strsep(&rest, "\n")) != NULL;)
        if (*name != '\0')
            load_module(name);
}

/* The entry of `folder` whose file `attribute` says `wanted`, as /dev/ENTRY in `device`. */
static int find_device(const char *folder, const char *attribute, const char *wanted, char *device, size_t size)
{
    DIR *entries = opendir(folder);
    int found = 0;
    for (struct dirent *entry; entries && !found && (entry = readdir(entries)) != NULL;) {
        char path[512], value[64];
        snprintf(path, sizeof path, "%s/%s/%s", folder, entry->d_name, attribute);
        int file = open(path, O_RDONLY | O_CLOEXEC);
        if (file < 0)
            continue;
        ssize_t length = read(file, value, sizeof value - 1);
        close(file);
        value[length < 0 ? 0 : length] = '\0';
        value[strcspn(value, "\n")] = '\0';
        if (strcmp(value, wanted) == 0) {
            found = (size_t)snprintf(device, size, "/dev/%s", entry->d_name) < size && access(device, F_OK) == 0;
        }
    }
    if (entries)
        closedir(entries);
    return found;
}

/* As find_device, waiting for the kernel to announce it: ports are named some time after their driver was loaded. */
static void await_device(const char *folder, const char *attribute, const char *wanted, char *device, size_t size)
{
    uint64_t deadline = now_ns() + DEVICE_DEADLINE_MS * 1000000ull;
    while (!find_device(folder, attribute, wanted, device, size)) {
        int64_t left_ms = (int64_t)(deadline - now_ns()) / 1000000;
        struct pollfd event = {.fd = uevents, .events = POLLIN};
        if (left_ms <= 0 || poll(&event, 1, (int)left_ms) == 0)
            fail("finding the device", wanted, ENODEV);
        char message[4096];
        while (recv(uevents, message, sizeof message, MSG_DONTWAIT) > 0)
            ;
    }
}

static void listen_to_devices(void)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK, .nl_groups = 1};
    uevents = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
    if (uevents < 0 || bind(uevents, (struct sockaddr *)&kernel, sizeof kernel) != 0)
        fail("listening to", "the kernel's device events", errno);
}

/* --- file systems --------------------------------------------------------------------------------------------------- */

static void attach(const char *source, const char *target, const char *type, unsigned long flags, const char *options)
{
    mkdir(target, 0755);
    if (mount(source, target, type, flags, options) != 0)
        fail("mounting", target, errno);
}

static void mount_root(void)
{
    char disk[64];
    await_device("/sys/block", "serial", "tare-image", disk, sizeof disk);
    attach(disk, "/lower", "erofs", MS_RDONLY, "");
    attach("tare", "/rw", "tmpfs", 0, "mode=0755");
    mkdir("/rw/upper", 0755);
    mkdir("/rw/work", 0755);
    attach("tare", NEW_ROOT, "overlay", 0, "lowerdir=/lower,upperdir=/rw/upper,workdir=/rw/work");
}

/* Makes the new root's kernel file systems and steps into it; this program stays reachable in RUN_FOLDER. */
static void enter_root(void)
{
    attach("/dev", NEW_ROOT "/dev", NULL, MS_MOVE, NULL);
    attach("/sys", NEW_ROOT "/sys", NULL, MS_MOVE, NULL);
    attach("proc", NEW_ROOT "/proc", "proc", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    attach("tmpfs", NEW_ROOT "/run", "tmpfs", MS_NOSUID | MS_NODEV, "mode=0755");
    mkdir(NEW_ROOT RUN_FOLDER, 0755);
    int program = open(NEW_ROOT RUN_FOLDER "/guest", O_CREAT | O_WRONLY | O_CLOEXEC, 0755);
    close(program);
    if (mount("/init", NEW_ROOT RUN_FOLDER "/guest", NULL, MS_BIND, NULL) != 0)
        fail("binding", RUN_FOLDER "/guest", errno);
    if (chdir(NEW_ROOT) != 0 || mount(".", "/", NULL, MS_MOVE, NULL) != 0 || chroot(".") != 0 || chdir("/") != 0)
        fail("entering", "the image's root", errno);
}

static void finish_file_systems(void)
{
    attach("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "gid=5,mode=620,ptmxmode=666");
    attach("tmpfs", "/dev/shm", "tmpfs", MS_NOSUID | MS_NODEV, "mode=1777");
    attach("cgroup", "/sys/fs/cgroup", "cgroup2", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    if (symlink("/proc/self/fd", "/dev/fd") || symlink("/proc/self/fd/0", "/dev/stdin") ||
        symlink("/proc/self/fd/1", "/dev/stdout") || symlink("/proc/self/fd/2", "/dev/stderr"))
        fail("linking", "/dev/fd", errno);
}

/* The cgroup of all commands, with the envelope's bound on processes (`tare_pids` on the kernel's command line). */
static void bound_commands(void)
{
    const char *bound = getenv("tare_pids");
    int error = mkdir(COMMANDS_CGROUP, 0755) != 0 ? errno : write_file("/sys/fs/cgroup/cgroup.subtree_control", "+pids");
    if (error == 0 && bound != NULL)
        error = write_file(COMMANDS_CGROUP "/pids.max", bound);
    if (error != 0)
        fail("making", COMMANDS_CGROUP, error);
}

static void mount_scratch(void)
{
    char disk[64];
    if (getenv("tare_scratch") == NULL)
        return;
    await_device("/sys/block", "serial", "tare-scratch", disk, sizeof disk);
    attach(disk, "/scratch", "ext4", MS_NOATIME, "");
}

/* --- what runs -------------------------------------------------------------------------------------------------------- */

static void configure_network(void)
{
    struct ifreq loopback = {.ifr_name = "lo", .ifr_flags = IFF_UP | IFF_RUNNING};
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (any < 0 || ioctl(any, SIOCSIFFLAGS, &loopback) != 0 || sethostname("tare", 4) != 0)
        fail("configuring", "the loopback interface and the host name", errno);
    close(any);
}

static pid_t start_agent(void)
{
    char port[64];
    await_device("/sys/class/virtio-ports", "name", AGENT_PORT_NAME, port, sizeof port);
    pid_t child = vfork();
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

/* --- the end ------------------------------------------------------------------------------------------------------------ */

/* From here on these come one by one, to reap(). */
static void hold_signals(sigset_t *awaited)
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

static void reap(pid_t agent, const sigset_t *awaited)
{
    for (;;) {
        int status;
        pid_t ended;
        while ((ended = waitpid(-1, &status, WNOHANG)) > 0) {
            if (ended == agent && WIFSIGNALED(status))
                say("failed the guest agent was ended by signal %d", WTERMSIG(status));
            else if (ended == agent)
                say("failed the guest agent ended with status %d", WEXITSTATUS(status));
        }
        if (sigwaitinfo(awaited, NULL) == POWER_OFF_SIGNAL)
            power_off(awaited);
    }
}

static void link_command_port(void)
{
    char port[64];
    await_device("/sys/class/virtio-ports", "name", COMMAND_PORT_NAME, port, sizeof port);
    if (symlink(port, COMMAND_PORT) != 0)
        fail("linking", COMMAND_PORT, errno);
}

int main(int argc, char **argv)
{
    if (argc > 1 && strcmp(argv[1], "command") == 0)
        return run_command();
    if (argc > 1 && strcmp(argv[1], "poweroff") == 0)
        return kill(1, POWER_OFF_SIGNAL) != 0;
    say_mark("init");
    setenv("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", 1);
    attach("dev", "/dev", "devtmpfs", MS_NOSUID, "mode=0755");
    attach("sysfs", "/sys", "sysfs", MS_NOSUID | MS_NODEV | MS_NOEXEC, "");
    listen_to_devices();
    load_modules();
    mount_root();
    enter_root();
    pid_t agent = start_agent();
    say_mark("agent");
    finish_file_systems();
    bound_commands();
    configure_network();
    link_command_port();
    mount_scratch();
    sigset_t awaited;
    hold_signals(&awaited);
    say_mark("ready");
    reap(agent, &awaited);
}
