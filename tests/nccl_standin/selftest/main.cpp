// The self-test of the stand-in NCCL, over the stand-in driver.
#include "tests.h"

int main() {
  test_messages();
  test_communicators();
  test_signals();
  printf("the stand-in NCCL: ok\n");
}
