/*
 * The version of the library that is loaded, to be compared with the header's.
 *
 * A program that was compiled with this header runs with every library of the same SONAME that is not older. One that
 * loads the library by itself should first ask whether MAJOR, and before 1.0 also MINOR, are the header's.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_VERSION_H
#define DUALPIPE_VERSION_H

#include <stddef.h>
#include <stdint.h>
#define DUALPIPE_VERSION_MAJOR 0
#define DUALPIPE_VERSION_MINOR 1
#define DUALPIPE_VERSION_PATCH 0
/** MAJOR * 10000 + MINOR * 100 + PATCH of this header. dualpipe_version() is the library's. */
#define DUALPIPE_VERSION \
  (DUALPIPE_VERSION_MAJOR * 10000 + DUALPIPE_VERSION_MINOR * 100 + DUALPIPE_VERSION_PATCH)

#ifdef __cplusplus
extern "C" {
#endif // __cplusplus

/**
 * The version of the loaded library: MAJOR * 10000 + MINOR * 100 + PATCH. Compare it with DUALPIPE_VERSION, the
 * header's: a minor version below 1.0 and a major version from 1.0 on may break the ABI, a patch never does.
 */
uint32_t dualpipe_version(void);

/**
 * The version of the loaded library as text, such as "0.1.0". Static; never NULL.
 */
const char *dualpipe_version_string(void);

#ifdef __cplusplus
}  // extern "C"
#endif  // __cplusplus

#endif /* DUALPIPE_VERSION_H */
