// The parts of the self-test.
#pragma once

#include <cstdio>

#include "world.h"

/// Runs a test, after its name.
template <typename... Parameter, typename... Argument>
void run_test(const char *name, void (*test)(Parameter...), Argument... arguments) {
  printf("  %s\n", name);
  fflush(stdout);
  test(arguments...);
}
#define RUN(...) run_test(#__VA_ARGS__, __VA_ARGS__)

void test_messages();
void test_communicators();
void test_signals();
