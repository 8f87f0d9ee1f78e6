/* The floor under a container start: the same steps as backends/native, by bare system calls.
 *
 * It is a server: each line on stdin makes one container, and the answer is one line with the nanoseconds from
 * reading the line until the container's first process has said that it is ready. The container is then removed,
 * outside that time. The first process shares the memory of this one (CLONE_VM), so nothing is copied on write:
 * no runtime that forks can be faster.
 *
 * A line that begins with "keep" leaves the container alive, with a stack of its own; "end" ends and removes all that
 * were kept.
 *
 * Usage: floor LOWER WORK_FOLDER CPU MEMORY_BYTES PIDS_MAX IO_DEVICE FILTER OWN_FILTER CONTROLLER=PARENT_FOLDER...
 * FILTER and OWN_FILTER are files of seccomp programs: the first is installed once, the second by each container.
 * (unified= takes CLONE_INTO_CGROUP; v2= likewise, with the limits in it.)
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/sched.h>
#include <linux/seccomp.h>
#include <net/if.h>
#include <sched.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/mount.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/sysmacros.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define MAX_GROUPS 12
#define STACK_BYTES (256 * 1024)
#define QUIET (MS_NOSUID | MS_NODEV | MS_NOEXEC)

struct group {
	char name[16], parent[512], folder[600];
};

static struct group groups[MAX_GROUPS];
static int group_count, cpu, ready_pipe[2];
static char *lower, *work, *memory, *pids, *device;
static struct sock_fprog own_filter;
static char root[512], instance[600], empty[512];
static char stack[STACK_BYTES] __attribute__((aligned(16)));

static void die(const char *what, const char *path)
{
	dprintf(2, "floor: %s %s: %s\n", what, path, strerror(errno));
	if (getpid() == 1 && write(ready_pipe[1], "f", 1) < 0) /* a container: whoever waits for it must not for ever */
		_exit(2);
	_exit(1);
}

static void put(const char *folder, const char *file, const char *value, int needed)
{
	char path[1024];
	snprintf(path, sizeof path, "%s/%s", folder, file);
	int fd = open(path, O_WRONLY | O_CLOEXEC);
	if (fd < 0 || write(fd, value, strlen(value)) < 0) {
		if (needed || errno != ENOENT)
			die("write", path);
	}
	if (fd >= 0)
		close(fd);
}

static void get(const char *folder, const char *file, char *value, size_t size)
{
	char path[1024];
	snprintf(path, sizeof path, "%s/%s", folder, file);
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, value, size - 1);
	if (n < 0)
		die("read", path);
	value[n] = 0;
	close(fd);
}

static void limit(struct group *g, const char *cpus)
{
	char text[128];
	if (!strcmp(g->name, "cpuset")) {
		get(g->parent, "cpuset.mems", text, sizeof text);
		put(g->folder, "cpuset.mems", text, 1);
		put(g->folder, "cpuset.cpus", cpus, 1);
	} else if (!strcmp(g->name, "memory")) {
		put(g->folder, "memory.limit_in_bytes", memory, 1);
		put(g->folder, "memory.memsw.limit_in_bytes", memory, 0);
	} else if (!strcmp(g->name, "pids")) {
		put(g->folder, "pids.max", pids, 1);
	} else if (!strcmp(g->name, "blkio") && *device) {
		snprintf(text, sizeof text, "%s 18446744073709551614", device);
		put(g->folder, "blkio.throttle.read_bps_device", text, 1);
	} else if (!strcmp(g->name, "v2")) {
		put(g->folder, "cpuset.cpus", cpus, 0);
		put(g->folder, "memory.max", memory, 0);
		put(g->folder, "memory.swap.max", "0", 0);
		put(g->folder, "pids.max", pids, 0);
	}
}

static void attach(const char *source, const char *below, const char *type, unsigned long flags, const char *data)
{
	char target[700];
	snprintf(target, sizeof target, "%s%s", root, below);
	if (mount(source, target, type, flags, data) < 0)
		die("mount", target);
}

static void mask(const char *below)
{
	char target[700], null[600];
	snprintf(target, sizeof target, "%s%s", root, below);
	snprintf(null, sizeof null, "%s/dev/null", root);
	if (mount(null, target, "", MS_BIND, "") == 0 || errno == ENOENT)
		return;
	if (errno != ENOTDIR || mount(empty, target, "", MS_BIND, "") < 0)
		die("mask", target);
}

