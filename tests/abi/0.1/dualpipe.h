/*
 * Pipeline and expert parallelism: schedules checked, simulated and run; experts placed with a proof.
 *
 * This header and the pages that it includes are the manual. Include only this one, link with -ldualpipe.
 *
 *     1. Overview    2. Words        3. A first program   4. The life of an object   5. Errors
 *     6. Threads     7. Ownership    8. A trainer         9. Limits                 10. Versions
 *
 * 1. Overview
 * -----------
 *
 * A schedule says for every rank of a pipeline in which order it computes. It can be checked, printed, and simulated
 * against costs, which gives a timeline. Its programs, one for each rank, add receives, sends and frees; an executor
 * runs one of them step after step, on the host or on a CUDA device, calls your code for each task, and moves the
 * tensors. What ran is a timeline again. Beside all that, an expert plan says which GPU holds which replicas of which
 * experts.
 *
 *     schedule + costs -------- simulate ------> timeline
 *     costs + memory ---------> plan: the best schedule found, and a lower bound
 *     schedule + rank --------> program                                the same type: to be compared
 *     program + transport ----> executor ------> timeline of a step
 *                                  calls your tasks
 *     loads of experts -------> expert plan
 *     plan + counts of a step -> routing: tokens of each replica, and which they are
 *     two placements ---------> transfers: copies of experts, in rounds
 *     a placement ------------> findings: what is wrong with it
 *     a schedule, actions ----> verification: what is wrong, and a smallest counterexample
 *     recorded loads ---------> replay: how policies would have done
 *
 *     transport: an inproc (ranks of one process), NCCL, or functions of yours (MPI, sockets)
 *
 * The pages:
 *
 *     schedule.h   schedules                        task.h       what an executor calls you with
 *     op.h         passes, ops, messages            tensor.h     DLPack's tensors
 *     cost.h       costs of stages and links        transport.h  ranks of one process; transports of yours
 *     timeline.h   simulation, timelines, pictures  memory.h     memory of yours for tensors
 *     program.h    programs                         cuda.h       CUDA devices, NCCL, graphs
 *     executor.h   executors                        overlap.h    the halves of FB on two streams
 *     balance.h    expert plans                     log.h        log and progress callbacks
 *     cluster.h    GPUs, and what is good on them   moves.h      few moves from placement to placement
 *     route.h      routers: tokens among replicas   token_map.h  which token goes to which slot
 *     status.h     statuses, the last error         version.h    the version
 *     expert_transfer.h    transfers: copies of experts, in rounds
 *     verify.h     a placement one can trust        heat_map.h   loads of GPUs, drawn
 *     replay.h     policies on recorded loads       policy.h     policies to replay
 *     load_monitor.h       loads counted, on many ranks; monitor_loads.h: loads to balance from them
 *     load_history.h, expert_map.h: recorded loads, placements in the files of other programs
 *     schedule_orders.h    schedules from outside      torch_csv.h  as PyTorch's CSV
 *     schedule_verify.h, verification.h: a schedule one can trust; action.h: ops and messages in one order
 *     plan.h       the best schedule for your costs robust_plan.h where times spread
 *     front.h      plans within memory caps         comparison.h which placement, with what each costs
 *     rebalance.h          whether it pays to move
 *
 * 2. Words
 * --------
 *
 * A model has stages 0 to S-1 on the ranks 0 to P-1 of a pipeline. A step sends micro-batches through it. In direction
 * 0 they enter at rank 0; a schedule with two directions has a second copy of every stage's parameters, and in
 * direction 1 they enter at rank P-1. A pass is one micro-batch at one stage in one direction.
 *
 *     F             forward                        B    backward, for the input and for the weights (B = I + W)
 *     I             backward for the input         W    backward for the weights
 *     FB            an F and a B of two micro-batches, run as an overlapped pair
 *     REDUCE_GRADS  the weight gradients of a copy are final: sum them with those of its twin in the other direction
 *
 * 3. A first program
 * ------------------
 *
 * DualPipe on 4 ranks, simulated and drawn. (cc -std=c99 first.c -ldualpipe)
 *
 *     #include <dualpipe.h>
 *     #include <stdio.h>
 *
 *     static int failed(dualpipe_status status) {
 *       if (status != DUALPIPE_OK)
 *         fprintf(stderr, "%s: %s\n", dualpipe_status_name(status), dualpipe_last_error());
 *       return status != DUALPIPE_OK;
 *     }
 *
 *     int main(void) {
 *       dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
 *       dualpipe_schedule_t schedule = NULL;
 *       dualpipe_stage_costs stage = {1000, 1000, 1000, 2500, 1 << 20, 1 << 24, 1 << 28};
 *       dualpipe_costs costs = DUALPIPE_COSTS_INIT;
 *       dualpipe_timeline_t timeline = NULL;
 *       dualpipe_timeline_summary summary = DUALPIPE_TIMELINE_SUMMARY_INIT;
 *       static char picture[1 << 16];
 *       size_t length = 0;
 *
 *       options.kind = DUALPIPE_KIND_DUALPIPE;
 *       options.num_ranks = 4;
 *       options.num_microbatches = 8;
 *       costs.stages = &stage;
 *       costs.num_stages = 1; // one entry: all stages cost the same
 *       if (failed(dualpipe_schedule_create(&options, &schedule)) ||
 *           failed(dualpipe_simulate(schedule, &costs, &timeline)) ||
 *           failed(dualpipe_timeline_summarize(timeline, &summary)) ||
 *           failed(dualpipe_timeline_draw(timeline, DUALPIPE_DRAW_TEXT, picture, sizeof picture, &length)))
 *         return 1;
 *       printf("%s\n%.1f us, bubble %.1f %%\n", picture, summary.makespan_ns / 1e3, 100 * summary.bubble_share);
 *       dualpipe_timeline_free(timeline);
 *       dualpipe_schedule_free(schedule);
 *       return 0;
 *     }
 *
 * 4. The life of an object
 * ------------------------
 *
 * A create function writes a handle; the object's other functions take it first; its free function ends it. free(NULL)
 * is fine. There is one free for each create, and what one object was made from may be freed before it.
 *
 *                  made from                       used by                 after a fork  free
 *     schedule     options; orders; a text; a plan any number of threads   usable        dualpipe_schedule_free
 *     program      schedule, rank                  any number of threads   usable        dualpipe_program_free
 *     timeline     schedule and costs; a last step any number of threads   usable        dualpipe_timeline_free
 *     plan         options, costs, a spread        any number of threads   usable        dualpipe_plan_free
 *     expert plan  options, loads                  any number of threads   usable        dualpipe_expert_plan_free
 *     transfers    two placements of experts       any number of threads   usable        dualpipe_expert_transfers_free
 *     replay       recorded loads, policies        any number of threads   usable        dualpipe_replay_free
 *     verification schedule; a CSV                 any number of threads   usable        dualpipe_verification_free
 *     front        options, costs, memory caps     any number of threads   usable        dualpipe_front_free
 *     comparison   options, costs                  any number of threads   usable        dualpipe_comparison_free
 *     router       expert plan; slots              one thread at a time    usable        dualpipe_router_free
 *     monitor      options; a saved state          one thread at a time    usable        dualpipe_load_monitor_free
 *     history      options; a text                 one thread at a time    usable        dualpipe_load_history_free
 *     inproc       number of ranks                 any number of threads   useless       dualpipe_inproc_free
 *     executor     program, options                one thread at a time    useless       dualpipe_executor_free
 *     overlap      device                          one thread at a time    useless       dualpipe_overlap_free
 *
 * Those above the router never change. An executor runs steps until one fails; then it can say why, give what was
 * recorded, and be freed, and so can those of all other ranks, which fail too. A new inproc and new executors run
 * clean.
 *
 * A handle that was freed, or never was one, is refused with DUALPIPE_ERROR_INVALID_HANDLE. Freeing an object while
 * another thread uses it is safe: it goes when that call ends.
 *
 * 5. Errors
 * ---------
 *
 * A function that can fail returns a dualpipe_status, DUALPIPE_OK (0) if it worked. dualpipe_last_error() has the
 * words, for each thread its own: the function, the argument, its value and its range, or for a step the rank, the
 * instruction and the peer. Read it on the thread that made the call, before its next failing call.
 *
 *     dualpipe_schedule_create: dualpipe: num_ranks is 3, must be even and at least 2
 *     dualpipe_executor_step: rank 2, instruction 17 (RUN 2F1): waited 5s for the activation of micro-batch 1
 *         from stage 1 to 2 in direction 0, from rank 1; last done 2F0
 *
 * Outputs are written on success only. An argument that is refused has changed nothing. Every wait has a deadline. The
 * library prints nothing, installs no signal handlers, and never aborts because of an argument; a defect of its own
 * comes back as DUALPIPE_ERROR_PANIC. What each status means, and what can be done: status.h.
 *
 * 6. Threads
 * ----------
 *
 * Every function may be called from any thread. Section 4 says what several threads may do with one object; a second
 * thread at an executor gets DUALPIPE_ERROR_BUSY, at once, and so does a callback that calls the executor that called
 * it.
 *
 * Each rank of a process needs a thread for its step: yours (dualpipe_executor_step), or one of the executor's own
 * (dualpipe_executor_start, dualpipe_executor_wait), so that one thread can drive all ranks. With CUDA an executor has
 * threads more: a watchdog, and one that ends a transport after a fault.
 *
 * Callbacks are called on the threads that their types name. They return to the library: an exception or a longjmp
 * through it ends the process.
 *
 * Fork. Objects without threads stay usable in the child. The others return DUALPIPE_ERROR_FORKED there: free them.
 *
 * 7. Ownership
 * ------------
 *
 * Pointers. Each points to as much as its function says, aligned, valid until the function returns, and no output
 * overlaps another argument. NULL, misaligned pointers and impossible sizes are refused. What an options struct points
 * to is copied, except for what it says is borrowed: user_data, streams, and what they lead to.
 *
 * Buffers. Where a function writes a number of values that the caller cannot know, it takes the buffer, its capacity
 * and a count: (values, capacity, &count). NULL with capacity 0 only asks for the count. If the buffer is too small,
 * the function returns DUALPIPE_ERROR_BUFFER_TOO_SMALL, writes the count that is needed, and nothing else. Of a text
 * the capacity must have room for the NUL, and the length does not count it.
 *
 * Tensors. A task borrows them until it returns. Inputs and outputs are the executor's memory, which it uses again, or
 * yours if you bring some (memory.h). Parameters, gradients of weights, data and labels are yours and never pass
 * through the library. Nor does what a stage keeps from F to W besides its inputs.
 *
 * Structs that begin with size may grow in later versions: start from their INIT macro, then set fields. Fields that a
 * library does not know must be 0. Structs without size never change while the SONAME stays.
 *
 * Enums are passed as uint32_t; a number that is not one of them is refused.
 *
 * 8. A trainer
 * ------------
 *
 * A whole trainer: DualPipe on four ranks, a thread each, joined by an inproc; a linear model of four stages; at the
 * end every step's loss and gradients against a computation without a pipeline. It is what a trainer on devices looks
 * like, with another model, streams (cuda.h), and NCCL or MPI between processes.
 *
 *     once:       schedule, inproc; for each rank, on its thread: program, executor
 *     each step:  dualpipe_executor_step (F, B, I, W, FB, REDUCE_GRADS of the rank's two stages), barrier, update
 *
 * What to look at: input_of and output_grad_of, where the ends of the model differ from its middle; run_task, which is
 * all that the executor asks for; reduce_grads, where the two copies of a stage meet. A step has returned when its
 * rank is done, so the ranks meet once more before they update.
 *
 *     #define _POSIX_C_SOURCE 200112L // for pthread_barrier_t
 *     #include <dualpipe.h>
 *     #include <pthread.h>
 *     #include <stdio.h>
 *     #include <stdlib.h>
 *     #include <string.h>
 *
 *     enum { RANKS = 4, STAGES = RANKS, MICROBATCHES = 10, ROWS = 2, WIDTH = 3, STEPS = 4 };
 *     typedef double rows[ROWS * WIDTH];     // what crosses a boundary between stages
 *     typedef double weights[WIDTH * WIDTH]; // what a stage multiplies its rows by
 *     static const double RATE = 0.1;
 *
 *     // What a rank has: a copy of stage `rank` for direction 0 and one of stage STAGES - 1 - rank for direction 1.
 *     typedef struct rank {
 *       uint32_t number, step;
 *       dualpipe_schedule_t schedule;
 *       dualpipe_inproc_t inproc;
 *       weights parameters[2], grads[2];
 *       double losses[STEPS];
 *     } rank;
 *
 *     // What the ranks share, beside their inproc: the gradient of each stage in each step, over both copies.
 *     static weights sums[STEPS][STAGES];
 *     static pthread_mutex_t sums_lock = PTHREAD_MUTEX_INITIALIZER;
 *     static pthread_barrier_t all_ranks;
 *
 *     // Ends the program if a call failed: the words name rank, instruction and peer.
 *     static void check(dualpipe_status status) {
 *       if (status == DUALPIPE_OK) return;
 *       fprintf(stderr, "%s: %s\n", dualpipe_status_name(status), dualpipe_last_error());
 *       exit(1);
 *     }
 *
 *     // Step 1: the model, as it is without a pipeline. Inputs and targets come from a formula instead of a file.
 *
 *     static void load(double *x, uint32_t microbatch, uint32_t which) {
 *       for (uint32_t i = 0; i < ROWS * WIDTH; i++) x[i] = (which * 5 + microbatch * 7 + i * 3) % 11 / 11.0 - 0.5;
 *     }
 *     static void initialize(double *w, uint32_t stage) {
 *       for (uint32_t i = 0; i < WIDTH * WIDTH; i++) w[i] = (stage * 3 + i * 5) % 7 / 5.0 - 0.5;
 *     }
 *     static void update(double *w, const double *grad) {
 *       for (int i = 0; i < WIDTH * WIDTH; i++) w[i] -= RATE * grad[i];
 *     }
 *     static void forward(const double *x, const double *w, double *y) { // y = x w
 *       for (int i = 0; i < ROWS; i++)
 *         for (int j = 0; j < WIDTH; j++) {
 *           double sum = 0;
 *           for (int k = 0; k < WIDTH; k++) sum += x[i * WIDTH + k] * w[k * WIDTH + j];
 *           y[i * WIDTH + j] = sum;
 *         }
 *     }
 *     static void backward_input(const double *dy, const double *w, double *dx) { // dx = dy w^T
 *       for (int i = 0; i < ROWS; i++)
 *         for (int k = 0; k < WIDTH; k++) {
 *           double sum = 0;
 *           for (int j = 0; j < WIDTH; j++) sum += dy[i * WIDTH + j] * w[k * WIDTH + j];
 *           dx[i * WIDTH + k] = sum;
 *         }
 *     }
 *     static void backward_weights(const double *x, const double *dy, double *dw) { // dw += x^T dy
 *       for (int k = 0; k < WIDTH; k++)
 *         for (int j = 0; j < WIDTH; j++)
 *           for (int i = 0; i < ROWS; i++) dw[k * WIDTH + j] += x[i * WIDTH + k] * dy[i * WIDTH + j];
 *     }
 *     // Half the squared distance from the target, and its gradient.
 *     static double loss_of(const double *y, uint32_t microbatch, double *dy) {
 *       double loss = 0;
 *       load(dy, microbatch, 1);
 *       for (int i = 0; i < ROWS * WIDTH; i++) dy[i] = y[i] - dy[i], loss += dy[i] * dy[i] / 2;
 *       return loss;
 *     }
 *
 *     // Step 2: the tasks. The middle of the model has its tensors from the executor, the ends have data and loss.
 *
 *     static uint32_t number_of(dualpipe_pass pass) { // each direction counts its micro-batches from 0
 *       return pass.direction * (MICROBATCHES / 2) + pass.microbatch;
 *     }
 *     static const double *input_of(const dualpipe_task_pass *p, double *room) {
 *       if (p->num_inputs > 0) return p->inputs[0].dl.data;
 *       load(room, number_of(p->pass), 0);
 *       return room;
 *     }
 *     static const double *output_grad_of(const rank *self, const dualpipe_task_pass *p, double *room) {
 *       if (p->num_output_grads > 0) return p->output_grads[0].dl.data;
 *       rows x_room, y;
 *       forward(input_of(p, x_room), self->parameters[p->pass.copy], y);
 *       loss_of(y, number_of(p->pass), room);
 *       return room;
 *     }
 *     static void run_forward(rank *self, const dualpipe_task_pass *p) {
 *       rows room, y, dy;
 *       const double *x = input_of(p, room);
 *       forward(x, self->parameters[p->pass.copy], p->num_outputs > 0 ? p->outputs[0].dl.data : y);
 *       if (p->num_outputs == 0) self->losses[self->step] += loss_of(y, number_of(p->pass), dy);
 *     }
 *     static void run_backward(rank *self, const dualpipe_task_pass *p, int for_input, int for_weights) {
 *       rows room, grad_room;
 *       const double *x = input_of(p, room), *dy = output_grad_of(self, p, grad_room);
 *       if (for_input && p->num_input_grads > 0)
 *         backward_input(dy, self->parameters[p->pass.copy], p->input_grads[0].dl.data);
 *       if (for_weights) backward_weights(x, dy, self->grads[p->pass.copy]);
 *     }
 *     // The gradients of a copy are final. Its twin is on task->reduce_peer: another process would be sent them.
 *     static void reduce_grads(rank *self, dualpipe_pass copy) {
 *       pthread_mutex_lock(&sums_lock);
 *       for (int i = 0; i < WIDTH * WIDTH; i++) sums[self->step][copy.stage][i] += self->grads[copy.copy][i];
 *       pthread_mutex_unlock(&sums_lock);
 *     }
 *     static int32_t run_task(void *user_data, const dualpipe_task *task) {
 *       rank *self = user_data;
 *       switch (task->op.kind) {
 *       case DUALPIPE_OP_F: run_forward(self, task->forward); return 0;
 *       case DUALPIPE_OP_B: run_backward(self, task->backward, 1, 1); return 0;
 *       case DUALPIPE_OP_I: run_backward(self, task->backward, 1, 0); return 0;
 *       case DUALPIPE_OP_W: run_backward(self, task->backward, 0, 1); return 0;
 *       case DUALPIPE_OP_FB: run_forward(self, task->forward); run_backward(self, task->backward, 1, 1); return 0;
 *       case DUALPIPE_OP_REDUCE_GRADS: reduce_grads(self, task->op.backward); return 0;
 *       default: dualpipe_task_set_error("an op that this trainer does not know"); return 1;
 *       }
 *     }
 *
 *     // Step 3: a rank, on a thread of its own. Its executor is used by this thread only.
 *
 *     static void *run_rank(void *argument) {
 *       rank *self = argument;
 *       dualpipe_program_t program = NULL;
 *       dualpipe_executor_t executor = NULL;
 *       const dualpipe_tensor_spec spec = {{2, 64, 1}, 2, {ROWS, WIDTH}}; // DLPack's float, 64 bits, in two dimensions
 *       dualpipe_executor_options options = DUALPIPE_EXECUTOR_OPTIONS_INIT;
 *       options.tensors = &spec;
 *       options.num_tensors = 1;
 *       options.inproc = self->inproc;
 *       options.timeout_ns = 30000000000u; // 30 s: longer than any task
 *       check(dualpipe_program_create(self->schedule, self->number, &program));
 *       check(dualpipe_executor_create(program, &options, &executor));
 *       check(dualpipe_program_free(program)); // the executor keeps what it needs
 *       const uint32_t stages[2] = {self->number, STAGES - 1 - self->number};
 *       for (int copy = 0; copy < 2; copy++) initialize(self->parameters[copy], stages[copy]);
 *       for (self->step = 0; self->step < STEPS; self->step++) {
 *         memset(self->grads, 0, sizeof self->grads);
 *         check(dualpipe_executor_step(executor, run_task, self));
 *         pthread_barrier_wait(&all_ranks); // now every rank has added its gradients
 *         for (int copy = 0; copy < 2; copy++) update(self->parameters[copy], sums[self->step][stages[copy]]);
 *       }
 *       check(dualpipe_executor_free(executor));
 *       return NULL;
 *     }
 *
 *     // The same step on one thread, without the library: what the sums must be.
 *     static double train_sequentially(weights parameters[STAGES], weights grads[STAGES]) {
 *       double loss = 0;
 *       for (uint32_t m = 0; m < MICROBATCHES; m++) {
 *         rows x[STAGES + 1], dy, dx;
 *         load(x[0], m, 0);
 *         for (int s = 0; s < STAGES; s++) forward(x[s], parameters[s], x[s + 1]);
 *         loss += loss_of(x[STAGES], m, dy);
 *         for (int s = STAGES - 1; s >= 0; s--) {
 *           backward_weights(x[s], dy, grads[s]);
 *           backward_input(dy, parameters[s], dx);
 *           memcpy(dy, dx, sizeof dy);
 *         }
 *       }
 *       return loss;
 *     }
 *
 *     static double distance(double a, double b) { return a < b ? b - a : a - b; }
 *
 *     int main(void) {
 *       static rank ranks[RANKS];
 *       pthread_t threads[RANKS];
 *       dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
 *       dualpipe_schedule_t schedule = NULL;
 *       dualpipe_inproc_t inproc = NULL;
 *       options.kind = DUALPIPE_KIND_DUALPIPE;
 *       options.num_ranks = RANKS;
 *       options.num_microbatches = MICROBATCHES;
 *       check(dualpipe_schedule_create(&options, &schedule));
 *       check(dualpipe_inproc_create(RANKS, &inproc));
 *       pthread_barrier_init(&all_ranks, NULL, RANKS);
 *       for (uint32_t r = 0; r < RANKS; r++) {
 *         ranks[r].number = r, ranks[r].schedule = schedule, ranks[r].inproc = inproc;
 *         if (pthread_create(&threads[r], NULL, run_rank, &ranks[r]) != 0) return 1;
 *       }
 *       for (int r = 0; r < RANKS; r++) pthread_join(threads[r], NULL);
 *       pthread_barrier_destroy(&all_ranks);
 *       check(dualpipe_inproc_free(inproc));
 *       check(dualpipe_schedule_free(schedule));
 *
 *       weights parameters[STAGES];
 *       for (uint32_t s = 0; s < STAGES; s++) initialize(parameters[s], s);
 *       for (int step = 0; step < STEPS; step++) {
 *         weights grads[STAGES] = {{0}};
 *         const double want = train_sequentially(parameters, grads);
 *         double loss = 0, apart = 0;
 *         for (int r = 0; r < RANKS; r++) loss += ranks[r].losses[step];
 *         for (int s = 0; s < STAGES; s++) {
 *           for (int i = 0; i < WIDTH * WIDTH; i++) apart += distance(sums[step][s][i], grads[s][i]);
 *           update(parameters[s], grads[s]);
 *         }
 *         printf("step %d: loss %.6f, sequentially %.6f, gradients %.0e apart\n", step, loss, want, apart);
 *         if (!(distance(loss, want) + apart < 1e-9)) return 1;
 *       }
 *       return 0;
 *     }
 *
 * 9. Limits
 * ---------
 *
 *     ranks                      1 to 4096; DualPipe an even number from 2 on
 *     stages                     1 to 8192: as many as ranks, or stages_per_rank times as many; own orders: any
 *     micro-batches of a step    1 to 1048576, and at most 4194304 / stages of a direction; DualPipe an even number, at
 *                                least 2 * ranks - 2; DualPipeV at least 2 * ranks - 1; forward only 2 and 1
 *     own orders                 at most 12582912 ops in all; names of 255 bytes
 *     actions to verify          at most 67108864 in all; 8 findings of each kind in detail, all of them counted
 *     times of costs             0 to 10^12 ns, for one pass and for one message; at most 1048576 pairs have their own
 *     bytes of costs             0 to 2^50
 *     caps of a plan             1 or as many as ranks; activations from 1 on, bytes to 2^50
 *     time limit of a plan       1 ns to a day; 0 stands for none, and for 2 s where there are no iterations
 *     samples of a spread        1 to 1024, times passes at most 4194304; standard deviations 0 to 1
 *     timelines merged, drawn    1 to 4096; 1 to 64 in one picture, which beyond 50000 tasks merges them
 *     tensors at a boundary      0 to 32, of 0 to 8 dimensions, all together at most 2^40 bytes
 *     bits of an element         4, 6, 8, 16, 32, 64 or 128
 *     deadline                   1 ns to a day; 0 stands for a minute
 *     tags of messages           repeat after 65536 steps
 *     words of a failing task    4095 bytes; of a transport 1023
 *     multiprocessors of NCCL    1 to 64 for each communicator; 0 stands for 2
 *     blocks of an overlap       0 to 4096 in each half
 *     layers of an expert plan   1 to 4096, of 1 to 65536 experts each
 *     GPUs of a cluster          1 to 2^20, nodes no more than these
 *     slots                      experts to 2^20 in a layer, 2^26 in all; expert_to_slots gives at most 2^28 numbers
 *     effort of a search         1 to 1000
 *     loads                      finite, not negative, of a layer at most 10^38 in all
 *     tokens of a routing        at most 2^32 - 1 in a layer; quotas of senders at most 2^28
 *     tiles, prices of a routing 1 to 65536 tokens; 0 to 1000
 *     experts moved in a round   1 to 2^20 by a GPU; 0 to 2^20 over a link, where 0 stands for no limit
 *     staging buffers of a GPU   0 to 1024
 *     window of a monitor        1 to 65536 steps, of all layers and experts at most 2^28 counts; 1 to 65536 ranks
 *     steps of a monitor         numbered from 0 to 2^63 - 1
 *     loads of a history         at most 2^28; words of its model 4095 bytes
 *     horizon of a move          at most 2^53 steps
 *     threads of a plan          0 to 4096; 0 stands for as many as there are cores
 *     findings of a placement    64 of each kind in detail, all of them counted
 *     steps of a replay          2 to 65536; of 1 to 64 policies, whose names have at most 255 bytes
 *     bytes of an expert         0 to 2^37 in one layer
 *     panels of a heat map       1 to 16, whose titles have at most 1023 bytes
 *     caps of a front            1 to 256; all that matter: at most 24
 *     placements compared        for ranks times micro-batches up to 262144
 *     live objects               1048576 in a process
 *     size of a struct           as in this header, an older one, or a newer one (up to 4096) with 0 in what it adds
 *     machine                    Linux, 64 bits
 *
 * 10. Versions
 * ------------
 *
 * dualpipe_version() is the library's, DUALPIPE_VERSION this header's. A patch release changes nothing here, a minor
 * one adds. Before 1.0 a minor release may break, and the SONAME has its number: libdualpipe.so.0.MINOR.
 */
