//! Does what was planned: hands the policy over and becomes the command.

use crate::invocation::{self, DIVERTED, Invocation, Wrapped};
use crate::plan::{self, COUNTER, How, Plan};
use crate::refusal::{EXIT_NOT_EXECUTABLE, EXIT_NOT_FOUND, Refusal, Result};
use crate::run::{self, Run};
use crate::setting::{Address, Passthrough, Settings};
use crate::target::{self, Target};
use crate::{broker, cli, config, inherited, level, netns, process, shim};
use std::ffi::{CString, OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use uwt_core::handoff::{self, Handoff, HandoffError};
use uwt_core::isolation::{self, Connection, Isolation};
use uwt_core::proxy_url::{self, Url};
use uwt_core::route::{Localhost, Policy, PortList, Socks};
use uwt_core::siphash::{self, Key as HashKey};

/// What the process was started with.
pub struct Caller {
    /// argv, `argv[0]` first.
    pub arguments: Vec<OsString>,
    /// The environment.
    pub environment: Vec<(OsString, OsString)>,
}

impl Caller {
    /// This process.
    pub fn this() -> Caller {
        Caller {
            arguments: std::env::args_os().collect(),
            environment: std::env::vars_os().collect(),
        }
    }

    /// A variable of its environment.
    pub fn variable(&self, name: &str) -> Option<&OsStr> {
        let found = self.environment.iter().find(|(n, _)| n == name);
        found.map(|(_, v)| v.as_os_str())
    }
}

/// Plans what `request` asks for.
pub fn plan_request(caller: &Caller, request: &cli::Request) -> Result<Plan> {
    let command = request
        .command
        .first()
        .map_or(OsStr::new(""), |c| c.as_os_str());
    let mut target = target::find(command, caller.variable("PATH"))?;
    let name = Path::new(command).file_name().unwrap_or(command);
    let name = name.to_string_lossy();
    let mut name = name.strip_suffix(DIVERTED).unwrap_or(&name).to_owned();
    // `uwt curl` with a wrapped curl: the wrapper would only find itself inside uwt again.
    if let Some(w) = invocation::wrapped(&target.path).filter(|w| w.command != "uwt") {
        target = behind(&w)?;
        name = w.command;
    }
    let extra = request
        .config
        .clone()
        .or_else(|| caller.variable("UWT_CONFIG").map(PathBuf::from));
    let effective = settings(caller, &name, extra, &request.values)?;
    finish(caller, target, request.command.clone(), effective, None)
}

/// Plans what a wrapper does.
pub fn plan_wrapper(caller: &Caller, wrapper: &Wrapped) -> Result<Plan> {
    let name = &wrapper.command;
    let extra = caller.variable("UWT_CONFIG").map(PathBuf::from);
    let effective = settings(caller, name, extra, &[])?;
    let counter = plan::count(caller.variable(COUNTER), effective.settings.nested_max)?;
    let target = behind(wrapper)?;
    finish(
        caller,
        target,
        caller.arguments.clone(),
        effective,
        Some(counter),
    )
}

/// Every layer's settings for a command. A command that is to run without uwt does so with a configuration that cannot
/// be used, too: it may be what mends it.
fn settings(
    caller: &Caller,
    name: &str,
    extra: Option<PathBuf>,
    options: &[config::Value],
) -> Result<config::Effective> {
    if dev_passthrough(caller) {
        return config::effective(name, &config::Parsed::default(), &[]);
    }
    let files = config::from_files(Some(name), extra.as_deref())?;
    let mut late = config::from_environment(&caller.environment)?;
    late.extend(options.iter().cloned());
    config::effective(name, &files, &late)
}

fn dev_passthrough(caller: &Caller) -> bool {
    plan::dev_passthrough(caller.variable("UWT_DEV_PASSTHROUGH"))
}

/// The command that was diverted.
fn behind(wrapper: &Wrapped) -> Result<Target> {
    let command = &wrapper.command;
    let Some(path) = &wrapper.target else {
        return Err(Refusal::new(
            format!("{command}{DIVERTED}: command not found"),
            "this is its wrapper, and it is not installed",
            format!("install the package that has {command}; without it there is nothing to run"),
        )
        .with_exit(EXIT_NOT_FOUND));
    };
    target::find(path.as_os_str(), None)
}

fn finish(
    caller: &Caller,
    target: Target,
    arguments: Vec<OsString>,
    effective: config::Effective,
    counter: Option<u32>,
) -> Result<Plan> {
    let dev = dev_passthrough(caller);
    let s = &effective.settings;
    // `enabled` is for wrappers: who types `uwt` wants Tor, and so does a run that a wrapper is part of, even one whose
    // handoff is damaged.
    let in_run = caller.variable(handoff::VARIABLE).is_some();
    let enabled = s.enabled || counter.is_none() || in_run;
    let how = plan::how(&arguments, s.passthrough, dev, enabled);
    let (mut shim_path, mut held) = (None, None);
    if how == How::Carried {
        let path = shim::find()?;
        shim::prove(&path)?;
        shim_path = Some(path);
        let behind = arguments.get(1..).unwrap_or(&[]);
        held = Some(level::choose(s, counter.is_some(), &target, behind)?);
    }
    Ok(Plan {
        target,
        arguments,
        how,
        effective,
        shim: shim_path,
        held,
        counter,
    })
}

/// Stands for boot, user and application: the same key in each run of the same application.
fn app_key(command: &Path) -> HashKey {
    let mut boot = std::fs::read("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    boot.extend_from_slice(&nix::unistd::getuid().as_raw().to_le_bytes());
    let name = command.file_name().unwrap_or_default().as_bytes();
    let name = name.strip_suffix(DIVERTED.as_bytes()).unwrap_or(name);
    boot.extend_from_slice(name);
    siphash::hash128(b"uwt app identity", &boot)
}

/// Becomes the command. Gives only the refusal; on success it does not return.
pub fn go(caller: Caller, plan: &mut Plan) -> Refusal {
    if let Some(warning) = plan.held.as_ref().and_then(|h| h.warning.as_ref()) {
        eprintln!("{warning}");
    }
    let entered = prepare(caller, plan).and_then(|(environment, raw)| {
        if let Some(namespace) = level::take(plan) {
            enter(namespace, &environment)?;
        }
        Ok((environment, raw))
    });
    match entered {
        Ok((environment, raw)) => execute(plan, &environment, raw),
        Err(r) => r,
    }
}

fn cannot_enter(what: &str, e: &std::io::Error) -> Refusal {
    Refusal::new(
        format!("the run's namespace: {what} failed"),
        e.to_string(),
        "--level preload does without it; nothing was run",
    )
}

/// Leaves the broker outside, and enters the namespace. This process has no way out but the broker then.
fn enter(namespace: netns::Namespace, environment: &Environment) -> Result<()> {
    let text = environment.iter().find(|(n, _)| n == handoff::VARIABLE);
    let text = text.map_or(&b""[..], |(_, v)| v.as_bytes());
    let mut ports = [0; handoff::PORTS_MAX * 2];
    let malformed = |_| Refusal::new("the handoff cannot be read back", "", "");
    let mut handoff = Handoff::decode(text, &mut ports).map_err(malformed)?;
    handoff.held_here(namespace.inode);
    let command = std::process::id();
    let (hear, tell) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)
        .map_err(|e| cannot_enter("pipe", &e.into()))?;
    // Twice, so that the broker is nobody's child here: strace and gdb wait for children of every kind.
    // SAFETY: the launcher has one thread.
    let pid = unsafe { netns::fork(0) }.map_err(|e| cannot_enter("its broker", &e))?;
    // SAFETY: as above.
    if pid == 0 && !matches!(unsafe { netns::fork(0) }, Ok(0)) {
        // SAFETY: ends the one between without what the launcher left to be run at its end.
        unsafe { libc::_exit(0) };
    }
    if pid == 0 {
        let own_name = nix::unistd::gethostname().unwrap_or_default();
        let charge = run::map(&handoff).map(|names| broker::Charge {
            handoff: &handoff,
            names,
            own_name: own_name.as_bytes().to_vec(),
            namespace: namespace.inode,
            sockets: namespace.sockets,
            command,
        });
        match charge {
            Ok(charge) => broker::become_broker(charge, &tell),
            // SAFETY: ends the child without what the launcher left to be run at its end.
            Err(_) => unsafe { libc::_exit(1) },
        }
    }
    drop(tell);
    let mut status = 0;
    // SAFETY: waitpid(2) for our own child; `status` lives through the call.
    unsafe { libc::waitpid(pid, &raw mut status, libc::__WALL) };
    let mut byte = [0u8];
    let n =
        nix::unistd::read(&hear, &mut byte).map_err(|e| cannot_enter("its broker", &e.into()))?;
    if n != 1 {
        let e = std::io::Error::other("it ended at once");
        return Err(cannot_enter("its broker", &e));
    }
    let root = nix::unistd::geteuid().is_root();
    namespace.enter().map_err(|e| cannot_enter("setns", &e))?;
    netns::mounts::cover_all(&handoff.policy)
        .map_err(|e| cannot_enter("covering resolv.conf and sockets", &e))?;
    netns::confine::give_up(root).map_err(|e| cannot_enter("giving up capabilities", &e))
}

type Environment = Vec<(OsString, OsString)>;

/// The command's environment, and whether to execute past the shim that this process may run under.
fn prepare(caller: Caller, plan: &Plan) -> Result<(Environment, bool)> {
    let mut environment = caller.environment;
    let set = |e: &mut Environment, name: &str, value: OsString| {
        e.retain(|(n, _)| n != name);
        e.push((name.into(), value));
    };
    if let Some(counter) = plan.counter {
        set(&mut environment, COUNTER, counter.to_string().into());
    }
    let Some(shim) = &plan.shim else {
        strip(&mut environment);
        return Ok((environment, true));
    };
    let held = plan.held.as_ref();
    inherited::close(level::inode(held) != 0)?;
    let text = handoff_for(plan, shim)?;
    let old = environment.iter().find(|(n, _)| n == "LD_PRELOAD");
    let old = old.map_or(OsStr::new(""), |(_, v)| v.as_os_str());
    if held.is_some_and(|h| h.bare.is_some()) {
        // Its loader would only complain.
        strip(&mut environment);
    } else {
        let preload = preload_list(shim, old);
        set(&mut environment, "LD_PRELOAD", preload);
    }
    if plan.effective.settings.native_proxy {
        native_proxy(&mut environment, &text)?;
    }
    set(
        &mut environment,
        handoff::VARIABLE,
        OsString::from_vec(text),
    );
    Ok((environment, false))
}

/// LD_PRELOAD with the shim first and once.
fn preload_list(shim: &Path, old: &OsStr) -> OsString {
    let mut list = shim.as_os_str().to_owned();
    let other = |w: &&[u8]| !w.is_empty() && Path::new(OsStr::from_bytes(w)) != shim;
    for word in old
        .as_bytes()
        .split(|b| matches!(b, b':' | b' '))
        .filter(other)
    {
        list.push(":");
        list.push(OsStr::from_bytes(word));
    }
    list
}

/// Takes out what uwt put in: a command that is to run without the shim runs without any of it.
fn strip(environment: &mut Environment) {
    environment.retain_mut(|(name, value)| {
        if name == "LD_PRELOAD" {
            let keep: Vec<&[u8]> = value
                .as_bytes()
                .split(|b| matches!(b, b':' | b' '))
                .filter(|w| !w.is_empty() && !w.ends_with(shim::NAME.as_bytes()))
                .collect();
            *value = OsString::from_vec(keep.join(&b':'));
            return !value.is_empty();
        }
        let ours = name == "ALL_PROXY" && value.as_bytes().starts_with(proxy_url::OURS.as_bytes());
        name != handoff::VARIABLE && !ours
    });
}

fn socks<'a>(s: &'a Settings) -> Socks<'a> {
    match &s.address {
        Address::Ip(ip) => Socks::Ip((*ip, s.port).into()),
        Address::Unix(path) => Socks::Unix(path.as_bytes()),
    }
}

