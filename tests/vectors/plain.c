/* Connects to 198.51.100.7. Built where ld.so will not load the shim: static, musl, 32-bit. */
#include <arpa/inet.h>
#include <stdio.h>
#include <sys/socket.h>

int main(void)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(80)};
    inet_pton(AF_INET, "198.51.100.7", &a.sin_addr);
    if (connect(socket(AF_INET, SOCK_STREAM, 0), (struct sockaddr *)&a, sizeof a)) {
        perror("connect");
        return 1;
    }
    puts("connect: ok");
    return 0;
}
