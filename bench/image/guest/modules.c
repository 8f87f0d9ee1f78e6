/*
 * Kernel modules, from the initramfs. MODULES/order lists the files that every guest needs, one a line. Each line of
 * MODULES/optional is the name of a further module and, in the order in which they are loaded, the files that it needs
 * beyond those. What is not loaded is thrown away, for it takes up the guest's memory.
 */

#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/syscall.h>
#include <unistd.h>

#define MODULES "/modules"

static void load_module(const char *name)
{
    char path[256];
    snprintf(path, sizeof path, MODULES "/%s", name);
    int file = open(path, O_RDONLY | O_CLOEXEC);
    if (file < 0)
        fail("opening the kernel module", name, errno);
    if (syscall(SYS_finit_module, file, "", 0) != 0 && errno != EEXIST)
        fail("loading the kernel module", name, errno);
    close(file);
    unlink(path);
}

static void read_list(const char *path, char *text, size_t size)
{
    if (read_file(path, text, size) < 0)
        fail("reading", path, errno);
    unlink(path);
}

/* Loads `wanted` by its line of `optional`, which stays as it is. */
static void load_optional(const char *optional, const char *wanted)
{
    char lines[4096], names[256] = "";
    snprintf(lines, sizeof lines, "%s", optional);
    for (char *rest = lines, *line; (line = strsep(&rest, "\n")) != NULL;) {
        char *name = strsep(&line, " ");
        if (strcmp(name, wanted) == 0) {
            for (char *file; (file = strsep(&line, " ")) != NULL;) {
                char path[256];
                snprintf(path, sizeof path, MODULES "/%s", file);
                if (access(path, F_OK) == 0) /* another one that needs it has loaded it otherwise */
                    load_module(file);
            }
            return;
        }
        strncat(names, " ", sizeof names - strlen(names) - 1);
        strncat(names, name, sizeof names - strlen(names) - 1);
    }
    give_up("loading the kernel module %s: the initramfs has only%s", wanted, names);
}

static void throw_rest_away(void)
{
    DIR *entries = opendir(MODULES);
    for (struct dirent *entry; entries && (entry = readdir(entries)) != NULL;)
        if (entry->d_type == DT_REG)
            unlinkat(dirfd(entries), entry->d_name, 0);
    if (entries)
        closedir(entries);
}

void load_modules(void)
{
    char list[4096];
    read_list(MODULES "/order", list, sizeof list);
    for (char *rest = list, *name; (name = strsep(&rest, "\n")) != NULL;)
        if (*name != '\0')
            load_module(name);
    read_list(MODULES "/optional", list, sizeof list);
    if (parameters.net != NULL)
        load_optional(list, "virtio_net");
    if (parameters.scratch != NULL && strcmp(parameters.scratch, "virtiofs") == 0)
        load_optional(list, "virtiofs");
    for (char *rest = parameters.modules, *name; rest != NULL && (name = strsep(&rest, ",")) != NULL;)
        if (*name != '\0')
            load_optional(list, name);
    throw_rest_away();
}
