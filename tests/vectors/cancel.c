/* A thread is cancelled while it waits in connect(2), which is a cancellation point; then another connects to
 * loopback: no lock is left held. */
#include <arpa/inet.h>
#include <pthread.h>
#include <stdio.h>
#include <sys/socket.h>
#include <unistd.h>

static int ready[2];

static void *waits(void *unused)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(80)};
    (void)unused;
    inet_pton(AF_INET, "198.51.100.7", &a.sin_addr);
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    if (write(ready[1], "x", 1) != 1) return NULL;
    connect(fd, (struct sockaddr *)&a, sizeof a);
    return NULL;
}

int main(void)
{
    pthread_t t;
    char c;
    void *r;
    alarm(30);
    if (pipe(ready)) return 1;
    pthread_create(&t, NULL, waits, NULL);
    if (read(ready[0], &c, 1) != 1) return 1;
    usleep(100000);
    pthread_cancel(t);
    /* A proxy that never answers: without the cancellation this lasts as long as uwt's time limit. */
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(1)};
    inet_pton(AF_INET, "127.0.0.1", &a.sin_addr);
    int refused = connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&a, sizeof a);
    pthread_join(t, &r);
    printf("%s, and the next %s\n", r == PTHREAD_CANCELED ? "cancelled" : "ended", refused ? "connects" : "does not");
    return 0;
}
