//! Names the shared library: SONAME `libdualpipe.so.0.MINOR` while 0.x (each minor may break), then
//! `libdualpipe.so.MAJOR`; and keeps it mapped after dlclose, since its threads and thread-locals may live on.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    let part = |name| std::env::var(format!("CARGO_PKG_VERSION_{name}")).unwrap_or_default();
    let version = match part("MAJOR").as_str() {
        "0" => format!("0.{}", part("MINOR")),
        major => major.to_string(),
    };
    println!("cargo:rustc-cdylib-link-arg=-Wl,-soname,libdualpipe.so.{version}");
    println!("cargo:rustc-cdylib-link-arg=-Wl,-z,nodelete");
}
