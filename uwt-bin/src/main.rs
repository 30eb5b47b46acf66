//! `uwt`, the launcher.
fn main() {}
