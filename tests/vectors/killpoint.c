/* Preloaded into dpkg and all that it starts: everything is killed just before the UWT_KILL_AT-th step that could leave
   something half done. Steps are counted over all processes, in the file /killpoint. 0: they are only counted. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <unistd.h>

static unsigned *counter;
static unsigned at;

__attribute__((constructor)) static void begin(void) {
    const char *n = getenv("UWT_KILL_AT");
    int fd = open("/killpoint", O_RDWR | O_CLOEXEC);
    if (fd < 0)
        return;
    counter = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    close(fd);
    if (counter == MAP_FAILED)
        counter = NULL;
    at = n ? (unsigned)atoi(n) : 0;
}

static void step(void) {
    if (counter && __sync_add_and_fetch(counter, 1) == at) {
        kill(-1, SIGKILL);
        raise(SIGKILL);
    }
}

#define HOOK(name, declared, passed)                                 \
    int name declared {                                              \
        static int(*real) declared;                                  \
        if (!real)                                                   \
            real = (int(*) declared)dlsym(RTLD_NEXT, #name);         \
        step();                                                      \
        return real passed;                                          \
    }

HOOK(rename, (const char *a, const char *b), (a, b))
HOOK(renameat, (int d, const char *a, int e, const char *b), (d, a, e, b))
HOOK(renameat2, (int d, const char *a, int e, const char *b, unsigned f), (d, a, e, b, f))
HOOK(link, (const char *a, const char *b), (a, b))
HOOK(linkat, (int d, const char *a, int e, const char *b, int f), (d, a, e, b, f))
HOOK(symlink, (const char *a, const char *b), (a, b))
HOOK(symlinkat, (const char *a, int d, const char *b), (a, d, b))
HOOK(unlink, (const char *a), (a))
HOOK(unlinkat, (int d, const char *a, int f), (d, a, f))
HOOK(rmdir, (const char *a), (a))
HOOK(execve, (const char *p, char *const v[], char *const e[]), (p, v, e))
HOOK(execv, (const char *p, char *const v[]), (p, v))
HOOK(execvp, (const char *p, char *const v[]), (p, v))
