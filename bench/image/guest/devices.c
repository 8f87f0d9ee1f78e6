/* Devices are told apart by what the host called them, never by their order. */

#define _GNU_SOURCE
#include "guest.h"

#include <dirent.h>
#include <errno.h>
#include <linux/netlink.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#define DEADLINE_MS 20000
#define PAGE_HEADER 4 /* bytes before the serial number in the SCSI vital product data page 0x80 */

static int uevents = -1;

void listen_to_devices(void)
{
    struct sockaddr_nl kernel = {.nl_family = AF_NETLINK, .nl_groups = 1};
    uevents = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, NETLINK_KOBJECT_UEVENT);
    if (uevents < 0 || bind(uevents, (struct sockaddr *)&kernel, sizeof kernel) != 0)
        fail("listening to", "the kernel's device events", errno);
}

/* The entry of `folder` whose file `attribute` says `wanted` after `skip` bytes, as /dev/ENTRY in `device`. */
static int find_entry(
    const char *folder, const char *attribute, long skip, const char *wanted, char *device, size_t size)
{
    DIR *entries = opendir(folder);
    int found = 0;
    for (struct dirent *entry; entries && !found && (entry = readdir(entries)) != NULL;) {
        char path[512], value[128];
        snprintf(path, sizeof path, "%s/%s/%s", folder, entry->d_name, attribute);
        if (read_file(path, value, sizeof value) >= skip && strcmp(value + skip, wanted) == 0)
            found = (size_t)snprintf(device, size, "/dev/%s", entry->d_name) < size && access(device, F_OK) == 0;
    }
    if (entries)
        closedir(entries);
    return found;
}

int find_disk(const char *serial, char *device, size_t size)
{
    return find_entry("/sys/block", "serial", 0, serial, device, size) ||
           find_entry("/sys/block", "device/vpd_pg80", PAGE_HEADER, serial, device, size);
}

int find_port(const char *name, char *device, size_t size)
{
    return find_entry("/sys/class/virtio-ports", "name", 0, name, device, size);
}

void await_device(int (*find)(const char *, char *, size_t), const char *wanted, char *found, size_t size)
{
    uint64_t deadline = now_ns() + DEADLINE_MS * 1000000ull;
    while (!find(wanted, found, size)) {
        int64_t left_ms = (int64_t)(deadline - now_ns()) / 1000000;
        struct pollfd event = {.fd = uevents, .events = POLLIN};
        if (left_ms <= 0 || poll(&event, 1, (int)left_ms) == 0)
            fail("finding the device", wanted, ENODEV);
        char message[4096];
        while (recv(uevents, message, sizeof message, MSG_DONTWAIT) > 0)
            ;
    }
}
