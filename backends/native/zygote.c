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
#include <sys/wait.h>
#include <termios.h>
#include <time.h>
#include <unistd.h>

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

struct created {
	int32_t pid;
	int64_t when;
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
static int64_t first_instruction;
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

static int write_file(const char *path, int flags, const char *content, size_t length)
{
	int file = open(path, O_WRONLY | O_CLOEXEC | flags, 0644);
	if (file < 0)
		return -1;
	ssize_t written = write(file, content, length);
	int number = errno;
	close(file);
	errno = number;
	return written < 0 ? -1 : 0;
}

/* The harness is gone, or what it says makes no sense: an instance ends with its first process. */
static void end(void)
{
	for (; kill_files; kill_files = kill_files->next)
		write_file(kill_files->path, 0, "1", 1);
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

static struct field shortened(struct field f)
{
	return (struct field){ f.start, f.length > 400 ? 400 : f.length };
}

/* ``step`` may be empty: then it is no step that failed. */
static void send_error(const char *kind, struct field step, int number, const char *path)
{
	char digits[16];
	snprintf(digits, sizeof digits, "%d", number);
	send_message(-1, 5, (struct field[]){ text(kind), shortened(step), text(strerror(number)), text(digits),
					      shortened(text(path)) });
}

static void receive_header(struct message *r, uint32_t *length)
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

static void *map(size_t bytes)
{
	void *memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
	if (memory == MAP_FAILED)
		end();
	return memory;
}

static void receive(struct message *m, int least)
{
	uint32_t length;
	memset(m, 0, sizeof *m);
	receive_header(m, &length);
	m->bytes = (size_t)length + 1;
	m->memory = map(m->bytes);
	read_all(m->memory, length);
	for (uint32_t at = 0; at + sizeof length <= length && m->field_count < MAX_FIELDS;) {
		struct field *f = &m->fields[m->field_count++];
		memcpy(&f->length, m->memory + at, sizeof f->length);
		f->start = m->memory + at + sizeof f->length;
		if (f->length > length - at - sizeof f->length)
			end();
		at += sizeof f->length + f->length;
	}
	if (m->field_count < least)
		end();
	/* Each ends where the length of the next begins, which has been read by now. */
	for (int i = 0; i < m->field_count; i++)
		m->fields[i].start[m->fields[i].length] = 0;
}

static void drop(struct message *m)
{
	for (int i = 0; i < m->descriptor_count; i++)
		close(m->descriptors[i]);
	munmap(m->memory, m->bytes);
}

/* --- steps --- */

struct call {
	uint32_t kind, forgiven;
	uint64_t numbers[MAX_NUMBERS];
	char *strings[MAX_STRINGS];
	uint32_t lengths[MAX_STRINGS];
};

static uint32_t take_number(char **at)
{
	uint32_t number;
	memcpy(&number, *at, sizeof number);
	*at += sizeof number;
	return number;
}

static void take_call(char **at, struct call *c)
{
	c->kind = take_number(at);
	c->forgiven = take_number(at);
	memcpy(c->numbers, *at, sizeof c->numbers);
	*at += sizeof c->numbers;
	for (int i = 0; i < MAX_STRINGS; i++) {
		c->lengths[i] = take_number(at);
		c->strings[i] = *at;
		*at += c->lengths[i] + 1;
	}
}

/* Mount over the path what is at ``file``, or at ``folder`` if it is one. What is absent needs no mask. */
static int mask(const char *path, const char *file, const char *folder)
{
	int failed = mount(file, path, "", MS_BIND, "");
	if (failed && errno == ENOTDIR)
		failed = mount(folder, path, "", MS_BIND, "");
	return failed && errno == ENOENT ? 0 : failed;
}

static int make_read_only(const char *path)
{
	if (mount(path, path, "", MS_BIND, ""))
		return errno == ENOENT ? 0 : -1;
	return mount("", path, "", MS_BIND | MS_REMOUNT | MS_RDONLY | QUIET, "");
}

/* ``flags`` replace the mount's own; with ``keep`` they are added, as a user namespace may take none away. */
static int bind_to(const char *path, const char *source, unsigned long recursive, unsigned long flags, int keep)
{
	struct statvfs status;
	if (mount(source, path, "", MS_BIND | recursive, ""))
		return -1;
	if (!flags)
		return 0;
	if (keep && statvfs(path, &status))
		return -1;
	return mount("", path, "", MS_BIND | MS_REMOUNT | flags | (keep ? status.f_flag & KEPT : 0), "");
}

/* Refuses a link at the end of the path: what is mounted there would go where it leads, outside the root. */
static int require_folder(const char *path)
{
	int found = open(path, O_PATH | O_NOFOLLOW | O_DIRECTORY | O_CLOEXEC);
	if (found < 0)
		return -1;
	close(found);
	return 0;
}

static int pivot(const char *root)
{
	/* Both the same: the old root ends up over the new one, needs no folder, and is what "." then unmounts. */
	if (chdir(root) || syscall(SYS_pivot_root, ".", ".") || umount2(".", MNT_DETACH))
		return -1;
	return chdir("/");
}

/* A device with its mode whatever the umask, on a mount of its own that devices can be opened on. */
static int make_device(const char *path, mode_t mode, dev_t device)
{
	if (mknod(path, mode, device) || chmod(path, mode & 07777))
		return -1;
	return mount(path, path, "", MS_BIND, "");
}

static int raise_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int by = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (by < 0)
		return -1;
	int failed = ioctl(by, SIOCSIFFLAGS, &request), number = errno;
	close(by);
	errno = number;
	return failed;
}

static int bound_capabilities(uint64_t keep)
{
	for (int number = 0; number < 64; number++)
		if (!(keep >> number & 1) && prctl(PR_CAPBSET_DROP, number, 0, 0, 0) && errno != EINVAL)
			return -1; /* EINVAL: this kernel knows no such capability */
	return 0;
}

static int keep_capabilities(uint64_t keep)
{
	uint32_t low = keep, high = keep >> 32, header[2] = { 0x20080522 /* _LINUX_CAPABILITY_VERSION_3 */, 0 };
	uint32_t sets[6] = { low, low, 0, high, high, 0 }; /* effective, permitted, inheritable */
	return syscall(SYS_capset, header, sets);
}

static int install_filter(char *program, uint32_t length)
{
	struct filter_program described = { length / 8, program };
	return prctl(PR_SET_SECCOMP, 2 /* SECCOMP_MODE_FILTER */, &described);
}

/* By bare calls: C libraries would tell other threads, of which there are none. */
static int become_root(void)
{
	if (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, 0, 0, 0) || syscall(SYS_setresuid, 0, 0, 0))
		return -1;
	/* The kernel takes this away with the old identity, and with it the ownership of /proc/PID. */
	return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

/* Standard streams of the instance's own instead of the zygote's, which are the host's. */
static int replace_streams(const char *null)
{
	int opened = open(null, O_RDWR | O_CLOEXEC);
	if (opened < 0)
		return -1;
	for (int i = 0; i < 3; i++)
		if (dup2(opened, i) < 0)
			return -1;
	return close(opened);
}

static int limit_files(uint64_t most)
{
	struct rlimit limit;
	if (getrlimit(RLIMIT_NOFILE, &limit))
		return -1;
	limit.rlim_cur = most;
	return setrlimit(RLIMIT_NOFILE, &limit);
}

/* A user namespace with these maps, as a descriptor that keeps it. */
static int open_user_namespace(const struct call *c)
{
	int made[2], ended[2], namespace = -1;
	char path[64], byte;
	if (pipe2(made, O_CLOEXEC) || pipe2(ended, O_CLOEXEC))
		return -1;
	pid_t pid = fork();
	if (pid < 0)
		return -1;
	if (pid == 0) {
		close(ended[1]);
		if (unshare(CLONE_NEWUSER) == 0 && write(made[1], "1", 1) == 1 && read(ended[0], &byte, 1) < 0)
			_exit(1);
		_exit(0);
	}
	close(made[1]);
	close(ended[0]);
	errno = ENOSPC; /* what unshare says where there may be no more of them */
	if (read(made[0], &byte, 1) == 1) {
		snprintf(path, sizeof path, "/proc/%d/gid_map", pid);
		int failed = write_file(path, 0, c->strings[3], c->lengths[3]);
		snprintf(path, sizeof path, "/proc/%d/uid_map", pid);
		failed = failed || write_file(path, 0, c->strings[2], c->lengths[2]);
		snprintf(path, sizeof path, "/proc/%d/ns/user", pid);
		if (!failed)
			namespace = open(path, O_RDONLY | O_CLOEXEC);
	}
	int number = errno;
	close(made[0]);
	close(ended[1]);
	errno = number;
	return namespace;
}

/* Attach a copy of a tree whose owners are mapped (Linux 5.12): nothing on disk is changed. */
static int mount_with_owners(const struct call *c)
{
	struct { uint64_t set, clear, propagation, namespace; } attributes = { 0x00100000 /* MOUNT_ATTR_IDMAP */, 0, 0, 0 };
	enum { OPEN_TREE = 428, MOVE_MOUNT = 429, MOUNT_SETATTR = 442, CLONE = 1, FROM_EMPTY = 4 };
	int failed = -1, tree = syscall(OPEN_TREE, AT_FDCWD, c->strings[1], CLONE | O_CLOEXEC);
	if (tree < 0)
		return -1;
	int namespace = open_user_namespace(c);
	if (namespace >= 0) {
		attributes.namespace = namespace;
		failed = syscall(MOUNT_SETATTR, tree, "", AT_EMPTY_PATH, &attributes, sizeof attributes) ||
			 syscall(MOVE_MOUNT, tree, "", AT_FDCWD, c->strings[0], FROM_EMPTY);
		int number = errno;
		close(namespace);
		errno = number;
	}
	int number = errno;
	close(tree);
	errno = number;
	return failed ? -1 : 0;
}

static char **split_list(struct field list, char **array);

/* This process becomes the distribution's init; what returns is another, once something was written to the FIFO. */
static int become_system(const struct call *c)
{
	static char *argv[8], *env[8];
	char byte;
	/* Open for writing too, so that opening does not wait. */
	int reached = open(c->strings[1], O_RDWR | O_CLOEXEC);
	if (reached < 0)
		return -1;
	pid_t pid = fork();
	if (pid < 0)
		return -1;
	if (pid) {
		signal(SIGCHLD, SIG_DFL);
		split_list((struct field){ c->strings[2], c->lengths[2] }, argv);
		split_list((struct field){ c->strings[3], c->lengths[3] }, env);
		return execve(c->strings[0], argv, env);
	}
	setsid();
	while (read(reached, &byte, 1) < 0 && errno == EINTR)
		;
	return close(reached);
}

static int make_call(const struct call *c)
{
	char *const *s = c->strings;
	const uint64_t *n = c->numbers;
	switch (c->kind) {
	case CALL_MOUNT: return mount(s[1], s[0], s[2], n[0], s[3]);
	case CALL_BIND: return bind_to(s[0], s[1], n[0], n[1], n[2]);
	case CALL_MASK: return mask(s[0], s[1], s[2]);
	case CALL_READ_ONLY: return make_read_only(s[0]);
	case CALL_REQUIRE_FOLDER: return require_folder(s[0]);
	case CALL_MOUNT_WITH_OWNERS: return mount_with_owners(c);
	case CALL_PIVOT: return pivot(s[0]);
	case CALL_MKDIR: return mkdir(s[0], n[0]);
	case CALL_MKNOD: return mknod(s[0], n[0], n[1]);
	case CALL_DEVICE: return make_device(s[0], n[0], n[1]);
	case CALL_SYMLINK: return symlink(s[1], s[0]);
	case CALL_WRITE: return write_file(s[0], n[0], s[1], c->lengths[1]);
	case CALL_CHDIR: return chdir(s[0]);
	case CALL_UMASK: return umask(n[0]), 0;
	case CALL_STREAMS: return replace_streams(s[0]);
	case CALL_UNSHARE: return unshare(n[0]);
	case CALL_HOSTNAME: return sethostname(s[1], c->lengths[1]);
	case CALL_LOOPBACK: return raise_loopback();
	case CALL_KEYRING: return syscall(SYS_keyctl, 1 /* KEYCTL_JOIN_SESSION_KEYRING */, NULL) < 0 ? -1 : 0;
	case CALL_AFFINITY: return syscall(SYS_sched_setaffinity, 0, c->lengths[1], s[1]) < 0 ? -1 : 0;
	case CALL_FILES: return limit_files(n[0]);
	case CALL_PRCTL: return prctl(n[0], n[1], 0, 0, 0);
	case CALL_GROUPS: return syscall(SYS_setgroups, 0, NULL);
	case CALL_BECOME_ROOT: return become_root();
	case CALL_BOUND_CAPABILITIES: return bound_capabilities(n[0]);
	case CALL_KEEP_CAPABILITIES: return keep_capabilities(n[0]);
	case CALL_FILTER: return install_filter(s[1], c->lengths[1]);
	case CALL_SYSTEM:
		first_instruction = now();
		return become_system(c);
	}
	errno = ENOSYS;
	return -1;
}

static uint32_t count_steps(struct field list)
{
	return take_number(&list.start);
}

/* Carry out the steps of a list, numbered from ``done`` of ``all``; 0, or -1 after having told which failed and why. */
static int carry_out(struct field list, uint32_t done, uint32_t all)
{
	char *at = list.start;
	struct call c;
	for (uint32_t left = take_number(&at); left; left--) {
		struct field name = { NULL, take_number(&at) };
		name.start = at;
		at += name.length;
		done++;
		for (uint32_t calls = take_number(&at); calls; calls--) {
			take_call(&at, &c);
			if (make_call(&c) == 0 || c.forgiven == ANY_ERROR || (uint32_t)errno == c.forgiven)
				continue;
			char step[400];
			int number = errno;
			snprintf(step, sizeof step, "%u/%u %.*s", done, all, (int)name.length, name.start);
			send_error("failed", text(step), number, c.strings[0]);
			return -1;
		}
	}
	return 0;
}

/* --- commands --- */

/* The strings of channel.py's join_list, as an array that ends with NULL and lies at ``array``. */
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

static void receive_command(struct request *r, char ***arrays, size_t *array_bytes)
{
	struct field *fields = r->message.fields;
	memset(r, 0, sizeof *r);
	receive(&r->message, 3);
	size_t arguments = count_list(fields[1]), variables = count_list(fields[2]);
	*array_bytes = (arguments + variables) * sizeof(char *);
	*arrays = map(*array_bytes);
	r->cwd = fields[0].start;
	r->argv = split_list(fields[1], *arrays);
	r->env = split_list(fields[2], *arrays + arguments);
	if (r->message.field_count > 3 && fields[3].length == sizeof(struct winsize))
		r->size = fields[3].start;
}


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
		int streams[3];
	setsid();
	sigprocmask(SIG_SETMASK, mask, NULL);
	if (*terminal) {
		/* It becomes the controlling terminal because the leader of a new session opens it. */
		int opened = open(terminal, O_RDWR | O_CLOEXEC);
		if (opened < 0)
			return;
		streams[0] = streams[1] = streams[2] = opened;
	} else {
		const struct message *m = &r->message;
		int given = m->descriptor_count == 3;
		streams[0] = given ? m->descriptors[0] : open("/dev/null", O_RDONLY | O_CLOEXEC);
		streams[1] = m->descriptors[given];
		streams[2] = m->descriptors[given + 1];
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
	struct message *m = &r->message;
	char terminal[32] = "";
	if (r->size) {
		int other = give_terminal(r->size, terminal, sizeof terminal);
		if (other < 0) {
			send_error("no-terminal", text(""), errno, "/dev/ptmx");
			return;
		}
		m->descriptors[m->descriptor_count++] = other;
	}
	if ((!r->size && m->descriptor_count != 2 && m->descriptor_count != 3) || !r->argv[0])
		end();
	if (chdir(r->cwd) < 0) {
		send_error("no-cwd", text(""), errno, r->cwd);
		return;
	}
	/* Waiting for the command must be what collects its status, not the kernel. */
	signal(SIGCHLD, SIG_DFL);
	struct outcome o = run(r, terminal, m->descriptors[m->descriptor_count - 1]);
	signal(SIGCHLD, SIG_IGN); /* orphans are reaped by the kernel from now on */
	while (waitpid(-1, NULL, WNOHANG) > 0)
		;
	if (chdir("/") < 0)
		end();
	send_message(-1, 2, (struct field[]){ text("done"), { (char *)&o, sizeof o } });
}

/* --- the life of an instance, and of the zygote --- */

static void live(struct message *start, struct field last)
{
	struct message go;
	struct field first = start->fields[0];
	uint32_t all = count_steps(first) + count_steps(last);
	prctl(PR_SET_NAME, "tare-init");
	receive(&go, 0); /* its cgroups are there */
	drop(&go);
	if (carry_out(first, 0, all) || carry_out(last, count_steps(first), all))
		_exit(0);
	munmap(start->memory, start->bytes);
	if (!first_instruction)
		first_instruction = now();
	forward_signals();
	send_message(-1, 2, (struct field[]){ text("ready"), { (char *)&first_instruction, sizeof first_instruction } });
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

static pid_t clone_into(uint64_t flags, int cgroup)
{
	struct clone_args arguments = { .flags = flags, .exit_signal = SIGCHLD };
	if (cgroup >= 0) {
		arguments.flags |= 0x200000000 /* CLONE_INTO_CGROUP */;
		arguments.cgroup = cgroup;
	}
	return syscall(435 /* clone3, everywhere */, &arguments, sizeof arguments);
}

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
		struct created made = { pid, now() };
		if (pid < 0)
			send_error("failed", text(""), errno, "");
		else
			send_message(-1, 2, (struct field[]){ text("created"), { (char *)&made, sizeof made } });
		if (pid > 0)
			remember(start.fields[1]);
		drop(&start);
	}
}