/// The handoff for a plan. Inside another run of uwt it joins that run: the outer policy stays, but for
/// what this command line's own options say.
fn handoff_for(plan: &Plan, shim: &Path) -> Result<Vec<u8>> {
    let s = &plan.effective.settings;
    let ports: Vec<u8> = s.ports.iter().flat_map(|p| p.to_be_bytes()).collect();
    let unix_allow = s.unix_allow.join(":");
    let release = s.release.join(":");
    let native_proxy = s.native_proxy;
    let joined = run::joined(|outer| {
        let explicit = plan.effective.origins.iter().any(|o| o.1.starts_with("--"));
        if explicit {
            return None;
        }
        let release = match release.as_bytes() {
            b"" => outer.release,
            own => own,
        };
        let inner = Handoff {
            native_proxy,
            release,
            ..*outer
        };
        Some(encode(&inner))
    });
    let run = match joined {
        Some((_, Some(text))) => return text,
        Some((run, None)) => run,
        None => run::begin()?,
    };
    let Run { secret, names } = run;
    let fixed = s.fixed.as_ref().map(|(u, p)| (u.as_bytes(), p.as_bytes()));
    encode(&Handoff {
        policy: Policy {
            socks: socks(s),
            localhost: match s.passthrough {
                Passthrough::Off => Localhost::Refuse,
                Passthrough::Connection | Passthrough::Command => Localhost::Direct,
            },
            localhost_ports: PortList(&ports),
            inbound: s.inbound,
            bind: s.bind,
            unix_allow: unix_allow.as_bytes(),
            held: false,
        },
        isolation: Isolation {
            scope: s.scope,
            run: secret,
            app: app_key(&plan.target.path),
            fixed,
        },
        dns: s.dns,
        names,
        netns: level::inode(plan.held.as_ref()),
        shim: shim.as_os_str().as_bytes(),
        release: release.as_bytes(),
        timeout_ms: s.timeout_ms,
        native_proxy: s.native_proxy,
        log: s.log,
        log_file: s.log_file.as_bytes(),
    })
}

