/* Ways out of a machine, one per name: `vectors NAME`. Each sends, or tries to send, a packet to
 * 198.51.100.7, 2001:db8:1::7 (documentation addresses) or looks up leak.example.
 *
 * The leak matrix (tests/tests/all/leak.rs) runs each bare, where the sink must see it, and held, where
 * it must not. Prints what happened; the exit status is 0 if the call said that it worked. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <arpa/nameser.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/if_packet.h>
#include <net/ethernet.h>
#include <net/if.h>
#include <netdb.h>
#include <netinet/icmp6.h>
#include <netinet/in.h>
#include <netinet/ip.h>
#include <netinet/ip_icmp.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <pthread.h>
#include <resolv.h>
#include <sched.h>
#include <signal.h>
#include <spawn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

extern char **environ;
static char *self;
static const char HOST[] = "leak.example";
static char *const EMPTY[] = {NULL};
static char *child_argv[] = {"vectors", "connect4", NULL};

static struct sockaddr_in v4(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "198.51.100.7", &a.sin_addr);
    return a;
}
static struct sockaddr_in6 v6(int port)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(port)};
    inet_pton(AF_INET6, "2001:db8:1::7", &a.sin6_addr);
    return a;
}
static struct sockaddr_in lo(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons(port)};
    inet_pton(AF_INET, "127.0.0.53", &a.sin_addr);
    return a;
}
static int said(const char *what, long r)
{
    printf("%s: %s\n", what, r < 0 ? strerror(errno) : "ok");
    fflush(stdout);
    return r < 0;
}
#define A4 struct sockaddr_in a = v4(80)
#define SA (struct sockaddr *)&a, sizeof a
static int tcp(void) { return socket(AF_INET, SOCK_STREAM, 0); }
static int udp(void) { return socket(AF_INET, SOCK_DGRAM, 0); }
typedef int (*connect_fn)(int, const struct sockaddr *, socklen_t);
static int by(connect_fn f) { A4; return f ? said("connect", f(tcp(), SA)) : 2; }

/* ---- TCP ---- */
static int connect4(void) { return by(connect); }
static int connect6(void) { struct sockaddr_in6 a = v6(80); return said("connect", connect(socket(AF_INET6, SOCK_STREAM, 0), SA)); }
static int mapped(int only)
{
    struct sockaddr_in6 a = {.sin6_family = AF_INET6, .sin6_port = htons(80)};
    int fd = socket(AF_INET6, SOCK_STREAM, 0);
    inet_pton(AF_INET6, "::ffff:198.51.100.7", &a.sin6_addr);
    if (only) { a = v6(80); setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &only, sizeof only); }
    return said("connect", connect(fd, SA));
}
static int connect_mapped(void) { return mapped(0); }
static int connect_v6only(void) { return mapped(1); }
static int dlsym_default(void) { return by((connect_fn)dlsym(RTLD_DEFAULT, "connect")); }
static int dlsym_next(void) { return by((connect_fn)dlsym(RTLD_NEXT, "connect")); }
static int dlsym_handle(void) { return by((connect_fn)dlsym(dlopen("libc.so.6", RTLD_NOW), "connect")); }
static int dlsym_internal(void) { return by((connect_fn)dlsym(dlopen("libc.so.6", RTLD_NOW), "__connect")); }
static int dlvsym_handle(void) { return by((connect_fn)dlvsym(dlopen("libc.so.6", RTLD_NOW), "connect", "GLIBC_2.2.5")); }
static int sendmmsg_internal(void)
{
    struct sockaddr_in a = v4(80);
    struct iovec io = {"x", 1};
    struct mmsghdr m = {.msg_hdr = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &io, .msg_iovlen = 1}};
    int (*f)(int, struct mmsghdr *, unsigned, int) = (int (*)(int, struct mmsghdr *, unsigned, int))dlsym(dlopen("libc.so.6", RTLD_NOW), "__sendmmsg");
    return f ? said("__sendmmsg", f(udp(), &m, 1, 0)) : 77;
}
static int nss_dns(void)
{
    char b[2048];
    struct hostent h;
    int e, he, (*f)(const char *, int, struct hostent *, char *, size_t, int *, int *) =
        (int (*)(const char *, int, struct hostent *, char *, size_t, int *, int *))dlsym(dlopen("libc.so.6", RTLD_NOW), "_nss_dns_gethostbyname2_r");
    return f ? f(HOST, AF_INET, &h, b, sizeof b, &e, &he) != 1 : 77;
}
static int sun_rpc(void)
{
    struct sockaddr_in a = v4(0);
    unsigned short (*f)(struct sockaddr_in *, unsigned long, unsigned long, unsigned) =
        (unsigned short (*)(struct sockaddr_in *, unsigned long, unsigned long, unsigned))dlvsym(dlopen("libc.so.6", RTLD_NOW), "pmap_getport", "GLIBC_2.2.5");
    return f ? !f(&a, 100003, 3, 17) : 77;
}
#if defined __x86_64__
/* As a program that was built before glibc 2.32 refers to it. */
__asm__(".symver old_pmap_getport, pmap_getport@GLIBC_2.2.5");
extern unsigned short old_pmap_getport(struct sockaddr_in *, unsigned long, unsigned long, unsigned);
static int sun_rpc_linked(void) { struct sockaddr_in a = v4(0); return !old_pmap_getport(&a, 100003, 3, 17); }
#else
static int sun_rpc_linked(void) { return 77; }
#endif
static int dlmopen_connect(void)
{
    void *h = dlmopen(LM_ID_NEWLM, "libc.so.6", RTLD_NOW);
    return h ? by((connect_fn)dlsym(h, "connect")) : said("dlmopen", -1);
}
static int syscall_connect(void) { A4; return said("syscall", syscall(SYS_connect, tcp(), SA)); }
static long raw(long n, long a, long b, long c, long d, long e, long f)
{
    long r;
#if defined __x86_64__
    register long r10 __asm__("r10") = d;
    register long r8 __asm__("r8") = e;
    register long r9 __asm__("r9") = f;
    __asm__ volatile("syscall" : "=a"(r) : "0"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9) : "rcx", "r11", "memory");
