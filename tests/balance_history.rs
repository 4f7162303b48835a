//! Load histories: each form as documented, there and back, and whatever else a file may hold.

use dualpipe::balance::history::{FilePlacement, HistoryMeta, HistoryStep, LoadHistory, SlotLoads};
use dualpipe::balance::EMPTY;
use proptest::prelude::*;

#[path = "support/data.rs"]
mod data;

const VLLM: &str = concat!(
    r#"{"record_type":"eplb_load_meta","version":1,"model":"m","num_ranks":2,"num_groups":1,"num_nodes":1,"#,
    r#""num_layers":2,"num_redundant_experts":1,"num_logical_experts":2}"#,
    "\n",
    r#"{"record_type":"eplb_load_stats","version":1,"step":7,"#,
    r#""expert_load":[[10,1,5],[2,8,1]],"p2l_map":[[0,1,0],[1,0,1]]}"#,
    "\n",
    r#"{"record_type":"eplb_load_stats","version":1,"step":9,"#,
    r#""expert_load":[[0,0.5,0],[0,3,0]],"p2l_map":[[0,1,-1],[1,0,1]]}"#,
    "\n",
);

fn vllm_history() -> LoadHistory {
    let slots = |slot_to_expert: [u32; 6], loads: [f32; 6]| {
        Some(SlotLoads { slot_to_expert: slot_to_expert.into(), loads: loads.into() })
    };
    LoadHistory {
        num_layers: 2,
        num_experts: 2,
        steps: vec![
            HistoryStep {
                step: 7,
                loads: vec![15.0, 1.0, 8.0, 3.0],
                slots: slots([0, 1, 0, 1, 0, 1], [10.0, 1.0, 5.0, 2.0, 8.0, 1.0]),
            },
            HistoryStep {
                step: 9,
                loads: vec![0.0, 0.5, 3.0, 0.0],
                slots: slots([0, 1, EMPTY, 1, 0, 1], [0.0, 0.5, 0.0, 0.0, 3.0, 0.0]),
            },
        ],
        meta: HistoryMeta {
            model: Some("m".into()),
            num_ranks: Some(2),
            num_groups: Some(1),
            num_nodes: Some(1),
        },
    }
}

#[test]
fn vllm_records_loads_of_slots() {
    let history = LoadHistory::from_vllm(VLLM).unwrap();
    assert_eq!(history, vllm_history());
    assert_eq!(history.to_vllm().unwrap(), VLLM);
    // As vLLM itself writes: with spaces, without our field, a line end or a last one.
    let theirs = VLLM.replace(",\"num_logical_experts\":2", "").replace(',', ", ").replace(':', ": ");
    assert_eq!(LoadHistory::from_vllm(theirs.trim_end()).unwrap(), history);
    assert_eq!(LoadHistory::from_vllm(&theirs.replace('\n', "\r\n\r\n")).unwrap(), history);
}

#[test]
fn how_many_experts_there_are_is_found_out() {
    let head = |fields: &str| format!("{{\"record_type\":\"eplb_load_meta\",\"version\":1{fields}}}\n");
    let step = "{\"record_type\":\"eplb_load_stats\",\"expert_load\":[[3,7,0,0]],\"p2l_map\":[[0,0,2,-1]]}";
    let logical = "{\"record_type\":\"eplb_load_stats\",\"expert_load\":[[3,7,0,0]]}";
    let null = "{\"record_type\":\"eplb_load_stats\",\"expert_load\":[[3,7,0,0]],\"p2l_map\":null}";
    for (text, want) in [
        (step.into(), &[10.0, 0.0, 0.0][..]),
        (head("") + step, &[10.0, 0.0, 0.0]),
        (head(",\"num_redundant_experts\":0") + step, &[10.0, 0.0, 0.0]),
        (head(",\"num_logical_experts\":5") + step, &[10.0, 0.0, 0.0, 0.0, 0.0]),
        (logical.into(), &[3.0, 7.0, 0.0, 0.0]),
        (head(",\"num_redundant_experts\":1") + null, &[3.0, 7.0, 0.0, 0.0]),
        // A step with a map beside one without.
        (format!("{step}\n{logical}"), &[10.0, 0.0, 0.0, 0.0, 3.0, 7.0, 0.0, 0.0]),
    ] {
        let history = LoadHistory::from_vllm(&text).unwrap();
        assert_eq!((history.loads(), history.steps[0].step), (want.to_vec(), 0), "{text}");
    }
}

