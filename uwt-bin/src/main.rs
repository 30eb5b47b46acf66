//! `uwt`: runs a command with all its network traffic through Tor. The same file under a wrapped
//! command's name is that command's wrapper. The exit code is decided here and nowhere else.

//!
//! main() is C's: std's own start reads /proc/self/maps, sets signal handlers and ignores SIGPIPE, which costs a
//! tenth of a millisecond each time and would be inherited by the command. std::env has the arguments all
//! the same (glibc passes them to .init_array).

#![no_main]

// Without std's symbolizer and libgcc_s, which the loader would have to load each time.
#[path = "../../libtorshim/src/unwind.rs"]
mod unwind;

use uwt_bin::cli;
use uwt_bin::invocation::{self, Invocation};
use uwt_bin::launch::{self, Caller};
use uwt_bin::refusal::{EXIT_NESTED, EXIT_REFUSED, Refusal};

fn refuse(r: &Refusal) -> u8 {
    if r.exit == EXIT_NESTED {
        // Scripts look for Whonix's own words.
        eprintln!("{}", r.what);
    } else {
        eprintln!("{r}");
    }
    r.exit
}

fn run() -> u8 {
    let caller = Caller::this();
    let argv0 = caller.arguments.first().map(|a| a.as_os_str());
    let executed = invocation::executed();
    let invocation = invocation::tell(argv0, executed.as_deref(), caller.variable("PATH"));
    let request = match invocation {
        Invocation::Wrapper(_) => None,
        Invocation::Uwt => match cli::parse(caller.arguments.clone()) {
            Ok(Ok(request)) => Some(request),
            Ok(Err(r)) => return refuse(&r),
            Err(e) => {
                let _ = e.print();
                // Help and version are what was asked for; a mistake is uwt's own refusal.
                return if e.use_stderr() { EXIT_REFUSED } else { 0 };
            }
        },
    };
    let mut plan = match launch::plan(&caller, &invocation, request.as_ref()) {
        Ok(plan) => plan,
        Err(r) => return refuse(&r),
    };
    if request.is_some_and(|r| r.explain) {
        print!("{}", plan.explain());
        return 0;
    }
    refuse(&launch::go(caller, &mut plan))
}

/// Where glibc begins.
#[unsafe(no_mangle)]
extern "C" fn main() -> libc::c_int {
    let exit = run();
    // The buffer of standard output is std's, and its runtime is not there to flush it.
    let _ = std::io::Write::flush(&mut std::io::stdout());
    libc::c_int::from(exit)
}
