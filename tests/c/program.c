/* Programs: every send of one rank meets a receive of another, and buffers are where the passes say. */
#include <dualpipe.h>
#include <string.h>

#include "check.h"

enum { NUM_RANKS = 4, NUM_MICROBATCHES = 8, INSTRUCTIONS_MAX = 512 };

static dualpipe_instruction instructions[NUM_RANKS][INSTRUCTIONS_MAX];
static size_t counts[NUM_RANKS];

static int is_received(uint32_t to, uint32_t from, const dualpipe_message *message) {
  size_t i;
  int found = 0;
  for (i = 0; i < counts[to]; i++) {
    const dualpipe_instruction *instruction = &instructions[to][i];
    found += instruction->kind == DUALPIPE_INSTRUCTION_RECEIVE && instruction->peer == from &&
             memcmp(&instruction->message.pass, &message->pass, 3 * sizeof(uint32_t)) == 0 &&
             instruction->message.kind == message->kind;
  }
  return found == 1;
}

int main(void) {
  dualpipe_schedule_options options = DUALPIPE_SCHEDULE_OPTIONS_INIT;
  dualpipe_schedule_t schedule = NULL;
  dualpipe_program_t programs[NUM_RANKS];
  uint32_t rank;
  size_t i, sends = 0, receives = 0, reductions = 0;
  options.kind = DUALPIPE_KIND_DUALPIPE;
  options.num_ranks = NUM_RANKS;
  options.num_microbatches = NUM_MICROBATCHES;
  CHECK_OK(dualpipe_schedule_create(&options, &schedule));
  for (rank = 0; rank < NUM_RANKS; rank++) {
    CHECK_OK(dualpipe_program_create(schedule, rank, &programs[rank]));
    CHECK_OK(dualpipe_program_instructions(programs[rank], instructions[rank], INSTRUCTIONS_MAX, &counts[rank]));
  }
  CHECK_OK(dualpipe_schedule_free(schedule));

  for (rank = 0; rank < NUM_RANKS; rank++) {
    dualpipe_program_buffer buffers[64];
    dualpipe_pass_buffers of_pass;
    size_t num_buffers = 0;
    CHECK_OK(dualpipe_program_buffers(programs[rank], buffers, 64, &num_buffers));
    for (i = 0; i < counts[rank]; i++) {
      const dualpipe_instruction *instruction = &instructions[rank][i];
      switch (instruction->kind) {
        case DUALPIPE_INSTRUCTION_SEND:
          sends++;
          CHECK(instruction->buffer < num_buffers);
          CHECK(buffers[instruction->buffer].kind == instruction->message.kind);
          CHECK(is_received(instruction->peer, rank, &instruction->message));
          break;
        case DUALPIPE_INSTRUCTION_RECEIVE:
          receives++;
          CHECK(instruction->op.kind == DUALPIPE_NONE);
          break;
        case DUALPIPE_INSTRUCTION_RUN:
          reductions += instruction->op.kind == DUALPIPE_OP_REDUCE_GRADS;
          CHECK(instruction->peer == DUALPIPE_NONE && instruction->message.kind == DUALPIPE_NONE);
          break;
        default:
          CHECK(instruction->kind == DUALPIPE_INSTRUCTION_FREE);
          CHECK(instruction->buffer < num_buffers);
      }
    }
    /* Stage `rank` of direction 0: nothing comes in at the first, nothing goes out at the last. */
    CHECK_OK(dualpipe_program_pass_buffers(programs[rank], 0, rank, 0, &of_pass));
    CHECK((of_pass.input == DUALPIPE_NONE) == (rank == 0));
    CHECK((of_pass.output == DUALPIPE_NONE) == (rank == NUM_RANKS - 1));
    CHECK(dualpipe_program_pass_buffers(programs[rank], 0, (rank + 1) % NUM_RANKS, 0, &of_pass) ==
          DUALPIPE_ERROR_INVALID_ARGUMENT);
    CHECK_OK(dualpipe_program_free(programs[rank]));
  }
  CHECK(sends == receives && sends == 2 * (NUM_RANKS - 1) * NUM_MICROBATCHES);
  CHECK(reductions == 2 * NUM_RANKS);
  return 0;
}
