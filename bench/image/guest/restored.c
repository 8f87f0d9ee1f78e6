/*
 * What a guest needs that goes on from saved memory: its wall clock stands where it was saved, and all guests that go on
 * from the same memory would draw the same random numbers. (A device that tells a kernel so, VMGENID, is not in every
 * kernel.) The host has the guest agent start this:
 *
 *   guest restored SECONDS NANOSECONDS ENTROPY     the time now, and 64 hexadecimal digits that the host has drawn
 */

#define _GNU_SOURCE
#include "guest.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/random.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <time.h>
#include <unistd.h>

#define ENTROPY_BYTES 32

static int stir(const char *hexadecimal)
{
    struct {
        struct rand_pool_info head;
        unsigned char bytes[ENTROPY_BYTES];
    } pool = {.head = {.entropy_count = 8 * ENTROPY_BYTES, .buf_size = ENTROPY_BYTES}};
    if (strlen(hexadecimal) != 2 * ENTROPY_BYTES)
        return -1;
    for (size_t index = 0; index < ENTROPY_BYTES; index++)
        if (sscanf(hexadecimal + 2 * index, "%2hhx", &pool.bytes[index]) != 1)
            return -1;
    int random = open("/dev/urandom", O_WRONLY | O_CLOEXEC);
    int failed = random < 0 || ioctl(random, RNDADDENTROPY, &pool) != 0 || ioctl(random, RNDRESEEDCRNG) != 0;
    if (random >= 0)
        close(random);
    return failed ? -1 : 0;
}

int run_restored(int count, char **arguments)
{
    int console = open("/dev/console", O_WRONLY | O_NOCTTY | O_CLOEXEC);
    if (console < 0 || count != 3 || dup2(console, STDOUT_FILENO) < 0)
        return 1;
    struct timespec now = {.tv_sec = strtoll(arguments[0], NULL, 10), .tv_nsec = strtol(arguments[1], NULL, 10)};
    if (clock_settime(CLOCK_REALTIME, &now) != 0)
        fail("setting", "the wall clock", errno);
    if (stir(arguments[2]) != 0)
        fail("stirring", "the random numbers", errno);
    say_mark("restored");
    return 0;
}