#elif defined __aarch64__
    register long x8 __asm__("x8") = n;
    register long x0 __asm__("x0") = a;
    register long x1 __asm__("x1") = b;
    register long x2 __asm__("x2") = c;
    register long x3 __asm__("x3") = d;
    register long x4 __asm__("x4") = e;
    register long x5 __asm__("x5") = f;
    __asm__ volatile("svc 0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5) : "memory");
    r = x0;
#else
    r = syscall(n, a, b, c, d, e, f);
#endif
    if (r < 0 && r > -4096) { errno = -r; return -1; }
    return r;
}
static int asm_connect(void) { A4; return said("asm", raw(SYS_connect, tcp(), (long)&a, sizeof a, 0, 0, 0)); }
static int finish(int fd)
{
    struct pollfd p = {.fd = fd, .events = POLLOUT};
    int e = 0;
    socklen_t n = sizeof e;
    if (poll(&p, 1, 10000) == 1) getsockopt(fd, SOL_SOCKET, SO_ERROR, &e, &n);
    errno = e;
    return said("non-blocking", e ? -1 : 0);
}
static int nonblocking_poll(void)
{
    A4;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    if (connect(fd, SA) && errno != EINPROGRESS) return said("connect", -1);
    return finish(fd);
}
static int nonblocking_epoll(void)
{
    A4;
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), ep = epoll_create1(0);
    struct epoll_event ev = {.events = EPOLLOUT};
    epoll_ctl(ep, EPOLL_CTL_ADD, fd, &ev);
    if (connect(fd, SA) && errno != EINPROGRESS) return said("connect", -1);
    epoll_wait(ep, &ev, 1, 10000);
    return finish(fd);
}
static void *in_thread(void *unused) { (void)unused; connect4(); return NULL; }
static int thread_connect(void) { pthread_t t; pthread_create(&t, NULL, in_thread, NULL); pthread_join(t, NULL); return 0; }
static int reap(pid_t p) { int s; waitpid(p, &s, 0); return WIFEXITED(s) ? WEXITSTATUS(s) : 1; }
static int fork_connect(void) { pid_t p = fork(); if (!p) _exit(connect4()); return reap(p); }
static int fork_twice(void) { pid_t p = fork(); if (!p) _exit(fork_connect()); return reap(p); }
static int clone_body(void *unused) { (void)unused; return connect4(); }
static int clone_vm(void)
{
    static char stack[65536] __attribute__((aligned(16)));
    pid_t p = clone(clone_body, stack + sizeof stack, CLONE_VM | SIGCHLD, NULL);
    return p < 0 ? said("clone", -1) : reap(p);
}
static void on_signal(int s) { (void)s; connect4(); }
static int signal_connect(void) { signal(SIGUSR1, on_signal); raise(SIGUSR1); return 0; }
static int unspec_again(void)
{
    A4;
    struct sockaddr u = {.sa_family = AF_UNSPEC};
    struct sockaddr_in l = lo(1);
    int fd = tcp();
    connect(fd, (struct sockaddr *)&l, sizeof l);
    connect(fd, &u, sizeof u);
    return said("connect", connect(fd, SA));
}
static int bound(void)
{
    A4;
    struct sockaddr_in b = {.sin_family = AF_INET};
    int fd = tcp();
    inet_pton(AF_INET, "192.0.2.2", &b.sin_addr);
    bind(fd, (struct sockaddr *)&b, sizeof b);
    return said("connect", connect(fd, SA));
}
static int bound_to_device(void) { A4; int fd = tcp(); setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "uplink", 7); return said("connect", connect(fd, SA)); }
static int udp_bound_to_device(void) { A4; int fd = udp(); setsockopt(fd, SOL_SOCKET, SO_BINDTODEVICE, "uplink", 7); return said("sendto", sendto(fd, "x", 1, 0, SA)); }
static int fastopen_connect(void)
{
    A4;
    int fd = tcp(), on = 1;
    setsockopt(fd, IPPROTO_TCP, TCP_FASTOPEN_CONNECT, &on, sizeof on);
    if (connect(fd, SA)) return said("connect", -1);
    return said("write", write(fd, "GET / HTTP/1.0\r\n\r\n", 18));
}
static int fastopen_sendto(void) { A4; return said("sendto", sendto(tcp(), "x", 1, MSG_FASTOPEN, SA)); }
#define MSG struct iovec io = {"x", 1}; struct mmsghdr m = {.msg_hdr = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &io, .msg_iovlen = 1}}
static int fastopen_sendmsg(void) { A4; MSG; return said("sendmsg", sendmsg(tcp(), &m.msg_hdr, MSG_FASTOPEN)); }
static int fastopen_sendmmsg(void) { A4; MSG; return said("sendmmsg", sendmmsg(tcp(), &m, 1, MSG_FASTOPEN)); }
static int fastopen_syscall(void) { A4; return said("syscall", syscall(SYS_sendto, tcp(), "x", 1, MSG_FASTOPEN, SA)); }
static int mptcp(void) { A4; int fd = socket(AF_INET, SOCK_STREAM, 262); return fd < 0 ? 77 : said("connect", connect(fd, SA)); }
static int sctp(void) { A4; int fd = socket(AF_INET, SOCK_STREAM, 132); return fd < 0 && errno == EPROTONOSUPPORT ? 77 : said("connect", connect(fd, SA)); }
static int dccp(void) { A4; int fd = socket(AF_INET, 6, 33); return fd < 0 && errno == ESOCKTNOSUPPORT ? 77 : said("connect", connect(fd, SA)); }
static int dup_connect(void) { A4; int fd = dup2(tcp(), 77); return said("connect", connect(fd, SA)); }
static int dup_syscall(void) { A4; int fd = syscall(SYS_fcntl, tcp(), F_DUPFD, 200); return said("connect", connect(fd, SA)); }