#[test]
fn steps_without_slots_get_one_slot_per_expert_for_vllm() {
    let history = LoadHistory::new(1, 3, &[1.0, 2.5, 0.0]).unwrap();
    let text = history.to_vllm().unwrap();
    assert!(text.ends_with("\"step\":0,\"expert_load\":[[1,2.5,0]],\"p2l_map\":[[0,1,2]]}\n"), "{text}");
    let read = LoadHistory::from_vllm(&text).unwrap();
    assert_eq!(read.steps[0].loads, history.steps[0].loads);
    assert_eq!(read.to_vllm().unwrap(), text);
}

#[test]
fn vllm_errors_name_line_and_place() {
    let meta = VLLM.lines().next().unwrap();
    let stats = |fields: &str| format!("{meta}\n{{\"record_type\":\"eplb_load_stats\",{fields}}}");
    for (text, want) in [
        ("".into(), "there is no eplb_load_stats record"),
        (meta.into(), "there is no eplb_load_stats record"),
        (format!("{meta}\n{meta}"), "line 2: eplb_load_meta must be the first record only"),
        (
            VLLM.replace("\"version\":1,\"step\":9", "\"version\":2,\"step\":9"),
            "line 3: version is 2, must be 1",
        ),
        (
            "{\"record_type\":\"garbage\"}".into(),
            "line 1: record_type is \"garbage\", must be \"eplb_load_meta\" or \"eplb_load_stats\"",
        ),
        ("\n{\"step\":1}".into(), "line 2, column 10: missing field `record_type`"),
        ("[1]".into(), "line 1, column 2: invalid type: integer `1`, expected a string"),
        (stats("\"step\":1"), "line 2: expert_load is missing"),
        (stats("\"step\":-1"), "line 2, column 42: invalid value: integer `-1`, expected u64"),
        (
            stats("\"expert_load\":[[1,2],[1,2,3]]"),
            "line 2, column 62: expert_load[1] has 3 numbers, must be 2",
        ),
        (
            stats("\"expert_load\":[[1,-2]]"),
            "line 2, column 54: expert_load[0][1] is -2, must be finite and not negative",
        ),
        (stats("\"expert_load\":[[1,1e39]]"), "line 2, column 56: expert_load[0][1] is 1"),
        (stats("\"expert_load\":[[1,1e999]]"), "line 2, column 56: number out of range"),
        (stats("\"expert_load\":[[1,NaN]]"), "line 2, column 52: expected value"),
        (
            stats("\"expert_load\":[[1,\"2\"]]"),
            "line 2, column 54: invalid type: string \"2\", expected expert_load[0][1] to be a number",
        ),
        (
            stats("\"expert_load\":[1,2]"),
            "line 2, column 49: invalid type: integer `1`, expected expert_load[0] to be a row of numbers",
        ),
        (
            stats("\"expert_load\":{}"),
            "line 2, column 47: invalid type: map, expected expert_load to be rows of numbers",
        ),
        (stats("\"expert_load\":[]"), "line 2, column 49: expert_load is empty, must have a row per layer"),
        (
            stats("\"expert_load\":[[],[]]"),
            "line 2, column 54: expert_load is empty, must have a row per layer",
        ),
        (stats("\"expert_load\":[[1,2]]"), "line 2: expert_load has 1 rows, must have num_layers = 2"),
        (
            stats("\"expert_load\":[[1,2],[3,4]],\"p2l_map\":[[0,1,0],[0,1,0]]"),
            "line 2: p2l_map has 2 rows of 3 numbers, expert_load has 2 rows of 2 numbers",
        ),
        (
            stats("\"expert_load\":[[1,2],[3,4]],\"p2l_map\":[[0,1],[0,2]]"),
            "line 2: slot_to_expert[layer 1, slot 1] is 2, must be 0 to 1",
        ),
        (
            stats("\"expert_load\":[[1,2],[3,4]],\"p2l_map\":[[0,1],[0,-1]]"),
            "line 2: load[layer 1, slot 1] is 4, must be 0 where the slot is empty",
        ),
        (
            stats("\"expert_load\":[[1,2],[3,4]],\"p2l_map\":[[0,1],[0,0.5]]"),
            "line 2, column 85: p2l_map[1][1] is 0.5, must be an expert, or -1 for none",
        ),
        (
            stats("\"expert_load\":[[3e38,3e38],[3,4]],\"p2l_map\":[[0,0],[0,0]]"),
            "line 2: the load of layer 0's expert 0 is 6.0000000109955115e38, must be at most 3.4028235e38",
        ),
        (
            stats("\"expert_load\":[[1,2,3],[3,4,5]]"),
            "line 2: expert_load has 3 numbers per row and no p2l_map, must have 2",
        ),
        (
            format!("{VLLM}{{\"record_type\":\"eplb_load_stats\",\"expert_load\":[[1,2]]}}"),
            "line 4: expert_load has 1 rows, must have 2",
        ),
        (
            meta.replace("_experts\":2", "_experts\":0") + &VLLM[meta.len()..],
            "the number of experts is 0, must be 1 to 65536",
        ),
    ] {
        let error = LoadHistory::from_vllm(&text).unwrap_err().to_string();
        assert!(error.starts_with(&format!("history: {want}")), "{text}\n{error}\n{want}");
    }
}

