/* The layout of every struct: part of the ABI while the SONAME stays. */
#include <dualpipe.h>

#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define SAME(a, b) _Static_assert((a) == (b), #a " is not " #b)
#else
#define SAME(a, b) extern char same[(a) == (b) ? 1 : -1]
#endif

SAME(sizeof(DLTensor), 48);
SAME(offsetof(DLTensor, device), 8);
SAME(offsetof(DLTensor, ndim), 16);
SAME(offsetof(DLTensor, dtype), 20);
SAME(offsetof(DLTensor, shape), 24);
SAME(offsetof(DLTensor, byte_offset), 40);

SAME(sizeof(dualpipe_status), 4);
SAME(sizeof(dualpipe_schedule_t), 8);
SAME(sizeof(dualpipe_schedule_options), 20);
SAME(sizeof(dualpipe_schedule_info), 28);

SAME(sizeof(dualpipe_pass), 16);
SAME(offsetof(dualpipe_pass, copy), 12);
SAME(sizeof(dualpipe_op), 36);
SAME(offsetof(dualpipe_op, backward), 20);
SAME(sizeof(dualpipe_message), 24);
SAME(offsetof(dualpipe_message, pass), 8);

SAME(sizeof(dualpipe_stage_costs), 56);
SAME(offsetof(dualpipe_stage_costs, parameter_bytes), 48);
SAME(sizeof(dualpipe_costs), 40);
SAME(offsetof(dualpipe_costs, stages), 8);
SAME(offsetof(dualpipe_costs, p2p_bytes_per_second), 32);

SAME(sizeof(dualpipe_timeline_summary), 56);
SAME(offsetof(dualpipe_timeline_summary, bubble_share), 48);
SAME(sizeof(dualpipe_timeline_rank), 32);
SAME(sizeof(dualpipe_span), 56);
SAME(offsetof(dualpipe_span, op), 4);
SAME(offsetof(dualpipe_span, start_ns), 40);
SAME(sizeof(dualpipe_message_span), 48);
SAME(offsetof(dualpipe_message_span, from), 24);
SAME(offsetof(dualpipe_message_span, start_ns), 32);

SAME(sizeof(dualpipe_instruction), 72);
SAME(offsetof(dualpipe_instruction, message), 12);
SAME(offsetof(dualpipe_instruction, op), 36);
SAME(sizeof(dualpipe_program_buffer), 12);
SAME(sizeof(dualpipe_pass_buffers), 16);

SAME(sizeof(dualpipe_transfer), 56);
SAME(offsetof(dualpipe_transfer, tag), 16);
SAME(offsetof(dualpipe_transfer, num_bytes), 32);
SAME(offsetof(dualpipe_transfer, stream), 40);
SAME(offsetof(dualpipe_transfer, device), 48);
SAME(offsetof(dualpipe_transfer, reserved2), 52);
SAME(sizeof(dualpipe_transport), 88);
SAME(offsetof(dualpipe_transport, send), 16);
SAME(offsetof(dualpipe_transport, destroy), 80);
SAME(sizeof(dualpipe_memory), 32);
SAME(offsetof(dualpipe_memory, release), 24);
SAME(sizeof(dualpipe_tensor), 64);
SAME(offsetof(dualpipe_tensor, owner), 48);
SAME(sizeof(dualpipe_task_pass), 64);
SAME(offsetof(dualpipe_task_pass, inputs), 32);
SAME(sizeof(dualpipe_task), 80);
SAME(offsetof(dualpipe_task, op), 8);
SAME(offsetof(dualpipe_task, forward), 48);
SAME(offsetof(dualpipe_task, compute_stream), 64);
SAME(offsetof(dualpipe_task, comm_stream), 72);
SAME(sizeof(dualpipe_tensor_spec), 72);
SAME(offsetof(dualpipe_tensor_spec, shape), 8);
SAME(sizeof(dualpipe_executor_options), 64);
SAME(offsetof(dualpipe_executor_options, timeout_ns), 16);
SAME(offsetof(dualpipe_executor_options, memory), 40);
SAME(offsetof(dualpipe_executor_options, cuda), 48);
SAME(offsetof(dualpipe_executor_options, nccl), 56);
SAME(sizeof(dualpipe_fault), 32);
SAME(offsetof(dualpipe_fault, instruction), 16);

SAME(sizeof(dualpipe_cuda_info), 16);
SAME(offsetof(dualpipe_cuda_info, num_devices), 4);
SAME(offsetof(dualpipe_cuda_info, driver_version), 8);
SAME(sizeof(dualpipe_cuda_options), 48);
SAME(offsetof(dualpipe_cuda_options, device), 4);
SAME(offsetof(dualpipe_cuda_options, compute_stream), 8);
SAME(offsetof(dualpipe_cuda_options, comm_stream), 16);
SAME(offsetof(dualpipe_cuda_options, has_comm_stream), 24);
SAME(offsetof(dualpipe_cuda_options, uses_graph), 36);
SAME(offsetof(dualpipe_cuda_options, reserved), 44);
SAME(sizeof(dualpipe_nccl_options), 32);
SAME(offsetof(dualpipe_nccl_options, unique_id), 8);
SAME(offsetof(dualpipe_nccl_options, unique_id_length), 16);
SAME(offsetof(dualpipe_nccl_options, zero_cta), 24);
SAME(sizeof(dualpipe_overlap_t), 8);
SAME(sizeof(dualpipe_part), 4);
SAME(sizeof(dualpipe_graph_state), 4);

SAME(sizeof(dualpipe_balance_options), 32);
SAME(sizeof(dualpipe_layer_balance), 16);

int main(void) { return 0; }
