//! The host's firewall: /etc/uwt/firewall.toml as a ruleset of nftables in which nothing leaves beside Tor, or beside a
//! VPN. Data goes one way: [`policy`] -> [`render`] -> [`ruleset`] -> [`load`].
//!
//! | module | its one job |
//! | --- | --- |
//! | [`words`] | users, interfaces, networks and names, checked where they are read |
//! | [`rule`] | one rule of a zone, in qvm-firewall's words |
//! | [`policy`] | what the file says |
//! | [`facts`] | what its names stand for on this host |
//! | [`ruleset`] | chains and sets as text, connections' marks, lockdown |
//! | [`render`] | the policy as a ruleset |
//! | [`nft`] | nft(8), and what the kernel says is loaded |
//! | [`names`] | addresses of host names |
//! | [`relays`] | the relays of Tor's consensus |
//! | [`load`] | loads, verifies, keeps for the next boot |
//! | [`state`] | what is kept between runs |
//! | [`boot`] | the units of systemd |
//! | [`watch`] | looks after what is loaded |
//! | [`status`] | how the host stands, in words |
//! | [`probe`] | sends real packets against the rules |
//! | [`zone`] | changes a zone's rules |
//! | [`commands`] | `uwtctl firewall` |

pub mod boot;
pub mod commands;
pub mod facts;
pub mod load;
pub mod names;
pub mod nft;
pub mod policy;
pub mod probe;
pub mod relays;
pub mod render;
pub mod rule;
pub mod ruleset;
pub mod state;
pub mod status;
pub mod watch;
pub mod words;
pub mod zone;
