/* Telling the host: lines on the console (ttyS0). */

#define _GNU_SOURCE
#include "guest.h"

#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <sys/reboot.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

uint64_t now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

static void say_list(const char *before, const char *format, va_list arguments)
{
    /* Begun with a newline, because a message of the kernel may stand unfinished before it. */
    char line[512];
    size_t used = (size_t)snprintf(line, sizeof line, "\ntare: %s", before);
    int length = vsnprintf(line + used, sizeof line - used - 1, format, arguments);
    used += (size_t)length;
    if (used > sizeof line - 2)
        used = sizeof line - 2;
    line[used++] = '\n';
    if (write(STDOUT_FILENO, line, used) < 0)
        return;
}

void say(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_list("", format, arguments);
    va_end(arguments);
}

void say_mark(const char *mark)
{
    uint64_t now = now_ns();
    char text[64];
    snprintf(text, sizeof text, "%s %u.%06u", mark, (unsigned)(now / 1000000000u),
             (unsigned)(now % 1000000000u / 1000u));
    say("%s", text);
    mark_line(text);
}

void give_up(const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    say_list("failed ", format, arguments);
    va_end(arguments);
    tcdrain(STDOUT_FILENO);
    for (;;)
        reboot(RB_POWER_OFF);
}

void fail(const char *what, const char *which, int error)
{
    give_up("%s %s: %s", what, which, strerror(error));
}
