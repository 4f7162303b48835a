//! The ABI as each language sees it: assertions for C and C++, and what Rust makes of the structs.

use std::fmt::Write as _;
use std::mem::{align_of, offset_of, size_of};

use dualpipe::capi::action::*;
use dualpipe::capi::balance::*;
use dualpipe::capi::cluster::*;
use dualpipe::capi::comparison::*;
use dualpipe::capi::cost::*;
use dualpipe::capi::cuda::*;
use dualpipe::capi::executor::*;
use dualpipe::capi::expert_transfer::*;
use dualpipe::capi::front::*;
use dualpipe::capi::heat_map::*;
use dualpipe::capi::load_history::*;
use dualpipe::capi::load_monitor::*;
use dualpipe::capi::memory::*;
use dualpipe::capi::moves::*;
use dualpipe::capi::op::*;
use dualpipe::capi::plan::*;
use dualpipe::capi::policy::*;
use dualpipe::capi::program::*;
use dualpipe::capi::rebalance::*;
use dualpipe::capi::replay::*;
use dualpipe::capi::robust_plan::*;
use dualpipe::capi::route::*;
use dualpipe::capi::schedule::*;
use dualpipe::capi::schedule_orders::*;
use dualpipe::capi::schedule_verify::*;
use dualpipe::capi::task::*;
use dualpipe::capi::tensor::*;
use dualpipe::capi::timeline::*;
use dualpipe::capi::transport::*;
use dualpipe::capi::verification::*;
use dualpipe::capi::verify::*;

use crate::text::{Abi, Item, Layout, Signature};

/// A source in C99, C11 or C++ that compiles if the headers have this ABI.
pub(crate) fn assertions(abi: &Abi) -> String {
    let mut source = String::from(ASSERTIONS);
    for (name, item) in &abi.items {
        write(&mut source, name, item).expect("a String");
    }
    source
}

const ASSERTIONS: &str = r#"/* Compiles if the headers have the ABI that abi.txt describes. */
#include <dualpipe.h>
#if defined(__cplusplus)
#include <type_traits>
#define SAME(name, a, b) static_assert((a) == (b), #a " is not " #b)
#define PLAIN(T) static_assert(std::is_standard_layout<T>::value && std::is_trivially_copyable<T>::value, #T)
#define ALIGN(T) alignof(T)
#else
#define PLAIN(T) SAME(is_a_type_##T, sizeof(T) > 0, 1)
#define ALIGN(T) offsetof(struct aligned_##T, x)
#if defined(__STDC_VERSION__) && __STDC_VERSION__ >= 201112L
#define SAME(name, a, b) _Static_assert((a) == (b), #a " is not " #b)
#else
#define SAME(name, a, b) typedef char name[(a) == (b) ? 1 : -1]
#endif
#endif
"#;

fn write(to: &mut String, name: &str, item: &Item) -> std::fmt::Result {
    match item {
        Item::Constant(number) => writeln!(to, "SAME(number_of_{name}, {name}, {number});"),
        Item::Function(signature) => {
            writeln!(to, "{} = {name};", pointer(signature, &format!("(*to_{name})")))
        }
        Item::Callback(signature) => {
            let pointer = pointer(signature, "(**callback)");
            writeln!(to, "void take_{name}({name} *x);\nvoid take_{name}({name} *x) {{")?;
            writeln!(to, "  {pointer} = x;\n  (void)callback;\n}}")
        }
        Item::Type(kind) if kind == "opaque" => writeln!(to, "extern {name} *pointer_to_{name};"),
        Item::Type(kind) => writeln!(to, "SAME(size_of_{name}, sizeof({name}), sizeof({kind}));"),
        Item::Initializer => {
            let kind = name.trim_end_matches("_INIT").to_lowercase();
            writeln!(
                to,
                "void begin_{name}(void);\nvoid begin_{name}(void) {{ {kind} x = {name}; (void)x; }}"
            )
        }
        Item::Struct(layout) => {
            writeln!(to, "struct aligned_{name} {{ char c; {name} x; }};\nPLAIN({name});")?;
            writeln!(to, "SAME(size_of_{name}, sizeof({name}), {});", layout.size)?;
            writeln!(to, "SAME(alignment_of_{name}, ALIGN({name}), {});", layout.align)?;
            for field in &layout.fields {
                let inner = &field.what.name;
                writeln!(
                    to,
                    "SAME(field_offset_of_{name}_{inner}, offsetof({name}, {inner}), {});",
                    field.offset
                )?;
                writeln!(
                    to,
                    "SAME(field_size_of_{name}_{inner}, sizeof((({name} *)0)->{inner}), {});",
                    field.size
                )?;
            }
            writeln!(to, "void types_of_{name}({name} *x);\nvoid types_of_{name}({name} *x) {{")?;
            for (i, field) in layout.fields.iter().enumerate() {
                let is_array = field.what.kind.contains('[');
                let pointer = field.what.of(&if is_array { format!("(*f{i})") } else { format!("*f{i}") });
                writeln!(to, "  {pointer} = &x->{};\n  (void)f{i};", field.what.name)?;
            }
            writeln!(to, "}}")
        }
    }
}

