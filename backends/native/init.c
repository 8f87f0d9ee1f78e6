/* What the first process of an instance becomes once it is idle: init.py, which has set the instance up, executes this.
 *
 * It does what init.py does where no C compiler is at hand: it runs commands for the harness, one at a time, tells how
 * they ended, forwards signals to the one that runs, and reaps orphans. It is here for its size alone: of a process
 * forked from the zygote's Python more than a megabyte stays copied for as long as the instance lives, of this one a
 * few pages.
 *
 * Usage: init CHANNEL, a connected stream socket. Messages are those of wire.py: a length, then fields with a length
 * each, all 32 bits in the machine's order; descriptors ride on the first byte.
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

#define MAX_FIELDS 4
#define MAX_DESCRIPTORS 8
#define NOT_FOUND 127
#define NOT_EXECUTABLE 126
#define DEFAULT_PATH "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

struct field {
	char *start;
	uint32_t length;
};

/* A command, in memory of its own. Without a size its descriptors are its standard streams. */
struct request {
	char *memory;
	size_t bytes;
	struct field fields[MAX_FIELDS];
	int field_count, descriptors[MAX_DESCRIPTORS], descriptor_count;
	char *cwd, **argv, **env, *size;
};

struct outcome {
	int32_t status, number;
	int64_t started, ended;
} __attribute__((packed));

static int channel;
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

/* --- messages --- */

/* The harness is gone, or what it says makes no sense: the instance ends with its first process. */
static void end(void)
{
	_exit(0);
}

static void read_all(char *to, size_t length)
{
	while (length) {
		ssize_t got = read(channel, to, length);
		if (got < 0 && errno == EINTR)
			continue;
		if (got <= 0)
			end();
		to += got;
		length -= got;
	}
}

static void send_message(int descriptor, int count, const struct field *fields)
{
	char head[4], control[CMSG_SPACE(sizeof(int))] = { 0 }, body[1024];
	uint32_t length = 0;
	for (int i = 0; i < count; i++) {
		if (length + sizeof length + fields[i].length > sizeof body)
			end();
		memcpy(body + length, &fields[i].length, sizeof length);
		memcpy(body + length + sizeof length, fields[i].start, fields[i].length);
		length += sizeof length + fields[i].length;
	}
	memcpy(head, &length, sizeof head);
	struct iovec parts[] = { { head, sizeof head }, { body, length } };
	struct msghdr message = { .msg_iov = parts, .msg_iovlen = 2 };
	if (descriptor >= 0) {
		message.msg_control = control;
		message.msg_controllen = sizeof control;
		struct cmsghdr *rights = CMSG_FIRSTHDR(&message);
		rights->cmsg_len = CMSG_LEN(sizeof(int)); /* by name: C libraries order them differently */
		rights->cmsg_level = SOL_SOCKET;
		rights->cmsg_type = SCM_RIGHTS;
		memcpy(CMSG_DATA(rights), &descriptor, sizeof(int));
	}
	/* Small enough for any socket's buffer, which is empty: each message answers one. */
	if (sendmsg(channel, &message, MSG_NOSIGNAL) != (ssize_t)(sizeof head + length))
		end();
}

static struct field text(const char *string)
{
	return (struct field){ (char *)string, strlen(string) };
}

static void send_error(const char *kind, int number, const char *path)
{
	char digits[16];
	snprintf(digits, sizeof digits, "%d", number);
	struct field where = text(path);
	if (where.length > 512)
		where.length = 512;
	send_message(-1, 4, (struct field[]){ text(kind), text(strerror(number)), text(digits), where });
}

static void receive_header(struct request *r, uint32_t *length)
{
	char control[CMSG_SPACE(MAX_DESCRIPTORS * sizeof(int))];
	struct iovec part = { length, sizeof *length };
	struct msghdr message = {
		.msg_iov = &part, .msg_iovlen = 1, .msg_control = control, .msg_controllen = sizeof control
	};
	ssize_t got;
	do
		got = recvmsg(channel, &message, MSG_CMSG_CLOEXEC);
	while (got < 0 && errno == EINTR);
	if (got <= 0)
		end();
	for (struct cmsghdr *c = CMSG_FIRSTHDR(&message); c; c = CMSG_NXTHDR(&message, c))
		if (c->cmsg_level == SOL_SOCKET && c->cmsg_type == SCM_RIGHTS) {
			r->descriptor_count = (c->cmsg_len - CMSG_LEN(0)) / sizeof(int);
			memcpy(r->descriptors, CMSG_DATA(c), r->descriptor_count * sizeof(int));
		}
	read_all((char *)length + got, sizeof *length - got);
}