/* io_uring by hand: one connect. `call` is libc's syscall() or the bare instruction. */
#include <linux/io_uring.h>
static long libc_syscall(long n, long a, long b, long c, long d, long e, long f) { return syscall(n, a, b, c, d, e, f); }
static int uring(long (*call)(long, long, long, long, long, long, long), int opcode)
{
    A4;
    struct iovec io = {"x", 1};
    struct msghdr m = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &io, .msg_iovlen = 1};
    struct io_uring_params p;
    memset(&p, 0, sizeof p);
    long ring = call(SYS_io_uring_setup, 4, (long)&p, 0, 0, 0, 0);
    if (ring < 0) return said("io_uring_setup", -1);
    char *sq = mmap(0, p.sq_off.array + p.sq_entries * 4, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQ_RING);
    struct io_uring_sqe *s = mmap(0, p.sq_entries * sizeof *s, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE, ring, IORING_OFF_SQES);
    memset(s, 0, sizeof *s);
    s->opcode = opcode;
    s->fd = opcode == IORING_OP_CONNECT ? tcp() : udp();
    s->addr = opcode == IORING_OP_CONNECT ? (unsigned long)&a : (unsigned long)&m;
    s->off = opcode == IORING_OP_CONNECT ? sizeof a : 0;
    s->len = opcode == IORING_OP_CONNECT ? 0 : 1;
    ((unsigned *)(sq + p.sq_off.array))[0] = 0;
    __atomic_store_n((unsigned *)(sq + p.sq_off.tail), 1, __ATOMIC_RELEASE);
    return said("io_uring_enter", call(SYS_io_uring_enter, ring, 1, 1, IORING_ENTER_GETEVENTS, 0, 0));
}
static int uring_syscall(void) { return uring(libc_syscall, IORING_OP_CONNECT); }
static int uring_asm(void) { return uring(raw, IORING_OP_CONNECT); }
static int uring_sendmsg_asm(void) { return uring(raw, IORING_OP_SENDMSG); }

/* The 32-bit system calls of a 64-bit program: socket 359, connect 362. */
static int int80_connect(void)
{
#ifdef __x86_64__
    struct sockaddr_in *a = mmap(0, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_32BIT, -1, 0);
    int fd, r;
    *a = v4(80);
    __asm__ volatile("int $0x80" : "=a"(fd) : "a"(359), "b"(AF_INET), "c"(SOCK_STREAM), "d"(0) : "memory");
    if (fd < 0) { errno = -fd; return said("socket", -1); }
    __asm__ volatile("int $0x80" : "=a"(r) : "a"(362), "b"(fd), "c"((int)(long)a), "d"((int)sizeof *a) : "memory");
    errno = -r;
    return said("connect", r < 0 ? -1 : 0);
#else
    return 77;
#endif
}

