/*
 * Runs one command for the host, which starts this program through the guest agent and speaks with it over the virtio
 * port COMMAND_PORT, or over the serial line that is there instead (line.c). One command at a time.
 *
 * Both directions carry frames: a type (one byte), a length (32 bits, little-endian), that many bytes.
 *
 *   host to guest                                    guest to host
 *   R  the request (see parse_request), first        S  the program is about to be executed: time
 *   I  bytes for its stdin, at most what W allowed   F  it could not be: step ('c'hdir, 'e'xec, 'f'ork), errno
 *   Z  its stdin ends                                W  that many more bytes of stdin are welcome
 *   K  kill its whole process tree                   O, E  bytes of its stdout, stderr
 *                                                    X  it ended: exit status, signal, time
 *                                                    D  all its output was sent; this program ends
 *
 * Times are the guest's CLOCK_MONOTONIC in ns. S is written by the process that then executes the program, and X before
 * what is left of the output is read, so that the host, which stamps them as they come, sees the program's own run.
 * stdin is sent only as far as W allows, so that K is never stuck behind it. Over a line the request too comes in parts of
 * LINE_WINDOW bytes, and W asks for the next.
 *
 * Output that a descendant writes after the program itself has ended is not waited for: a daemon may live on.
 */

#define _GNU_SOURCE
#include "guest.h"
#include "inside.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/sched.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#define CHUNK 65536
#define KILL_DEADLINE_MS 10000

struct request {
    char *cwd;
    char **argv;
    char **env;
    int has_stdin;
};

static int port = -1;
static char cgroup[128];
static int unified; /* whether that is one of version 2 */

static const char *cgroup_file(const char *name)
{
    static char path[sizeof cgroup + 32];
    snprintf(path, sizeof path, "%s/%s", cgroup, name);
    return path;
}

/* --- frames --------------------------------------------------------------------------------------------------------- */

static void write_all(int file, const void *data, size_t length)
{
    for (const char *at = data; length > 0;) {
        ssize_t written = write(file, at, length);
        if (written < 0 && errno == EINTR)
            continue;
        if (written <= 0)
            _exit(1);
        at += written;
        length -= (size_t)written;
    }
}

void put_header(char *frame, char type, uint32_t length)
{
    struct header header = {(uint8_t)type, length};
    memcpy(frame, &header, sizeof header);
}

static void send_frame(char type, const void *data, uint32_t length)
{
    /* Together in one write, as each one is an exit of the virtual machine. */
    static char frame[FRAME_HEADER + CHUNK];
    put_header(frame, type, length);
    memcpy(frame + FRAME_HEADER, data, length);
    write_all(port, frame, FRAME_HEADER + length);
}

static void read_all(int file, void *data, size_t length)
{
    for (char *at = data; length > 0;) {
        ssize_t got = read(file, at, length);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            _exit(1);
        at += got;
        length -= (size_t)got;
    }
}

static void want_input(void)
{
    uint32_t welcome = parameters.line != NULL ? LINE_WINDOW : CHUNK;
    send_frame('W', &welcome, sizeof welcome);
}

static char *read_frame(struct header *header)
{
    read_all(port, header, sizeof *header);
    char *data = malloc(header->length + 1);
    if (data == NULL)
        _exit(1);
    uint32_t most = header->type == 'R' && parameters.line != NULL ? LINE_WINDOW : header->length, part;
    for (uint32_t at = 0; at < header->length; at += part) {
        part = header->length - at < most ? header->length - at : most;
        read_all(port, data + at, part);
        if (at + part < header->length)
            want_input();
    }
    data[header->length] = '\0';
    return data;
}

/* --- the request ---------------------------------------------------------------------------------------------------- */

static char **split_strings(char **at, uint32_t count)
{
    char **strings = calloc(count + 1, sizeof *strings);
    for (uint32_t index = 0; strings && index < count; index++) {
        strings[index] = *at;
        *at += strlen(*at) + 1;
    }
    return strings;
}

/* has_stdin, number of arguments, number of variables (32 bits each), then NUL-terminated: cwd, arguments, variables. */
static struct request parse_request(char *data)
{
    uint32_t counts[3];
    struct request request;
    memcpy(counts, data, sizeof counts);
    char *at = data + sizeof counts;
    request.has_stdin = counts[0] != 0;
    request.cwd = at;
    at += strlen(at) + 1;
    request.argv = split_strings(&at, counts[1]);
    request.env = split_strings(&at, counts[2]);
    if (request.argv == NULL || request.env == NULL)
        _exit(1);
    return request;
}

