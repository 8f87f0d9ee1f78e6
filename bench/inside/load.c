/*
 * Asks a service again and again, by connections that each wait for an answer before they ask again (a closed loop).
 *
 *   load port=N path=P connections=C duration_ms=MS
 *
 * Prints "requests N errors E elapsed NS", then "bucket NS COUNT" for each bucket of latencies that is not empty, NS being
 * its upper edge. Only answers with a status from 200 to 399 are requests; what else comes is an error, and no latency.
 * A latency is from before the request is sent, or the connection made where the service closes it, to the answer's end.
 */

#define _GNU_SOURCE
#include "inside.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#define FINE 64 /* buckets for each power of two: edges are 1.6 % apart */
#define POWERS 40
#define REQUEST_MS 10000
#define MOST_CONNECTIONS 512

struct tally {
    uint64_t requests, errors, elapsed;
    int error; /* the last one */
    uint32_t buckets[POWERS][FINE];
};

static void count(struct tally *tally, uint64_t ns)
{
    int power = 0;
    while (power < POWERS - 1 && ns >> power >= 2 * FINE)
        power++;
    /* From FINE to 2 * FINE - 1: nothing takes less than that many nanoseconds. */
    tally->buckets[power][(ns >> power) % FINE]++;
    tally->requests++;
}

static void work(struct tally *tally, int port, const char *path, uint64_t duration)
{
    int connection = -1;
    uint64_t began = inside_now(), now = began;
    while (now - began < duration) {
        uint64_t asked = now;
        struct reply reply = {0, 1, 0};
        if (connection < 0)
            connection = inside_connect(port, REQUEST_MS);
        if (connection < 0)
            reply.error = errno;
        else
            reply = inside_get(connection, path);
        now = inside_now();
        if (reply.status >= 200 && reply.status < 400 && !reply.error) {
            count(tally, now - asked);
        } else {
            tally->errors++;
            tally->error = reply.error;
        }
        if (reply.is_closed && connection >= 0) {
            close(connection);
            connection = -1;
        }
    }
    tally->elapsed = now - began;
}

int run_load(char **arguments)
{
    int port = (int)inside_number(arguments, "port", 0), connections = (int)inside_number(arguments, "connections", 1);
    const char *path = inside_value(arguments, "path", 0);
    uint64_t duration = (uint64_t)inside_number(arguments, "duration_ms", 1000) * 1000000u;
    if (!path || port <= 0 || connections < 1 || connections > MOST_CONNECTIONS)
        return 2;
    size_t size = sizeof(struct tally) * (size_t)connections;
    struct tally *tallies = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    if (tallies == MAP_FAILED)
        return 2;
    for (int number = 0; number < connections; number++) {
        pid_t worker = fork();
        if (worker < 0)
            return 2;
        if (worker == 0) {
            work(&tallies[number], port, path, duration);
            _exit(0);
        }
    }
    while (wait(NULL) > 0 || errno == EINTR)
        ;
    uint64_t requests = 0, errors = 0, elapsed = 0;
    int error = 0;
    for (int number = 0; number < connections; number++) {
        requests += tallies[number].requests;
        errors += tallies[number].errors;
        elapsed = tallies[number].elapsed > elapsed ? tallies[number].elapsed : elapsed;
        error = tallies[number].error ? tallies[number].error : error;
    }
    printf("requests %llu errors %llu elapsed %llu %s\n", (unsigned long long)requests, (unsigned long long)errors,
           (unsigned long long)elapsed, error ? strerror(error) : "");
    for (int power = 0; power < POWERS; power++)
        for (int within = 0; within < FINE; within++) {
            uint64_t total = 0;
            for (int number = 0; number < connections; number++)
                total += tallies[number].buckets[power][within];
            if (total)
                printf("bucket %llu %llu\n", (unsigned long long)(FINE + within + 1) << power, (unsigned long long)total);
        }
    return requests == 0;
}
