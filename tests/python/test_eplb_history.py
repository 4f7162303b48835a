"""Histories and placements in the files of vLLM, SGLang, vllm-ascend and others: read, written, refused."""

import copy
import json
import pickle

import dualpipe
import numpy as np
import pytest
import torch
from dualpipe import eplb

VLLM = """\
{"record_type": "eplb_load_meta", "version": 1, "model": "deepseek-ai/DeepSeek-V3", "num_ranks": 2, "num_groups": 1, \
"num_nodes": 1, "num_layers": 2, "num_redundant_experts": 1}
{"record_type": "eplb_load_stats", "version": 1, "step": 7, "expert_load": [[10, 1, 5], [2, 8, 1]], \
"p2l_map": [[0, 1, 0], [1, 0, 1]]}
{"record_type": "eplb_load_stats", "version": 1, "step": 9, "expert_load": [[0, 0.5, 0], [0, 3, 0]], \
"p2l_map": [[0, 1, 1], [1, 0, 1]]}
"""
LOADS = np.array([[[15, 1], [8, 3]], [[0, 0.5], [3, 0]]], np.float32)
JSON = '{"load_history": [{"logical_expert_load": [[15, 1], [8, 3]]}, {"logical_expert_load": [[0, 0.5], [3, 0]]}]}'
CSV = "15,1\n8,3\n\n0,0.5\n3,0\n"
ASCEND = {
    "moe_layer_count": 2,
    "layer_list": [
        {
            "layer_id": layer,
            "device_count": 2,
            "device_list": [
                {"device_id": 1, "device_expert": [2 + layer, 0]},
                {"device_id": 0, "device_expert": [0, 1, 3 - layer]},
            ],
        }
        for layer in (1, 0)
    ],
}
SLOTS = [[0, 1, 3, 2, 0], [0, 1, 2, 3, 0]]
INVALID = dualpipe.errors.InvalidArgument


@pytest.mark.parametrize(("text", "format"), [(VLLM, "vllm"), (JSON, "json"), (CSV, "csv")])
@pytest.mark.parametrize("name", ["loads.jsonl", "loads.json", "loads.csv", "loads.log", "loads"])
def test_text_is_known_by_its_name_or_by_what_it_begins_with(tmp_path, text, format, name):
    path = tmp_path / name
    path.write_text(text, encoding="utf-8")
    is_misnamed = name.endswith((".jsonl", ".csv")) and {".jsonl": "vllm", ".csv": "csv"}[path.suffix] != format
    for given in (text, path, str(path)):
        if is_misnamed and given is not text:
            with pytest.raises(INVALID, match="line 1, column"):
                eplb.LoadHistory.read(given)
            history = eplb.LoadHistory.read(given, format)
        else:
            history = eplb.LoadHistory.read(given)
        np.testing.assert_array_equal(history.loads, LOADS)
        assert history.loads.dtype == np.float32
        assert (history.num_steps, history.num_layers, history.num_experts) == (2, 2, 2)


def test_vllm_has_numbers_names_and_placements():
    history = eplb.LoadHistory.read(VLLM)
    assert history.step_numbers == [7, 9] and history.model == "deepseek-ai/DeepSeek-V3"
    assert (history.num_ranks, history.num_groups, history.num_nodes) == (2, 1, 1)
    slots, loads = history.placement(0)
    assert slots.tolist() == [[0, 1, 0], [1, 0, 1]] and loads.tolist() == [[10, 1, 5], [2, 8, 1]]
    again = eplb.LoadHistory.read(history.text("vllm"))
    assert again.text("vllm") == history.text("vllm")
    for same in (pickle.loads(pickle.dumps(history)), copy.copy(history)):
        assert same.text("vllm") == history.text("vllm")
    with pytest.raises(INVALID, match="index is 2, must be less than the 2 steps"):
        history.placement(2)
    plain = eplb.LoadHistory.read(CSV)
    assert plain.step_numbers == [0, 1] and plain.placement(0) is None
    assert (plain.model, plain.num_ranks, plain.num_groups, plain.num_nodes) == (None, None, None, None)
    np.testing.assert_array_equal(pickle.loads(pickle.dumps(plain)).loads, LOADS)
    assert repr(plain) == "<dualpipe.eplb.LoadHistory 2 steps, 2 layers, 2 experts>"


