/* Loads plugin.so and calls its functions: they are the plugin's, not libc's. */
#include <dlfcn.h>
#include <stdio.h>

int main(int argc, char **argv)
{
    void *h = argc > 1 ? dlopen(argv[1], RTLD_NOW | RTLD_LOCAL) : 0;
    int (*c)(void) = h ? (int (*)(void))dlsym(h, "connect") : 0, (*l)(void) = h ? (int (*)(void))dlsym(h, "listen") : 0;
    printf("%d %d %d\n", c ? c() : 0, l ? l() : 0, h && dlsym(h, "no_such_name") != 0);
    return 0;
}
