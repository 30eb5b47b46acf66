//! `uwtctl`, the manager.
fn main() {}
