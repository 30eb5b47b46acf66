//! Exports the entry points that are written in assembly (see exports.map), which rustc's own list of
//! exported symbols does not know.

fn main() {
    let dir = std::env::var("CARGO_MANIFEST_DIR").unwrap_or_default();
    println!("cargo:rustc-cdylib-link-arg=-Wl,--version-script={dir}/exports.map");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libtorshim.so");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,now");
    // std's backtraces want an unwinder; from the static library, so that libc stays the only one needed.
    println!("cargo:rustc-link-lib=static:-bundle=gcc_eh");
    println!("cargo:rustc-link-search=native={}", gcc_dir());
    println!("cargo:rerun-if-changed=exports.map");
}

/// The folder of libgcc_eh.a, as the linker driver names it.
fn gcc_dir() -> String {
    let cc = std::env::var("CC").unwrap_or_else(|_| "cc".into());
    let out = std::process::Command::new(cc)
        .arg("-print-file-name=libgcc_eh.a")
        .output();
    let path = out.map(|o| String::from_utf8_lossy(&o.stdout).into_owned());
    let path = path.unwrap_or_default();
    path.trim().trim_end_matches("/libgcc_eh.a").to_owned()
}
