//! What the tests, the demo and the bench share: a machine of their own to run commands in.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`netns`] | a network namespace whose only way out is a sink |
//! | [`sink`] | records every packet that leaves, and who asked a daemon to resolve |
//! | [`run`] | runs a command, with an end |
//! | [`socks`] | a SOCKS 5 server that records, delays, lies and dies |
//! | [`http`] | a small web server |
//! | [`dns`] | a resolver for Tor's exits |
//! | [`tornet`] | a private, real Tor network |
//! | [`control`] | Tor's control port |
//! | [`hosts`] | two hosts joined by a cable, for the firewall |
//! | [`root`] | a Debian system in a folder, in which the package is really installed |
//! | [`bed`] | where the binaries under test and the scratch files are |

pub mod bed;
pub mod control;
pub mod dns;
pub mod hosts;
pub mod http;
pub mod netns;
pub mod root;
pub mod run;
pub mod sink;
pub mod socks;
pub mod tornet;
