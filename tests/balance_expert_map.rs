//! Placements and counts as vllm-ascend and SGLang have them.

use dualpipe::balance::history::{logical_loads, FilePlacement};
use dualpipe::balance::{Cluster, EMPTY};

const ASCEND: &str = concat!(
    r#"{"moe_layer_count":2,"layer_list":["#,
    r#"{"layer_id":0,"device_count":2,"device_list":["#,
    r#"{"device_id":0,"device_expert":[0,1]},{"device_id":1,"device_expert":[2]}]},"#,
    r#"{"layer_id":1,"device_count":2,"device_list":["#,
    r#"{"device_id":0,"device_expert":[2,2]},{"device_id":1,"device_expert":[3]}]}]}"#,
);

#[test]
fn ascend_has_experts_by_layer_and_device() {
    let placement = FilePlacement::from_ascend(ASCEND).unwrap();
    let want = FilePlacement { slots_per_gpu: vec![2, 1], slot_to_expert: vec![0, 1, 2, 2, 2, 3] };
    assert_eq!(placement, want);
    assert_eq!((placement.num_layers(), placement.num_experts()), (2, 4));
    assert_eq!(placement.to_ascend().unwrap(), ASCEND);
    let cluster = Cluster::new(&placement.slots_per_gpu, &[], &[]).unwrap();
    assert_eq!(FilePlacement::new(&cluster, &placement.slot_to_expert).unwrap(), placement);
    // In any order and without the count that some writers leave out.
    let turned = r#"{"layer_list":[
        {"device_list":[{"device_expert":[3],"device_id":1},{"device_id":0,"device_expert":[2,2]}],"layer_id":1},
        {"layer_id":0,"device_list":[{"device_id":0,"device_expert":[0,1]},{"device_id":1,"device_expert":[2]}]}
    ],"moe_layer_count":2}"#;
    assert_eq!(FilePlacement::from_ascend(turned).unwrap(), placement);
}

#[test]
fn ascend_errors_name_layer_and_device() {
    for (from, to, want) in [
        ("{\"moe", "[\"moe", "line 1, column 18: invalid type: string \"moe_layer_count\", expected usize"),
        (
            "\"moe_layer_count\":2",
            "\"moe_layer_count\":3",
            "layer_list has 2 entries, must have moe_layer_count 3",
        ),
        (
            "\"moe_layer_count\":2",
            "\"moe_layer_count\":0",
            "history: moe_layer_count is 0, must be 1 to 4096",
        ),
        ("\"moe_layer_count\":2,", "", "line 1, column 260: missing field `moe_layer_count`"),
        (
            "\"layer_id\":1",
            "\"layer_id\":2",
            "layer_list has layer_id 2 as its number 1, must have each from 0 once",
        ),
        (
            "\"layer_id\":1",
            "\"layer_id\":0",
            "layer_list has layer_id 0 as its number 1, must have each from 0 once",
        ),
        (
            "\"device_count\":2",
            "\"device_count\":3",
            "layer 0's device_list has 2 entries, must have device_count 3",
        ),
        (
            "\"device_id\":1",
            "\"device_id\":0",
            "layer 0's device_list has device_id 0 as its number 1, must have each",
        ),
        ("[0,1]", "[0,65536]", "layer 0, device 0: device_expert has 65536, must be 0 to 65535"),
        ("[0,1]", "[0,-1]", "line 1, column 117: invalid value: integer `-1`, expected u32"),
        ("[0,1]", "[0,1,2]", "layer 1, device 0: device_expert has 2 entries, must have layer 0's 3"),
        ("[3]", "[3,3]", "layer 1, device 1: device_expert has 2 entries, must have layer 0's 1"),
    ] {
        let text = ASCEND.replacen(from, to, 1);
        let error = FilePlacement::from_ascend(&text).unwrap_err().to_string();
        assert!(error.contains(want), "{error}\n{want}");
    }
    let three = ASCEND.replace(
        "{\"device_id\":1,\"device_expert\":[3]}",
        "{\"device_id\":1,\"device_expert\":[3]},{\"device_id\":2,\"device_expert\":[]}",
    );
    let three = three.replacen(
        "\"device_count\":2,\"device_list\":[{\"device_id\":0,\"device_expert\":[2,2]",
        "\"device_list\":[{\"device_id\":0,\"device_expert\":[2,2]",
        1,
    );
    let error = FilePlacement::from_ascend(&three).unwrap_err().to_string();
    assert_eq!(error, "history: layer 1's device_list has 3 entries, must have layer 0's 2");
    let none = r#"{"moe_layer_count":1,"layer_list":[{"layer_id":0,"device_list":[]}]}"#;
    let error = FilePlacement::from_ascend(none).unwrap_err().to_string();
    assert_eq!(error, "history: the number of slots is 0, must be 1 to 1048576");

    let cannot_write = |slots_per_gpu: &[u32], slot_to_expert: &[u32]| {
        let placement =
            FilePlacement { slots_per_gpu: slots_per_gpu.into(), slot_to_expert: slot_to_expert.into() };
        placement.to_ascend().unwrap_err().to_string()
    };
    assert_eq!(cannot_write(&[], &[]), "history: the number of slots is 0, must be 1 to 1048576");
    assert_eq!(
        cannot_write(&[1, 1], &[0, 1, 2]),
        "history: the length of slot_to_expert is 3, must be a multiple of the 2 slots"
    );
    assert_eq!(
        cannot_write(&[u32::MAX; 3], &[0]),
        "history: the number of slots is 12884901885, must be 1 to 1048576"
    );
    assert_eq!(cannot_write(&[2], &[]), "history: the number of layers is 0, must be 1 to 4096");
    assert_eq!(
        cannot_write(&[1, 1], &[0, 1, 2, EMPTY]),
        "history: slot_to_expert[layer 1, slot 1] is 4294967295, must be 0 to 65535"
    );
}

#[test]
fn counts_of_slots_become_loads_of_experts() {
    // Two steps, two layers, three slots, as SGLang's recorder has them.
    let counts = [1, 2, 3, 4, 5, 6, 10, 20, 30, 40, 50, 0];
    let loads =
        logical_loads(2, 2, &[0, 1, 0, 1, 1, EMPTY], &[&counts[..5], &[0], &counts[6..]].concat()).unwrap();
    assert_eq!(loads, [4.0, 2.0, 0.0, 9.0, 40.0, 20.0, 0.0, 90.0]);
    for (slots, counts, want) in [
        (&[][..], &[][..], "the number of slots is 0, must be 1 to 1048576"),
        (&[0, 1, 0], &[], "the length of slot_to_expert is 3, must be a multiple of num_layers = 2"),
        (&[0, 1], &[1, 2, 3], "the number of counts is 3, must be a multiple of slot_to_expert's 2"),
        (&[0, 2], &[1, 2], "step 0: slot_to_expert[layer 1, slot 0] is 2, must be 0 to 1"),
        (&[0, 1], &[1, 2, 3, -4], "step 1: load[layer 1, slot 0] is -4, must not be negative"),
        (&[0, EMPTY], &[1, 2], "step 0: load[layer 1, slot 0] is 2, must be 0 where the slot is empty"),
    ] {
        let error = logical_loads(2, 2, slots, counts).unwrap_err().to_string();
        assert_eq!(error, format!("history: {want}"));
    }
}
