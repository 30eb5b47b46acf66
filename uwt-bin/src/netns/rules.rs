//! The network of a run, inside its namespace: loopback alone, every address local, and an nftables table that
//! hands each new TCP connection to the broker before its SYN goes anywhere.
//!
//! ```text
//! table inet uwt {
//!   chain held { type filter hook output priority -150; policy drop;
//!     ct state established,related accept
//!     tcp flags & (fin|syn|rst|ack) == syn  queue       # the broker says what becomes of it
//!     meta l4proto tcp drop
//!     udp dport 53 accept                               # the broker's resolver, at any address
//!     ip daddr 127.128.0.0/10 reject                    # virtual addresses: TCP only
//!     ip daddr 127.0.0.0/8 accept                       # the run's own servers
//!     ip6 daddr ::1 accept
//!     reject }                                          # ICMP port unreachable: ECONNREFUSED at once
//!   chain verdict { type filter hook output priority -140;
//!     meta mark 2 reject with tcp reset
//!     meta mark 3 reject with icmpx host-unreachable
//!     meta mark 4 reject with icmpx no-route }
//!   chain carried { type nat hook output priority -100;
//!     meta mark & 0x80000000 != 0 redirect to :PORT }   # the broker's relay
//! }
//! ```
//!
//! A queue that nobody reads drops: when the broker is gone, nothing connects. A kernel without iptables' NFQUEUE has
//! nft_queue, which is the same queue. Everything lives and dies with the namespace.

use super::netlink::{Body, Messages, Socket};
use std::io;
use std::net::Ipv4Addr;

/// What the broker marks a SYN with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Mark {
    /// Nothing: it goes where it was going, to a listener inside.
    Inside,
    /// To the broker's relay, where the accepted socket has the same mark (`net.ipv4.tcp_fwmark_accept`): this number,
    /// below 2^31, says which connection it is. Addresses would not: NAT may have changed them.
    Carried(u32),
    /// A TCP reset: ECONNREFUSED.
    Reset,
    /// ICMP host unreachable: EHOSTUNREACH.
    HostUnreachable,
    /// ICMP network unreachable: ENETUNREACH.
    NetworkUnreachable,
}

/// What all marks of carried connections have in common.
const CARRIED: u32 = 1 << 31;

impl Mark {
    /// The packet's mark (SO_MARK, socket(7)).
    pub fn value(self) -> u32 {
        match self {
            Mark::Inside => 0,
            Mark::Carried(n) => CARRIED | n,
            Mark::Reset => 2,
            Mark::HostUnreachable => 3,
            Mark::NetworkUnreachable => 4,
        }
    }
}

const TABLE: &str = "uwt";
const NFPROTO_INET: u8 = 1;
const NFPROTO_IPV4: u32 = 2;
const NFPROTO_IPV6: u32 = 10;
const SUBSYSTEM_NFTABLES: u16 = 10;

// linux/netfilter/nf_tables.h
const NEW_TABLE: u16 = 0;
const NEW_CHAIN: u16 = 3;
const NEW_RULE: u16 = 6;
const REGISTER_VERDICT: u32 = 0;
const REGISTER: u32 = 1;
const META_MARK: u32 = 3;
const META_NFPROTO: u32 = 15;
const META_L4PROTO: u32 = 16;
const NETWORK_HEADER: u32 = 1;
const TRANSPORT_HEADER: u32 = 2;
const EQUAL: u32 = 0;
const NOT_EQUAL: u32 = 1;
const VERDICT_DROP: u32 = 0;
const VERDICT_ACCEPT: u32 = 1;
const REJECT_TCP_RESET: u32 = 1;
const REJECT_ICMPX: u32 = 2;
const ICMPX_NO_ROUTE: u8 = 0;
const ICMPX_PORT_UNREACHABLE: u8 = 1;
const ICMPX_HOST_UNREACHABLE: u8 = 2;
const HOOK_OUTPUT: u32 = 3;
const CT_ESTABLISHED: u32 = 2;
const CT_RELATED: u32 = 4;

/// nfgenmsg: family, version, resource id.
fn nfgenmsg(family: u8, resource: u16) -> [u8; 4] {
    let [hi, lo] = resource.to_be_bytes();
    [family, 0, hi, lo]
}

/// The expressions of one rule, in the order in which they are evaluated.
struct Rule<'a, 'm>(&'a mut Body<'m>);