static void protect(const char *below)
{
	char target[700];
	snprintf(target, sizeof target, "%s%s", root, below);
	if (mount(target, target, "", MS_BIND, "") < 0) {
		if (errno == ENOENT)
			return;
		die("bind", target);
	}
	if (mount("", target, "", MS_BIND | MS_REMOUNT | MS_RDONLY | QUIET, "") < 0)
		die("remount", target);
}

static void fill_dev(void)
{
	static const struct { const char *name; int major, minor; } nodes[] = {
		{ "null", 1, 3 }, { "zero", 1, 5 }, { "full", 1, 7 }, { "random", 1, 8 }, { "urandom", 1, 9 }, { "tty", 5, 0 },
	};
	static const char *const links[][2] = {
		{ "fd", "/proc/self/fd" }, { "stdin", "/proc/self/fd/0" }, { "stdout", "/proc/self/fd/1" },
		{ "stderr", "/proc/self/fd/2" }, { "ptmx", "pts/ptmx" },
	};
	static const char *const folders[] = { "pts", "shm", "mqueue" };
	char path[700];
	for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
		snprintf(path, sizeof path, "%s/dev/%s", root, nodes[i].name);
		if (mknod(path, S_IFCHR | 0666, makedev(nodes[i].major, nodes[i].minor)) < 0 || chmod(path, 0666) < 0 ||
		    mount(path, path, "", MS_BIND, "") < 0)
			die("mknod", path);
	}
	attach("", "/dev", "", MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV | MS_STRICTATIME, "");
	for (size_t i = 0; i < sizeof links / sizeof *links; i++) {
		snprintf(path, sizeof path, "%s/dev/%s", root, links[i][0]);
		if (symlink(links[i][1], path) < 0)
			die("symlink", path);
	}
	for (size_t i = 0; i < sizeof folders / sizeof *folders; i++) {
		snprintf(path, sizeof path, "%s/dev/%s", root, folders[i]);
		if (mkdir(path, 0755) < 0)
			die("mkdir", path);
	}
}

static void mounts(void)
{
	static const char *const masked[] = { "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats" };
	static const char *const fixed[] = { "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger" };
	char text[2200];
	snprintf(text, sizeof text, "lowerdir=%s,upperdir=%s/upper,workdir=%s/work", lower, instance, instance);
	attach("overlay", "", "overlay", MS_NOSUID | MS_NODEV, text);
	snprintf(text, sizeof text, "%s/scratch", instance);
	attach(text, "/scratch", "", MS_BIND, "");
	attach("", "/scratch", "", MS_BIND | MS_REMOUNT | MS_NOSUID | MS_NODEV, "");
	attach("tmpfs", "/dev", "tmpfs", MS_NOSUID | MS_STRICTATIME, "mode=755,size=64k");
	fill_dev();
	attach("devpts", "/dev/pts", "devpts", MS_NOSUID | MS_NOEXEC, "newinstance,ptmxmode=0666,mode=0620,gid=5");
	attach("shm", "/dev/shm", "tmpfs", QUIET, "mode=1777,size=64m");
	attach("mqueue", "/dev/mqueue", "mqueue", QUIET, "");
	attach("proc", "/proc", "proc", QUIET, "");
	for (size_t i = 0; i < sizeof masked / sizeof *masked; i++)
		mask(masked[i]);
	for (size_t i = 0; i < sizeof fixed / sizeof *fixed; i++)
		protect(fixed[i]);
	attach("sysfs", "/sys", "sysfs", QUIET | MS_RDONLY, "");
	mask("/sys/devices/virtual/powercap");
	mask("/sys/firmware");
}

static void raise_loopback(void)
{
	struct ifreq request = { .ifr_name = "lo", .ifr_flags = IFF_UP };
	int fd = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
	if (fd < 0 || ioctl(fd, SIOCSIFFLAGS, &request) < 0)
		die("bring up", "lo");
	close(fd);
}

