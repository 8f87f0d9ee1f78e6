/* Part of zygote.c: runs commands in an instance for the harness, one at a time. */

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

/* In a child that shares this process's memory until it executes, or has its own and runs a program of tare's: returns
 * only if that fails, with errno.
 */
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
	if (!strcmp(program, OWN_PROGRAM))
		_exit(run_inside(r->argv + 1));
	execve(program, r->argv, r->env);
}

static struct outcome run(const struct request *r, const char *terminal, int errors)
{
	static volatile int failed;
	char found[4096];
	struct outcome o = { 0, 0, 0, 0 };
	int is_own = !strcmp(r->argv[0], OWN_PROGRAM);
	const char *program = is_own ? OWN_PROGRAM : find(r->argv[0], r->env, found, sizeof found);
	int status = 0;
	pid_t pid = 0, ended;
	sigset_t all, before;
	failed = program ? 0 : ENOENT;
	o.started = now();
	if (program) {
		/* Until the command has a group of its own, and this process knows it, signals wait. */
		sigfillset(&all);
		sigprocmask(SIG_BLOCK, &all, &before);
		pid = is_own ? fork() : vfork();
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
