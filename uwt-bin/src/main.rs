//! `uwt`: runs a command with all its network traffic through Tor. The same file under a wrapped
//! command's name is that command's wrapper. The exit code is decided here and nowhere else.

use std::process::ExitCode;
use uwt_bin::invocation::{self, Invocation};
use uwt_bin::launch::{self, Caller};
use uwt_bin::refusal::{EXIT_NESTED, EXIT_REFUSED, Refusal};
use uwt_bin::{cli, plan};

fn refuse(r: &Refusal) -> ExitCode {
    if r.exit == EXIT_NESTED {
        // Scripts look for Whonix's own words.
        eprintln!("{}", r.what);
    } else {
        eprintln!("{r}");
    }
    ExitCode::from(r.exit)
}

fn main() -> ExitCode {
    let caller = Caller::this();
    let invocation = invocation::from_argv0(caller.arguments.first().map(|a| a.as_os_str()));
    let request = match invocation {
        Invocation::Wrapper { .. } => None,
        Invocation::Uwt => match cli::parse(caller.arguments.clone()) {
            Ok(Ok(request)) => Some(request),
            Ok(Err(r)) => return refuse(&r),
            Err(e) => {
                let _ = e.print();
                // Help and version are what was asked for; a mistake is uwt's own refusal.
                return ExitCode::from(if e.use_stderr() { EXIT_REFUSED } else { 0 });
            }
        },
    };
    let plan = match launch::plan(&caller, &invocation, request.as_ref()) {
        Ok(plan) => plan,
        Err(r) => return refuse(&r),
    };
    if request.is_some_and(|r| r.explain) {
        let level = plan::level(plan.effective.settings.level).unwrap_or("none");
        print!("{}", plan.explain(level));
        return ExitCode::SUCCESS;
    }
    refuse(&launch::go(caller, &plan))
}
