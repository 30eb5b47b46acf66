//! What uwt's launcher, shim and floor share. Sans-io: bytes in, bytes out, no system calls.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`handoff`] | the one contract between launcher and shim: an environment variable, versioned |
//! | [`socks5`] | the client side of SOCKS 5: RFC 1928, RFC 1929, Tor's extensions |
//! | [`isolation`] | scope + process -> SOCKS username and password |
//! | [`route`] | destination + policy -> Tor, direct or refused: the only place that decides |
//! | [`names`] | hostnames <-> virtual addresses, in memory that a run's processes share |
//! | [`hostname`] | which hostnames are loopback, which are malformed |
//! | [`proxy_url`] | the proxy as a URL, for programs that take it natively |
//! | [`dns`] | DNS messages, for programs that speak DNS themselves |
//! | [`elf`] | whether ld.so will load the shim into a program |
//! | [`decimal`] | numbers in decimal, without an allocator |
//! | [`errno`] | the errno values that programs get |
#![no_std]
#![forbid(unsafe_code)]

pub mod decimal;
pub mod dns;
pub mod elf;
pub mod errno;
pub mod handoff;
pub mod hostname;
pub mod isolation;
pub mod names;
pub mod proxy_url;
pub mod route;
pub mod siphash;
pub mod socks5;
