/*
 * Starts the image's own service as its configuration says, and waits until it answers.
 *
 *   serve KEY=VALUE...   arg (each), env (each), cwd, user, log; ready: port and path (HTTP), port (TCP), or check (each)
 *                        with check_ms; within_ms. Prints "answered PID NS": NS after it was executed
 *   alive PID            whether that process lives
 *   end PID MS           SIGTERM, then SIGKILL after MS; waits until it is gone
 *   tail FILE            the last of what is in the file
 *   load ...             see load.c
 *
 * What cannot be done is one line "failed WHAT DETAIL", with what the health check printed below it, and exit status 1.
 * A port is asked every millisecond, a health check 20 ms after it ended: that is the resolution of "answered".
 */

#define _GNU_SOURCE
#include "inside.h"

#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <limits.h>
#include <poll.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MOST 4096
#define SAID 4096
#define PORT_EVERY_NS 1000000
#define CHECK_EVERY_NS 20000000
#define REQUEST_MS 5000
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct identity {
    uid_t user;
    gid_t group, groups[NGROUPS_MAX > 1024 ? 1024 : NGROUPS_MAX];
    size_t group_count;
    char home[PATH_MAX];
};

struct program {
    char *argv[MOST], *env[MOST];
    const char *cwd;
    struct identity identity;
};

static int failed(const char *what, const char *detail)
{
    printf("failed %s %s\n", what, detail);
    return 1;
}

static void sleep_ns(long ns)
{
    struct timespec time = {0, ns};
    nanosleep(&time, NULL);
}

/* --- the user --------------------------------------------------------------------------------------------------------- */

/* The fields of a line of passwd or group, at most `most`. */
static int split(char *line, char **fields, int most)
{
    int count = 0;
    line[strcspn(line, "\n")] = '\0';
    for (char *at = line; at && count < most; count++) {
        fields[count] = at;
        at = strchr(at, ':');
        if (at)
            *at++ = '\0';
    }
    return count;
}

static int is_number(const char *text)
{
    return *text && text[strspn(text, "0123456789")] == '\0';
}

/* A user by name or number: its number, group, home and name. A number needs no entry. */
static int find_user(const char *wanted, struct identity *found, char *name, size_t size)
{
    char line[8192], *fields[7];
    FILE *file = fopen("/etc/passwd", "re");
    int is_found = is_number(wanted);
    if (is_found)
        found->user = (uid_t)strtoul(wanted, NULL, 10);
    while (file && fgets(line, sizeof line, file)) {
        if (split(line, fields, 7) < 6 || !is_number(fields[2]) || !is_number(fields[3]))
            continue;
        if (strcmp(fields[0], wanted) && !(is_number(wanted) && (uid_t)strtoul(fields[2], NULL, 10) == found->user))
            continue;
        found->user = (uid_t)strtoul(fields[2], NULL, 10);
        found->group = (gid_t)strtoul(fields[3], NULL, 10);
        snprintf(found->home, sizeof found->home, "%s", fields[5]);
        snprintf(name, size, "%s", fields[0]);
        is_found = 1;
        break;
    }
    if (file)
        fclose(file);
    return is_found ? 0 : -1;
}

static int is_member(char *members, const char *name)
{
    for (char *rest, *one = strtok_r(members, ",", &rest); one; one = strtok_r(NULL, ",", &rest))
        if (!strcmp(one, name))
            return 1;
    return 0;
}

/* The group by name or number if one is wanted, else the groups that list the user. */
static int find_groups(const char *wanted, struct identity *found, const char *name)
{
    char line[8192], *fields[4];
    FILE *file = fopen("/etc/group", "re");
    int is_found = !wanted || is_number(wanted);
    if (wanted && is_found)
        found->group = (gid_t)strtoul(wanted, NULL, 10);
    while (file && fgets(line, sizeof line, file)) {
        if (split(line, fields, 4) < 4 || !is_number(fields[2]))
            continue;
        gid_t group = (gid_t)strtoul(fields[2], NULL, 10);
        if (wanted && !strcmp(fields[0], wanted)) {
            found->group = group;
            is_found = 1;
        }
        size_t most = sizeof found->groups / sizeof *found->groups;
        if (!wanted && *name && found->group_count < most && is_member(fields[3], name))
            found->groups[found->group_count++] = group;
    }
    if (file)
        fclose(file);
    return is_found ? 0 : -1;
}