static struct request read_request(void)
{
    for (;;) {
        struct header header;
        char *data = read_frame(&header);
        if (header.type == 'R')
            return parse_request(data);
        free(data); /* meant for a command that had ended already */
    }
}

/* --- the program ------------------------------------------------------------------------------------------------------ */

struct child {
    pid_t pid;
    int pidfd;
    int in, out, err; /* our ends; `in` is -1 without stdin */
};

static void send_failure(char step, int error)
{
    char failure[5] = {step};
    int32_t number = error;
    memcpy(failure + 1, &number, sizeof number);
    send_frame('F', failure, sizeof failure);
}

static _Noreturn void become_program(const struct request *request, int in, int out, int err)
{
    sigset_t none;
    sigemptyset(&none);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    sigprocmask(SIG_SETMASK, &none, NULL);
    setsid();
    dup2(in, STDIN_FILENO);
    dup2(out, STDOUT_FILENO);
    dup2(err, STDERR_FILENO);
    write_file("/proc/self/oom_score_adj", "0");
    if (!unified) /* one thread moves without the wait for all CPUs that a process in cgroup.procs costs */
        write_file(cgroup_file("tasks"), "0");
    if (chdir(request->cwd) != 0) {
        send_failure('c', errno);
        _exit(126);
    }
    environ = (char **)request->env;
    uint64_t started = now_ns();
    send_frame('S', &started, sizeof started);
    if (strcmp(request->argv[0], OWN_PROGRAM) == 0)
        _exit(run_inside(request->argv + 1));
    execvp(request->argv[0], request->argv);
    send_failure('e', errno);
    _exit(126);
}

/*
 * Starts the program in a cgroup of its own, so that everything it starts can be killed at once. Returns when it was
 * executed, or could not be: until then the child alone writes to the port.
 */
static struct child start_program(const struct request *request)
{
    int in[2] = {-1, -1}, out[2], err[2], executed[2], pidfd = -1;
    if (pipe2(out, O_CLOEXEC) || pipe2(err, O_CLOEXEC) || pipe2(executed, O_CLOEXEC))
        _exit(1);
    if (!request->has_stdin)
        in[0] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    else if (pipe2(in, O_CLOEXEC) != 0 || fcntl(in[1], F_SETFL, O_NONBLOCK) != 0)
        _exit(1);
    snprintf(cgroup, sizeof cgroup, COMMANDS_CGROUP "/%d", getpid());
    mkdir(cgroup, 0755);
    unified = access(cgroup_file("cgroup.kill"), F_OK) == 0;
    int folder = open(cgroup, O_PATH | O_DIRECTORY | O_CLOEXEC);
    struct clone_args arguments = {
        .flags = CLONE_PIDFD | (unified ? CLONE_INTO_CGROUP : 0),
        .pidfd = (uintptr_t)&pidfd,
        .exit_signal = SIGCHLD,
        .cgroup = (uint64_t)folder,
    };
    pid_t pid = (pid_t)syscall(SYS_clone3, &arguments, sizeof arguments);
    if (pid == 0)
        become_program(request, in[0], out[1], err[1]);
    int error = errno;
    close(folder);
    close(in[0]);
    close(out[1]);
    close(err[1]);
    close(executed[1]);
    if (pid < 0)
        send_failure('f', error);
    else
        while (read(executed[0], &error, 1) < 0 && errno == EINTR)
            ;
    close(executed[0]);
    return (struct child){pid, pidfd, in[1], out[0], err[0]};
}

/* --- its stdin and output ------------------------------------------------------------------------------------------- */

static char input[CHUNK];
static size_t input_length, input_at;
static int input_ended;
static int killed;

/* Sends what one pipe holds now, up to a chunk; closes it at its end. Returns how many bytes it gave. */
static int forward(char type, int *pipe_end)
{
    static char data[CHUNK];
    if (*pipe_end < 0)
        return 0;
    ssize_t got = read(*pipe_end, data, sizeof data);
    if (got > 0) {
        send_frame(type, data, (uint32_t)got);
        return (int)got;
    }
    if (got == 0 || (errno != EAGAIN && errno != EINTR)) {
        close(*pipe_end);
        *pipe_end = -1;
    }
    return 0;
}

static void close_input(struct child *child)
{
    if (child->in >= 0)
        close(child->in);
    child->in = -1;
}

