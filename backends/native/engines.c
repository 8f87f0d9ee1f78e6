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

/* ``become CHANNEL DESCRIPTORS PROGRAM ARGUMENT...``: carry out the steps in the message that comes, then execute the
 * program, with the descriptors as 3, 4, ...
 *
 * The other end of the channel hears why that failed, or that the channel is closed: the program runs.
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
	if (carry_out(m.fields[0], 0, count_steps(m.fields[0])))
		return NOT_EXECUTABLE;
	if (!place_descriptors(descriptors))
		execv(argv[0], argv);
	send_error("failed", text("execute the engine"), errno, argv[0]);
	return NOT_EXECUTABLE;
}