/* As Docker reads USER or USER:GROUP. */
static int find_identity(const char *text, struct identity *found)
{
    char user[256], name[256] = "";
    const char *colon = strchr(text, ':');
    const char *group = colon && colon[1] ? colon + 1 : NULL;
    snprintf(user, sizeof user, "%.*s", colon ? (int)(colon - text) : (int)strlen(text), text);
    snprintf(found->home, sizeof found->home, "/");
    if (find_user(*user ? user : "0", found, name, sizeof name))
        return failed("user", user);
    if (find_groups(group, found, name))
        return failed("group", group);
    return 0;
}

/* --- a program -------------------------------------------------------------------------------------------------------- */

static void collect(char **arguments, const char *key, char **into, int room)
{
    int count = 0;
    for (const char *value; count < room && (value = inside_value(arguments, key, count)); count++)
        into[count] = (char *)value;
    into[count] = NULL;
}

static const char *variable(char *const *env, const char *name)
{
    return inside_value((char **)env, name, 0);
}

static int read_program(char **arguments, const char *key, struct program *program)
{
    static char home[PATH_MAX + 8], path[] = "PATH=" DEFAULT_PATH;
    const char *user = inside_value(arguments, "user", 0), *cwd = inside_value(arguments, "cwd", 0);
    collect(arguments, key, program->argv, MOST - 1);
    collect(arguments, "env", program->env, MOST - 3);
    program->cwd = cwd ? cwd : "/";
    if (find_identity(user ? user : "", &program->identity))
        return 1;
    int count = 0;
    while (program->env[count])
        count++;
    snprintf(home, sizeof home, "HOME=%s", program->identity.home);
    if (!variable(program->env, "HOME"))
        program->env[count++] = home;
    if (!variable(program->env, "PATH"))
        program->env[count++] = path;
    program->env[count] = NULL;
    return 0;
}

/* As execvp, with the PATH of the program's own environment: returns only if that fails, with errno. */
static void execute(const struct program *program)
{
    const char *name = program->argv[0], *path = variable(program->env, "PATH");
    int kept = ENOENT;
    if (strchr(name, '/')) {
        execve(name, program->argv, program->env);
        return;
    }
    for (;;) {
        char candidate[PATH_MAX];
        size_t length = strcspn(path, ":");
        snprintf(candidate, sizeof candidate, "%.*s/%s", length ? (int)length : 1, length ? path : ".", name);
        execve(candidate, program->argv, program->env);
        if (errno != ENOENT && errno != ENOTDIR)
            kept = errno;
        if (!path[length])
            break;
        path += length + 1;
    }
    errno = kept;
}

struct failure {
    char step[16];
    int error;
};

/* In the child: becomes the program, or tells why not. Where it is root of a user namespace alone, it has no groups to set. */
static _Noreturn void become(const struct program *program, int output, int tell)
{
    struct failure failure = {"streams", 0};
    const struct identity *identity = &program->identity;
    int none = open("/dev/null", O_RDONLY | O_CLOEXEC);
    for (int number = 1; number < NSIG; number++)
        signal(number, SIG_DFL);
    setsid();
    int has_streams = dup2(none < 0 ? output : none, 0) >= 0 && dup2(output, 1) >= 0 && dup2(output, 2) >= 0;
    int changes = identity->user != getuid() || identity->group != getgid() || identity->group_count > 0;
    if (has_streams) {
        snprintf(failure.step, sizeof failure.step, "identity");
        if (!changes || (setgroups(identity->group_count, identity->groups) == 0 && setgid(identity->group) == 0
                         && setuid(identity->user) == 0)) {
            snprintf(failure.step, sizeof failure.step, "cwd");
            if (chdir(program->cwd) == 0) {
                snprintf(failure.step, sizeof failure.step, "exec");
                execute(program);
            }
        }
    }
    failure.error = errno;
    if (write(tell, &failure, sizeof failure) < 0)
        _exit(126);
    _exit(127);
}

/* Its process, once the program was executed; -1 with the failure. */
static pid_t start(const struct program *program, int output, struct failure *failure)
{
    int told[2];
    if (pipe2(told, O_CLOEXEC))
        return -1;
    pid_t child = fork();
    if (child == 0)
        become(program, output, told[1]);
    close(told[1]);
    ssize_t got;
    do
        got = read(told[0], failure, sizeof *failure);
    while (got < 0 && errno == EINTR);
    close(told[0]);
    if (child > 0 && got == 0)
        return child;
    if (child > 0)
        waitpid(child, NULL, 0);
    return -1;
}

/* --- until it answers ------------------------------------------------------------------------------------------------- */