/* Gives the program what has come of its stdin, and asks for more once it has taken all of that. */
static void feed(struct child *child)
{
    ssize_t written = write(child->in, input + input_at, input_length - input_at);
    if (written < 0 && errno != EAGAIN && errno != EINTR) {
        close_input(child);
        return;
    }
    if (written > 0)
        input_at += (size_t)written;
    if (input_at < input_length)
        return;
    input_at = input_length = 0;
    if (input_ended)
        close_input(child);
    else
        want_input();
}

/* Kills what is in the cgroup; returns a pidfd of one of them, -1 if there is none. */
static int kill_members(void)
{
    int member = -1;
    FILE *list = fopen(cgroup_file("cgroup.procs"), "re");
    for (int pid; list != NULL && fscanf(list, "%d", &pid) == 1;) {
        kill(pid, SIGKILL);
        if (member < 0)
            member = (int)syscall(SYS_pidfd_open, pid, 0);
    }
    if (list != NULL)
        fclose(list);
    return member;
}

static void kill_tree(const struct child *child)
{
    killed = 1;
    if (unified && write_file(cgroup_file("cgroup.kill"), "1") == 0)
        return;
    write_file(cgroup_file("pids.max"), "0"); /* from here on nothing in it forks, so that all are seen */
    kill(-child->pid, SIGKILL);
    close(kill_members());
}

static void take_frame(struct child *child)
{
    struct header header;
    char *data = read_frame(&header);
    if (header.type == 'K')
        kill_tree(child);
    if (header.type == 'I' && header.length <= sizeof input) {
        memcpy(input, data, header.length);
        input_length = header.length;
        input_at = 0;
    }
    if (header.type == 'Z') {
        input_ended = 1;
        if (input_length == 0)
            close_input(child);
    }
    free(data);
}

/* --- its end ---------------------------------------------------------------------------------------------------------- */

static void send_end(const struct child *child)
{
    struct {
        int32_t status, signal;
        uint64_t at;
    } __attribute__((packed)) end = {-1, 0, 0};
    int status = 0;
    while (child->pid > 0 && waitpid(child->pid, &status, 0) < 0 && errno == EINTR)
        ;
    end.at = now_ns();
    if (WIFSIGNALED(status))
        end.signal = WTERMSIG(status);
    else
        end.status = WEXITSTATUS(status);
    send_frame('X', &end, sizeof end);
}

/* After a kill the tree is gone only when its cgroup is empty. */
static void await_empty_cgroup(void)
{
    uint64_t deadline = now_ns() + KILL_DEADLINE_MS * 1000000ull;
    for (int member; now_ns() < deadline && (member = kill_members()) >= 0; close(member)) {
        struct pollfd gone = {.fd = member, .events = POLLIN};
        poll(&gone, 1, 1000);
    }
}

static void relay(struct child *child)
{
    for (;;) {
        int feeding = child->in >= 0 && input_at < input_length;
        struct pollfd events[] = {
            {.fd = child->pidfd, .events = POLLIN},
            {.fd = port, .events = POLLIN},
            {.fd = child->out, .events = POLLIN},
            {.fd = child->err, .events = POLLIN},
            {.fd = feeding ? child->in : -1, .events = POLLOUT},
        };
        if (poll(events, 5, -1) < 0)
            continue;
        if (events[0].revents)
            return;
        if (events[1].revents & POLLIN)
            take_frame(child);
        if (events[2].revents)
            forward('O', &child->out);
        if (events[3].revents)
            forward('E', &child->err);
        if (events[4].revents)
            feed(child);
    }
}

/* What is in a pipe now, and no more: a descendant that lives on may never stop writing. */
static void drain(char type, int *pipe_end)
{
    int left = 0;
    if (*pipe_end >= 0 && ioctl(*pipe_end, FIONREAD, &left) != 0)
        return;
    while (*pipe_end >= 0 && left > 0)
        left -= forward(type, pipe_end);
}

int run_command(void)
{
    signal(SIGPIPE, SIG_IGN);
    port = open(COMMAND_PORT, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (port < 0)
        return 1;
    struct request request = read_request();
    struct child child = start_program(&request);
    if (child.in >= 0)
        want_input();
    if (child.pid > 0)
        relay(&child);
    send_end(&child);
    if (killed)
        await_empty_cgroup();
    drain('O', &child.out);
    drain('E', &child.err);
    send_frame('D', "", 0);
    rmdir(cgroup); /* stays while a daemon of the command lives in it */
    return 0;
}