#[test]
fn json_has_loads_of_experts() {
    let text = "{\"load_history\":[\n{\"logical_expert_load\":[[1,2.5],[3,0]]},\n\
        {\"logical_expert_load\":[[0,0],[7,16777216]]}\n]}\n";
    let history = LoadHistory::from_json(text).unwrap();
    assert_eq!((history.num_layers, history.num_experts, history.steps[1].step), (2, 2, 1));
    assert_eq!(history.loads(), [1.0, 2.5, 3.0, 0.0, 0.0, 0.0, 7.0, 16777216.0]);
    assert_eq!(history.to_json().unwrap(), text);
    let more =
        "{\"note\":[1],\"load_history\":[{\"physical_expert_load\":[[9]],\"logical_expert_load\":[[1,2]]}]}";
    assert_eq!(LoadHistory::from_json(more).unwrap().loads(), [1.0, 2.0]);
    for (text, want) in [
        ("", "line 1, column 0: EOF while parsing a value"),
        ("{}", "line 1, column 2: missing field `load_history`"),
        ("{\"load_history\":[]}", "load_history is empty, must have a step"),
        ("{\"load_history\":[{}]}", "line 1, column 19: missing field `logical_expert_load`"),
        (
            "{\"load_history\":[\n{\"logical_expert_load\":[[1,2],[3,-4]]}]}",
            "line 2, column 36: logical_expert_load[1][1] is -4, must be finite and not negative",
        ),
        (
            "{\"load_history\":[{\"logical_expert_load\":[[1]]},{\"logical_expert_load\":[[1],[2]]}]}",
            "load_history[1] has 2 layers of 1 experts, must have 1 of 1",
        ),
        ("{\"load_history\":[{\"logical_expert_load\":[[1]]}]} x", "line 1, column 50: trailing characters"),
    ] {
        let error = LoadHistory::from_json(text).unwrap_err().to_string();
        assert_eq!(error, format!("history: {want}"));
    }
}