struct question {
    int port;
    const char *path;      /* of HTTP; NULL for TCP */
    struct program *check; /* the health check; NULL for none */
    long check_ms;
    char said[SAID + 1];   /* why there was no answer the last time */
    size_t said_length;
};

static int ask_port(struct question *asked, long left_ms)
{
    long limit = left_ms < REQUEST_MS ? left_ms : REQUEST_MS;
    int connection = inside_connect(asked->port, limit > 0 ? limit : 1);
    struct reply reply = {0, 0, 0};
    if (connection < 0)
        reply.error = errno;
    else if (asked->path)
        reply = inside_get(connection, asked->path);
    if (connection >= 0)
        close(connection);
    if (reply.status)
        asked->said_length = (size_t)snprintf(asked->said, SAID, "status %d", reply.status);
    else if (connection >= 0 && reply.error == EPROTO)
        asked->said_length = (size_t)snprintf(asked->said, SAID, "protocol");
    else if (connection >= 0 && reply.error)
        asked->said_length = (size_t)snprintf(asked->said, SAID, "silent %s", strerror(reply.error));
    else if (reply.error)
        asked->said_length = (size_t)snprintf(asked->said, SAID, "refused %s", strerror(reply.error));
    return connection >= 0 && (asked->path ? reply.status >= 200 && reply.status < 400 : 1);
}

/* What is there to read, of which the last SAID bytes are kept. */
static void keep_said(struct question *asked, int from)
{
    char part[SAID];
    for (ssize_t got; (got = read(from, part, sizeof part)) > 0;) {
        size_t room = SAID - asked->said_length, drop = (size_t)got > room ? (size_t)got - room : 0;
        memmove(asked->said, asked->said + drop, asked->said_length - drop);
        memcpy(asked->said + asked->said_length - drop, part, (size_t)got);
        asked->said_length += (size_t)got - drop;
    }
}

static int ask_check(struct question *asked, long left_ms)
{
    static struct question earlier;
    int output[2], status = 0;
    struct failure failure = {"", 0};
    earlier = *asked;
    asked->said_length = 0;
    if (pipe2(output, O_CLOEXEC | O_NONBLOCK))
        return 0;
    pid_t child = start(asked->check, output[1], &failure), ended = 0;
    close(output[1]);
    if (child < 0)
        asked->said_length = (size_t)snprintf(asked->said, SAID, "check %s %s\n", failure.step, strerror(failure.error));
    long limit = asked->check_ms < left_ms ? asked->check_ms : left_ms;
    uint64_t deadline = inside_now() + (uint64_t)(limit > 0 ? limit : 0) * 1000000u;
    while (child > 0 && (ended = waitpid(child, &status, WNOHANG)) == 0 && inside_now() < deadline) {
        struct pollfd events = {.fd = output[0], .events = POLLIN};
        if (poll(&events, 1, 2) > 0 && events.revents == POLLHUP)
            sleep_ns(PORT_EVERY_NS);
        keep_said(asked, output[0]);
    }
    keep_said(asked, output[0]);
    close(output[0]);
    if (child > 0 && ended == 0) {
        kill(-child, SIGKILL);
        waitpid(child, &status, 0);
        if (limit < asked->check_ms && earlier.said_length) { /* cut off by the deadline: the one before says more */
            *asked = earlier;
            return 0;
        }
    }
    char outcome[64];
    int length = child < 0 ? 0 : ended == 0 ? snprintf(outcome, sizeof outcome, "check timeout %ld\n", limit)
        : WIFSIGNALED(status) ? snprintf(outcome, sizeof outcome, "check signal %d\n", WTERMSIG(status))
        : snprintf(outcome, sizeof outcome, "check status %d\n", WEXITSTATUS(status));
    size_t kept = asked->said_length + (size_t)length > SAID ? SAID - (size_t)length : asked->said_length;
    memmove(asked->said + length, asked->said, kept);
    memcpy(asked->said, outcome, (size_t)length);
    asked->said_length = kept + (size_t)length;
    return child > 0 && ended > 0 && WIFEXITED(status) && WEXITSTATUS(status) == 0;
}

static int tell_ended(int status)
{
    char detail[32];
    snprintf(detail, sizeof detail, "%s %d", WIFSIGNALED(status) ? "signal" : "status",
             WIFSIGNALED(status) ? WTERMSIG(status) : WEXITSTATUS(status));
    return failed("ended", detail);
}

