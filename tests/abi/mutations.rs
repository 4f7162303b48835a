//! The checker itself: what breaks a program is said in the right words, what does not is let through.

use std::collections::BTreeSet;

use crate::compare::{changes, not_exported, Changes};
use crate::text::{Abi, Item};
use crate::{headers, layout, library, today};

/// An edit of a header, and what must be said of it.
struct Mutation {
    header: &'static str,
    from: &'static str,
    to: &'static str,
    broken: &'static [&'static str],
    added: &'static [&'static str],
}

const MUTATIONS: &[Mutation] = &[
    // Functions.
    Mutation {
        header: "program.h",
        from: "dualpipe_status dualpipe_program_free(dualpipe_program_t program);",
        to: "",
        broken: &["dualpipe_program_free was removed"],
        added: &[],
    },
    Mutation {
        header: "program.h",
        from: "dualpipe_status dualpipe_program_free(dualpipe_program_t program);",
        to: "dualpipe_status dualpipe_program_release(dualpipe_program_t program);",
        broken: &["dualpipe_program_free was removed"],
        added: &["dualpipe_program_release is new"],
    },
    Mutation {
        header: "transport.h",
        from: "dualpipe_inproc_create(uint32_t num_ranks,",
        to: "dualpipe_inproc_create(uint64_t num_ranks,",
        broken: &["dualpipe_inproc_create, parameter 1 (num_ranks), was uint32_t, is uint64_t"],
        added: &[],
    },
    Mutation {
        header: "transport.h",
        from: "dualpipe_inproc_create(uint32_t num_ranks,",
        to: "dualpipe_inproc_create(uint32_t how_many,",
        broken: &[],
        added: &[],
    },
    Mutation {
        header: "overlap.h",
        from: "dualpipe_overlap_free(dualpipe_overlap_t overlap)",
        to: "dualpipe_overlap_free(dualpipe_overlap_t overlap, uint32_t how)",
        broken: &["dualpipe_overlap_free had 1 parameters, has 2"],
        added: &[],
    },
    Mutation {
        header: "version.h",
        from: "uint32_t dualpipe_version(void);",
        to: "uint64_t dualpipe_version(void);",
        broken: &["dualpipe_version returned uint32_t, returns uint64_t"],
        added: &[],
    },
    Mutation {
        header: "log.h",
        from: "typedef int32_t (*dualpipe_progress_fn)(void *user_data, uint64_t done, uint64_t total);",
        to: "typedef int32_t (*dualpipe_progress_fn)(void *user_data, uint64_t done, double total);",
        broken: &["dualpipe_progress_fn, parameter 3 (total), was uint64_t, is double"],
        added: &[],
    },
    // Constants and types.
    Mutation {
        header: "status.h",
        from: "DUALPIPE_ERROR_BUSY = 10,",
        to: "DUALPIPE_ERROR_BUSY = 17,",
        broken: &["DUALPIPE_ERROR_BUSY was 10, is 17"],
        added: &[],
    },
    Mutation {
        header: "op.h",
        from: "#define DUALPIPE_NONE UINT32_MAX",
        to: "#define DUALPIPE_NONE UINT16_MAX",
        broken: &["DUALPIPE_NONE was 4294967295, is 65535"],
        added: &[],
    },
    Mutation {
        header: "status.h",
        from: "typedef uint32_t dualpipe_status;",
        to: "typedef uint64_t dualpipe_status;",
        broken: &["dualpipe_status was uint32_t, is uint64_t"],
        added: &[],
    },
    // Structs: a field of another type, one that has moved, a struct that has shrunk, and two that have grown.
    Mutation {
        header: "task.h",
        from: "uint32_t is_present;",
        to: "int32_t is_present;",
        broken: &["dualpipe_tensor.is_present was uint32_t, is int32_t"],
        added: &[],
    },
    Mutation {
        header: "transport.h",
        from: "uint32_t device;\n",
        to: "uint32_t reserved3;\n  uint32_t device;\n",
        broken: &[
            "dualpipe_transfer.device was at 48, is at 52",
            "dualpipe_transfer.step was at 52, is at 56",
            "dualpipe_transfer.message was at 56, is at 60",
        ],
        added: &["dualpipe_transfer had 80 bytes, has 88 bytes", "dualpipe_transfer.reserved3 is new"],
    },
    Mutation {
        header: "schedule.h",
        from: "uint32_t forward_only;\n} dualpipe_schedule_info;",
        to: "} dualpipe_schedule_info;",
        broken: &[
            "dualpipe_schedule_info.forward_only was removed",
            "dualpipe_schedule_info had 28 bytes, has 24 bytes",
        ],
        added: &[],
    },
    Mutation {
        header: "schedule.h",
        from: "uint32_t forward_only;\n} dualpipe_schedule_info;",
        to: "uint32_t forward_only;\n  uint32_t num_copies;\n} dualpipe_schedule_info;",
        broken: &[],
        added: &[
            "dualpipe_schedule_info had 28 bytes, has 32 bytes",
            "dualpipe_schedule_info.num_copies is new",
        ],
    },
    Mutation {
        header: "balance.h",
        from: "double away;\n",
        to: "double away;\n  double mean;\n",
        broken: &["dualpipe_layer_balance had 48 bytes, has 56 bytes", "dualpipe_layer_balance.mean is new"],
        added: &[],
    },
    Mutation {
        header: "memory.h",
        from: "#define DUALPIPE_MEMORY_INIT { sizeof(dualpipe_memory), 0, NULL, NULL, NULL }",
        to: "",
        broken: &["DUALPIPE_MEMORY_INIT was removed"],
        added: &[],
    },
];

