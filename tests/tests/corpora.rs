//! Every saved seed of every fuzz target, through the same bodies: what fuzzing found stays found.

#[path = "../../fuzz/bodies.rs"]
#[allow(clippy::expect_used)]
mod bodies;

use std::path::Path;

#[test]
fn seeds_pass() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds");
    for (target, body) in bodies::ALL {
        let mut count = 0;
        for entry in std::fs::read_dir(seeds.join(target)).expect("a folder of seeds") {
            let path = entry.expect("an entry").path();
            let data = std::fs::read(&path).expect("a seed");
            body(&data);
            // Cut off anywhere, and with a byte changed, too.
            for cut in 0..data.len().min(64) {
                body(&data[..cut]);
            }
            let mut changed = data.clone();
            for at in 0..data.len().min(64) {
                changed[at] ^= 0x55;
                body(&changed);
                changed[at] ^= 0x55;
            }
            count += 1;
        }
        assert!(count > 0, "{target} has no seeds");
    }
}
