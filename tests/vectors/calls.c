/* Nanoseconds of one call on a descriptor that is no socket: calls NAME. */
#define _GNU_SOURCE
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

int main(int argc, char **argv)
{
    enum { N = 300000 };
    const char *call = argc > 1 ? argv[1] : "";
    int zero = open("/dev/zero", O_RDWR), ep = epoll_create1(0), v;
    socklen_t n = sizeof v;
    struct pollfd p = {.fd = zero, .events = POLLIN};
    struct epoll_event ev;
    struct timespec a, b;
    char c[8];
    clock_gettime(CLOCK_MONOTONIC, &a);
    for (int i = 0; i < N; i++) {
        if (!strcmp(call, "read")) v = read(zero, c, 1);
        else if (!strcmp(call, "write")) v = write(zero, c, 1);
        else if (!strcmp(call, "close")) v = close(900);
        else if (!strcmp(call, "dup")) close(dup(zero));
        else if (!strcmp(call, "fcntl")) v = fcntl(zero, F_GETFL);
        else if (!strcmp(call, "poll")) v = poll(&p, 1, 0);
        else if (!strcmp(call, "epoll_wait")) v = epoll_wait(ep, &ev, 1, 0);
        else if (!strcmp(call, "getsockopt")) v = getsockopt(zero, SOL_SOCKET, SO_ERROR, &v, &n);
        else return 2;
    }
    clock_gettime(CLOCK_MONOTONIC, &b);
    printf("%.1f\n", ((b.tv_sec - a.tv_sec) * 1e9 + (b.tv_nsec - a.tv_nsec)) / N);
    return 0;
}
