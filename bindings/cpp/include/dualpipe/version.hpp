/// The version of the library that is loaded, to be compared with the header's.
#ifndef DUALPIPE_VERSION_HPP
#define DUALPIPE_VERSION_HPP

#include <dualpipe/version.h>

#include <cstdint>

namespace dualpipe {

/// MAJOR * 10000 + MINOR * 100 + PATCH of this header.
inline constexpr std::uint32_t header_version = DUALPIPE_VERSION;

/// The same of the loaded library. Compare them: a minor version below 1.0 and a major version from 1.0 on may break
/// the ABI, a patch never does.
inline std::uint32_t version() noexcept { return dualpipe_version(); }

/// The version of the loaded library as text, such as "0.1.0".
inline const char *version_string() noexcept { return dualpipe_version_string(); }

} // namespace dualpipe

#endif // DUALPIPE_VERSION_HPP