/// What is said of the ABI of today's headers after an edit of one.
fn after(name: &str, header: &str, from: &str, to: &str) -> Changes {
    let folder = library::scratch().join(name);
    headers::copy(&library::include(), &folder);
    let path = folder.join("dualpipe").join(header);
    let text = std::fs::read_to_string(&path).expect("a header");
    assert!(text.contains(from), "{header}: {from} is not there");
    std::fs::write(&path, text.replacen(from, to, 1)).expect("scratch");
    changes(today(), &headers::read(&folder, &folder.join("scratch")))
}

#[test]
fn each_change_of_a_header_is_said_in_words() {
    for (i, Mutation { header, from, to, broken, added }) in MUTATIONS.iter().enumerate() {
        let said = after(&format!("mutation-{i}"), header, from, to);
        assert_eq!(
            (said.broken.as_slice(), said.added.as_slice()),
            (&texts(broken)[..], &texts(added)[..]),
            "{to}"
        );
    }
}

fn texts(words: &[&str]) -> Vec<String> {
    words.iter().map(|&word| word.into()).collect()
}

#[test]
fn a_struct_that_grows_inside_others_is_said_of_them_too() {
    let said = after("nested", "op.h", "uint32_t copy;\n", "uint32_t copy;\n  uint32_t twin;\n").broken;
    for word in [
        "dualpipe_pass had 16 bytes, has 20 bytes",
        "dualpipe_op.forward had 16 bytes, has 20 bytes",
        "dualpipe_op.backward was at 20, is at 24",
        "dualpipe_message had 24 bytes, has 28 bytes",
        "dualpipe_span.start_ns was at 40, is at 48",
    ] {
        assert!(said.iter().any(|line| line == word), "{word} is not in {said:?}");
    }
}

#[test]
fn a_function_that_is_not_exported_is_said() {
    let mut exported: BTreeSet<&str> = today().functions().map(|(name, _)| name).collect();
    assert_eq!(not_exported(today(), &exported), [""; 0]);
    exported.remove("dualpipe_simulate");
    assert_eq!(not_exported(today(), &exported), ["dualpipe_simulate is not exported by the library"]);
}

/// Edits of an abi.txt that no language may agree with.
const WRONG: [(&str, &str); 7] = [
    ("struct dualpipe_op: 36 bytes", "struct dualpipe_op: 40 bytes"),
    ("at 20, 16 bytes: dualpipe_pass backward", "at 24, 16 bytes: dualpipe_pass backward"),
    ("at 20, 16 bytes: dualpipe_pass backward", "at 20, 8 bytes: dualpipe_pass backward"),
    ("constant DUALPIPE_ERROR_BUSY: 10", "constant DUALPIPE_ERROR_BUSY: 11"),
    ("  uint32_t num_ranks\n", "  uint64_t num_ranks\n"),
    ("4 bytes: uint32_t peer\n", "4 bytes: int32_t peer\n"),
    ("  const dualpipe_task *task\n", "  dualpipe_task *task\n"),
];

#[test]
fn the_assertions_fail_where_the_description_is_wrong() {
    let text = today().to_string();
    for (i, (from, to)) in WRONG.into_iter().enumerate() {
        assert!(text.contains(from), "{from} is not there");
        let wrong = Abi::parse(&text.replacen(from, to, 1));
        for (standard, ending) in [("c99", "c"), ("c11", "c"), ("c++11", "cpp")] {
            let source = library::scratch().join(format!("wrong-{i}.{ending}"));
            std::fs::write(&source, layout::assertions(&wrong)).expect("scratch");
            let output =
                library::compiler(standard).arg("-fsyntax-only").arg(&source).output().expect("a compiler");
            assert!(!output.status.success(), "{standard} agrees with {to}");
        }
    }
    let wrong = Abi::parse(&text.replacen(WRONG[1].0, WRONG[1].1, 1));
    let Some(Item::Struct(op)) = wrong.get("dualpipe_op") else { panic!("dualpipe_op is a struct") };
    let said = "dualpipe_op.backward has (offset, size) Some((20, 16)) in Rust, (24, 16) in abi.txt";
    assert_eq!(layout::unlike_rust("dualpipe_op", op), [said]);
}