static void drop_capabilities(void)
{
	struct __user_cap_header_struct header = { _LINUX_CAPABILITY_VERSION_3, 0 };
	struct __user_cap_data_struct data[2] = { { 0xa80425fb, 0xa80425fb, 0 }, { 0, 0, 0 } };
	if (syscall(SYS_capset, &header, data) < 0)
		die("capset", "");
}

static struct sock_fprog load_filter(const char *path)
{
	static struct sock_filter programs[2][4096];
	static int loaded;
	struct sock_fprog program = { 0, programs[loaded] };
	int fd = open(path, O_RDONLY | O_CLOEXEC);
	ssize_t n = fd < 0 ? -1 : read(fd, programs[loaded++], sizeof programs[0]);
	if (n < 0)
		die("read", path);
	close(fd);
	program.len = n / sizeof(struct sock_filter);
	return program;
}

static void install_filter(struct sock_fprog *program)
{
	if (prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, program) < 0)
		die("install", "seccomp filter");
}

static void contained(void)
{
	cpu_set_t set;
	prctl(PR_SET_PDEATHSIG, SIGKILL);
	for (int i = 0; i < group_count; i++)
		if (strcmp(groups[i].name, "unified") && strcmp(groups[i].name, "v2"))
			put(groups[i].folder, "tasks", "0", 1);
	CPU_ZERO(&set);
	CPU_SET(cpu, &set);
	if (sched_setaffinity(0, sizeof set, &set) < 0)
		die("sched_setaffinity", "");
	if (unshare(CLONE_NEWCGROUP) < 0)
		die("unshare", "cgroup");
	mounts();
	if (chdir(root) < 0 || syscall(SYS_pivot_root, ".", ".") < 0 || umount2(".", MNT_DETACH) < 0 || chdir("/") < 0)
		die("pivot_root", root);
	if (sethostname("floor", 5) < 0)
		die("sethostname", "");
	raise_loopback();
	prctl(PR_SET_DUMPABLE, 0, 0, 0, 0);
	drop_capabilities();
	install_filter(&own_filter);
	if (write(ready_pipe[1], "r", 1) != 1)
		die("write", "pipe");
	for (;;)
		pause();
}

static pid_t start(int cgroup, char *its_stack)
{
	struct clone_args args = {
		.flags = CLONE_VM | CLONE_NEWNS | CLONE_NEWPID | CLONE_NEWNET | CLONE_NEWUTS | CLONE_NEWIPC,
		.exit_signal = SIGCHLD,
		.stack = (unsigned long)its_stack,
		.stack_size = STACK_BYTES,
	};
	if (cgroup >= 0) {
		args.flags |= CLONE_INTO_CGROUP;
		args.cgroup = cgroup;
	}
	/* The child comes back from the system call on an empty stack, so it must not return from this function:
	 * the jump is made before anything on the stack is used. */
	register long result __asm__("rax") = SYS_clone3;
	register struct clone_args *first __asm__("rdi") = &args;
	register long second __asm__("rsi") = sizeof args;
	__asm__ volatile("syscall\n\t"
			 "test %%rax, %%rax\n\t"
			 "jnz 1f\n\t"
			 "xor %%ebp, %%ebp\n\t"
			 "and $-16, %%rsp\n\t"
			 "call *%3\n\t"
			 "hlt\n"
			 "1:"
			 : "+r"(result)
			 : "r"(first), "r"(second), "r"(contained)
			 : "rcx", "r11", "memory");
	if (result < 0) {
		errno = -result;
		die("clone3", "");
	}
	return result;
}

static long now(void)
{
	struct timespec t;
	clock_gettime(CLOCK_MONOTONIC, &t);
	return t.tv_sec * 1000000000L + t.tv_nsec;
}

static void make_folder(const char *folder, const char *below)
{
	char path[800];
	snprintf(path, sizeof path, "%s%s", folder, below);
	if (mkdir(path, 0755) < 0)
		die("mkdir", path);
}

static void drop_folder(const char *folder, const char *below)
{
	char path[800];
	snprintf(path, sizeof path, "%s%s", folder, below);
	if (rmdir(path) < 0)
		die("rmdir", path);
}

static const char *const below[] = { "", "/upper", "/work", "/scratch", "/upper/scratch" };
static struct { pid_t pid; int number; char *stack; } kept[4096];
static int kept_count;

