//! Nothing to build: the crate exists to take the place of one whose build script needs cmake.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
}