/* Written by cbindgen from the Rust source, kept current by tests/header.rs. */

#ifndef DUALPIPE_H
#define DUALPIPE_H

#include "dualpipe/action.h"
#include "dualpipe/balance.h"
#include "dualpipe/cluster.h"
#include "dualpipe/comparison.h"
#include "dualpipe/cost.h"
#include "dualpipe/cuda.h"
#include "dualpipe/executor.h"
#include "dualpipe/expert_map.h"
#include "dualpipe/expert_transfer.h"
#include "dualpipe/front.h"
#include "dualpipe/heat_map.h"
#include "dualpipe/load_history.h"
#include "dualpipe/load_monitor.h"
#include "dualpipe/log.h"
#include "dualpipe/memory.h"
#include "dualpipe/monitor_loads.h"
#include "dualpipe/moves.h"
#include "dualpipe/op.h"
#include "dualpipe/overlap.h"
#include "dualpipe/plan.h"
#include "dualpipe/policy.h"
#include "dualpipe/program.h"
#include "dualpipe/rebalance.h"
#include "dualpipe/replay.h"
#include "dualpipe/robust_plan.h"
#include "dualpipe/route.h"
#include "dualpipe/schedule.h"
#include "dualpipe/schedule_orders.h"
#include "dualpipe/schedule_verify.h"
#include "dualpipe/status.h"
#include "dualpipe/task.h"
#include "dualpipe/tensor.h"
#include "dualpipe/timeline.h"
#include "dualpipe/token_map.h"
#include "dualpipe/torch_csv.h"
#include "dualpipe/transport.h"
#include "dualpipe/verification.h"
#include "dualpipe/verify.h"
#include "dualpipe/version.h"

#endif /* DUALPIPE_H */
