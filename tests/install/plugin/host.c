/* host SHARED STATIC: loads and unloads two plugins, one linked with libdualpipe.so, one with libdualpipe.a. */
#include <dlfcn.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { NUM_LOADS = 10, NUM_THREADS = 3 };

#define CHECK(condition)                                                                      \
  do {                                                                                        \
    if (!(condition)) {                                                                       \
      const char *error = dlerror();                                                          \
      fprintf(stderr, "%s:%d: %s; %s\n", __FILE__, __LINE__, #condition, error ? error : ""); \
      exit(1);                                                                                \
    }                                                                                         \
  } while (0)

typedef struct plugin {
  void *handle;
  void (*run)(void);
  const char *(*library)(void);
} plugin;

static void *find(void *handle, const char *name) {
  void *symbol = dlsym(handle, name);
  CHECK(symbol != NULL);
  return symbol;
}

static plugin load(const char *path, int flags) {
  plugin p;
  void *run, *library;
  p.handle = dlopen(path, flags);
  CHECK(p.handle != NULL);
  run = find(p.handle, "plugin_run");
  library = find(p.handle, "plugin_library");
  memcpy(&p.run, &run, sizeof run);
  memcpy(&p.library, &library, sizeof library);
  return p;
}

static int is_mapped(const char *path) {
  void *handle = dlopen(path, RTLD_NOW | RTLD_NOLOAD);
  return handle != NULL && dlclose(handle) == 0;
}

static void *run_plugin(void *user_data) {
  ((const plugin *)user_data)->run();
  return NULL;
}

/* The thread ends after the plugin has been unloaded, and what libdualpipe keeps for it is dropped then. */
static void *load_run_unload(void *path) {
  plugin p = load((const char *)path, RTLD_NOW | RTLD_LOCAL);
  p.run();
  CHECK(dlclose(p.handle) == 0);
  return NULL;
}

static void join_all(pthread_t *threads, int count) {
  while (count-- > 0) CHECK(pthread_join(threads[count], NULL) == 0);
}

/* Loaded and unloaded without a call: the file that its libdualpipe is in, written to library, must stay. */
static void stays_mapped(const char *path, char *library, size_t capacity) {
  plugin p = load(path, RTLD_NOW | RTLD_LOCAL);
  snprintf(library, capacity, "%s", p.library());
  CHECK(dlclose(p.handle) == 0);
  CHECK(is_mapped(library));
}

/* Over and over, on a thread of its own each time. */
static void loads_and_unloads(const char *path) {
  int i;
  for (i = 0; i < NUM_LOADS; i++) {
    pthread_t thread;
    CHECK(pthread_create(&thread, NULL, load_run_unload, (void *)path) == 0);
    join_all(&thread, 1);
  }
}

/* Two libraries in one process, at the same time; neither takes the other's functions, whatever dlopen is told. */
static void run_at_once(const char *shared, const char *static_, int flags) {
  plugin plugins[2];
  pthread_t threads[2 * NUM_THREADS];
  int i;
  plugins[0] = load(static_, flags);
  plugins[1] = load(shared, flags);
  CHECK(strstr(plugins[0].library(), "plugin_static") != NULL);
  CHECK(strstr(plugins[1].library(), "libdualpipe.so") != NULL);
  for (i = 0; i < 2 * NUM_THREADS; i++) {
    CHECK(pthread_create(&threads[i], NULL, run_plugin, &plugins[i % 2]) == 0);
  }
  join_all(threads, 2 * NUM_THREADS);
  for (i = 0; i < 2; i++) CHECK(dlclose(plugins[i].handle) == 0);
}

int main(int argc, char **argv) {
  char library[4096];
  CHECK(argc == 3);
  stays_mapped(argv[2], library, sizeof library);
  CHECK(strstr(library, "plugin_static") != NULL);
  stays_mapped(argv[1], library, sizeof library);
  CHECK(strstr(library, "libdualpipe.so") != NULL && !is_mapped(argv[1]));
  loads_and_unloads(argv[1]);
  CHECK(!is_mapped(argv[1]));
  loads_and_unloads(argv[2]);
  run_at_once(argv[1], argv[2], RTLD_NOW | RTLD_LOCAL);
  run_at_once(argv[1], argv[2], RTLD_LAZY | RTLD_GLOBAL);
  printf("%d loads of each plugin\n", NUM_LOADS);
  return 0;
}
