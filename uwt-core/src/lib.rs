//! What launcher, shim and floor share. Sans-io: bytes in, bytes out, no system calls.
#![no_std]
#![forbid(unsafe_code)]
