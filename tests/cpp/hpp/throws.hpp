// CHECK, and what a call throws.
#ifndef THROWS_HPP
#define THROWS_HPP

#include <dualpipe.hpp>

#include "../../c/check.h"

/// The exception of this type that a call throws; the test ends if it throws none.
template <class Thrown, class F>
Thrown thrown_by(F &&call) {
  try {
    call();
  } catch (const Thrown &thrown) {
    return thrown;
  }
  std::fprintf(stderr, "nothing was thrown\n");
  std::exit(1);
}

#endif
