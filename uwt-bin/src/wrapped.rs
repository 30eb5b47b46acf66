//! The commands that are wrapped as shipped: one file each in wrappers/, built in.

include!(concat!(env!("OUT_DIR"), "/wrappers.rs"));

/// The shipped file for `command`, as (file name, text).
pub fn file_for(command: &str) -> Option<(&'static str, &'static str)> {
    FILES.iter().find(|(name, _)| *name == command).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_file_configures_the_command_it_is_named_after() {
        assert!(FILES.len() >= 19);
        for (name, text) in FILES {
            assert!(
                text.contains(&format!("[command.{name}]"))
                    || text.contains(&format!("[command.\"{name}\"]")),
                "{name}"
            );
            let parsed = crate::config::parse(&format!("wrappers/{name}.toml"), text);
            assert!(parsed.is_ok(), "{:?}", parsed.err());
        }
    }
}
