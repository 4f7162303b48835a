# The targets of libdualpipe, in a build tree as installed. The includer says what they are made of, in
# dualpipe_library, dualpipe_soname, dualpipe_static_library (which may be missing) and dualpipe_includedir;
# dualpipe_scope is GLOBAL where other folders must see them.
if(NOT TARGET dualpipe::dualpipe)
  add_library(dualpipe::dualpipe SHARED IMPORTED ${dualpipe_scope})
  set_target_properties(dualpipe::dualpipe PROPERTIES
    IMPORTED_LOCATION "${dualpipe_library}"
    IMPORTED_SONAME "${dualpipe_soname}"
    INTERFACE_INCLUDE_DIRECTORIES "${dualpipe_includedir}")
endif()

if(NOT TARGET dualpipe::static AND dualpipe_static_library)
  add_library(dualpipe::static STATIC IMPORTED ${dualpipe_scope})
  # Linked into a plugin, it must neither offer its functions to the process nor be unmapped while its threads run.
  set_target_properties(dualpipe::static PROPERTIES
    IMPORTED_LOCATION "${dualpipe_static_library}"
    INTERFACE_INCLUDE_DIRECTORIES "${dualpipe_includedir}"
    INTERFACE_LINK_LIBRARIES "gcc_s;rt;pthread;m;dl"
    INTERFACE_LINK_OPTIONS "LINKER:--exclude-libs,libdualpipe.a;LINKER:-z,nodelete")
endif()
