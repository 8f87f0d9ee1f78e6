/* What the host asks of this guest: words of the kernel's command line that start with "tare.". */

#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <string.h>

#define PREFIX "tare."

struct parameters parameters;

static const struct {
    const char *name;
    char **value;
} known[] = {
    {"tare.pids", &parameters.pids},       {"tare.scratch", &parameters.scratch},
    {"tare.modules", &parameters.modules}, {"tare.net", &parameters.net},
    {"tare.gateway", &parameters.gateway},
};

static void take(char *word)
{
    char *value = strchr(word, '=');
    if (value == NULL || value[1] == '\0')
        give_up("reading the kernel's command line: %s has no value", word);
    *value++ = '\0';
    for (size_t index = 0; index < sizeof known / sizeof *known; index++)
        if (strcmp(word, known[index].name) == 0) {
            *known[index].value = value;
            return;
        }
    give_up("reading the kernel's command line: this image's init has no parameter %s", word);
}

void read_parameters(void)
{
    static char line[4096]; /* x86 allows half of it; the values point into it */
    if (read_file("/proc/cmdline", line, sizeof line) < 0)
        fail("reading", "/proc/cmdline", errno);
    for (char *rest = line, *word; (word = strsep(&rest, " ")) != NULL;)
        if (strncmp(word, PREFIX, strlen(PREFIX)) == 0)
            take(word);
    const char *scratch = parameters.scratch;
    if (scratch != NULL && strcmp(scratch, "disk") != 0 && strcmp(scratch, "virtiofs") != 0)
        give_up("reading the kernel's command line: tare.scratch is disk or virtiofs, and not %s", scratch);
    if (parameters.gateway != NULL && parameters.net == NULL)
        give_up("reading the kernel's command line: tare.gateway needs tare.net");
}