#[test]
fn csv_has_a_line_per_layer_and_an_empty_one_between_steps() {
    let text = "1,2.5\n3,0\n\n0,0\n7,8\n";
    let history = LoadHistory::from_csv(text).unwrap();
    assert_eq!((history.num_layers, history.num_experts, history.steps.len()), (2, 2, 2));
    assert_eq!(history.loads(), [1.0, 2.5, 3.0, 0.0, 0.0, 0.0, 7.0, 8.0]);
    assert_eq!(history.to_csv().unwrap(), text);
    assert_eq!(
        LoadHistory::from_csv("\n\r\n 1 , 2.5\r\n3,-0.0\r\n  \r\n\r\n0e5,0\n7,8\n\n").unwrap(),
        history
    );
    assert_eq!(LoadHistory::from_csv("5").unwrap().loads(), [5.0]);
    let zeros = [
        LoadHistory::from_csv("-0"),
        LoadHistory::from_json("{\"load_history\":[{\"logical_expert_load\":[[-0.0]]}]}"),
    ];
    assert_eq!(zeros.map(|history| history.unwrap().loads()[0].to_bits()), [0; 2], "no sign");
    for (text, want) in [
        ("", "there is no number"),
        ("\n \n", "there is no number"),
        ("e0,e1\n1,2", "line 1, column 1 is \"e0\", must be a number"),
        ("1,2\n3,", "line 2, column 2 is \"\", must be a number"),
        ("1;2", "line 1, column 1 is \"1;2\", must be a number"),
        ("1,2\n3,-4", "line 2, column 2 is -4, must be finite and not negative"),
        ("1,nan", "line 1, column 2 is NaN, must be finite and not negative"),
        ("1,1e39", "line 1, column 2 is inf, must be finite and not negative"),
        ("1,2\n3", "line 2 has 1 numbers, must have 2"),
        ("1,2\n3,4,5,6", "line 2 has 3 numbers, must have 2"),
        ("1,2\n3,4\n\n5,6\n", "the step before line 5 has 1 layers, must have 2"),
        ("1,2\n\n3,4\n5,6\n", "line 4 is layer 2 of its step, must be at most 1"),
        (&"abcdefghij".repeat(9), "line 1, column 1 is \"abcdefghijabcdefghij\", must be a number"),
        (&"1\n".repeat(4097), "line 4097 is layer 4097 of its step, must be at most 4096"),
        (&"1,".repeat(70000), "num_experts is 65537, must be 1 to 65536"),
    ] {
        let error = LoadHistory::from_csv(text).unwrap_err().to_string();
        assert_eq!(error, format!("history: {want}"));
    }
    if let Some(text) = data::optional_data("expert_loads_gpqa_58x256.csv") {
        let history = LoadHistory::from_csv(&text).unwrap();
        assert_eq!((history.num_layers, history.num_experts, history.steps.len()), (58, 256, 1));
        assert_eq!(history.to_csv().unwrap(), text);
    }
}

const ASCEND: &str = concat!(
    r#"{"moe_layer_count":2,"layer_list":["#,
    r#"{"layer_id":0,"device_count":2,"device_list":["#,
    r#"{"device_id":0,"device_expert":[0,1]},{"device_id":1,"device_expert":[2]}]},"#,
    r#"{"layer_id":1,"device_count":2,"device_list":["#,
    r#"{"device_id":0,"device_expert":[2,2]},{"device_id":1,"device_expert":[3]}]}]}"#,
);