fn encode(handoff: &Handoff<'_>) -> Result<Vec<u8>> {
    let mut out = vec![0; handoff::MAX];
    let n = handoff.encode(&mut out).map_err(|e| {
        let why = match e {
            HandoffError::TooLong => "the settings are longer than a handoff can be".to_owned(),
            HandoffError::Value(what) => format!("it cannot carry {what}"),
            e => format!("{e:?}"),
        };
        Refusal::new(
            "the policy cannot be handed to the shim",
            why,
            "shorten it; nothing was run",
        )
    })?;
    out.truncate(n);
    Ok(out)
}

/// Tells the program its proxy, with the credentials that the shim would use for this process.
fn native_proxy(environment: &mut Environment, text: &[u8]) -> Result<()> {
    let ours = |v: &OsStr| v.as_bytes().starts_with(proxy_url::OURS.as_bytes());
    let users_own = environment
        .iter()
        .any(|(n, v)| (n == "ALL_PROXY" || n == "all_proxy") && !v.is_empty() && !ours(v));
    if users_own {
        return Ok(());
    }
    let mut ports = [0; handoff::PORTS_MAX * 2];
    let malformed = |_| Refusal::new("the handoff cannot be read back", "", "");
    let handoff = Handoff::decode(text, &mut ports).map_err(malformed)?;
    let connection = Connection {
        host: b"",
        port: 0,
        serial: 0,
    };
    let credentials = isolation::credentials(
        &handoff.isolation,
        // This process will be the command: pid and birth stay over execve(2). The shim says the same.
        process::identity(std::process::id()),
        connection,
    );
    let url = Url::new(&handoff.policy.socks, credentials.as_ref())
        .ok_or_else(|| Refusal::new("the proxy's URL is too long", "", ""))?;
    environment.retain(|(n, _)| n != "ALL_PROXY");
    environment.push(("ALL_PROXY".into(), OsString::from_vec(url.bytes().to_vec())));
    // Loopback stays direct, in the shim's hands; curl reads either spelling, the lower one first.
    let name = match environment.iter().any(|(n, _)| n == "no_proxy") {
        true => "no_proxy",
        false => "NO_PROXY",
    };
    let mut list: Vec<u8> = environment
        .iter()
        .find(|(n, _)| n == name)
        .map(|(_, v)| v.as_bytes().to_vec())
        .unwrap_or_default();
    for host in ["localhost", "127.0.0.0/8", "::1"] {
        if list
            .split(|b| *b == b',')
            .any(|w| w.trim_ascii() == host.as_bytes())
        {
            continue;
        }
        if !list.is_empty() {
            list.push(b',');
        }
        list.extend_from_slice(host.as_bytes());
    }
    environment.retain(|(n, _)| n != name);
    environment.push((name.into(), OsString::from_vec(list)));
    Ok(())
}

