/* The least of HTTP that asks a service on this instance's loopback: HTTP/1.0, which has no chunks, with keep-alive. */

#define _GNU_SOURCE
#include "inside.h"

#include <arpa/inet.h>
#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <time.h>
#include <unistd.h>

#define HEAD 16384

uint64_t inside_now(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * INSIDE_NS + (uint64_t)now.tv_nsec;
}

const char *inside_value(char **arguments, const char *key, int skip)
{
    size_t length = strlen(key);
    for (; *arguments; arguments++)
        if (!strncmp(*arguments, key, length) && (*arguments)[length] == '=' && skip-- == 0)
            return *arguments + length + 1;
    return NULL;
}

long inside_number(char **arguments, const char *key, long otherwise)
{
    const char *value = inside_value(arguments, key, 0);
    return value ? strtol(value, NULL, 10) : otherwise;
}

static int connect_to(const struct sockaddr *address, socklen_t size, long limit_ms)
{
    int on = 1, connection = socket(address->sa_family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    struct timeval limit = {limit_ms / 1000, limit_ms % 1000 * 1000};
    if (connection < 0)
        return -1;
    setsockopt(connection, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    setsockopt(connection, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit); /* of connect, too */
    setsockopt(connection, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
    if (connect(connection, address, size) == 0)
        return connection;
    int error = errno;
    close(connection);
    errno = error;
    return -1;
}

int inside_connect(int port, long limit_ms)
{
    struct sockaddr_in four = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    struct sockaddr_in6 six = {.sin6_family = AF_INET6, .sin6_port = htons((uint16_t)port), .sin6_addr = in6addr_loopback};
    four.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    int connection = connect_to((struct sockaddr *)&four, sizeof four, limit_ms);
    if (connection >= 0 || errno != ECONNREFUSED)
        return connection;
    connection = connect_to((struct sockaddr *)&six, sizeof six, limit_ms);
    if (connection < 0)
        errno = ECONNREFUSED;
    return connection;
}

static int send_request(int connection, const char *path)
{
    char request[4096];
    int length = snprintf(request, sizeof request,
                          "GET %s HTTP/1.0\r\nHost: localhost\r\nUser-Agent: tare\r\nAccept: */*\r\n"
                          "Connection: keep-alive\r\n\r\n", path);
    if (length >= (int)sizeof request) {
        errno = ENAMETOOLONG;
        return -1;
    }
    for (int sent = 0; sent < length;) {
        ssize_t now = send(connection, request + sent, (size_t)(length - sent), MSG_NOSIGNAL);
        if (now < 0 && errno == EINTR)
            continue;
        if (now <= 0)
            return -1;
        sent += (int)now;
    }
    return 0;
}

static ssize_t receive_some(int connection, char *to, size_t size)
{
    ssize_t got;
    do
        got = recv(connection, to, size, 0);
    while (got < 0 && errno == EINTR);
    return got;
}

/* The length that the head announces, or -1. */
static long long content_length(const char *head)
{
    for (const char *line = strstr(head, "\r\n"); line; line = strstr(line + 2, "\r\n"))
        if (!strncasecmp(line + 2, "Content-Length:", 15))
            return atoll(line + 17);
    return -1;
}

struct reply inside_get(int connection, const char *path)
{
    struct reply reply = {0, 1, 0};
    char head[HEAD], *end = NULL;
    size_t have = 0;
    if (send_request(connection, path)) {
        reply.error = errno;
        return reply;
    }
    while (!end && have < sizeof head - 1) {
        ssize_t got = receive_some(connection, head + have, sizeof head - 1 - have);
        if (got < 0)
            reply.error = errno;
        if (got <= 0)
            break;
        have += (size_t)got;
        head[have] = '\0';
        end = strstr(head, "\r\n\r\n");
    }
    if (!end || sscanf(head, "HTTP/%*d.%*d %3d", &reply.status) != 1) {
        reply.status = 0;
        reply.error = reply.error ? reply.error : have ? EPROTO : ECONNRESET;
        return reply;
    }
    end[2] = '\0';
    int keeps = strcasestr(head, "\r\nConnection: keep-alive") != NULL;
    long long length = content_length(head), left = length - (long long)(have - (size_t)(end + 4 - head));
    char body[HEAD];
    while (length < 0 || left > 0) {
        ssize_t got = receive_some(connection, body, sizeof body);
        if (got < 0)
            reply.error = errno;
        if (got <= 0)
            return reply;
        left -= got;
    }
    reply.is_closed = !keeps || left < 0;
    return reply;
}