#[test]
fn what_fits_no_file_is_refused_before_writing() {
    let mut history = vllm_history();
    history.steps[1].loads.pop();
    assert_eq!(
        history.to_csv().unwrap_err().to_string(),
        "history: the length of steps[1].loads is 3, must be 4"
    );
    let mut history = vllm_history();
    history.steps[0].loads[3] = f32::INFINITY;
    let want = "history: steps[0].loads[layer 1][1] is inf, must be finite and not negative";
    assert_eq!(history.to_json().unwrap_err().to_string(), want);
    let mut history = vllm_history();
    history.steps[0].slots.as_mut().unwrap().loads.pop();
    let want = "history: the length of steps[0].slots.loads is 5, must be 4";
    assert_eq!(history.to_vllm().unwrap_err().to_string(), want);
    let mut history = vllm_history();
    history.steps[0].slots.as_mut().unwrap().slot_to_expert[5] = 2;
    let want = "history: step 0: slot_to_expert[layer 1, slot 2] is 2, must be 0 to 1";
    assert_eq!(history.to_vllm().unwrap_err().to_string(), want);
    assert_eq!(
        LoadHistory::default().check().unwrap_err().to_string(),
        "history: num_layers is 0, must be 1 to 4096"
    );
    let error =
        |layers, experts, loads: &[f32]| LoadHistory::new(layers, experts, loads).unwrap_err().to_string();
    assert_eq!(error(1, 65537, &[]), "history: num_experts is 65537, must be 1 to 65536");
    assert_eq!(
        error(2, 2, &[0.0; 6]),
        "history: the number of loads is 6, must be a multiple of num_layers * num_experts = 4"
    );
    assert_eq!(
        error(1, 2, &[0.0, -1.0]),
        "history: steps[0].loads[layer 0][1] is -1.0, must be finite and not negative"
    );
}

#[test]
fn steps_are_appended_or_refused() {
    let mut history = vllm_history();
    history.append(20, &[1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]).unwrap();
    history.append_slots(40, &[0, 1, 1, 1, EMPTY, 0], &[1.0, 2.0, 3.0, 4.0, 0.0, 6.0]).unwrap();
    history.append(41, &[]).unwrap();
    let steps: Vec<u64> = history.steps.iter().map(|step| step.step).collect();
    assert_eq!(steps, [7, 9, 20, 21, 40]);
    assert_eq!(history.loads()[8..], [1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 1.0, 5.0, 6.0, 4.0]);
    assert_eq!(LoadHistory::from_vllm(&history.to_vllm().unwrap()).unwrap().loads(), history.loads());
    let before = history.clone();
    let errors = [
        history.append(0, &[1.0; 5]),
        history.append(0, &[1.0, 1.0, 1.0, f32::NAN]),
        history.append(u64::MAX, &[1.0; 4]),
        history.append_slots(0, &[0, 1], &[1.0; 4]),
        history.append_slots(0, &[0, 1, 0, 2], &[1.0; 4]),
        history.append_slots(0, &[0, 1, 0, EMPTY], &[1.0; 4]),
        history.append_slots(0, &[0, 1, 0, 1], &[1.0, -1.0, 1.0, 1.0]),
        history.append_slots(0, &[], &[]),
    ];
    assert_eq!(
        errors.map(|error| error.unwrap_err().to_string()),
        [
            "history: the number of loads is 5, must be a multiple of num_layers * num_experts = 4",
            "history: steps[0].loads[layer 1][1] is NaN, must be finite and not negative",
            "history: step is 18446744073709551615, must be 0 to 18446744073709551614",
            "history: the length of steps[5].slots.slot_to_expert is 2, must be 4",
            "history: step 5: slot_to_expert[layer 1, slot 1] is 2, must be 0 to 1",
            "history: step 5: load[layer 1, slot 1] is 1, must be 0 where the slot is empty",
            "history: steps[5].slots.loads[layer 0][1] is -1.0, must be finite and not negative",
            "history: the number of slots of step 5 is 0, must be 1 to 1048576",
        ]
    );
    assert_eq!(history, before);
}

/// Any float32 that is a load; whole numbers most of the time.
fn load() -> impl Strategy<Value = f32> {
    let any = (0u32..=f32::MAX.to_bits()).prop_map(f32::from_bits);
    prop_oneof![4 => (0u32..100_000).prop_map(|count| count as f32), 1 => 0f32..100.0, 1 => any]
}

