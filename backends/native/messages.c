/* Part of zygote.c: messages to and from the harness, as channel.py writes and reads them. */

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
