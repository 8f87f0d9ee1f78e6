/*
 * The whole distribution instead of init's own few steps: systemd becomes PID 1 and boots to multi-user.target, with the
 * guest agent as one of its services. What tare adds to the image's units lies in /run, so that the image stays as it is.
 */

#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define SYSTEM "/sbin/init"
#define UNITS "/run/systemd/system"
#define MASKS "/run/systemd/system.control" /* stronger than what the image has in /etc */
#define TARGET "multi-user.target"

static const char agent_unit[] =
    "[Unit]\nDescription=QEMU guest agent for tare\nOnFailure=tare-agent-failed.service\n"
    "[Service]\nExecStart=/usr/sbin/qemu-ga -m virtio-serial -p %s -t /run\n"
    "OOMScoreAdjust=-1000\n"; /* a command's hunger must not cost the guest its agent */

static const char agent_failed_unit[] =
    "[Unit]\nDescription=Tell tare that the guest agent ended\nDefaultDependencies=no\n"
    "[Service]\nType=oneshot\nExecStart=" RUN_FOLDER "/guest tell failed the guest agent ended\n";

static const char ready_unit[] =
    "[Unit]\nDescription=Tell tare that " TARGET " is reached\nDefaultDependencies=no\nAfter=" TARGET "\n"
    "[Service]\nType=oneshot\nExecStart=" RUN_FOLDER "/guest tell ready\n";

/*
 * What the image's packages brought for workloads, which start it themselves if they need it; what would begin in the
 * middle of a measurement; what would share the console or the agent's port with us.
 */
static const char *const masked[] = {
    "mariadb.service", "nginx.service",  "postgresql.service",       "redis-server.service",
    "timers.target",   "e2scrub_reap.service", "serial-getty@ttyS0.service", "qemu-guest-agent.service",
};

static void make_folders(const char *path)
{
    char part[128];
    for (const char *end = path; (end = strchr(end + 1, '/')) != NULL;) {
        snprintf(part, sizeof part, "%.*s", (int)(end - path), path);
        mkdir(part, 0755);
    }
    if (mkdir(path, 0755) != 0 && errno != EEXIST)
        fail("making", path, errno);
}

static void make_unit(const char *name, const char *text)
{
    char path[128], link[160];
    snprintf(path, sizeof path, UNITS "/%s", name);
    int file = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0644);
    int error = file < 0 ? errno : write_file(path, text);
    if (error != 0)
        fail("writing", path, error);
    close(file);
    if (strstr(name, "failed") != NULL)
        return;
    snprintf(link, sizeof link, UNITS "/" TARGET ".wants/%s", name);
    if (symlink(path, link) != 0)
        fail("linking", link, errno);
}

void become_system(const char *agent_port)
{
    char unit[512], mask[128];
    make_folders(UNITS "/" TARGET ".wants");
    make_folders(MASKS);
    snprintf(unit, sizeof unit, agent_unit, agent_port);
    make_unit("tare-agent.service", unit);
    make_unit("tare-agent-failed.service", agent_failed_unit);
    make_unit("tare-ready.service", ready_unit);
    for (size_t index = 0; index < sizeof masked / sizeof *masked; index++) {
        snprintf(mask, sizeof mask, MASKS "/%s", masked[index]);
        if (symlink("/dev/null", mask) != 0)
            fail("linking", mask, errno);
    }
    say_mark("system");
    char *const arguments[] = {SYSTEM, "--unit=" TARGET, NULL};
    execv(SYSTEM, arguments);
    fail("starting the distribution's init", SYSTEM, errno);
}

int tell(char **words)
{
    int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (console < 0 || dup2(console, STDOUT_FILENO) < 0 || words[0] == NULL)
        return 1;
    if (words[1] == NULL) {
        say_mark(words[0]);
        return 0;
    }
    char text[256] = "";
    for (char **word = words; *word != NULL; word++) {
        strncat(text, *word, sizeof text - strlen(text) - 1);
        strncat(text, word[1] ? " " : "", sizeof text - strlen(text) - 1);
    }
    say("%s", text);
    return 0;
}
