/* The guest's network: lo always, the first virtio network interface with tare.net. */

#define _GNU_SOURCE
#include "guest.h"

#include <arpa/inet.h>
#include <dirent.h>
#include <errno.h>
#include <limits.h>
#include <net/if.h>
#include <net/route.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <unistd.h>

#define NETWORK "the network interface"
#define DRIVER "virtio_net"

static void request(int any, unsigned long what, void *argument, const char *doing, const char *which)
{
    if (ioctl(any, what, argument) != 0)
        fail(doing, which, errno);
}

/* The virtio network interface with the lowest index: that which the host gave it first. For await_device. */
static int find_interface(const char *wanted, char *name, size_t size)
{
    (void)wanted;
    DIR *entries = opendir("/sys/class/net");
    long lowest = LONG_MAX;
    for (struct dirent *entry; entries && (entry = readdir(entries)) != NULL;) {
        char path[512], text[512];
        snprintf(path, sizeof path, "/sys/class/net/%s/device/driver", entry->d_name);
        ssize_t length = readlink(path, text, sizeof text - 1);
        text[length < 0 ? 0 : length] = '\0';
        const char *driver = strrchr(text, '/');
        if (driver == NULL || strcmp(driver + 1, DRIVER) != 0)
            continue;
        snprintf(path, sizeof path, "/sys/class/net/%s/ifindex", entry->d_name);
        long index = read_file(path, text, sizeof text) > 0 ? atol(text) : LONG_MAX;
        if (index < lowest && (size_t)snprintf(name, size, "%s", entry->d_name) < size)
            lowest = index;
    }
    if (entries)
        closedir(entries);
    return lowest != LONG_MAX;
}

static struct sockaddr address_of(uint32_t address)
{
    struct sockaddr_in internet = {.sin_family = AF_INET, .sin_addr.s_addr = address};
    struct sockaddr any;
    memcpy(&any, &internet, sizeof any);
    return any;
}

static struct sockaddr parse_address(const char *parameter, const char *text)
{
    struct in_addr address;
    if (inet_pton(AF_INET, text, &address) != 1)
        give_up("reading the kernel's command line: %s: %s is no IPv4 address", parameter, text);
    return address_of(address.s_addr);
}

/* 16 as 255.255.0.0 */
static struct sockaddr parse_prefix(const char *text)
{
    char *end = "";
    long bits = text == NULL ? 0 : strtol(text, &end, 10);
    if (bits < 1 || bits > 32 || *end != '\0')
        give_up("reading the kernel's command line: tare.net is ADDRESS/PREFIX, with a prefix of 1 to 32");
    return address_of(htonl(~0u << (32 - bits)));
}

static void bring_up(int any, const char *name)
{
    struct ifreq interface = {.ifr_flags = IFF_UP | IFF_RUNNING};
    snprintf(interface.ifr_name, sizeof interface.ifr_name, "%s", name);
    request(any, SIOCSIFFLAGS, &interface, "bringing up " NETWORK, name);
}

static void configure_interface(int any, char *network, const char *gateway)
{
    struct ifreq interface = {0};
    char *prefix = strchr(network, '/');
    if (prefix != NULL)
        *prefix++ = '\0';
    struct sockaddr mask = parse_prefix(prefix), address = parse_address("tare.net", network);
    await_device(find_interface, DRIVER " interface", interface.ifr_name, sizeof interface.ifr_name);
    interface.ifr_addr = address;
    request(any, SIOCSIFADDR, &interface, "giving an address to " NETWORK, interface.ifr_name);
    interface.ifr_netmask = mask;
    request(any, SIOCSIFNETMASK, &interface, "giving a netmask to " NETWORK, interface.ifr_name);
    bring_up(any, interface.ifr_name);
    if (gateway == NULL)
        return;
    struct rtentry route = {
        .rt_flags = RTF_UP | RTF_GATEWAY,
        .rt_dst = address_of(INADDR_ANY),
        .rt_genmask = address_of(INADDR_ANY),
        .rt_gateway = parse_address("tare.gateway", gateway),
    };
    request(any, SIOCADDRT, &route, "making the default route by", gateway);
}

void configure_network(void)
{
    int any = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    if (any < 0)
        fail("configuring", NETWORK, errno);
    bring_up(any, "lo");
    if (parameters.net != NULL)
        configure_interface(any, parameters.net, parameters.gateway);
    close(any);
}