@pytest.mark.parametrize("end", ["jsonl", "json", "csv", "npy", "npz", "pt"])
def test_what_is_written_is_read_again(tmp_path, end):
    path = tmp_path / f"loads.{end}"
    history = eplb.LoadHistory.of(LOADS)
    history.write(path)
    np.testing.assert_array_equal(eplb.LoadHistory.read(path).loads, LOADS)
    history.write(tmp_path / "other", format="npz")
    np.testing.assert_array_equal(eplb.LoadHistory.read(tmp_path / "other", "npz").loads, LOADS)
    with pytest.raises(INVALID, match="ends in nothing, must end in .jsonl"):
        history.write(tmp_path / "other")
    with pytest.raises(INVALID, match="format is 'yaml'"):
        history.text("yaml")


def test_a_history_is_recorded_step_by_step():
    history = eplb.LoadHistory(2, 2, model="m", num_ranks=2)
    history.append(3, LOADS)
    history.append(8, torch.from_numpy(LOADS[0]))
    plan = eplb.balance(LOADS, num_gpus=2, num_slots=4)
    history.append_slots(9, plan, np.arange(8).reshape(2, 4))
    assert history.step_numbers == [3, 4, 8, 9] and history.model == "m"
    want = np.zeros((2, 2))
    np.add.at(want, (np.arange(2)[:, None], plan.phy2log), np.arange(8).reshape(2, 4))
    np.testing.assert_array_equal(history.loads[3], want)
    np.testing.assert_array_equal(history.placement(3).slot_to_expert, plan.phy2log)
    before = history.text("vllm")
    for step, loads, why in [
        (0, LOADS[:, :1], "must be .2, 2. at the end"),
        (0, -LOADS, "is -15.0, must be finite and not negative"),
        (0, LOADS * np.nan, "must be finite and not negative"),
        (-1, LOADS, "step is -1"),
        (2**64 - 1, LOADS, "step is 18446744073709551615"),
    ]:
        with pytest.raises(INVALID, match=why):
            history.append(step, loads)
    for slots, why in [([[0, 2]] * 2, "must be 0 to 1"), ([[0, -1]] * 2, "must be 0 where the slot is empty")]:
        with pytest.raises(INVALID, match=why):
            history.append_slots(0, slots, np.ones((2, 2)))
    with pytest.raises(INVALID, match="must be .2, slots."):
        history.append_slots(0, [[0, 1]], np.ones((1, 2)))
    assert history.text("vllm") == before


def test_sglangs_sums_are_read(tmp_path):
    path = tmp_path / "expert_distribution_recorder_1718000000.5.pt"
    counts = torch.arange(2 * 3 * 4).reshape(2, 3, 4)
    torch.save({"rank": 0, "logical_count": counts, "average_utilization_rate_over_window": None}, path)
    history = eplb.LoadHistory.read(path)
    np.testing.assert_array_equal(history.loads, counts.numpy())
    # As numpy: the only array, or by its name; also of one step.
    np.save(tmp_path / "sum.npy", counts[0].numpy())
    np.savez(tmp_path / "sums.npz", rank=0, logical_count=counts.numpy())
    np.testing.assert_array_equal(eplb.LoadHistory.read(tmp_path / "sum.npy").loads, counts[:1].numpy())
    np.testing.assert_array_equal(eplb.LoadHistory.read([tmp_path / "sums.npz"]).loads, counts.numpy())


def recorded(rank, passes):
    """What SGLang's recorder of one rank has in its mode per_pass: 2 layers, 3 experts in 4 slots, 2 of each rank."""
    mine = torch.zeros(2, 4, dtype=torch.int32)
    mine[:, 2 * rank : 2 * rank + 2] = 1
    return {
        "records": [
            {
                "forward_pass_id": number,
                "rank": rank,
                "gatherer_key": "primary",
                "global_physical_count": mine * (number + 1) * (rank + 1),
            }
            for number in passes
        ],
        "last_physical_to_logical_map": torch.tensor([[0, 1, 2, 0], [2, 1, 0, 0]]),
    }


