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

/* ``become CHANNEL PROGRAM ARGUMENT...``: carry out the steps in the message that comes, then execute the program.
 *
 * The other end of the channel hears why that failed, or that the channel is closed: the program runs.
 */
static int become(int given, char **argv)
{
	extern char **environ;
	struct message m;
	channel = given;
	fcntl(channel, F_SETFD, FD_CLOEXEC);
	receive(&m, 1);
	if (carry_out(m.fields[0], 0, count_steps(m.fields[0])))
		return NOT_EXECUTABLE;
	execv(argv[0], argv);
	send_error("failed", text("execute the engine"), errno, argv[0]);
	return NOT_EXECUTABLE;
}
