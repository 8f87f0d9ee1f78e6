/*
 * What the host asks of this guest: words of the kernel's command line that start with "tare.". Where a boot loader has
 * the command line on its disk, tare.parameters=smbios says that more of them are OEM strings of the machine.
 */

#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <unistd.h>

#define PREFIX "tare."
#define TABLES "/sys/firmware/dmi/tables/DMI"
#define OEM_STRINGS 11
#define END_OF_TABLE 127

struct parameters parameters;

static char *source; /* "smbios" for the OEM strings too */

static const struct {
    const char *name;
    char **value;
} known[] = {
    {"tare.pids", &parameters.pids},       {"tare.scratch", &parameters.scratch},
    {"tare.modules", &parameters.modules}, {"tare.net", &parameters.net},
    {"tare.gateway", &parameters.gateway}, {"tare.profile", &parameters.profile},
    {"tare.line", &parameters.line},       {"tare.parameters", &source},
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

/*
 * The tables are structures one after the other: type, length and handle (4 bytes), the rest of that length, then strings
 * that each end in NUL, then one NUL more, or two where there is no string (SMBIOS 3, 6.1).
 */
static void read_oem_strings(void)
{
    static char tables[65536]; /* the values point into it */
    int file = open(TABLES, O_RDONLY | O_CLOEXEC);
    ssize_t length = file < 0 ? -1 : read(file, tables, sizeof tables - 2);
    if (length < 0)
        fail("reading", TABLES, errno);
    close(file);
    for (char *at = tables, *end = tables + length; at + 4 < end && *at != END_OF_TABLE;) {
        int wanted = *at == OEM_STRINGS;
        at += (unsigned char)at[1];
        if (*at == '\0')
            at++;
        while (at < end && *at != '\0') {
            char *next = at + strlen(at) + 1;
            if (wanted && strncmp(at, PREFIX, strlen(PREFIX)) == 0)
                take(at);
            at = next;
        }
        at++;
    }
}

void read_parameters(void)
{
    static char line[4096]; /* x86 allows half of it; the values point into it */
    if (read_file("/proc/cmdline", line, sizeof line) < 0)
        fail("reading", "/proc/cmdline", errno);
    for (char *rest = line, *word; (word = strsep(&rest, " ")) != NULL;)
        if (strncmp(word, PREFIX, strlen(PREFIX)) == 0)
            take(word);
    if (source != NULL && strcmp(source, "smbios") == 0)
        read_oem_strings();
    else if (source != NULL)
        give_up("reading the kernel's command line: tare.parameters is smbios, and not %s", source);
    const char *scratch = parameters.scratch, *profile = parameters.profile;
    if (scratch != NULL && strcmp(scratch, "disk") != 0 && strcmp(scratch, "virtiofs") != 0)
        give_up("reading the kernel's command line: tare.scratch is disk or virtiofs, and not %s", scratch);
    if (profile != NULL && strcmp(profile, "minimal") != 0 && strcmp(profile, "full") != 0)
        give_up("reading the kernel's command line: tare.profile is minimal or full, and not %s", profile);
    if (parameters.gateway != NULL && parameters.net == NULL)
        give_up("reading the kernel's command line: tare.gateway needs tare.net");
}