/// The declaration of a pointer to a function.
fn pointer(signature: &Signature, name: &str) -> String {
    let kinds: Vec<&str> = signature.parameters.iter().map(|parameter| parameter.kind.as_str()).collect();
    let kinds = if kinds.is_empty() { "void".into() } else { kinds.join(", ") };
    format!("{} {name}({kinds})", signature.returns)
}

/// A struct as Rust lays it out: its size, its alignment, and each field's offset and size.
pub(crate) struct RustLayout {
    name: &'static str,
    size: usize,
    align: usize,
    fields: Vec<(&'static str, usize, usize)>,
}

/// Where Rust lays a struct out otherwise than the ABI says, in words.
pub(crate) fn unlike_rust(name: &str, layout: &Layout) -> Vec<String> {
    let all = in_rust();
    let Some(rust) = all.iter().find(|rust| rust.name == name) else {
        return vec![format!("{name} is not in tests/abi/layout.rs: add it")];
    };
    let mut wrong = Vec::new();
    if (rust.size, rust.align) != (layout.size, layout.align) {
        let RustLayout { size, align, .. } = rust;
        wrong.push(format!("{name} has {size} bytes, aligned to {align}, in Rust: {layout:?}"));
    }
    for field in &layout.fields {
        let (inner, want) = (&field.what.name, (field.offset, field.size));
        let found =
            rust.fields.iter().find(|(other, ..)| other == inner).map(|&(_, offset, size)| (offset, size));
        if found != Some(want) {
            wrong.push(format!("{name}.{inner} has (offset, size) {found:?} in Rust, {want:?} in abi.txt"));
        }
    }
    wrong
}

macro_rules! layouts {
    ($($name:ident { $($field:ident)* })*) => {
        vec![$(RustLayout {
            name: stringify!($name),
            size: size_of::<$name>(),
            align: align_of::<$name>(),
            fields: vec![
                $((stringify!($field), offset_of!($name, $field), size_of_field(|x: &$name| &x.$field))),*
            ],
        }),*]
    };
}

fn size_of_field<S, F>(_: fn(&S) -> &F) -> usize {
    size_of::<F>()
}

fn in_rust() -> Vec<RustLayout> {
    layouts! {
        dualpipe_balance_options {
            size num_layers num_experts num_slots num_groups num_nodes num_gpus num_threads
        }
        dualpipe_layer_balance { imbalance lower_bound joint_bound equal_bound node_bound away }
        dualpipe_expert_plan_info {
            size num_layers num_experts num_slots num_gpus num_nodes num_groups split
        }
        dualpipe_cluster { size num_gpus num_slots num_nodes slots_per_gpu node_of_gpu is_alive }
        dualpipe_goal {
            size num_layers num_experts num_groups group_rule split min_gpus min_nodes effort reserved price
        }
        dualpipe_current_placement {
            size budget slot_to_expert num_slots max_moves max_price imbalance same_node_price other_node_price
        }
        dualpipe_move_count { moves same_node other_node lost same_gpu }
        dualpipe_move_point { layer moves imbalance }
        dualpipe_router_info { size num_layers num_experts num_slots num_gpus num_nodes }
        dualpipe_route_options { size tile gpu_price node_price ignore_senders }
        dualpipe_routing {
            size num_bottleneck_gpus heaviest bound bottleneck_load tokens_on_gpu tokens_on_node
        }
        dualpipe_expert_transfer_options {
            size sends_per_gpu receives_per_gpu copies_per_node_link staging_per_gpu num_tensors num_gains reserved
            tensor_bytes gains
        }
        dualpipe_expert_transfers_info {
            size num_layers num_gpus num_slots num_rounds least_rounds num_copies num_lost num_staging
            bytes_per_expert same_gpu_bytes same_node_bytes other_node_bytes
        }
        dualpipe_expert_layer_transfers {
            layer num_rounds least_rounds num_copies same_gpu same_node other_node num_lost first_copy
        }
        dualpipe_expert_copy { layer round expert from_gpu from to_gpu to link }
        dualpipe_lost_expert { layer expert slot }
        dualpipe_load_monitor_options { size num_layers num_experts window num_ranks reserved half_life }
        dualpipe_load_monitor_info {
            size num_layers num_experts window num_ranks num_steps num_complete_steps num_counters newest_step
            half_life
        }
        dualpipe_load_history_options { size num_layers num_experts num_ranks num_groups num_nodes model }
        dualpipe_load_history_info {
            size num_layers num_experts num_ranks num_groups num_nodes num_steps
        }
        dualpipe_rebalance_proposal {
            size num_layers num_experts plan_saw_counts counts num_counts current current_shares planned
            planned_shares num_slots horizon expert_seconds price_seconds bytes_per_expert bytes_per_second
            standard_errors
        }
        dualpipe_rebalance_decision {
            size rebalance reason reserved moved_replicas current_imbalance planned_imbalance noise_floor
            gain_seconds gain_error_seconds cost_seconds
        }
        dualpipe_stage_costs {
            forward_ns input_ns weight_ns overlapped_ns output_bytes activation_bytes parameter_bytes
        }
        dualpipe_pair_costs { forward_stage backward_stage overlapped_ns }
        dualpipe_costs {
            size reserved stages num_stages p2p_latency_ns p2p_bytes_per_second pairs num_pairs
        }
        dualpipe_action { kind peer message op }
        dualpipe_action_order { actions num_actions }
        dualpipe_schedule_verify_options {
            size transports orders num_orders costs cap_activations num_cap_activations cap_bytes num_cap_bytes
            no_counterexamples reserved
        }
        dualpipe_verification_info {
            size is_valid num_ranks num_findings transports holds_for has_bytes reserved num_omitted
        }
        dualpipe_verification_rank { peak_live peak_bytes }
        dualpipe_schedule_finding { kind transports receives has_counterexample is_smallest }
        dualpipe_verification_trial { receives transport kind }
        dualpipe_front_info { size unit num_points num_published is_stopped reserved }
        dualpipe_front_point { size reserved cap peak makespan_ns lower_bound_ns }
        dualpipe_front_published { peak makespan_ns }
        dualpipe_comparison_options {
            size num_ranks num_microbatches num_threads cap_activations num_cap_activations cap_bytes num_cap_bytes
            iterations time_limit_ns seed
        }
        dualpipe_candidate {
            size placement stages_per_rank is_planned is_possible fits parameter_copies reserved makespan_ns
            lower_bound_ns bubble_share parameter_bytes peak_activations peak_activation_bytes sent_messages sent_bytes
            excess_activations excess_bytes
        }
        dualpipe_order { ops num_ops }
        dualpipe_schedule_orders {
            size num_ranks num_stages num_directions num_microbatches forward_only rank_of orders name
        }
        dualpipe_plan_options {
            size placement num_ranks num_microbatches stages_per_rank num_stages num_directions num_threads rank_of
            cap_activations num_cap_activations cap_bytes num_cap_bytes iterations time_limit_ns seed
        }
        dualpipe_plan_info {
            size num_ranks stop objective makespan_ns lower_bound_ns start_makespan_ns iterations gap
        }
        dualpipe_plan_peak { live memory_bytes }
        dualpipe_spread { size samples op_jitter expert_imbalance seed }
        dualpipe_sampled {
            size reserved nominal_ns mean_ns p95_ns min_ns max_ns held_out_mean_ns held_out_p95_ns held_out_min_ns
            held_out_max_ns
        }
        dualpipe_pass { direction stage microbatch copy }
        dualpipe_op { kind forward backward }
        dualpipe_message { kind to_stage pass }
        dualpipe_schedule_options { size kind num_ranks num_microbatches forward_only stages_per_rank }
        dualpipe_schedule_info {
            size kind num_ranks num_stages num_directions num_microbatches forward_only
        }
        dualpipe_cuda_info { size num_devices driver_version reserved }
        dualpipe_cuda_options {
            size device compute_stream comm_stream has_comm_stream is_timed is_stream_ordered uses_graph
            exchanges_shapes reserved
        }
        dualpipe_nccl_options { size max_ctas unique_id unique_id_length zero_cta reserved }
        dualpipe_memory { size reserved user_data allocate release }
        dualpipe_instruction { kind peer buffer message op }
        dualpipe_program_buffer { kind direction stage }
        dualpipe_pass_buffers { input output output_grad input_grad }
        DLDevice { device_type device_id }
        DLDataType { code bits lanes }
        DLTensor { data device ndim dtype shape strides byte_offset }
        dualpipe_tensor { dl owner is_present reserved }
        dualpipe_task_pass {
            pass num_inputs num_outputs num_output_grads num_input_grads inputs outputs output_grads input_grads
        }
        dualpipe_task { size reduce_peer op reserved forward backward compute_stream comm_stream }
        dualpipe_timeline_summary {
            size source num_ranks num_spans num_messages makespan_ns lower_bound_ns bubble_share
        }
        dualpipe_timeline_rank { busy_ns idle_ns peak_memory_bytes num_spans }
        dualpipe_span { rank op start_ns end_ns }
        dualpipe_message_span { message from to start_ns end_ns }
        dualpipe_transfer { size peer channel tensor tag data num_bytes stream device step message }
        dualpipe_transport {
            size reserved user_data send receive test wait poll_abort abort withdraw last_error destroy
        }
        dualpipe_tensor_spec { dtype ndim shape }
        dualpipe_unverified_placement {
            size reserved slot_to_expert num_slots shares expert_to_slots num_expert_to_slots replica_counts loads
            num_experts imbalance_max
        }
        dualpipe_finding {
            kind severity layer expert slot gpu group entry is_avoidable reserved value wanted amount limit
        }
        dualpipe_verdict { num_errors num_warnings counts }
        dualpipe_expert_traffic { size num_layers num_experts top_k hidden tokens_per_rank expert_bytes }
        dualpipe_expert_memory {
            size slots_max weight_bytes rows_max low_latency_bytes low_latency_bytes_without_redundancy
        }
        dualpipe_heat_map_panel { title cluster loads num_loads }
        dualpipe_policy_past {
            loads slot_to_expert shares num_slots num_steps window num_layers num_experts
        }
        dualpipe_policy {
            kind budget name plan user_data max_moves max_price imbalance same_node_price other_node_price
        }
        dualpipe_replay_options {
            size window every with_bounds num_threads reserved initial num_slots expert_bytes
        }
        dualpipe_replay_moves { same_gpu same_node other_node same_node_bytes other_node_bytes }
        dualpipe_replay_run { imbalance worst_imbalance lower_bound away num_windows num_new moves }
        dualpipe_replay_window {
            step num_steps is_new reserved imbalance worst_imbalance lower_bound away moves
        }
        dualpipe_replay_layer { imbalance lower_bound }
        dualpipe_executor_options { size num_tensors tensors timeout_ns inproc transport memory cuda nccl }
        dualpipe_fault { size has_failed rank peer instruction status reserved }
    }
}