static char *new_stack(void)
{
	char *made = mmap(NULL, STACK_BYTES, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_STACK, -1, 0);
	if (made == MAP_FAILED)
		die("mmap", "stack");
	return made;
}

static void name_all(int number)
{
	char name[64];
	snprintf(name, sizeof name, "tare-floor-%d-%d", getpid(), number);
	for (int i = 0; i < group_count; i++)
		snprintf(groups[i].folder, sizeof groups[i].folder, "%s/%s", groups[i].parent, name);
	snprintf(instance, sizeof instance, "%s/%s", work, name);
}

static void drop(pid_t pid)
{
	waitpid(pid, NULL, 0);
	for (int i = 0; i < group_count; i++)
		while (rmdir(groups[i].folder) < 0)
			if (errno != EBUSY)
				die("rmdir", groups[i].folder);
	drop_folder(instance, "/work/work");
	for (int i = 4; i >= 0; i--)
		drop_folder(instance, below[i]);
}

static void end_all(void)
{
	for (int i = 0; i < kept_count; i++)
		kill(kept[i].pid, SIGKILL);
	for (int i = 0; i < kept_count; i++) {
		name_all(kept[i].number);
		drop(kept[i].pid);
	}
	kept_count = 0;
	puts("0");
	fflush(stdout);
}

static void one(int number, int keep)
{
	char cpus[16], byte;
	int cgroup = -1;
	long began = now();
	name_all(number);
	snprintf(cpus, sizeof cpus, "%d", cpu);
	for (int i = 0; i < group_count; i++) {
		make_folder(groups[i].folder, "");
		limit(&groups[i], cpus);
		if (!strcmp(groups[i].name, "unified") || !strcmp(groups[i].name, "v2"))
			cgroup = open(groups[i].folder, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
	}
	for (int i = 0; i < 5; i++)
		make_folder(instance, below[i]);
	keep = keep && kept_count < (int)(sizeof kept / sizeof *kept);
	if (keep && !kept[kept_count].stack)
		kept[kept_count].stack = new_stack();
	pid_t pid = start(cgroup, keep ? kept[kept_count].stack : stack);
	if (read(ready_pipe[0], &byte, 1) != 1 || byte != 'r')
		exit(1);
	printf("%ld\n", now() - began);
	fflush(stdout);
	if (cgroup >= 0)
		close(cgroup);
	if (keep) {
		kept[kept_count].pid = pid;
		kept[kept_count++].number = number;
		return;
	}
	kill(pid, SIGKILL);
	drop(pid);
}

int main(int argc, char **argv)
{
	char line[16];
	if (argc < 10)
		return 2;
	lower = argv[1], work = argv[2], cpu = atoi(argv[3]), memory = argv[4], pids = argv[5], device = argv[6];
	for (int i = 9; i < argc && group_count < MAX_GROUPS; i++) {
		char *equals = strchr(argv[i], '=');
		struct group *g = &groups[group_count++];
		snprintf(g->name, sizeof g->name, "%.*s", (int)(equals - argv[i]), argv[i]);
		snprintf(g->parent, sizeof g->parent, "%s", equals + 1);
	}
	snprintf(root, sizeof root, "%s/root", work);
	snprintf(empty, sizeof empty, "%s/empty", work);
	umask(0);
	if (pipe2(ready_pipe, O_CLOEXEC) < 0 || unshare(CLONE_NEWNS) < 0 || mount("none", "/", "", MS_REC | MS_SLAVE, "") < 0 ||
	    mount("tmpfs", empty, "tmpfs", MS_RDONLY | QUIET, "size=4k,nr_inodes=2") < 0)
		die("prepare", work);
	for (int capability = 0; capability < 64; capability++)
		if (capability > 31 || !(0xa80425fbu >> capability & 1))
			prctl(PR_CAPBSET_DROP, capability, 0, 0, 0);
	prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0);
	struct sock_fprog filter = load_filter(argv[7]);
	own_filter = load_filter(argv[8]);
	install_filter(&filter);
	puts("serving");
	fflush(stdout);
	for (int number = 0; fgets(line, sizeof line, stdin); number++)
		if (!strncmp(line, "end", 3))
			end_all();
		else
			one(number, !strncmp(line, "keep", 4));
	if (kept_count)
		end_all();
	return 0;
}