impl Rule<'_, '_> {
    fn expression(&mut self, name: &str, f: impl FnOnce(&mut Body<'_>)) -> &mut Self {
        self.0.nest(1, |b| {
            b.string(1, name);
            b.nest(2, f);
        });
        self
    }

    fn compare(&mut self, operation: u32, value: &[u8]) -> &mut Self {
        self.expression("cmp", |b| {
            b.number(1, REGISTER);
            b.number(2, operation);
            b.nest(3, |b| b.attribute(1, value));
        })
    }

    fn and(&mut self, mask: &[u8]) -> &mut Self {
        self.expression("bitwise", |b| {
            b.number(1, REGISTER);
            b.number(2, REGISTER);
            b.number(3, mask.len() as u32);
            b.nest(4, |b| b.attribute(1, mask));
            b.nest(5, |b| b.attribute(1, &vec![0; mask.len()]));
        })
    }

    /// A meta key: one byte for a protocol, four in the host's order for a mark.
    fn meta(&mut self, key: u32, value: &[u8]) -> &mut Self {
        self.load_meta(key).compare(EQUAL, value)
    }

    fn load_meta(&mut self, key: u32) -> &mut Self {
        self.expression("meta", |b| {
            b.number(1, REGISTER);
            b.number(2, key);
        })
    }

    fn protocol(&mut self, n: i32) -> &mut Self {
        self.meta(META_L4PROTO, &[n as u8])
    }

    fn family(&mut self, n: u32) -> &mut Self {
        self.meta(META_NFPROTO, &[n as u8])
    }

    fn payload(&mut self, base: u32, offset: u32, len: u32) -> &mut Self {
        self.expression("payload", |b| {
            b.number(1, REGISTER);
            b.number(2, base);
            b.number(3, offset);
            b.number(4, len);
        })
    }

    /// IPv4 to an address of this prefix.
    fn destination_v4(&mut self, address: Ipv4Addr, mask: Ipv4Addr) -> &mut Self {
        self.family(NFPROTO_IPV4)
            .payload(NETWORK_HEADER, 16, 4)
            .and(&mask.octets())
            .compare(EQUAL, &address.octets())
    }

    fn verdict(&mut self, code: u32) {
        self.expression("immediate", |b| {
            b.number(1, REGISTER_VERDICT);
            b.nest(2, |b| b.nest(2, |b| b.number(1, code)));
        });
    }

    fn reject(&mut self, kind: u32, code: u8) {
        self.expression("reject", |b| {
            b.number(1, kind);
            b.attribute(2, &[code]);
        });
    }
}

struct Batch {
    messages: Messages,
}

impl Batch {
    fn message(&mut self, kind: u16, flags: i32, f: impl FnOnce(&mut Body<'_>)) {
        let header = nfgenmsg(NFPROTO_INET, 0);
        let flags = flags | libc::NLM_F_CREATE | libc::NLM_F_ACK;
        self.messages
            .add(SUBSYSTEM_NFTABLES << 8 | kind, flags, &header, f);
    }

    fn chain(&mut self, name: &str, kind: &str, priority: i32, policy: u32) {
        self.message(NEW_CHAIN, 0, |b| {
            b.string(1, TABLE);
            b.string(3, name);
            b.nest(4, |b| {
                b.number(1, HOOK_OUTPUT);
                b.number(2, priority as u32);
            });
            b.number(5, policy);
            b.string(7, kind);
        });
    }

    fn rule(&mut self, chain: &str, f: impl FnOnce(&mut Rule<'_, '_>)) {
        self.message(NEW_RULE, libc::NLM_F_APPEND, |b| {
            b.string(1, TABLE);
            b.string(2, chain);
            b.nest(4, |b| f(&mut Rule(b)));
        });
    }
}

/// Brings loopback up and makes every address local to it: nothing else is there.
///
/// # Errors
/// The kernel's.
pub fn addresses() -> io::Result<()> {
    const LOOPBACK: u32 = 1;
    let socket = Socket::open(libc::NETLINK_ROUTE)?;
    let mut m = Messages::default();
    // struct ifinfomsg: family, type, index, flags, change.
    let up = (libc::IFF_UP as u32).to_ne_bytes();
    let link = [&[0; 4][..], &LOOPBACK.to_ne_bytes(), &up, &up].concat();
    m.add(libc::RTM_NEWLINK, libc::NLM_F_ACK, &link, |_| {});
    socket.ask(&m)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut m = Messages::default();
        // struct rtmsg: family, dst_len, src_len, tos, table, protocol, scope, type, flags.
        let table = libc::RT_TABLE_LOCAL;
        let (scope, kind) = (libc::RT_SCOPE_HOST, libc::RTN_LOCAL);
        let header = [
            family as u8,
            0,
            0,
            0,
            table,
            libc::RTPROT_STATIC,
            scope,
            kind,
            0,
            0,
            0,
            0,
        ];
        let flags = libc::NLM_F_CREATE | libc::NLM_F_ACK;
        m.add(libc::RTM_NEWROUTE, flags, &header, |b| {
            b.attribute(libc::RTA_OIF, &LOOPBACK.to_ne_bytes());
        });
        match socket.ask(&m) {
            // A kernel without IPv6: there is nowhere to go then.
            Err(_) if family == libc::AF_INET6 => {}
            other => other?,
        }
    }
    Ok(())
}

/// How a packet gets into the queue.
#[derive(Clone, Copy)]
enum Queue {
    /// nft_queue.
    Native,
    /// xt_NFQUEUE by nft_compat.
    Compatible,
}

/// Loads the table; the broker's relay listens on `port` of both loopback addresses.
///
/// # Errors
/// The kernel's; nothing is loaded then.
pub fn load(port: u16) -> io::Result<()> {
    // A kernel that lacks what is asked for starts modprobe each time, which takes 5 ms: first what more kernels have.
    match try_load(port, Queue::Compatible) {
        Err(e) if e.raw_os_error() == Some(libc::ENOENT) => try_load(port, Queue::Native),
        other => other,
    }
}

fn try_load(port: u16, queue: Queue) -> io::Result<()> {
    let mut b = Batch {
        messages: Messages::default(),
    };
    let control = nfgenmsg(0, SUBSYSTEM_NFTABLES);
    b.messages
        .add(libc::NFNL_MSG_BATCH_BEGIN as u16, 0, &control, |_| {});
    b.message(NEW_TABLE, 0, |b| b.string(1, TABLE));
    b.chain("held", "filter", -150, VERDICT_DROP);
    b.rule("held", |r| {
        r.expression("ct", |b| {
            b.number(1, REGISTER);
            b.number(2, 0);
        })
        .and(&(CT_ESTABLISHED | CT_RELATED).to_ne_bytes())
        .compare(NOT_EQUAL, &[0; 4])
        .verdict(VERDICT_ACCEPT);
    });
    b.rule("held", |r| {
        r.protocol(libc::IPPROTO_TCP)
            .payload(TRANSPORT_HEADER, 13, 1)
            .and(&[0x17])
            .compare(EQUAL, &[0x02]);
        match queue {
            Queue::Native => r.expression("queue", |b| b.attribute(1, &0u16.to_be_bytes())),
            // Revision 0; struct xt_NFQ_info, the queue's number, aligned to eight bytes.
            Queue::Compatible => r.expression("target", |b| {
                b.string(1, "NFQUEUE");
                b.number(2, 0);
                b.attribute(3, &[0; 8]);
            }),
        };
    });
    b.rule("held", |r| {
        r.protocol(libc::IPPROTO_TCP).verdict(VERDICT_DROP)
    });
    b.rule("held", |r| {
        r.protocol(libc::IPPROTO_UDP)
            .payload(TRANSPORT_HEADER, 2, 2)
            .compare(EQUAL, &53u16.to_be_bytes())
            .verdict(VERDICT_ACCEPT);
    });
    b.rule("held", |r| {
        r.destination_v4([127, 128, 0, 0].into(), [255, 192, 0, 0].into())
            .reject(REJECT_ICMPX, ICMPX_PORT_UNREACHABLE);
    });
    b.rule("held", |r| {
        r.destination_v4([127, 0, 0, 0].into(), [255, 0, 0, 0].into())
            .verdict(VERDICT_ACCEPT);
    });
    b.rule("held", |r| {
        r.family(NFPROTO_IPV6)
            .payload(NETWORK_HEADER, 24, 16)
            .compare(EQUAL, &std::net::Ipv6Addr::LOCALHOST.octets())
            .verdict(VERDICT_ACCEPT);
    });
    b.rule("held", |r| r.reject(REJECT_ICMPX, ICMPX_PORT_UNREACHABLE));
    b.chain("verdict", "filter", -140, VERDICT_ACCEPT);
    for (mark, kind, code) in [
        (Mark::Reset, REJECT_TCP_RESET, 0),
        (Mark::HostUnreachable, REJECT_ICMPX, ICMPX_HOST_UNREACHABLE),
        (Mark::NetworkUnreachable, REJECT_ICMPX, ICMPX_NO_ROUTE),
    ] {
        b.rule("verdict", |r| {
            r.protocol(libc::IPPROTO_TCP)
                .meta(META_MARK, &mark.value().to_ne_bytes())
                .reject(kind, code);
        });
    }
    b.chain("carried", "nat", -100, VERDICT_ACCEPT);
    b.rule("carried", |r| {
        r.protocol(libc::IPPROTO_TCP)
            .load_meta(META_MARK)
            .and(&CARRIED.to_ne_bytes())
            .compare(NOT_EQUAL, &[0; 4])
            .expression("immediate", |b| {
                b.number(1, REGISTER);
                b.nest(2, |b| b.attribute(1, &port.to_be_bytes()));
            })
            .expression("redir", |b| b.number(1, REGISTER));
    });
    let last = b.messages.last();
    b.messages
        .add(libc::NFNL_MSG_BATCH_END as u16, 0, &control, |_| {});
    Socket::open(libc::NETLINK_NETFILTER)?.ask_until(&b.messages, last)
}
