/* Several threads use one schedule, executors of their own and one in common; meanwhile the process forks. */
#define _POSIX_C_SOURCE 200809L
#include <pthread.h>
#include <semaphore.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "../work.h"

enum { NUM_THREADS = 4, NUM_FORKS = 6, DEADLINE_SECONDS = 60 };

/* Posted once for each thread when it is enough. */
static sem_t is_enough;

static void *work(void *schedule) {
  do {
    run_steps((dualpipe_schedule_t)schedule);
    place_experts();
  } while (sem_trywait(&is_enough) != 0);
  return NULL;
}

/* Of one rank and one micro-batch. */
static dualpipe_executor_t create_lone_executor(void) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_executor_options how = executor_options(&three_floats);
  dualpipe_schedule_t schedule = NULL;
  dualpipe_executor_t executor = NULL;
  options.kind = DUALPIPE_KIND_1F1B;
  options.num_ranks = options.num_microbatches = 1;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  CHECK_OK(dualpipe_inproc_create(1, &how.inproc));
  executor = create_executor(schedule, 0, &how);
  CHECK_OK(dualpipe_inproc_free(how.inproc));
  CHECK_OK(dualpipe_schedule_free(schedule));
  return executor;
}

static int32_t does_nothing(void *user_data, const dualpipe_task *task) {
  (void)user_data, (void)task;
  return 0;
}

typedef struct contest {
  dualpipe_executor_t executor;
  sem_t is_inside, has_tried;
} contest;

static int wait_for(sem_t *semaphore) {
  struct timespec deadline;
  clock_gettime(CLOCK_REALTIME, &deadline);
  deadline.tv_sec += DEADLINE_SECONDS;
  return sem_timedwait(semaphore, &deadline);
}

static int32_t stays_inside(void *user_data, const dualpipe_task *task) {
  contest *c = (contest *)user_data;
  if (task->op.kind != DUALPIPE_OP_F) return 0;
  sem_post(&c->is_inside);
  return wait_for(&c->has_tried);
}

static void *step_inside(void *user_data) {
  contest *c = (contest *)user_data;
  CHECK_OK(dualpipe_executor_step(c->executor, stays_inside, c));
  return NULL;
}

/* One executor is for one thread at a time: the other is refused, and the first is not disturbed. */
static void two_threads_want_one_executor(void) {
  contest c;
  pthread_t thread;
  c.executor = create_lone_executor();
  CHECK(sem_init(&c.is_inside, 0, 0) == 0 && sem_init(&c.has_tried, 0, 0) == 0);
  CHECK(pthread_create(&thread, NULL, step_inside, &c) == 0);
  CHECK(wait_for(&c.is_inside) == 0);
  CHECK(dualpipe_executor_step(c.executor, does_nothing, NULL) == DUALPIPE_ERROR_BUSY);
  CHECK(sem_post(&c.has_tried) == 0 && pthread_join(thread, NULL) == 0);
  CHECK_OK(dualpipe_executor_step(c.executor, does_nothing, NULL));
  CHECK_OK(dualpipe_executor_free(c.executor));
}

/* Data of before the fork is usable, an executor is not; new ones are, whatever other threads were doing. */
static void be_a_child(dualpipe_schedule_t schedule, dualpipe_executor_t executor) {
  uint32_t peak_live[NUM_RANKS];
  size_t count = 0;
  alarm(DEADLINE_SECONDS);
  CHECK_OK(dualpipe_schedule_check(schedule, peak_live, NUM_RANKS, &count));
  CHECK(count == NUM_RANKS);
  CHECK(dualpipe_executor_step(executor, does_nothing, NULL) == DUALPIPE_ERROR_FORKED);
  CHECK(strstr(dualpipe_last_error(), "created before a fork") != NULL);
  CHECK_OK(dualpipe_executor_free(executor));
  run_steps(schedule);
  place_experts();
  two_threads_want_one_executor();
  CHECK_OK(dualpipe_schedule_free(schedule));
  _exit(0);
}

int main(void) {
  dualpipe_schedule_t schedule = create_schedule();
  dualpipe_executor_t executor = create_lone_executor();
  pthread_t threads[NUM_THREADS];
  int i;
  CHECK(sem_init(&is_enough, 0, 0) == 0);
  for (i = 0; i < NUM_THREADS; i++) CHECK(pthread_create(&threads[i], NULL, work, schedule) == 0);
  two_threads_want_one_executor();
  for (i = 0; i < NUM_FORKS; i++) {
    int status = -1;
    const pid_t child = fork();
    CHECK(child >= 0);
    if (child == 0) be_a_child(schedule, executor);
    CHECK(waitpid(child, &status, 0) == child && WIFEXITED(status) && WEXITSTATUS(status) == 0);
    CHECK_OK(dualpipe_executor_step(executor, does_nothing, NULL));
  }
  for (i = 0; i < NUM_THREADS; i++) CHECK(sem_post(&is_enough) == 0);
  for (i = 0; i < NUM_THREADS; i++) CHECK(pthread_join(threads[i], NULL) == 0);
  CHECK_OK(dualpipe_executor_free(executor));
  CHECK_OK(dualpipe_schedule_free(schedule));
  printf("%d threads, %d children\n", NUM_THREADS, NUM_FORKS);
  return 0;
}