/* The strings of wire.py's join_list, as an array that ends with NULL and lies at ``array``. */
static char **split_list(struct field list, char **array)
{
	int count = 0;
	if (list.length)
		array[count++] = list.start;
	for (uint32_t i = 0; i < list.length; i++)
		if (!list.start[i])
			array[count++] = list.start + i + 1;
	array[count] = NULL;
	return array;
}

static size_t count_list(struct field list)
{
	size_t count = 2;
	for (uint32_t i = 0; i < list.length; i++)
		count += !list.start[i];
	return count;
}

static void *map(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		end();
	return memory;
}

static void receive(struct request *r, char ***arrays, size_t *array_bytes)
{
	uint32_t length;
	memset(r, 0, sizeof *r);
	receive_header(r, &length);
	r->bytes = (size_t)length + 1;
	r->memory = map(r->bytes);
	read_all(r->memory, length);
	for (uint32_t at = 0; at + sizeof length <= length && r->field_count < MAX_FIELDS;) {
		struct field *f = &r->fields[r->field_count++];
		memcpy(&f->length, r->memory + at, sizeof f->length);
		f->start = r->memory + at + sizeof f->length;
		if (f->length > length - at - sizeof f->length)
			end();
		at += sizeof f->length + f->length;
	}
	if (r->field_count < 3)
		end();
	/* Each ends where the length of the next begins, which has been read by now. */
	for (int i = 0; i < r->field_count; i++)
		r->fields[i].start[r->fields[i].length] = 0;
	size_t arguments = count_list(r->fields[1]), variables = count_list(r->fields[2]);
	*array_bytes = (arguments + variables) * sizeof(char *);
	*arrays = map(*array_bytes);
	r->cwd = r->fields[0].start;
	r->argv = split_list(r->fields[1], *arrays);
	r->env = split_list(r->fields[2], *arrays + arguments);
	if (r->field_count > 3 && r->fields[3].length == sizeof(struct winsize))
		r->size = r->fields[3].start;
}

/* --- commands --- */

/* The program as a shell would find it: the first executable one, else the first of that name, else NULL. */
static const char *find(const char *name, char **env, char *found, size_t size)
{
	const char *path = DEFAULT_PATH;
	char candidate[4096];
	struct stat status;
	if (strchr(name, '/'))
		return name;
	for (; *env; env++)
		if (!strncmp(*env, "PATH=", 5))
			path = *env + 5;
	*found = 0;
	while (1) {
		size_t length = strcspn(path, ":");
		int fits = snprintf(candidate, sizeof candidate, "%.*s/%s", length ? (int)length : 1,
				    length ? path : ".", name);
		if (fits > 0 && (size_t)fits < sizeof candidate && !stat(candidate, &status) && S_ISREG(status.st_mode)) {
			int executable = !access(candidate, X_OK);
			if (executable || !*found)
				snprintf(found, size, "%s", candidate);
			if (executable)
				return found;
		}
		if (!path[length])
			return *found ? found : NULL;
		path += length + 1;
	}
}

/* In a child that shares this process's memory until it executes: returns only if that fails, with errno. */
static void execute(const char *program, const struct request *r, const char *terminal, const sigset_t *mask)
{
	static const int ignored_by_python[] = { SIGPIPE, SIGXFSZ };
	int streams[3] = { 0, 1, 2 };
	for (size_t i = 0; i < sizeof ignored_by_python / sizeof *ignored_by_python; i++)
		signal(ignored_by_python[i], SIG_DFL);
	setsid();
	sigprocmask(SIG_SETMASK, mask, NULL);
	if (*terminal) {
		/* It becomes the controlling terminal because the leader of a new session opens it. */
		int opened = open(terminal, O_RDWR | O_CLOEXEC);
		if (opened < 0)
			return;
		streams[0] = streams[1] = streams[2] = opened;
	} else {
		memcpy(streams, r->descriptors, sizeof streams);
	}
	for (int i = 0; i < 3; i++)
		if (dup2(streams[i], i) < 0)
			return;
	execve(program, r->argv, r->env);
}

