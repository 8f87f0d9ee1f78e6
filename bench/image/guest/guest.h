/* What the two halves of the guest program share: init.c (PID 1) and command.c (one command for the host). */

#ifndef TARE_GUEST_H
#define TARE_GUEST_H

#include <stdint.h>

#define RUN_FOLDER "/run/tare"
#define COMMAND_PORT RUN_FOLDER "/command-port"
#define COMMANDS_CGROUP "/sys/fs/cgroup/tare"

/* The guest's CLOCK_MONOTONIC, which starts when its kernel does. */
uint64_t now_ns(void);

/* Writes a small file in one go; returns 0 or an errno. */
int write_file(const char *path, const char *text);

/* Runs one command for the host; returns the exit status of this process. */
int run_command(void);

#endif
