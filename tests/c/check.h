/* CHECK: ends the test program with the line, the condition and the library's last error. */
#ifndef CHECK_H
#define CHECK_H

#include <stdio.h>
#include <stdlib.h>

#define CHECK(condition)                                                                                 \
  do {                                                                                                   \
    if (!(condition)) {                                                                                  \
      fprintf(stderr, "%s:%d: %s; last error: %s\n", __FILE__, __LINE__, #condition, dualpipe_last_error()); \
      exit(1);                                                                                           \
    }                                                                                                    \
  } while (0)

#define CHECK_OK(call) CHECK((call) == DUALPIPE_OK)

#endif
