/* Says all that a command may notice of how it was started; then ends as it is told: "exit N", "signal N". */
#define _GNU_SOURCE
#include <dirent.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

extern char **environ;

static int by_text(const void *a, const void *b) { return strcmp(*(char *const *)a, *(char *const *)b); }

int main(int argc, char **argv) {
    for (int i = 0; i < argc; i++)
        printf("argv[%d]=%s\n", i, argv[i]);
    size_t n = 0;
    while (environ[n])
        n++;
    qsort(environ, n, sizeof *environ, by_text);
    for (size_t i = 0; i < n; i++)
        printf("env %s\n", environ[i]);
    for (int fd = 0; fd < 900; fd++) {
        struct stat st;
        if (fstat(fd, &st) == 0)
            printf("fd %d %o\n", fd, st.st_mode & S_IFMT);
    }
    sigset_t blocked;
    sigprocmask(SIG_SETMASK, NULL, &blocked);
    for (int s = 1; s < 32; s++) {
        struct sigaction a;
        sigaction(s, NULL, &a);
        if (a.sa_handler == SIG_IGN)
            printf("ignored %d\n", s);
        if (sigismember(&blocked, s))
            printf("blocked %d\n", s);
    }
    printf("leader %d foreground %d tty %d\n", getpid() == getpgrp(), isatty(0) ? tcgetpgrp(0) == getpgrp() : -1, isatty(0));
    char line[64] = "";
    if (!isatty(0) && fgets(line, sizeof line, stdin))
        printf("stdin %s\n", strtok(line, "\n"));
    fflush(stdout);
    if (argc > 2 && !strcmp(argv[1], "exit"))
        return atoi(argv[2]);
    if (argc > 2 && !strcmp(argv[1], "signal"))
        kill(getpid(), atoi(argv[2]));
    return 0;
}