def test_sglangs_passes_are_summed_over_ranks(tmp_path):
    paths = [tmp_path / f"expert_distribution_recorder_1718000000.5_{rank}.pt" for rank in range(2)]
    for rank, path in enumerate(paths):
        torch.save(recorded(rank, [4, 6, 4] if rank else [6, 4]), path)
    one = eplb.LoadHistory.read(paths[0])
    assert one.step_numbers == [4, 6]
    assert one.loads.tolist() == [[[5, 5, 0], [0, 5, 5]], [[7, 7, 0], [0, 7, 7]]]
    both = eplb.LoadHistory.read(paths)
    assert both.step_numbers == [4, 6]
    # The second rank counted twice in pass 4: two halves of it.
    assert both.loads.tolist() == [[[25, 5, 20], [40, 5, 5]], [[21, 7, 14], [28, 7, 7]]]
    assert both.placement(0).slot_to_expert.tolist() == [[0, 1, 2, 0], [2, 1, 0, 0]]
    assert eplb.LoadHistory.read(both.text("vllm")).loads.tolist() == both.loads.tolist()

    counts = np.arange(16).reshape(2, 2, 4)
    slots = [[0, 1, 2, 0], [2, 1, 0, 0]]
    np.savez(tmp_path / "n.npz", global_physical_count=counts, last_physical_to_logical_map=slots)
    want = [[[3, 1, 2], [13, 5, 4]], [[19, 9, 10], [29, 13, 12]]]
    assert eplb.LoadHistory.read(tmp_path / "n.npz").loads.tolist() == want
    assert eplb.logical_loads(counts, slots).tolist() == want
    assert eplb.logical_loads(torch.from_numpy(counts[0]), slots, num_experts=4).tolist() == [
        [3, 1, 2, 0],
        [13, 5, 4, 0],
    ]
    other = recorded(1, [4])
    other["last_physical_to_logical_map"][0, 0] = 1
    torch.save(other, paths[1])
    with pytest.raises(INVALID, match="has another last_physical_to_logical_map than"):
        eplb.LoadHistory.read(paths)
    with pytest.raises(INVALID, match="only those of several ranks can be summed"):
        eplb.LoadHistory.read([paths[0], tmp_path / "n.npz"])
    with pytest.raises(INVALID, match="there is no path"):
        eplb.LoadHistory.read([])


class Evil:
    def __reduce__(self):
        return open, ("/tmp/evil", "w")


def test_files_that_are_something_else_are_refused(tmp_path):
    good = recorded(0, [1])
    for content, why in [
        ({"logical_count": torch.tensor([1, 2])}, r"logical_count has int64 \[2\], must be numbers"),
        ({"logical_count": "text"}, "logical_count has"),
        ({"logical_count": -torch.ones(2, 2)}, "is -1.0, must be finite and not negative"),
        ({"a": 1, "b": 2}, "it has a, b, must have logical_count"),
        ({}, "it has nothing"),
        ([1, 2], "its array has"),
        (Evil(), "torch cannot read it"),
        ({**good, "records": []}, "records is no list, or empty"),
        ({**good, "records": [3]}, r"records\[0\] has no forward_pass_id"),
        ({**good, "records": [{**good["records"][0], "forward_pass_id": -1}]}, "must not be negative"),
        ({**good, "records": [{**good["records"][0], "forward_pass_id": [1]}]}, "forward_pass_id has shape"),
        ({**good, "records": [{**good["records"][0], "global_physical_count": torch.ones(2, 2)}]}, "must be integers"),
        ({**good, "last_physical_to_logical_map": torch.tensor([[0, 1]])}, "must be .1, 2."),
        ({**good, "last_physical_to_logical_map": torch.tensor([[0, 1, 2, -1]] * 2)}, None),
        ({**good, "last_physical_to_logical_map": torch.tensor([[0, -5, 2, 1]] * 2)}, "is -5, must be an expert"),
    ]:
        path = tmp_path / "bad.pt"
        torch.save(content, path)
        if why is None:
            assert eplb.LoadHistory.read(path).num_experts == 3
            continue
        with pytest.raises(INVALID, match=f"bad.pt: .*{why}"):
            eplb.LoadHistory.read(path)
    np.save(tmp_path / "bad.npy", np.array([Evil()]), allow_pickle=True)
    for name, content, why in [
        ("bad.npy", None, "numpy cannot read it"),
        ("cut.npy", b"\x93NUMPY\x01\0", "numpy cannot read it"),
        ("no.npz", b"PK\x03\x04", "numpy cannot read it"),
        ("no.pt", b"no", "torch cannot read it"),
        ("bad.csv", b"1,2\n3,-4\n", "line 2, column 2 is -4, must be finite and not negative"),
        ("bad.csv", b"1,2\n3\n", "line 2 has 1 numbers, must have 2"),
        ("bad.csv", b"", "there is no number"),
        ("bad.csv", b"\xff\xfe", "text is not UTF-8 from byte 0 on"),
        ("bad.json", b'{"load_history": []}', "load_history is empty"),
        ("bad.jsonl", VLLM.replace("[0, 1, 1]", "[0, 1, 7]").encode(), "line 3: slot_to_expert.layer 0, slot 2. is 7"),
        ("bad.jsonl", VLLM.replace("0.5", "-2").encode(), "line 3, column .*expert_load.0..1. is -2, must be finite"),
        ("bad.jsonl", VLLM.replace("0.5", "NaN").encode(), "line 3, column"),
    ]:
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(INVALID, match=f"{name}: .*{why}"):
            eplb.LoadHistory.read(path)
    with pytest.raises(FileNotFoundError):
        eplb.LoadHistory.read(tmp_path / "none.csv")