fn history() -> impl Strategy<Value = LoadHistory> {
    (1usize..4, 1usize..5, 1usize..4).prop_flat_map(|(num_layers, num_experts, num_steps)| {
        let loads = prop::collection::vec(load(), num_layers * num_experts * num_steps);
        loads.prop_map(move |loads| LoadHistory::new(num_layers, num_experts, &loads).unwrap())
    })
}

/// What texts are damaged with.
const LETTERS: &[u8] = b"0123456789-.eE,:[]{}\"\n nul\0x";

proptest! {
    #[test]
    fn what_is_written_is_read_again(history in history(), extra in 0usize..3) {
        prop_assert_eq!(&LoadHistory::from_csv(&history.to_csv().unwrap()).unwrap(), &history);
        prop_assert_eq!(&LoadHistory::from_json(&history.to_json().unwrap()).unwrap(), &history);

        // With slots: each expert's load in its first slot, and `extra` slots more, of which the last is empty.
        let mut with_slots = history.clone();
        for step in &mut with_slots.steps {
            let (mut slot_to_expert, mut loads) = (Vec::new(), Vec::new());
            for layer in step.loads.chunks(history.num_experts) {
                slot_to_expert.extend(0..history.num_experts as u32);
                loads.extend_from_slice(layer);
                slot_to_expert.extend([0, EMPTY].iter().take(extra));
                loads.extend([0.0, 0.0].iter().take(extra));
            }
            step.slots = Some(SlotLoads { slot_to_expert, loads });
            step.step = step.step * 3 + 1;
        }
        let text = with_slots.to_vllm().unwrap();
        let read = LoadHistory::from_vllm(&text).unwrap();
        prop_assert_eq!(&read, &with_slots);
        prop_assert_eq!(read.to_vllm().unwrap(), text);
    }

    #[test]
    fn damaged_texts_are_errors_or_histories_that_fit(
        cut in any::<prop::sample::Index>(),
        changes in prop::collection::vec((any::<prop::sample::Index>(), prop::sample::select(LETTERS)), 0..3),
    ) {
        let json = vllm_history().to_json().unwrap();
        let csv = vllm_history().to_csv().unwrap();
        for text in [VLLM, &json, &csv, ASCEND] {
            let mut bytes = text.as_bytes().to_vec();
            for (at, byte) in &changes {
                let at = at.index(bytes.len());
                bytes[at] = *byte;
            }
            for bytes in [&bytes[..], &bytes[..cut.index(bytes.len())]] {
                let text = String::from_utf8_lossy(bytes);
                for read in [LoadHistory::from_vllm, LoadHistory::from_json, LoadHistory::from_csv] {
                    prop_assert!(read(&text).map_or(true, |history| history.check().is_ok()));
                }
                if let Ok(placement) = FilePlacement::from_ascend(&text) {
                    prop_assert!(placement.to_ascend().is_ok());
                }
            }
        }
    }
}

#[test]
fn texts_that_are_cut_off_are_not_taken_for_whole() {
    let json = vllm_history().to_json().unwrap();
    for at in 0..json.trim_end().len() {
        assert!(LoadHistory::from_json(&json[..at]).is_err(), "{at}");
    }
    for at in 0..ASCEND.len() {
        assert!(FilePlacement::from_ascend(&ASCEND[..at]).is_err(), "{at}");
    }
    // Lines are whole, or there is an error; a file that ends after a step has fewer steps.
    for at in 0..VLLM.len() {
        let num_steps = VLLM[..at].matches("]]}").count();
        let is_line_end = VLLM[at..].starts_with('\n') || VLLM[..at].ends_with('\n');
        match LoadHistory::from_vllm(&VLLM[..at]) {
            Ok(history) => assert!(is_line_end && history.steps.len() == num_steps, "{at}"),
            Err(_) => assert!(!is_line_end || num_steps == 0, "{at}"),
        }
    }
    // Depth is not memory: brackets end soon.
    assert!(LoadHistory::from_json(&"[".repeat(100_000)).is_err());
    assert!(LoadHistory::from_vllm(&format!("{{\"record_type\":{}", "[".repeat(100_000))).is_err());
}