/* ---- UDP and the rest ---- */
static int udp_sendto(void) { A4; return said("sendto", sendto(udp(), "x", 1, 0, SA)); }
static int udp_sendto6(void) { struct sockaddr_in6 a = v6(53); return said("sendto", sendto(socket(AF_INET6, SOCK_DGRAM, 0), "x", 1, 0, SA)); }
static int udp_sendmsg(void) { A4; MSG; return said("sendmsg", sendmsg(udp(), &m.msg_hdr, 0)); }
static int udp_sendmmsg(void) { A4; MSG; return said("sendmmsg", sendmmsg(udp(), &m, 1, 0)); }
static int udp_connect_send(void) { A4; int fd = udp(); if (connect(fd, SA)) return said("connect", -1); return said("send", send(fd, "x", 1, 0)); }
static int udp_connect_write(void) { A4; int fd = udp(); if (connect(fd, SA)) return said("connect", -1); return said("write", write(fd, "x", 1)); }
static int udp_syscall(void) { A4; return said("syscall", syscall(SYS_sendto, udp(), "x", 1, 0, SA)); }
static int udp_syscall_sendmsg(void) { A4; MSG; return said("syscall", syscall(SYS_sendmsg, udp(), &m.msg_hdr, 0)); }
static int udp_pktinfo(void)
{
    A4;
    struct iovec io = {"x", 1};
    union { char b[CMSG_SPACE(sizeof(struct in_pktinfo))]; struct cmsghdr h; } c;
    memset(&c, 0, sizeof c);
    struct msghdr m = {.msg_name = &a, .msg_namelen = sizeof a, .msg_iov = &io, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c};
    c.h.cmsg_level = IPPROTO_IP; c.h.cmsg_type = IP_PKTINFO; c.h.cmsg_len = CMSG_LEN(sizeof(struct in_pktinfo));
    ((struct in_pktinfo *)CMSG_DATA(&c.h))->ipi_ifindex = if_nametoindex("uplink");
    return said("sendmsg", sendmsg(udp(), &m, 0));
}
static int udplite(void) { A4; int fd = socket(AF_INET, SOCK_DGRAM, 136); return fd < 0 && errno == EPROTONOSUPPORT ? 77 : said("sendto", sendto(fd, "x", 1, 0, SA)); }
static int icmp(int kind)
{
    A4;
    struct icmphdr h = {.type = ICMP_ECHO, .checksum = htons(0xf7ff)};
    return said("sendto", sendto(socket(AF_INET, kind, IPPROTO_ICMP), &h, sizeof h, 0, SA));
}
static int raw_icmp(void) { return icmp(SOCK_RAW); }
static int ping_socket(void) { return icmp(SOCK_DGRAM); }
static int udp_asm(void) { A4; return said("sendto", raw(SYS_sendto, udp(), (long)"x", 1, 0, (long)&a, sizeof a)); }
static int udp_sendmmsg_asm(void) { A4; MSG; return said("sendmmsg", raw(SYS_sendmmsg, udp(), (long)&m, 1, 0, 0, 0)); }
static int dns_asm(void) { struct sockaddr_in a = v4(53); static const char q[] = "\0\1\1\0\0\1\0\0\0\0\0\0\4leak\7example\0\0\1\0\1"; return said("sendto", raw(SYS_sendto, udp(), (long)q, sizeof q - 1, 0, (long)&a, sizeof a)); }

/* Ways into another network that leave nothing at the sink; held, the call itself must fail. */
#include <linux/if_tun.h>
#include <sys/ioctl.h>
static int vsock(void)
{
    struct { unsigned short family, zero; unsigned port, cid; unsigned char more[4]; } a = {40, 0, 1024, 2, {0}};
    int fd = raw(SYS_socket, 40, SOCK_STREAM | SOCK_NONBLOCK, 0, 0, 0, 0);
    if (fd < 0) return said("socket", -1);
    return said("connect", raw(SYS_connect, fd, (long)&a, sizeof a, 0, 0, 0)) && errno != EINPROGRESS;
}
static int tun(void)
{
    struct ifreq r = {.ifr_flags = IFF_TUN | IFF_NO_PI};
    int fd = open("/dev/net/tun", O_RDWR);
    if (fd < 0) return said("open", -1);
    return said("TUNSETIFF", ioctl(fd, TUNSETIFF, &r));
}
static int ptrace_other(void) { long p = atoi(getenv("VECTOR_PID")); return said("ptrace", raw(SYS_ptrace, 0x4206, p, 0, 0, 0, 0)); }
static int route_change(void)
{
    struct ifreq r = {.ifr_name = "lo"};
    return said("SIOCSIFFLAGS", ioctl(udp(), SIOCSIFFLAGS, &r));
}
static int raw_ip(void)
{
    A4;
    struct iphdr h = {.version = 4, .ihl = 5, .ttl = 64, .protocol = 253, .daddr = a.sin_addr.s_addr, .tot_len = htons(20)};
    return said("sendto", sendto(socket(AF_INET, SOCK_RAW, IPPROTO_RAW), &h, sizeof h, 0, SA));
}
static int packet(void)
{
    unsigned char frame[64] = {2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2, 8, 0, 0x45, 0, 0, 20};
    struct sockaddr_ll a = {.sll_family = AF_PACKET, .sll_ifindex = if_nametoindex("uplink"), .sll_halen = 6};
    return said("sendto", sendto(socket(AF_PACKET, SOCK_RAW, htons(ETH_P_IP)), frame, sizeof frame, 0, SA));
}

