# Takes the libraries of DUALPIPE_LIBRARY_DIR instead of having cargo build them.
get_filename_component(dualpipe_built_library "${DUALPIPE_LIBRARY_DIR}/libdualpipe.so" REALPATH)
get_filename_component(dualpipe_built_static_library "${DUALPIPE_LIBRARY_DIR}/libdualpipe.a" REALPATH)
foreach(file "${dualpipe_built_library}" "${dualpipe_built_static_library}")
  if(NOT EXISTS "${file}")
    message(FATAL_ERROR "DUALPIPE_LIBRARY_DIR is ${DUALPIPE_LIBRARY_DIR}, but ${file} is missing: name a folder with \
libdualpipe.so and libdualpipe.a, or unset it to have cargo build them")
  endif()
endforeach()
string(REPLACE "." "\\." dualpipe_pattern "^${dualpipe_soname}$")
file(STRINGS "${dualpipe_built_library}" dualpipe_found REGEX "${dualpipe_pattern}" LIMIT_COUNT 1)
if(NOT dualpipe_found)
  message(FATAL_ERROR "${dualpipe_built_library} has not the SONAME ${dualpipe_soname}: DUALPIPE_LIBRARY_DIR must hold \
libdualpipe ${PROJECT_VERSION}, built from ${dualpipe_root}")
endif()
