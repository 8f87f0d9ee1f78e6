/* Part of zygote.c: what the program is to the engines of others (tare.backends.engines). */

/* ``live SOCKET``: the first process of a container that an engine made. It connects to the harness, which listens. */
static int live_in_container(const char *path)
{
	struct sockaddr_un address = { .sun_family = AF_UNIX };
	marks.created = marks.first_instruction = now();
	channel = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
	snprintf(address.sun_path, sizeof address.sun_path, "%s", path);
	if (channel < 0 || connect(channel, (struct sockaddr *)&address, sizeof address)) {
		dprintf(2, "tare: cannot reach the harness by %s: %s\n", path, strerror(errno));
		return NOT_EXECUTABLE;
	}
	prctl(PR_SET_NAME, "tare-init");
	prctl(PR_SET_DUMPABLE, 0); /* nobody inside opens its descriptors or its memory */
	/* The streams are the engine's: files of the host's, perhaps. */
	if (replace_streams("/dev/null"))
		return NOT_EXECUTABLE;
	answer();
	return 0;
}

/* ``hold``: the first process where no socket of the host's can be reached. It says so by a byte, and ends with its
 * standard input.
 */
static int hold(void)
{
	char byte = 'r';
	signal(SIGCHLD, SIG_IGN); /* orphans are reaped by the kernel */
	if (write(1, &byte, 1) != 1)
		return NOT_EXECUTABLE;
	while (1) {
		ssize_t got = read(0, &byte, 1);
		if (got == 0 || (got < 0 && errno != EINTR))
			return 0;
	}
}

/* ``run MARK CWD COUNT VARIABLE... PROGRAM ARGUMENT...``: run one command with these standard streams.
 *
 * On standard error, lines that begin with the mark say when it begins, and how it ended.
 */
static int run_command(int count, char **argv)
{
	static struct request r;
	static char *env[1024];
	int variables = count > 3 ? atoi(argv[2]) : -1;
	if (variables < 0 || variables >= (int)(sizeof env / sizeof *env) || count < 4 + variables)
		return 2;
	memcpy(env, argv + 3, variables * sizeof *env);
	r.cwd = argv[1];
	r.argv = argv + 3 + variables;
	r.env = env;
	r.message.descriptor_count = 3;
	for (int i = 0; i < 3; i++)
		r.message.descriptors[i] = i;
	if (chdir(r.cwd)) {
		dprintf(2, "%s no-cwd %s\n", argv[0], strerror(errno));
		return NOT_EXECUTABLE;
	}
	dprintf(2, "%s begin\n", argv[0]);
	struct outcome o = run(&r, "", 2);
	dprintf(2, "%s end %d %d %lld\n", argv[0], o.status, o.number, (long long)(o.ended - o.started));
	return 0;
}

/* ``sweep``: end every process of the container but the first, and this one. */
static int sweep(void)
{
	return kill(-1, SIGKILL) && errno != ESRCH;
}

/* Have the descriptors of a list (7,9) as 3, 4, ...; those are given away by nobody else by then. */
static int place_descriptors(const char *list)
{
	int high[MAX_DESCRIPTORS], count = 0;
	for (; *list && count < MAX_DESCRIPTORS; list += strcspn(list, ","), list += *list == ',')
		if ((high[count++] = fcntl(atoi(list), F_DUPFD_CLOEXEC, 64)) < 0)
			return -1;
	for (int i = 0; i < count; i++)
		if (dup2(high[i], 3 + i) < 0)
			return -1;
	return 0;
}

/* Go on as another process with the same parent, born in the cgroup whose folder is open, or where this one is.
 *
 * Moving a process into a cgroup by the file cgroup.procs waits for the kernel's readers of its lists (8 ms where this
 * was measured); being born there waits for nobody.
 */
static void be_born(int cgroup)
{
	pid_t pid = clone_into(CLONE_PARENT, cgroup);
	int32_t made = getpid();
	if (pid < 0)
		send_error("failed", text("begin in its cgroup"), errno, "");
	if (pid)
		_exit(pid < 0 ? NOT_EXECUTABLE : 0);
	setsid();
	send_message(-1, 2, (struct field[]){ text("created"), { (char *)&made, sizeof made } });
}

/* ``become CHANNEL DESCRIPTORS PROGRAM ARGUMENT...``: as a new process, in the cgroup whose folder comes with the
 * message, carry out the steps in it, then execute the program, with the descriptors as 3, 4, ...
 *
 * The other end of the channel hears the process's number; then why a step failed, or that the channel is closed: the
 * program runs.
 */
static int become(int given, const char *descriptors, char **argv)
{
	extern char **environ;
	struct message m;
	channel = fcntl(given, F_DUPFD_CLOEXEC, 32);
	close(given);
	if (channel < 0)
		return NOT_EXECUTABLE;
	receive(&m, 1);
	be_born(m.descriptor_count ? m.descriptors[0] : -1);
	if (carry_out(m.fields[0], 0, count_steps(m.fields[0])))
		return NOT_EXECUTABLE;
	if (!place_descriptors(descriptors))
		execv(argv[0], argv);
	send_error("failed", text("execute the engine"), errno, argv[0]);
	return NOT_EXECUTABLE;
}