/* ---- names ---- */
static int looked_up(int family, int flags)
{
    struct addrinfo h = {.ai_family = family, .ai_socktype = SOCK_STREAM, .ai_flags = flags}, *r;
    int e = getaddrinfo(HOST, "80", &h, &r);
    printf("getaddrinfo: %s\n", e ? gai_strerror(e) : "ok");
    if (e) return 1;
    return said("connect", connect(socket(r->ai_family, SOCK_STREAM, 0), r->ai_addr, r->ai_addrlen));
}
static int gai(void) { return looked_up(AF_UNSPEC, 0); }
static int gai_inet6(void) { return looked_up(AF_INET6, 0); }
static int gai_canonname(void) { return looked_up(AF_INET, AI_CANONNAME); }
static int gai_null(void) { struct addrinfo *r; int e = getaddrinfo(HOST, NULL, NULL, &r); printf("getaddrinfo: %d\n", e); return !!e; }
static int gai_async(void)
{
    struct gaicb c = {.ar_name = HOST}, *list[1] = {&c};
    int e = getaddrinfo_a(GAI_WAIT, list, 1, NULL);
    printf("getaddrinfo_a: %d %d\n", e, gai_error(&c));
    return !!e;
}
static int gai_async_nowait(void)
{
    struct gaicb c = {.ar_name = HOST}, *list[1] = {&c};
    int e = getaddrinfo_a(GAI_NOWAIT, list, 1, NULL);
    struct timespec t = {10, 0};
    gai_suspend((const struct gaicb *const *)list, 1, &t);
    printf("getaddrinfo_a: %d %d\n", e, gai_error(&c));
    return !!e;
}
static int hostent(struct hostent *h) { printf("%s\n", h ? h->h_name : hstrerror(h_errno)); return !h; }
static int ghbn(void) { return hostent(gethostbyname(HOST)); }
static int ghbn2(void) { return hostent(gethostbyname2(HOST, AF_INET6)); }
static int ghbn_r(void) { struct hostent h, *r; char b[2048]; int e; gethostbyname_r(HOST, &h, b, sizeof b, &r, &e); return hostent(r); }
static int ghba(void) { A4; return hostent(gethostbyaddr(&a.sin_addr, 4, AF_INET)); }
static int gni(void) { A4; char b[NI_MAXHOST]; int e = getnameinfo(SA, b, sizeof b, NULL, 0, 0); printf("getnameinfo: %s\n", e ? gai_strerror(e) : b); return !!e; }
static int gni_required(void) { A4; char b[NI_MAXHOST]; int e = getnameinfo(SA, b, sizeof b, NULL, 0, NI_NAMEREQD); printf("getnameinfo: %s\n", e ? gai_strerror(e) : b); return !!e; }
static int host_id(void) { printf("%lx\n", gethostid()); return 0; }
static int remote_command(void) { char *h = (char *)HOST; return said("rcmd", rcmd(&h, 514, "a", "b", "c", NULL)); }
static int net_by_name(void) { return !getnetbyname("leaknet"); }
static unsigned char answer[4096];
static int rq(void) { return said("res_query", res_query(HOST, C_IN, T_A, answer, sizeof answer)); }
static int rq_mx(void) { return said("res_query", res_query(HOST, C_IN, T_MX, answer, sizeof answer)); }
static int rq_srv(void) { return said("res_search", res_search("_http._tcp.leak.example", C_IN, T_SRV, answer, sizeof answer)); }
static int rs(void) { return said("res_search", res_search(HOST, C_IN, T_AAAA, answer, sizeof answer)); }
static int rqd(void) { return said("res_querydomain", res_querydomain("leak", "example", C_IN, T_A, answer, sizeof answer)); }
static int rnq(void) { struct __res_state s; memset(&s, 0, sizeof s); res_ninit(&s); return said("res_nquery", res_nquery(&s, HOST, C_IN, T_A, answer, sizeof answer)); }
static int rns(void) { struct __res_state s; memset(&s, 0, sizeof s); res_ninit(&s); return said("res_nsearch", res_nsearch(&s, HOST, C_IN, T_A, answer, sizeof answer)); }
static int question(unsigned char *q) { res_init(); return res_mkquery(QUERY, HOST, C_IN, T_TXT, NULL, 0, NULL, q, 512); }
static int rsend(void) { unsigned char q[512]; int n = question(q); return said("res_send", res_send(q, n, answer, sizeof answer)); }
static int rnsend(void) { struct __res_state s; memset(&s, 0, sizeof s); res_ninit(&s); unsigned char q[512]; int n = question(q); return said("res_nsend", res_nsend(&s, q, n, answer, sizeof answer)); }
static int res_by_dlvsym(void)
{
    int (*f)(const char *, int, int, unsigned char *, int) = (int (*)(const char *, int, int, unsigned char *, int))dlvsym(dlopen("libresolv.so.2", RTLD_NOW), "__res_query", "GLIBC_2.2.5");
    return f ? said("__res_query", f(HOST, C_IN, T_A, answer, sizeof answer)) : 77;
}
static const unsigned char DNS_QUERY[] = "\0\x1e\x12\x34\1\0\0\1\0\0\0\0\0\0\4leak\7example\0\0\1\0\1";
static int dns_udp(void) { struct sockaddr_in a = v4(53); return said("sendto", sendto(udp(), DNS_QUERY + 2, 30, 0, SA)); }
static int dns_tcp(void) { struct sockaddr_in a = v4(53); int fd = tcp(); if (connect(fd, SA)) return said("connect", -1); return said("write", write(fd, DNS_QUERY, 32)); }
static int dns_stub_udp(void) { struct sockaddr_in a = lo(53); return said("sendto", sendto(udp(), DNS_QUERY + 2, 30, 0, SA)); }
static int dns_stub_connected(void) { struct sockaddr_in a = lo(53); int fd = udp(); if (connect(fd, SA)) return said("connect", -1); return said("send", send(fd, DNS_QUERY + 2, 30, 0)); }
static int dns_stub_tcp(void) { struct sockaddr_in a = lo(53); int fd = tcp(); if (connect(fd, SA)) return said("connect", -1); return said("write", write(fd, DNS_QUERY, 32)); }
static int unix_path(const char *path)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    strcpy(a.sun_path, path);
    int fd = socket(AF_UNIX, SOCK_STREAM, 0);
    if (connect(fd, SA)) return said("connect", -1);
    return said("write", write(fd, "x", 1));
}
static int nscd(void) { return unix_path("/run/nscd/socket"); }
static int nscd_var(void) { return unix_path("/var/run/nscd/socket"); }
static int nscd_dots(void) { return unix_path("/run/../run/nscd//socket"); }
static int nscd_relative(void) { return chdir("/run/nscd") ? said("chdir", -1) : unix_path("./socket"); }
static int nscd_symlink(void) { char p[64]; snprintf(p, sizeof p, "/tmp/uwt-vector-%d", getpid()); if (symlink("/run/nscd/socket", p)) return said("symlink", -1); int r = unix_path(p); unlink(p); return r; }
static int nscd_syscall(void)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX, .sun_path = "/run/nscd/socket"};
    return said("syscall", syscall(SYS_connect, socket(AF_UNIX, SOCK_STREAM, 0), SA));
}
static int resolved(void) { return unix_path("/run/systemd/resolve/io.systemd.Resolve"); }
static int bus(void) { return unix_path("/run/dbus/system_bus_socket"); }