def test_ascends_expert_map_is_read_and_written(tmp_path):
    path = tmp_path / "map.json"
    path.write_text(json.dumps(ASCEND), encoding="utf-8")
    slots, slots_per_gpu = eplb.read_expert_map(path)
    assert slots.tolist() == SLOTS and slots_per_gpu == (3, 2)
    cluster = eplb.Cluster(slots_per_gpu=slots_per_gpu)
    eplb.write_expert_map(tmp_path / "again.json", slots, cluster)
    written = json.loads((tmp_path / "again.json").read_text(encoding="utf-8"))
    assert [layer["layer_id"] for layer in written["layer_list"]] == [0, 1]
    assert written["layer_list"][1]["device_list"][1] == {"device_id": 1, "device_expert": [3, 0]}
    for name in ("map.csv", "map.npy"):
        plan = eplb.Plan.of_slots(slots, cluster)
        eplb.write_expert_map(tmp_path / name, plan)
        read = eplb.read_expert_map(tmp_path / name)
        assert read.slot_to_expert.tolist() == SLOTS and read.slots_per_gpu is None


def test_expert_maps_that_are_wrong_are_refused(tmp_path):
    twice = copy.deepcopy(ASCEND)
    twice["layer_list"][0]["layer_id"] = 0
    for name, content, why in [
        ("bad.json", json.dumps(twice), "layer_id"),
        ("bad.json", "[]", "line 1, column"),
        ("bad.json", '{"moe_layer_count": 1, "layer_list": []}', "layer_list has 0 entries"),
        ("bad.csv", "0,1\n2", "line 2 has 1 slots, must have 2"),
        ("bad.csv", "0,x", "line 1 is not integers"),
        ("bad.csv", "0,99999999999999999999", "no expert"),
        ("bad.csv", "0,-2", "or -1 for none"),
        ("bad.csv", "", "must have experts"),
        ("bad.npy", "no", "numpy cannot read it"),
        ("bad.txt", "0,1", "ends in .txt, must end in .json, .csv, .npy"),
    ]:
        (tmp_path / name).write_text(content, encoding="utf-8")
        with pytest.raises(INVALID, match=why):
            eplb.read_expert_map(tmp_path / name)
    dead = eplb.Cluster(num_gpus=2, num_slots=4, dead=[1])
    with pytest.raises(INVALID, match="slot_to_expert.layer 0, slot 2."):
        eplb.write_expert_map(tmp_path / "dead.json", [[0, 1, -1, -1]], dead)
    with pytest.raises(INVALID, match="cluster is None"):
        eplb.write_expert_map(tmp_path / "none.json", [[0, 1]])
