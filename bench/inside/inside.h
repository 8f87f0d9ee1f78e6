/* What tare's programs inside of instances have in common, whatever the backend: the image's own service. */

#ifndef TARE_INSIDE_H
#define TARE_INSIDE_H

#include <stdint.h>
#include <sys/types.h>

/* The first argument of a command that is none of the image's programs, but one of these (see __init__.py). */
#define OWN_PROGRAM "@tare@"

/*
 * Runs one of them with the current streams and returns its exit status. The caller is a process of its own, which ends
 * then; every other descriptor is closed.
 */
int run_inside(char **arguments);

/* --- what service.c and load.c share ---------------------------------------------------------------------------------- */

#define INSIDE_NS 1000000000ull

struct reply {
    int status;       /* of HTTP; 0 if none came */
    int is_closed;    /* whether no further request can follow on this connection */
    int error;        /* errno of what failed; EPROTO for an answer that is not HTTP */
};

uint64_t inside_now(void);

/* The value of the argument `key=value`; NULL if there is none. `skip` passes over the first ones. */
const char *inside_value(char **arguments, const char *key, int skip);
long inside_number(char **arguments, const char *key, long otherwise);

/* A connection to a port of this instance's loopback, IPv4 before IPv6; -1 with errno. Blocks for `limit_ms` at most. */
int inside_connect(int port, long limit_ms);

/* Sends one GET and reads the whole answer. */
struct reply inside_get(int connection, const char *path);

int run_load(char **arguments);

#endif