/* ---- starting programs ---- */
static int spawned(pid_t p) { return p < 0 ? said("start", -1) : reap(p); }
#define IN_CHILD(call) pid_t p = fork(); if (!p) { call; said("exec", -1); _exit(126); } return spawned(p)
static int exec_empty(void) { IN_CHILD(execve(self, child_argv, EMPTY)); }
static int exec_null(void) { IN_CHILD(execve(self, child_argv, NULL)); }
static int exec_v(void) { IN_CHILD(clearenv(); execv(self, child_argv)); }
static int exec_vp(void) { IN_CHILD(unsetenv("LD_PRELOAD"); execvp(self, child_argv)); }
static int exec_vpe(void) { IN_CHILD(execvpe(self, child_argv, EMPTY)); }
static int exec_l(void) { IN_CHILD(unsetenv("LD_PRELOAD"); execl(self, "vectors", "connect4", NULL)); }
static int exec_lp(void) { IN_CHILD(clearenv(); execlp(self, "vectors", "connect4", NULL)); }
static int exec_le(void) { IN_CHILD(execle(self, "vectors", "connect4", NULL, EMPTY)); }
static int exec_f(void) { IN_CHILD(fexecve(open(self, O_RDONLY | O_CLOEXEC), child_argv, EMPTY)); }
static int exec_at(void) { IN_CHILD(execveat(open(self, O_PATH | O_CLOEXEC), "", child_argv, EMPTY, AT_EMPTY_PATH)); }
static int exec_changed(void)
{
    char *env[] = {"LD_PRELOAD=/nonexistent.so", "UWT_HANDOFF=uwt1;broken", NULL};
    IN_CHILD(execve(self, child_argv, env));
}
static int exec_no_handoff(void) { IN_CHILD(unsetenv("UWT_HANDOFF"); execv(self, child_argv)); }
static int exec_syscall(void) { IN_CHILD(syscall(SYS_execve, self, child_argv, EMPTY)); }
static int exec_asm(void) { IN_CHILD(raw(SYS_execve, (long)self, (long)child_argv, (long)EMPTY, 0, 0, 0)); }
static int exec_vfork(void) { pid_t p = vfork(); if (!p) { execve(self, child_argv, EMPTY); _exit(126); } return spawned(p); }
static int spawn(void) { pid_t p; if (posix_spawn(&p, self, NULL, NULL, child_argv, EMPTY)) return 1; return spawned(p); }
static int spawnp(void) { pid_t p; if (posix_spawnp(&p, self, NULL, NULL, child_argv, EMPTY)) return 1; return spawned(p); }
static int by_system(void) { char c[4200]; snprintf(c, sizeof c, "%s connect4", self); clearenv(); return !!system(c); }
static int by_popen(void) { char c[4200], b[99]; snprintf(c, sizeof c, "%s connect4", self); unsetenv("LD_PRELOAD"); FILE *f = popen(c, "r"); while (fgets(b, sizeof b, f)) fputs(b, stdout); return !!pclose(f); }
static int by_ld_so(void) { char *v[] = {"ld.so", self, "connect4", NULL}; IN_CHILD(execve("/lib64/ld-linux-x86-64.so.2", v, EMPTY)); }
static int memfd_exec(void)
{
    int to = memfd_create("copy", 0), from = open(self, O_RDONLY);
    char b[65536];
    for (ssize_t n; (n = read(from, b, sizeof b)) > 0;) if (write(to, b, n) != n) return 1;
    IN_CHILD(fexecve(to, child_argv, EMPTY));
}
static int closed_all(void)
{
    /* Daemons close what they do not know: the shim's own descriptors among them. */
    for (int i = 3; i < 1024; i++) close(i);
    return looked_up(AF_INET, 0);
}
static int close_range_all(void) { syscall(SYS_close_range, 3, ~0U, 0); return looked_up(AF_INET, 0); }
static int exec_other(void) { char *f = getenv("VECTOR_CHILD"); char *v[] = {f, "connect4", NULL}; IN_CHILD(execv(f, v)); }
static int spawn_other(void) { char *f = getenv("VECTOR_CHILD"); char *v[] = {f, "connect4", NULL}; pid_t p; int e = posix_spawn(&p, f, NULL, NULL, v, EMPTY); if (e) { errno = e; return said("posix_spawn", -1); } return spawned(p); }

