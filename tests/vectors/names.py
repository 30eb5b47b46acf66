"""What libc's resolver gives a program; prints one line per claim that does not hold."""
import ipaddress, os, socket, sys

def check(what, ok):
    if not ok:
        print("FAIL", what)

def fails(name, *codes):
    try:
        got = socket.getaddrinfo(name, 80, type=socket.SOCK_STREAM)
    except socket.gaierror as e:
        return e.errno in (codes or (socket.EAI_NONAME,))
    except UnicodeError:
        return True
    print(got)
    return False

virtual = ipaddress.ip_network("127.128.0.0/10")
n = int(sys.argv[1])
seen = {}
for i in range(n):
    a = socket.gethostbyname("h%d.test" % i)
    check("an address has two names", a not in seen)
    seen[a] = i
check("names that differ have addresses that differ", len(seen) == n)
check("all are virtual", all(ipaddress.ip_address(a) in virtual for a in list(seen)[:1000]))
for a, i in list(seen.items())[:: max(1, n // 100)]:
    check("the name comes back", socket.gethostbyaddr(a)[0] == "h%d.test" % i)
check("the same name, the same address", socket.gethostbyname("h7.test") in seen and seen[socket.gethostbyname("h7.test")] == 7)
six = socket.getaddrinfo("h7.test", 80, socket.AF_INET6, socket.SOCK_STREAM)[0][4][0]
check("AF_INET6 gives the v4-mapped form", ipaddress.ip_address(six).ipv4_mapped in virtual)
check("AI_CANONNAME is the name", socket.getaddrinfo("h7.test", 80, type=socket.SOCK_STREAM, flags=socket.AI_CANONNAME)[0][3] == "h7.test")
try:
    socket.getaddrinfo("h7.test", 80, flags=socket.AI_NUMERICHOST)
    check("AI_NUMERICHOST refuses a name", False)
except socket.gaierror as e:
    check("AI_NUMERICHOST: EAI_NONAME", e.errno == socket.EAI_NONAME)
check("a literal is itself", socket.getaddrinfo("198.51.100.7", 80, type=socket.SOCK_STREAM)[0][4] == ("198.51.100.7", 80))
check("a v6 literal is itself", socket.getaddrinfo("2001:db8::7", 80, type=socket.SOCK_STREAM)[0][4][0] == "2001:db8::7")
for name in ("localhost", "LOCALHOST", "a.localhost", "ip6-localhost"):
    got = {ipaddress.ip_address(a[4][0]).is_loopback and ipaddress.ip_address(a[4][0]) not in virtual for a in socket.getaddrinfo(name, 80)}
    check(name + " is loopback", got == {True})
check("a service by name", socket.getaddrinfo("h7.test", "http", type=socket.SOCK_STREAM)[0][4][1] == 80)
for bad in ("a b", "a..b", "x" * 64, ".", "10.0.0.300", "a/b", "x.local", "printer.local.", "-" * 70):
    check("%r is refused" % bad, fails(bad))
longest = ".".join(["a" * 63, "b" * 63, "c" * 63, "d" * 63])
check("255 bytes", ipaddress.ip_address(socket.gethostbyname(longest)) in virtual)
check("256 bytes are refused", fails(longest + "x"))
idn = "b\u00fccher.test".encode("utf-8")
check("IDNs as given", socket.getnameinfo((socket.getaddrinfo(idn, 80)[0][4][0], 80), 0)[0].encode("utf-8", "surrogateescape") in (idn, b"b\xc3\xbccher.test"))
check("an onion", ipaddress.ip_address(socket.gethostbyname("duckduckgogg42xjoc72x3sjasowoarfbgcmvfimaftt6twagswzczad.onion")) in virtual)

# A parent resolves, a child connects: by fork and by exec.
address = socket.gethostbyname("parent.test")
pid = os.fork()
if pid == 0:
    s = socket.create_connection((address, 80))
    check("getpeername is what was asked for", s.getpeername() == (address, 80))
    os._exit(0)
check("the child lives", os.waitpid(pid, 0)[1] == 0)
os.system("%s -c \"import socket; socket.create_connection(('%s', 81))\"" % (sys.executable, address))
s = socket.socket(socket.AF_INET6)
s.connect(socket.getaddrinfo("six.test", 82, socket.AF_INET6)[0][4])
check("getpeername, AF_INET6", ipaddress.ip_address(s.getpeername()[0]).ipv4_mapped in virtual)
print("done")
