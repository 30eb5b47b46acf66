//! What a script may notice of a wrapped command: nothing.
use crate::world::World;
use libtest_mimic::Trial;
use std::sync::Arc;
pub fn tests(_world: &Arc<World>, _suite: &'static str) -> Vec<Trial> {
    Vec::new()
}