/* ---- descriptors from elsewhere ---- */
static int inherited(void) { return said("send", send(5, "x", 1, 0)); }
static int inherited_write(void) { return said("write", write(5, "x", 1)); }
static int passed(int how)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    char b[8];
    union { char c[CMSG_SPACE(64)]; struct cmsghdr h; } c;
    struct iovec io = {b, sizeof b};
    struct mmsghdr m = {.msg_hdr = {.msg_iov = &io, .msg_iovlen = 1, .msg_control = &c, .msg_controllen = sizeof c}};
    int s = socket(AF_UNIX, SOCK_STREAM, 0), fd = -1;
    strcpy(a.sun_path, getenv("VECTOR_SOCKET"));
    if (connect(s, SA)) return said("connect", -1);
    if ((how == 0 ? recvmsg(s, &m.msg_hdr, 0) : how == 1 ? recvmmsg(s, &m, 1, 0, NULL) : syscall(SYS_recvmsg, s, &m.msg_hdr, 0)) < 0) return said("recvmsg", -1);
    struct cmsghdr *h = CMSG_FIRSTHDR(&m.msg_hdr);
    if (h && h->cmsg_type == SCM_RIGHTS) memcpy(&fd, CMSG_DATA(h), sizeof fd);
    return said("write", write(fd, "x", 1));
}
static int passed_recvmsg(void) { return passed(0); }
static int passed_recvmmsg(void) { return passed(1); }
static int passed_syscall(void) { return passed(2); }
static int pidfd_getfd_other(void)
{
    int p = syscall(SYS_pidfd_open, atoi(getenv("VECTOR_PID")), 0);
    int fd = syscall(SYS_pidfd_getfd, p, atoi(getenv("VECTOR_FD")), 0);
    return fd < 0 ? said("pidfd_getfd", -1) : said("write", write(fd, "x", 1));
}
static int pidfd_getfd_asm(void)
{
    int p = raw(SYS_pidfd_open, atoi(getenv("VECTOR_PID")), 0, 0, 0, 0, 0);
    int fd = raw(SYS_pidfd_getfd, p, atoi(getenv("VECTOR_FD")), 0, 0, 0, 0);
    return fd < 0 ? said("pidfd_getfd", -1) : said("write", raw(SYS_write, fd, (long)"x", 1, 0, 0, 0));
}
static int setns_asm(void)
{
    /* Back to where somebody else is, who is not held. */
    char path[64];
    A4;
    snprintf(path, sizeof path, "/proc/%s/ns/net", getenv("VECTOR_PID"));
    int fd = open(path, O_RDONLY);
    if (fd < 0) return said("open", -1);
    if (raw(SYS_setns, fd, 0, 0, 0, 0, 0) < 0) return said("setns", -1);
    return said("connect", raw(SYS_connect, tcp(), (long)&a, sizeof a, 0, 0, 0));
}
static int other_netns(void)
{
    /* A namespace of one's own has no way out, but whoever may make one may join another. */
    int fd = open("/proc/self/ns/net", O_RDONLY);
    A4;
    if (setns(fd, 0)) return said("setns", -1);
    return said("syscall", syscall(SYS_connect, tcp(), SA));
}

