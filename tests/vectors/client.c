/* A plain client: `client HOW HOST PORT` connects and says what it saw, one line:
 *   connected PEER FIRST-BYTES-OR-EMPTY (the peer's name; with NUMERIC in the environment its address)
 *   error ERRNO-NAME
 * HOW: blocking, poll, epoll, edge, early (registered before connect), select, thread, write (connect, then write
 * at once), timeout (SO_SNDTIMEO 300 ms). */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <errno.h>
#include <netdb.h>
#include <poll.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/select.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

static int error(int e)
{
    printf("error %s\n", strerrorname_np(e) ? strerrorname_np(e) : "0");
    return 1;
}

static void *other(void *go)
{
    int fd = *(int *)go;
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    poll(&p, 1, -1);
    return NULL;
}

int main(int argc, char **argv)
{
    if (argc < 4) return 2;
    const char *how = argv[1];
    struct addrinfo h = {.ai_socktype = SOCK_STREAM}, *r;
    int e = getaddrinfo(argv[2], argv[3], &h, &r);
    if (e) {
        printf("error %s\n", e == EAI_NONAME ? "EAI_NONAME" : e == EAI_FAIL ? "EAI_FAIL" : e == EAI_AGAIN ? "EAI_AGAIN" : gai_strerror(e));
        return 1;
    }
    int blocking = !strcmp(how, "blocking") || !strcmp(how, "timeout"), ep = epoll_create1(0);
    int fd = socket(r->ai_family, SOCK_STREAM | (blocking ? 0 : SOCK_NONBLOCK), 0);
    if (fd < 0) return error(errno);
    struct epoll_event ev = {.events = EPOLLOUT | EPOLLIN | (strcmp(how, "edge") ? 0 : EPOLLET)}, got;
    if (!strcmp(how, "early")) epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    if (!strcmp(how, "timeout")) {
        struct timeval t = {0, 300000};
        setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &t, sizeof t);
    }
    if (connect(fd, r->ai_addr, r->ai_addrlen) && (blocking || errno != EINPROGRESS)) return error(errno);
    if (!strcmp(how, "poll")) {
        struct pollfd p = {.fd = fd, .events = POLLOUT | POLLIN};
        while (!(p.revents & (POLLOUT | POLLERR | POLLHUP)))
            if (poll(&p, 1, 20000) < 1) return error(ETIME);
    } else if (!strcmp(how, "epoll") || !strcmp(how, "edge") || !strcmp(how, "early")) {
        if (strcmp(how, "early")) epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
        do
            if (epoll_wait(ep, &got, 1, 20000) < 1) return error(ETIME);
        while (!(got.events & (EPOLLOUT | EPOLLERR | EPOLLHUP)));
    } else if (!strcmp(how, "select")) {
        fd_set w;
        struct timeval t = {20, 0};
        FD_ZERO(&w);
        FD_SET(fd, &w);
        if (select(fd + 1, NULL, &w, NULL, &t) < 1) return error(ETIME);
    } else if (!strcmp(how, "thread")) {
        pthread_t t;
        pthread_create(&t, NULL, other, &fd);
        pthread_join(t, NULL);
    } else if (!strcmp(how, "write")) {
        while (send(fd, "GET / HTTP/1.1\r\n", 16, MSG_NOSIGNAL) < 0) {
            if (errno != EAGAIN) return error(errno);
            struct pollfd p = {.fd = fd, .events = POLLOUT};
            if (poll(&p, 1, 20000) < 1) return error(ETIME);
        }
    }
    socklen_t n = sizeof e;
    getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n);
    if (e) return error(e);
    struct sockaddr_storage a;
    char peer[NI_MAXHOST] = "?", port[32] = "?", first[64] = "";
    n = sizeof a;
    if (getpeername(fd, (struct sockaddr *)&a, &n)) return error(errno);
    getnameinfo((struct sockaddr *)&a, n, peer, sizeof peer, port, sizeof port, NI_NUMERICSERV | (getenv("NUMERIC") ? NI_NUMERICHOST : 0));
    struct pollfd p = {.fd = fd, .events = POLLIN};
    if (getenv("FIRST") && poll(&p, 1, 5000) == 1) read(fd, first, sizeof first - 1);
    printf("connected %s %s %s\n", peer, port, first);
    return 0;
}
