/* Part of zygote.c: carries out the steps that steps.py describes. */

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
static int become_identity(uint64_t id)
{
	if (syscall(SYS_setgroups, 0, NULL) || syscall(SYS_setresgid, id, id, id) || syscall(SYS_setresuid, id, id, id))
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

static int limit_resource(int resource, uint64_t most, int for_good)
{
	struct rlimit limit;
	if (getrlimit(resource, &limit))
		return -1;
	limit.rlim_cur = most;
	if (for_good)
		limit.rlim_max = most;
	return setrlimit(resource, &limit);
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

static int enter_namespace(const char *path, int kind)
{
	int namespace = open(path, O_RDONLY | O_CLOEXEC);
	if (namespace < 0)
		return -1;
	int failed = setns(namespace, kind), number = errno;
	close(namespace);
	errno = number;
	return failed;
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
	case CALL_LIMIT: return limit_resource(n[0], n[1], n[2]);
	case CALL_PRCTL: return prctl(n[0], n[1], 0, 0, 0);
	case CALL_GROUPS: return syscall(SYS_setgroups, 0, NULL);
	case CALL_IDENTITY: return become_identity(n[0]);
	case CALL_BOUND_CAPABILITIES: return bound_capabilities(n[0]);
	case CALL_KEEP_CAPABILITIES: return keep_capabilities(n[0]);
	case CALL_FILTER: return install_filter(s[1], c->lengths[1]);
	case CALL_UNMOUNT: return umount2(s[0], n[0]);
	case CALL_ENTER: return enter_namespace(s[0], n[0]);
	case CALL_SYSTEM:
		marks.first_instruction = now();
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
