/*
 * A serial line in place of virtio ports, for a kernel that has none (user-mode Linux): tare.line=ttyS0.
 *
 * It carries what COMMAND_PORT does, one command after the other, and before them frames M: the marks that init also
 * writes to the console, as text. The host closes its end when it has no more use for the guest, which then powers off.
 */

#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/wait.h>
#include <termios.h>
#include <unistd.h>

static int line = -1;

void open_line(const char *name)
{
    char device[64];
    struct termios settings;
    snprintf(device, sizeof device, "/dev/%s", name);
    line = open(device, O_RDWR | O_NOCTTY | O_CLOEXEC);
    if (line < 0 || tcgetattr(line, &settings) != 0)
        fail("opening the line", device, errno);
    cfmakeraw(&settings); /* stays as long as somebody has it open */
    if (tcsetattr(line, TCSANOW, &settings) != 0)
        fail("setting the line", device, errno);
}

void mark_line(const char *mark)
{
    char frame[FRAME_HEADER + 64];
    int length = snprintf(frame + FRAME_HEADER, sizeof frame - FRAME_HEADER, "%s", mark);
    if (line < 0)
        return;
    put_header(frame, 'M', (uint32_t)length);
    if (write(line, frame, FRAME_HEADER + (size_t)length) < 0)
        fail("writing to", "the line", errno);
}

pid_t start_line_server(const char *name)
{
    char device[64];
    snprintf(device, sizeof device, "/dev/%s", name);
    if (symlink(device, COMMAND_PORT) != 0)
        fail("linking", COMMAND_PORT, errno);
    pid_t server = fork();
    if (server < 0)
        fail("starting", "the line's server", errno);
    if (server > 0)
        return server;
    setsid();
    write_file("/proc/self/oom_score_adj", "-1000"); /* a command's hunger must not cost the guest its line */
    for (int status = 0; status == 0;) {
        pid_t command = fork();
        if (command == 0)
            _exit(run_command());
        if (command < 0 || waitpid(command, &status, 0) != command)
            break;
    }
    _exit(0);
}
