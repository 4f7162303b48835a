# Has cargo build the libraries, whenever a source is newer, into DUALPIPE_TARGET_DIR.
find_program(DUALPIPE_CARGO cargo HINTS "$ENV{CARGO_HOME}/bin" "$ENV{HOME}/.cargo/bin" DOC "Rust's cargo")
set(dualpipe_get_rust "install Rust ${dualpipe_rust_version} or newer with https://rustup.rs (a distribution's may be \
too old), or set DUALPIPE_LIBRARY_DIR to a folder with libdualpipe.so and libdualpipe.a")
if(NOT DUALPIPE_CARGO)
  message(FATAL_ERROR "cargo was not found: ${dualpipe_get_rust}")
endif()
execute_process(
  COMMAND "${DUALPIPE_CARGO}" --version
  WORKING_DIRECTORY "${dualpipe_root}"
  OUTPUT_VARIABLE dualpipe_cargo_version
  OUTPUT_STRIP_TRAILING_WHITESPACE)
string(REGEX MATCH "^cargo ([0-9.]+)" _ "${dualpipe_cargo_version}")
if(NOT CMAKE_MATCH_1 OR CMAKE_MATCH_1 VERSION_LESS dualpipe_rust_version)
  message(FATAL_ERROR "${DUALPIPE_CARGO} --version says '${dualpipe_cargo_version}': ${dualpipe_get_rust}")
endif()

# Two profiles have a folder of another name.
set(dualpipe_folder "${DUALPIPE_PROFILE}")
if(DUALPIPE_PROFILE MATCHES "^(dev|test)$")
  set(dualpipe_folder debug)
elseif(DUALPIPE_PROFILE STREQUAL "bench")
  set(dualpipe_folder release)
endif()
set(dualpipe_built_library "${DUALPIPE_TARGET_DIR}/${dualpipe_folder}/libdualpipe.so")
set(dualpipe_built_static_library "${DUALPIPE_TARGET_DIR}/${dualpipe_folder}/libdualpipe.a")

# cargo knows what is out of date, so it always runs.
if(DUALPIPE_INSTALL)
  set(dualpipe_all ALL)
endif()
add_custom_target(dualpipe_cargo ${dualpipe_all}
  COMMAND "${DUALPIPE_CARGO}" build --lib --locked --profile "${DUALPIPE_PROFILE}" --target-dir "${DUALPIPE_TARGET_DIR}"
  # Again, since cleaning removes it.
  COMMAND "${CMAKE_COMMAND}" -E create_symlink "${dualpipe_built_library}" "${dualpipe_links}/${dualpipe_full_name}"
  WORKING_DIRECTORY "${dualpipe_root}"
  BYPRODUCTS
    "${dualpipe_built_library}" "${dualpipe_built_static_library}" "${dualpipe_links}/${dualpipe_full_name}"
  COMMENT "cargo build of libdualpipe, profile ${DUALPIPE_PROFILE}"
  USES_TERMINAL
  VERBATIM)
