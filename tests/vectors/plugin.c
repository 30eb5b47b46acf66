/* A plugin with functions of its own by names that libc has too. */
int connect(void) { return 41; }
int listen(void) { return 42; }