static struct outcome run(const struct request *r, const char *terminal, int errors)
{
	static volatile int failed;
	char found[4096];
	struct outcome o = { 0, 0, 0, 0 };
	const char *program = find(r->argv[0], r->env, found, sizeof found);
	int status = 0;
	pid_t pid = 0, ended;
	sigset_t all, before;
	failed = program ? 0 : ENOENT;
	o.started = now();
	if (program) {
		/* Until the command has a group of its own, and this process knows it, signals wait. */
		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, &before);
		pid = vfork();
		if (pid == 0) {
			execute(program, r, terminal, &before);
			failed = errno;
			_exit(NOT_FOUND);
		}
		if (pid < 0)
			failed = errno;
		else
			running = pid;
		sigprocmask(SIG_SETMASK, &before, NULL);
	}
	if (pid > 0)
		do
			ended = waitpid(-1, &status, 0); /* orphans among them */
		while (ended != pid && (ended > 0 || errno == EINTR));
	o.ended = now();
	running = 0;
	if (failed) {
		o.status = failed == ENOENT || failed == ENOTDIR ? NOT_FOUND : NOT_EXECUTABLE;
		dprintf(errors, "tare: %s: %s\n", r->argv[0], strerror(failed));
	} else if (WIFSIGNALED(status)) {
		o.status = -1;
		o.number = WTERMSIG(status);
	} else {
		o.status = WEXITSTATUS(status);
	}
	return o;
}

/* Allocate a terminal of the instance's own devpts, and send its master side; its other side, or -1 with errno. */
static int give_terminal(const char *size, char *path, size_t path_size)
{
	int zero = 0, other = -1;
	unsigned number;
	int master = open("/dev/ptmx", O_RDWR | O_NOCTTY | O_CLOEXEC);
	if (master < 0)
		return -1;
	if (!ioctl(master, TIOCSPTLCK, &zero) && !ioctl(master, TIOCGPTN, &number) && !ioctl(master, TIOCSWINSZ, size)) {
		snprintf(path, path_size, "/dev/pts/%u", number);
		other = open(path, O_RDWR | O_NOCTTY | O_CLOEXEC);
	}
	if (other >= 0)
		send_message(master, 1, (struct field[]){ text("terminal") });
	int number_kept = errno;
	close(master);
	errno = number_kept;
	return other;
}

static void serve(struct request *r)
{
	char terminal[32] = "";
	if (r->size) {
		int other = give_terminal(r->size, terminal, sizeof terminal);
		if (other < 0) {
			send_error("no-terminal", errno, "/dev/ptmx");
			return;
		}
		r->descriptors[r->descriptor_count++] = other;
	}
	if ((!r->size && r->descriptor_count != 3) || !r->argv[0])
		end();
	if (chdir(r->cwd) < 0) {
		int number = errno;
		send_error("no-cwd", number, r->cwd);
	} else {
		/* Waiting for the command must be what collects its status, not the kernel. */
		signal(SIGCHLD, SIG_DFL);
		struct outcome o = run(r, terminal, r->descriptors[r->descriptor_count - 1]);
		signal(SIGCHLD, SIG_IGN); /* orphans are reaped by the kernel from now on */
		while (waitpid(-1, NULL, WNOHANG) > 0)
			;
		if (chdir("/") < 0)
			end();
		for (int i = 0; i < r->descriptor_count; i++)
			close(r->descriptors[i]);
		r->descriptor_count = 0;
		send_message(-1, 2, (struct field[]){ text("done"), { (char *)&o, sizeof o } });
	}
	for (int i = 0; i < r->descriptor_count; i++)
		close(r->descriptors[i]);
}

int main(int argc, char **argv)
{
	if (argc != 2)
		return 2;
	channel = atoi(argv[1]);
	fcntl(channel, F_SETFD, FD_CLOEXEC);
	prctl(PR_SET_NAME, "tare-init");
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	signal(SIGCHLD, SIG_IGN);
	forward_signals();
	while (1) {
		struct request r;
		char **arrays;
		size_t array_bytes;
		receive(&r, &arrays, &array_bytes);
		serve(&r);
		munmap(arrays, array_bytes);
		munmap(r.memory, r.bytes);
	}
}