fn c_string(s: &OsStr) -> Result<CString> {
    CString::new(s.as_bytes()).map_err(|_| Refusal::new("an argument holds a NUL byte", "", ""))
}

/// execve(2), past the shim that this process may run under: the command is to run without it.
fn execve_raw(path: &CString, argv: &[*const libc::c_char], envp: &[*const libc::c_char]) -> i32 {
    let ret: isize;
    // SAFETY: execve(2) with a C string and two null-terminated arrays of C strings, all alive.
    #[cfg(target_arch = "x86_64")]
    unsafe {
        std::arch::asm!("syscall", inlateout("rax") libc::SYS_execve as isize => ret,
            in("rdi") path.as_ptr(), in("rsi") argv.as_ptr(), in("rdx") envp.as_ptr(),
            lateout("rcx") _, lateout("r11") _, options(nostack));
    }
    // SAFETY: as above.
    #[cfg(target_arch = "aarch64")]
    unsafe {
        std::arch::asm!("svc 0", in("x8") libc::SYS_execve, inlateout("x0") path.as_ptr() as usize as isize => ret,
            in("x1") argv.as_ptr(), in("x2") envp.as_ptr(), options(nostack));
    }
    -ret as i32
}

fn execute(plan: &Plan, environment: &[(OsString, OsString)], raw: bool) -> Refusal {
    let result = (|| {
        let path = c_string(plan.target.path.as_os_str())?;
        let arguments: Vec<CString> = plan
            .arguments
            .iter()
            .map(|a| c_string(a))
            .collect::<Result<_>>()?;
        let variables: Vec<CString> = environment
            .iter()
            .map(|(n, v)| {
                let mut both = n.clone();
                both.push("=");
                both.push(v);
                c_string(&both)
            })
            .collect::<Result<_>>()?;
        Ok((path, arguments, variables))
    })();
    let (path, arguments, variables) = match result {
        Ok(parts) => parts,
        Err(r) => return r,
    };
    let pointers = |v: &[CString]| {
        let mut p: Vec<*const libc::c_char> = v.iter().map(|s| s.as_ptr()).collect();
        p.push(std::ptr::null());
        p
    };
    let (argv, envp) = (pointers(&arguments), pointers(&variables));
    let run = |path: &CString, argv: &[*const libc::c_char]| {
        if raw {
            return execve_raw(path, argv, &envp);
        }
        // SAFETY: a C string and two null-terminated arrays of C strings, all alive.
        unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
        std::io::Error::last_os_error().raw_os_error().unwrap_or(0)
    };
    let mut error = run(&path, &argv);
    if error == libc::ENOEXEC {
        // As execvp(3): a file that is no program is a script for the shell.
        let shell = c"/bin/sh".to_owned();
        let mut script = vec![shell.as_ptr(), path.as_ptr()];
        script.extend(argv.iter().skip(1));
        error = run(&shell, &script);
    }
    let e = std::io::Error::from_raw_os_error(error);
    let exit = if error == libc::ENOENT {
        EXIT_NOT_FOUND
    } else {
        EXIT_NOT_EXECUTABLE
    };
    let what = format!("cannot execute {}", plan.target.path.display());
    let why = if error == libc::ENOENT {
        format!("{e} (its interpreter, perhaps)")
    } else {
        e.to_string()
    };
    Refusal::new(what, why, "").with_exit(exit)
}

