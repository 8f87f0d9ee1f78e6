/* The process that every instance is forked from, and what runs as an instance's first process.
 *
 * Small, static and in memory of its own: nothing of the host's can be reached through it from inside, and a fork of it
 * copies a few pages. It decides nothing. The harness says what to do as lists of steps (steps.py), which are carried
 * out in their order: once here, then for each instance in a new process. That process goes on as the instance's init:
 * it runs commands for the harness, one at a time, tells how they ended, forwards signals to the one that runs, and
 * reaps orphans.
 *
 * Usage: zygote CHANNEL, a connected stream socket. Messages are those of channel.py: a length, then fields with a
 * length each, all 32 bits in the machine's order; descriptors ride on the first byte. The first message is the flags
 * of clone3, the zygote's steps and the last steps of all instances. Each further one is an instance: its first steps
 * and a file to write 1 to if the harness is gone, with the instance's end of its channel and its cgroup's folder.
 *
 * It is also what an engine of others starts as a container's first process, and what becomes an engine: see engines.c.
 *
 * The numbers of the steps' calls (CALL_*) are those of steps.py, which compiles this with them.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>
#include "inside.h"

#define MAX_FIELDS 4
#define MAX_DESCRIPTORS 8
#define MAX_STRINGS 4
#define MAX_NUMBERS 3
#define ANY_ERROR UINT32_MAX
#define NOT_FOUND 127
#define NOT_EXECUTABLE 126
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#define QUIET (MS_NOSUID | MS_NODEV | MS_NOEXEC)
#define KEPT (ST_RDONLY | ST_NOSUID | ST_NODEV | ST_NOEXEC | ST_NOATIME | ST_NODIRATIME)

struct field {
	char *start;
	uint32_t length;
};

struct message {
	char *memory;
	size_t bytes;
	struct field fields[MAX_FIELDS];
	int field_count, descriptors[MAX_DESCRIPTORS], descriptor_count;
};

/* A command. Its descriptors are its standard streams; without the first of three, it reads /dev/null. */
struct request {
	struct message message;
	char *cwd, **argv, **env, *size;
};

struct outcome {
	int32_t status, number;
	int64_t started, ended;
} __attribute__((packed));

/* Both read by the first process itself, so that they stand in the order in which they happened. */
struct marks {
	int64_t created, first_instruction;
} __attribute__((packed));

/* Files to write 1 to when the harness is gone: they kill what no pid namespace ends with. */
struct kill_file {
	struct kill_file *next;
	char path[];
};

/* Of the kernel's headers, which musl does not come with. */
struct clone_args {
	uint64_t flags, pidfd, child_tid, parent_tid, exit_signal, stack, stack_size, tls, set_tid, set_tid_size, cgroup;
};

struct filter_program {
	unsigned short length; /* in instructions of 8 bytes */
	char *instructions;
};

static int channel;
static struct kill_file *kill_files;
static struct marks marks;
static volatile pid_t running; /* the command, leader of its own process group; 0 between commands */
static const int forwarded[] = { SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGCONT };

static int64_t now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000LL + t.tv_nsec;
}

/* What the first process is sent is meant for what runs under it. */
static void forward(int number)
{
	int kept = errno;
	if (running)
		kill(-running, number);
	errno = kept;
}

static void forward_signals(void)
{
	struct sigaction action = { .sa_handler = forward, .sa_flags = SA_RESTART };
	for (size_t i = 0; i < sizeof forwarded / sizeof *forwarded; i++)
		sigaction(forwarded[i], &action, NULL);
}

#include "messages.c"
#include "steps.c"
#include "commands.c"

/* Say that it is ready, and run commands for as long as the harness is there. */
static void answer(void)
{
	forward_signals();
	send_message(-1, 2, (struct field[]){ text("ready"), { (char *)&marks, sizeof marks } });
	while (1) {
		struct request r;
		char **arrays;
		size_t array_bytes;
		receive_command(&r, &arrays, &array_bytes);
		serve(&r);
		munmap(arrays, array_bytes);
		drop(&r.message);
	}
}

static void live(struct message *start, struct field last)
{
	struct message go;
	struct field first = start->fields[0];
	marks.created = now();
	uint32_t all = count_steps(first) + count_steps(last);
	prctl(PR_SET_NAME, "tare-init");
	receive(&go, 0); /* its cgroups are there */
	drop(&go);
	if (carry_out(first, 0, all) || carry_out(last, count_steps(first), all))
		_exit(0);
	munmap(start->memory, start->bytes);
	if (!marks.first_instruction)
		marks.first_instruction = now();
	answer();
}

static pid_t clone_into(uint64_t flags, int cgroup)
{
	struct clone_args arguments = { .flags = flags, .exit_signal = flags & CLONE_PARENT ? 0 : SIGCHLD };
	if (cgroup >= 0) {
		arguments.flags |= 0x200000000 /* CLONE_INTO_CGROUP */;
		arguments.cgroup = cgroup;
	}
	return syscall(435 /* clone3, everywhere */, &arguments, sizeof arguments);
}

#include "engines.c"

static void remember(struct field path)
{
	struct kill_file *file = path.length ? malloc(sizeof *file + path.length + 1) : NULL;
	if (!file)
		return;
	memcpy(file->path, path.start, path.length + 1);
	file->next = kill_files;
	kill_files = file;
}

int main(int argc, char **argv)
{
	struct message common, start;
	uint64_t flags;
	if (argc == 3 && !strcmp(argv[1], "live"))
		return live_in_container(argv[2]);
	if (argc == 2 && !strcmp(argv[1], "hold"))
		return hold();
	if (argc == 2 && !strcmp(argv[1], "sweep"))
		return sweep();
	if (argc > 2 && !strcmp(argv[1], "run"))
		return run_command(argc - 2, argv + 2);
	if (argc > 4 && !strcmp(argv[1], "become"))
		return become(atoi(argv[2]), argv[3], argv + 4);
	if (argc != 2 || argv[1][strspn(argv[1], "0123456789")] || !*argv[1])
		return 2;
	channel = atoi(argv[1]);
	fcntl(channel, F_SETFD, FD_CLOEXEC);
	syscall(436 /* close_range, everywhere */, 3, channel - 1, 0); /* this program's file among them */
	syscall(436, channel + 1, ~0U, 0);
	prctl(PR_SET_NAME, "tare-zygote");
	signal(SIGCHLD, SIG_IGN); /* their cgroups tell the harness when instances are gone */
	receive(&common, 3);
	memcpy(&flags, common.fields[0].start, sizeof flags);
	if (carry_out(common.fields[1], 0, count_steps(common.fields[1])))
		return 0;
	send_message(-1, 1, (struct field[]){ text("serving") });
	while (1) {
		receive(&start, 2);
		pid_t pid = clone_into(flags, start.descriptor_count > 1 ? start.descriptors[1] : -1);
		if (pid == 0) {
			kill_files = NULL;
			close(channel);
			channel = start.descriptors[0];
			if (start.descriptor_count > 1)
				close(start.descriptors[1]);
			live(&start, common.fields[2]);
		}
		int32_t made = pid;
		if (pid < 0)
			send_error("failed", text(""), errno, "");
		else
			send_message(-1, 2, (struct field[]){ text("created"), { (char *)&made, sizeof made } });
		if (pid > 0)
			remember(start.fields[1]);
		drop(&start);
	}
}
