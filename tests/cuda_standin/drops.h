// The `drop` functions of ops that are over: user code, so that they wait here until no lock is held.
#pragma once

namespace standin {

void put_off_drop(void (*drop)(void *), void *user);

// Calls them. Called without the engine's lock.
void run_drops();

}  // namespace standin