/// What `invocation` asks for: a plan, and whether it is only to be explained.
pub fn plan(
    caller: &Caller,
    invocation: &Invocation,
    request: Option<&cli::Request>,
) -> Result<Plan> {
    match (invocation, request) {
        (Invocation::Wrapper(wrapper), _) => plan_wrapper(caller, wrapper),
        (Invocation::Uwt, Some(request)) => plan_request(caller, request),
        (Invocation::Uwt, None) => Err(Refusal::new("no command", "", "see uwt --help")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_shim_comes_first_and_once() {
        let shim = Path::new("/l/libtorshim.so");
        for (old, new) in [
            ("", "/l/libtorshim.so"),
            ("/x.so", "/l/libtorshim.so:/x.so"),
            (
                "/x.so:/l/libtorshim.so /y.so",
                "/l/libtorshim.so:/x.so:/y.so",
            ),
        ] {
            assert_eq!(preload_list(shim, OsStr::new(old)), new);
        }
        let mut e: Environment = vec![
            ("LD_PRELOAD".into(), "/l/libtorshim.so:/x.so".into()),
            ("UWT_HANDOFF".into(), "x".into()),
            ("A".into(), "b".into()),
        ];
        strip(&mut e);
        assert_eq!(
            e,
            [
                ("LD_PRELOAD".into(), OsString::from("/x.so")),
                ("A".into(), "b".into())
            ]
        );
    }
}
