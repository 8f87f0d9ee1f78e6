/*
 * The guest agent of images that bring none: the part of QEMU's agent protocol (docs/interop/qemu-ga) that the host uses.
 *
 * One JSON object a line in both directions. The host is libvirt, whose lines are compact; what it asks for is found by
 * name, and strings are taken as they stand, as tare's have nothing that JSON escapes.
 */

#define _GNU_SOURCE
#include "guest.h"

#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define LINE 4096
#define MOST_ARGUMENTS 64
#define NOBODY_THERE_US 5000

int find_agent(void)
{
    static const char *const folders[] = {"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"};
    for (size_t index = 0; index < sizeof folders / sizeof *folders; index++) {
        char path[64];
        snprintf(path, sizeof path, "%s/qemu-ga", folders[index]);
        if (access(path, X_OK) == 0)
            return 1;
    }
    return 0;
}

/* The string that `at` begins, which ends there; `at` goes on behind it. NULL if it begins none. */
static char *take_string(char **at)
{
    char *start = *at + strspn(*at, " :,[");
    char *end = *start == '"' ? strchr(start + 1, '"') : NULL;
    if (end == NULL)
        return NULL;
    *end = '\0';
    *at = end + 1;
    return start + 1;
}

static char *find_member(char *text, const char *name)
{
    char *found = strstr(text, name);
    return found == NULL ? NULL : found + strlen(name);
}

/* Starts {"path": ..., "arg": [...]}; its process, or -1. */
static pid_t execute(char *text)
{
    char *arguments[MOST_ARGUMENTS + 2];
    char *list = find_member(text, "\"arg\""), *path = find_member(text, "\"path\"");
    char *end = list == NULL ? NULL : strchr(list, ']');
    int count = 1;
    if (end != NULL)
        *end = '\0';
    if (path == NULL || (arguments[0] = take_string(&path)) == NULL)
        return -1;
    while (list != NULL && count <= MOST_ARGUMENTS && (arguments[count] = take_string(&list)) != NULL)
        count++;
    arguments[count] = NULL;
    pid_t child = vfork();
    if (child == 0) {
        signal(SIGCHLD, SIG_DFL);
        setsid();
        execv(arguments[0], arguments);
        _exit(127);
    }
    return child;
}

static void answer(int port, char *line)
{
    char reply[256], text[LINE], name[64] = "";
    char *command = find_member(line, "\"execute\""), *id = find_member(line, "\"id\"");
    int length;
    snprintf(text, sizeof text, "%s", line);
    if (command != NULL && (command = take_string(&command)) != NULL)
        snprintf(name, sizeof name, "%s", command);
    if (!strcmp(name, "guest-sync") || !strcmp(name, "guest-sync-delimited"))
        length = snprintf(reply, sizeof reply, "%s{\"return\": %lld}\n", name[10] ? "\xff" : "",
                          id == NULL ? 0 : atoll(id + strspn(id, " :")));
    else if (!strcmp(name, "guest-ping"))
        length = snprintf(reply, sizeof reply, "{\"return\": {}}\n");
    else if (!strcmp(name, "guest-exec"))
        length = snprintf(reply, sizeof reply, "{\"return\": {\"pid\": %d}}\n", execute(text));
    else
        length = snprintf(reply, sizeof reply,
                          "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"The command %s has not been found\"}}\n",
                          name);
    if (write(port, reply, (size_t)length) < 0)
        say("failed the guest agent cannot write to its port");
}

_Noreturn void run_agent(const char *path)
{
    static char line[LINE];
    size_t have = 0;
    int port = open(path, O_RDWR | O_CLOEXEC);
    if (port < 0)
        _exit(1);
    signal(SIGCHLD, SIG_IGN); /* what it started is reaped by the kernel */
    for (;;) {
        char byte;
        ssize_t got = read(port, &byte, 1);
        if (got <= 0) { /* the host's end is closed */
            usleep(NOBODY_THERE_US);
            continue;
        }
        if (byte != '\n' && have < sizeof line - 1) {
            line[have++] = byte;
            continue;
        }
        line[have] = '\0';
        have = 0;
        if (strchr(line, '{') != NULL)
            answer(port, line);
    }
}