static int await_answer(pid_t child, struct question *asked, uint64_t began, long within_ms)
{
    uint64_t deadline = began + (uint64_t)within_ms * 1000000u;
    for (;;) {
        int status;
        uint64_t now = inside_now();
        long left_ms = now < deadline ? (long)((deadline - now) / 1000000u) : 0;
        int answers = asked->check ? ask_check(asked, left_ms) : ask_port(asked, left_ms);
        uint64_t answered = inside_now();
        if (waitpid(child, &status, WNOHANG) == child)
            return tell_ended(status);
        if (answers) {
            printf("answered %d %llu\n", child, (unsigned long long)(answered - began));
            return 0;
        }
        if (answered >= deadline) {
            asked->said[asked->said_length < SAID ? asked->said_length : SAID] = '\0';
            kill(-child, SIGKILL);
            return failed("deadline", asked->said);
        }
        sleep_ns(asked->check ? CHECK_EVERY_NS : PORT_EVERY_NS);
    }
}

static int serve(char **arguments)
{
    static struct program program, check;
    static struct question asked;
    struct failure failure = {"fork", 0};
    const char *log = inside_value(arguments, "log", 0);
    if (read_program(arguments, "arg", &program) || read_program(arguments, "check", &check))
        return 1;
    if (!log || !program.argv[0])
        return 2;
    asked.port = (int)inside_number(arguments, "port", 0);
    asked.path = inside_value(arguments, "path", 0);
    asked.check = check.argv[0] ? &check : NULL;
    asked.check_ms = inside_number(arguments, "check_ms", 30000);
    if (asked.port && ask_port(&(struct question){.port = asked.port}, REQUEST_MS))
        return failed("taken", "");
    int output = open(log, O_RDWR | O_CREAT | O_TRUNC | O_APPEND | O_CLOEXEC, 0644);
    /* Images open /dev/stdout by its name, which only the file's owner may. */
    if (output < 0 || fchown(output, program.identity.user, program.identity.group))
        return failed("log", strerror(errno));
    uint64_t began = inside_now();
    pid_t child = start(&program, output, &failure);
    if (child < 0) {
        char detail[96];
        snprintf(detail, sizeof detail, "%s %d %s", failure.step, failure.error, strerror(failure.error));
        return failed("start", detail);
    }
    return await_answer(child, &asked, began, inside_number(arguments, "within_ms", 60000));
}

/* --- while it lives --------------------------------------------------------------------------------------------------- */

/* A process that has ended and waits to be reaped is none. */
static int is_alive(pid_t process)
{
    char path[64], text[512], state = 'Z';
    snprintf(path, sizeof path, "/proc/%d/stat", process);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, text, sizeof text - 1);
    if (file >= 0)
        close(file);
    if (length <= 0)
        return 0;
    text[length] = '\0';
    char *after = strrchr(text, ')');
    return after && sscanf(after + 1, " %c", &state) == 1 && state != 'Z' && state != 'X';
}

static int end_process(pid_t process, long limit_ms)
{
    uint64_t deadline = inside_now() + (uint64_t)limit_ms * 1000000u;
    for (int number = SIGTERM; is_alive(process); number = inside_now() < deadline ? 0 : SIGKILL) {
        kill(process, number);
        sleep_ns(PORT_EVERY_NS);
    }
    return 0;
}

static int show_tail(const char *path)
{
    char text[SAID];
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        return 1;
    off_t size = lseek(file, 0, SEEK_END);
    lseek(file, size > SAID ? size - SAID : 0, SEEK_SET);
    ssize_t got = read(file, text, sizeof text);
    return got < 0 || write(1, text, (size_t)got) < 0;
}

int run_inside(char **arguments)
{
    int result = 2;
    for (int number = 1; number < NSIG; number++) /* the caller's handlers are of no use here */
        signal(number, SIG_DFL);
    syscall(436 /* close_range, everywhere */, 3, ~0U, 0);
    const char *what = arguments[0] ? arguments[0] : "";
    if (!strcmp(what, "serve"))
        result = serve(arguments + 1);
    else if (!strcmp(what, "load"))
        result = run_load(arguments + 1);
    else if (!strcmp(what, "alive") && arguments[1])
        result = !is_alive(atoi(arguments[1]));
    else if (!strcmp(what, "end") && arguments[1] && arguments[2])
        result = end_process(atoi(arguments[1]), atol(arguments[2]));
    else if (!strcmp(what, "tail") && arguments[1])
        result = show_tail(arguments[1]);
    fflush(stdout);
    return result;
}