#define V(name) {#name, name}
static const struct { const char *name; int (*run)(void); } ALL[] = {
    V(connect4), V(connect6), V(connect_mapped), V(connect_v6only), V(syscall_connect), V(asm_connect),
    V(nonblocking_poll), V(nonblocking_epoll), V(thread_connect), V(fork_connect), V(fork_twice), V(clone_vm),
    V(signal_connect), V(unspec_again), V(bound), V(bound_to_device), V(udp_bound_to_device), V(fastopen_connect),
    V(fastopen_sendto), V(fastopen_sendmsg), V(fastopen_sendmmsg), V(fastopen_syscall), V(mptcp), V(sctp), V(dccp),
    V(dup_connect), V(dup_syscall), V(uring_syscall), V(uring_asm), V(uring_sendmsg_asm), V(int80_connect), V(udp_asm), V(udp_sendmmsg_asm), V(dns_asm), V(vsock), V(tun), V(ptrace_other), V(route_change), V(udp_sendto), V(udp_sendto6), V(udp_sendmsg),
    V(udp_sendmmsg), V(udp_connect_send), V(udp_connect_write), V(udp_syscall), V(udp_syscall_sendmsg),
    V(udp_pktinfo), V(udplite), V(raw_icmp), V(ping_socket), V(raw_ip), V(packet), V(gai), V(gai_inet6),
    V(gai_canonname), V(gai_null), V(ghbn), V(ghbn2), V(ghbn_r), V(ghba), V(gni), V(gni_required), V(net_by_name), V(host_id), V(remote_command),
    V(dns_udp), V(dns_tcp), V(dns_stub_udp), V(dns_stub_connected), V(dns_stub_tcp), V(nscd), V(nscd_var),
    V(nscd_dots), V(nscd_relative), V(nscd_symlink), V(nscd_syscall), V(resolved), V(bus), V(exec_empty),
    V(exec_null), V(exec_v), V(exec_vp), V(exec_vpe), V(exec_l), V(exec_lp), V(exec_le), V(exec_f), V(exec_at),
    V(exec_changed), V(exec_no_handoff), V(exec_syscall), V(exec_asm), V(exec_vfork), V(spawn), V(spawnp),
    V(by_system), V(by_popen), V(by_ld_so), V(memfd_exec), V(closed_all), V(close_range_all), V(exec_other),
    V(spawn_other), V(inherited), V(inherited_write), V(passed_recvmsg), V(passed_recvmmsg), V(passed_syscall),
    V(pidfd_getfd_other), V(pidfd_getfd_asm), V(setns_asm), V(other_netns),
    V(dlsym_default), V(dlsym_next), V(dlsym_handle), V(dlsym_internal), V(dlvsym_handle), V(dlmopen_connect), V(sendmmsg_internal), V(nss_dns), V(sun_rpc), V(sun_rpc_linked),
    V(gai_async), V(gai_async_nowait), V(rq), V(rq_mx), V(rq_srv), V(rs), V(rqd), V(rnq), V(rns), V(rsend), V(rnsend), V(res_by_dlvsym),
};

int main(int argc, char **argv)
{
    static char path[4096];
    ssize_t n = readlink("/proc/self/exe", path, sizeof path - 1);
    self = n > 0 ? path : argv[0];
    for (size_t i = 0; argc > 1 && i < sizeof ALL / sizeof *ALL; i++)
        if (!strcmp(ALL[i].name, argv[1])) return ALL[i].run();
    fprintf(stderr, "vectors: no such vector\n");
    return 2;
}
