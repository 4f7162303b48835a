# Sourced by the examples' builds, with root set: sets lib to the folder of libdualpipe.so, as the linker and the loader
# look for it, which DUALPIPE_LIB names; without it cargo builds the library first.
lib=${DUALPIPE_LIB-}
if [ -z "$lib" ]; then
  cargo build --release --lib --manifest-path "$root/Cargo.toml"
  lib=$root/target/examples/lib
  mkdir -p "$lib"
  # The name that the loader asks for is in the library.
  cp "${CARGO_TARGET_DIR:-$root/target}/release/libdualpipe.so" "$lib/libdualpipe.so"
  soname=$(grep -ao 'libdualpipe\.so\.[0-9.]*[0-9]' "$lib/libdualpipe.so" | head -n 1)
  ln -sf libdualpipe.so "$lib/$soname"
fi
lib=$(cd "$lib" && pwd)
