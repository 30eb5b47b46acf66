//! The launcher's and the manager's parts. Data goes one way: command line and files -> [`config`] ->
//! [`plan`] -> handoff -> exec.
//!
//! | module | its one job |
//! | --- | --- |
//! | [`cli`] | the command line of `uwt` |
//! | [`config`] | the layers of configuration, each value with where it came from |
//! | [`setting`] | which settings there are, what they take, what they default to |
//! | [`wrapped`] | the commands that are wrapped as shipped |
//! | [`wrappers`] | which commands have a wrapper on this machine, and changing that |
//! | [`invocation`] | how the launcher was called: as itself, or under a wrapped command's name |
//! | [`passthrough`] | which commands are for loopback, and run without the shim |
//! | [`target`] | finds the command and proves that the shim will load into it |
//! | [`shim`] | finds libtorshim.so and proves that it is whole |
//! | [`inherited`] | network descriptors that the launcher was started with |
//! | [`run`] | what the processes of a run share: the secret and the name table |
//! | [`plan`] | what would be done, and why |
//! | [`migrate`] | the bash files of Whonix's uwt as TOML |
//! | [`level`] | how a command is held: which levels this host and this target allow |
//! | [`netns`] | the network namespace of a run |
//! | [`broker`] | stays outside it, and carries what comes out |
//! | [`process`] | what tells a process from every other |
//! | [`firewall`] | the host's firewall |
//! | [`launch`] | does what was planned |
//! | [`replace`] | replaces a file as a whole or not at all |
//! | [`refusal`] | what the launcher says when it does not |

pub mod broker;
pub mod cli;
pub mod config;
pub mod firewall;
pub mod inherited;
pub mod invocation;
pub mod launch;
pub mod level;
pub mod migrate;
pub mod netns;
pub mod passthrough;
pub mod plan;
pub mod process;
pub mod refusal;
pub mod replace;
pub mod run;
pub mod setting;
pub mod shim;
pub mod target;
pub mod wrapped;
pub mod wrappers;
