# What `cmake --install` installs; the script bindings/cpp/install does the same, from the same templates.
set(VERSION "${PROJECT_VERSION}")
set(dualpipe_pc_dir "${CMAKE_INSTALL_FULL_LIBDIR}/pkgconfig")
set(dualpipe_cmake_dir "${CMAKE_INSTALL_FULL_LIBDIR}/cmake/dualpipe")

# From the files to the prefix and from there to the folders, so that the tree can be moved.
file(RELATIVE_PATH PREFIX_FROM_PC "${dualpipe_pc_dir}" "${CMAKE_INSTALL_PREFIX}")
file(RELATIVE_PATH PREFIX_FROM_CMAKE "${dualpipe_cmake_dir}" "${CMAKE_INSTALL_PREFIX}")
file(RELATIVE_PATH LIBDIR "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_LIBDIR}")
file(RELATIVE_PATH INCLUDEDIR "${CMAKE_INSTALL_PREFIX}" "${CMAKE_INSTALL_FULL_INCLUDEDIR}")
string(REGEX REPLACE "/$" "" PREFIX_FROM_PC "${PREFIX_FROM_PC}")
string(REGEX REPLACE "/$" "" PREFIX_FROM_CMAKE "${PREFIX_FROM_CMAKE}")
set(generated "${CMAKE_CURRENT_BINARY_DIR}/generated")
configure_file(dualpipe.pc.in "${generated}/dualpipe.pc" @ONLY)
configure_file(cmake/dualpipe-config.cmake.in "${generated}/dualpipe-config.cmake" @ONLY)
configure_file(cmake/dualpipe-config-version.cmake.in "${generated}/dualpipe-config-version.cmake" @ONLY)

install(PROGRAMS "${dualpipe_built_library}" DESTINATION "${CMAKE_INSTALL_LIBDIR}" RENAME "${dualpipe_full_name}")
install(FILES "${dualpipe_links}/${dualpipe_soname}" "${dualpipe_links}/libdualpipe.so"
  DESTINATION "${CMAKE_INSTALL_LIBDIR}")
install(FILES "${dualpipe_built_static_library}" DESTINATION "${CMAKE_INSTALL_LIBDIR}" RENAME libdualpipe.a)
install(DIRECTORY "${dualpipe_root}/include/" DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.h")
install(DIRECTORY include/ DESTINATION "${CMAKE_INSTALL_INCLUDEDIR}" FILES_MATCHING PATTERN "*.hpp")
install(FILES "${generated}/dualpipe.pc" DESTINATION "${CMAKE_INSTALL_LIBDIR}/pkgconfig")
install(
  FILES
    "${generated}/dualpipe-config.cmake" "${generated}/dualpipe-config-version.cmake" cmake/dualpipe-targets.cmake
  DESTINATION "${CMAKE_INSTALL_LIBDIR}/cmake/dualpipe")
