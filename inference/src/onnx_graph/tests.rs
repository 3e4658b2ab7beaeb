use super::writer::{entry, external, graph, message, model, model_of, node, opset};
use super::*;
use proptest::prelude::*;

fn inspected(bytes: &[u8]) -> Result<GraphSummary<'_>, GraphError> {
    inspect(bytes, &GraphLimits::default())
}

fn refusal(bytes: &[u8]) -> String {
    inspected(bytes).unwrap_err().to_string()
}

fn locations(bytes: &[u8]) -> Vec<&str> {
    inspected(bytes).unwrap().external.iter().map(|tensor| tensor.location).collect()
}

#[test]
fn tells_what_the_file_says() {
    let tensor = external(&[2], &[("location", "w.bin"), ("offset", "8"), ("length", "8")]);
    let graph = graph(&[tensor]).message(1, node("Gelu", "com.microsoft"));
    let graph = graph.message(1, node("Mine", "my.own"));
    let bytes = model_of(graph).message(8, opset("ai.onnx.ml", 3)).0;
    let summary = inspected(&bytes).unwrap();
    assert_eq!((summary.ir_version, summary.nodes), (8, 3));
    assert_eq!(summary.opsets, [("", 17), ("ai.onnx.ml", 3)]);
    assert_eq!(summary.custom_domains, BTreeSet::from(["my.own"]));
    let expected = ExternalTensor {
        name: "w",
        location: "w.bin",
        offset: 8,
        length: Some(8),
        needed: Some(8),
    };
    assert_eq!(summary.external, [expected]);
    assert_eq!(summary.facts().external_tensors, 1);
}

#[test]
fn external_data_is_found_wherever_a_tensor_can_be() {
    let at = |location: &str| external(&[1], &[("location", location)]);
    let in_node = |attribute| message().message(1, node("Op", "").message(5, attribute));
    let sparse = |location: &str| {
        message().message(1, at(&format!("{location}v"))).message(2, at(&format!("{location}i")))
    };
    let table = [
        (message().message(5, at("a")), vec!["a"]),
        (message().message(15, sparse("a")), vec!["av", "ai"]),
        (in_node(message().message(5, at("a"))), vec!["a"]),
        (in_node(message().message(10, at("a")).message(10, at("b"))), vec!["a", "b"]),
        (in_node(message().message(6, message().message(5, at("a")))), vec!["a"]),
        (in_node(message().message(11, message().message(5, at("a")))), vec!["a"]),
        (in_node(message().message(11, in_node(message().message(5, at("a"))))), vec!["a"]),
        (in_node(message().message(22, sparse("a"))), vec!["av", "ai"]),
        (in_node(message().message(23, sparse("a"))), vec!["av", "ai"]),
    ];
    for (graph, expected) in table {
        assert_eq!(locations(&model_of(graph.clone()).0), expected);
        for outside in [
            message().message(20, message().message(1, graph.clone())),
            message().message(20, message().message(2, graph)),
        ] {
            assert_eq!(locations(&model_of(message()).raw(&outside.0).0), expected);
        }
    }
    let function = message()
        .message(7, node("Op", "").message(5, message().message(5, at("a"))))
        .message(11, message().message(5, at("b")));
    assert_eq!(locations(&model_of(message()).message(25, function).0), ["a", "b"]);
}

#[test]
fn bad_external_data_is_refused() {
    let at = |location: &str| model(&[external(&[1], &[("location", location)])]);
    let with = |entries: &[(&str, &str)]| {
        let entries = [&[("location", "w")], entries].concat();
        model(&[external(&[1], &entries)])
    };
    let strings = message().varint(2, 8).varint(14, 1).message(13, entry("location", "w"));
    let table = [
        (at("/etc/passwd"), "in \"/etc/passwd\", which is an absolute path"),
        (at("../w"), "has a '..' component"),
        (at("a/../../w"), "has a '..' component"),
        (at("./w"), "has a '.' component"),
        (at("a//w"), "has an empty path component"),
        (at(""), "which is empty"),
        (at("w\0"), "holds a NUL"),
        (at("*/_ORT_MEM_ADDR_/*"), "a mark that ONNX Runtime keeps for itself"),
        (with(&[("offset", "-1")]), "offset is not a number of bytes"),
        (with(&[("offset", "+1")]), "offset is not a number of bytes"),
        (with(&[("offset", "")]), "offset is not a number of bytes"),
        (with(&[("length", "9223372036854775808")]), "length is not a number of bytes"),
        (with(&[("length", "0x10")]), "length is not a number of bytes"),
        (with(&[("evil", "1")]), "unknown key \"evil\""),
        (with(&[("basepath", "/")]), "unknown key \"basepath\""),
        (with(&[("location", "v")]), "key \"location\" appears twice"),
        (with(&[("offset", "0"), ("offset", "1")]), "key \"offset\" appears twice"),
        (model(&[external(&[1], &[])]), "it has no location"),
        (model(&[strings]), "strings cannot lie in another file"),
    ];
    for (bytes, expected) in table {
        let message = refusal(&bytes);
        assert!(message.contains(expected), "{message:?} should hold {expected:?}");
    }
    assert_eq!(locations(&with(&[("checksum", "x")])), ["w"]);
}

#[test]
fn external_data_lies_within_its_file() {
    let tensor = |dims: &[u64], offset: &str, length: Option<&str>| {
        let mut entries = vec![("location", "w"), ("offset", offset)];
        entries.extend(length.map(|length| ("length", length)));
        model(&[external(dims, &entries)])
    };
    let table = [
        (tensor(&[2], "8", Some("8")), 16, true),
        (tensor(&[2], "8", None), 16, true),
        (tensor(&[2], "8", Some("8")), 15, false),
        (tensor(&[2], "8", None), 15, false),
        (tensor(&[2], "0", Some("7")), 16, false),
        (tensor(&[2], "9223372036854775807", None), u64::MAX / 2, false),
        (tensor(&[0], "16", None), 16, true),
    ];
    for (bytes, size, fits) in table {
        let summary = inspected(&bytes).unwrap();
        assert_eq!(summary.external[0].check_within(size).is_ok(), fits, "{summary:?}");
    }
}

#[test]
fn dimensions_do_not_overflow() {
    let inline = |dims: &[u64]| {
        let tensor = dims.iter().fold(message(), |tensor, size| tensor.varint(1, *size));
        model(&[tensor.varint(2, 1).bytes(8, "w")])
    };
    for bad in [
        inline(&[u64::MAX]),
        inline(&[1 << 32, 1 << 32]),
        inline(&[1 << 62]),
        inline(&[0, u64::MAX]),
        model(&[message().bytes(1, [0xff; 9].iter().chain(&[1]).copied().collect::<Vec<u8>>())]),
    ] {
        let message = refusal(&bad);
        assert!(message.contains("dimensions that are negative or overflow"), "{message}");
    }
    assert!(inspected(&inline(&[0, 1 << 62, 1 << 62])).is_ok());
    // Packed dimensions: [2, 3].
    let packed = external(&[], &[("location", "w")]).bytes(1, [2, 3]);
    assert_eq!(inspected(&model(&[packed])).unwrap().external[0].needed, Some(24));
}

#[test]
fn sizes_of_elements() {
    let needed = |data_type: u64| {
        let tensor = message().varint(1, 5).varint(2, data_type).varint(14, 1);
        let bytes = model(&[tensor.message(13, entry("location", "w"))]);
        inspected(&bytes).unwrap().external[0].needed
    };
    // FLOAT, INT8, FLOAT16, DOUBLE, COMPLEX128, INT4, INT2, and one that is not known yet.
    let expected = [(1, 20), (3, 5), (10, 10), (11, 40), (15, 80), (22, 3), (26, 2)];
    for (data_type, bytes) in expected {
        assert_eq!(needed(data_type), Some(bytes), "{data_type}");
    }
    assert_eq!(needed(99), None);
}

#[test]
fn versions_that_are_too_new_are_refused() {
    let with = |ir: u64, domain: &str, version: u64| {
        message().varint(1, ir).message(7, graph(&[])).message(8, opset(domain, version)).0
    };
    assert!(inspected(&with(13, "", 26)).is_ok());
    assert!(inspected(&with(13, "ai.onnx.ml", 5)).is_ok());
    assert!(inspected(&with(13, "my.own", 99)).is_ok());
    let table = [
        (with(8, "", 27), "needs opset 27 of ai.onnx, this ONNX Runtime goes up to 26"),
        (with(8, "ai.onnx", 27), "needs opset 27 of ai.onnx"),
        (with(8, "ai.onnx.ml", 6), "needs opset 6 of ai.onnx.ml, this ONNX Runtime goes up to 5"),
        (with(14, "", 17), "has IR version 14, this ONNX Runtime goes up to 13"),
    ];
    for (bytes, expected) in table {
        let message = refusal(&bytes);
        assert!(message.contains(expected), "{message:?} should hold {expected:?}");
    }
}

#[test]
fn what_is_no_model_is_refused() {
    let twice = model_of(graph(&[])).message(7, graph(&[])).0;
    let merged = node("Op", "").message(
        5,
        message()
            .message(5, external(&[1], &[("location", "a")]))
            .message(5, external(&[1], &[("offset", "1")])),
    );
    let table: [(Vec<u8>, &str); 10] = [
        (vec![], "it has no graph"),
        (message().varint(1, 8).0, "it has no graph"),
        (b"hello, world".to_vec(), "not a valid ONNX file"),
        (message().varint(7, 1).0, "a field has the wrong wire type at byte 0"),
        (message().raw(&[0x3b]).0, "a field has the form of a group at byte 0"),
        (message().raw(&[0x02, 0]).0, "a field number is out of range at byte 0"),
        (message().raw(&[0x3f]).0, "a field has an unknown wire type at byte 0"),
        (twice, "a field appears twice that may appear once"),
        (model_of(message().message(1, merged)).0, "a field appears twice that may appear once"),
        (b"\x1c\0\0\0ORTM rest".to_vec(), "ONNX Runtime's own format"),
    ];
    for (bytes, expected) in table {
        let message = refusal(&bytes);
        assert!(message.contains(expected), "{message:?} should hold {expected:?}");
    }
    let context = model_of(message().message(1, node("EPContext", "com.microsoft"))).0;
    assert!(refusal(&context).contains("EPContext"));
}

#[test]
fn every_truncation_is_refused() {
    let bytes = model(&[external(&[2], &[("location", "w")])]);
    let whole = inspected(&bytes).unwrap();
    for length in 0..bytes.len() {
        // What is cut off between two fields is a smaller message, and protobuf cannot know.
        if let Ok(summary) = inspected(&bytes[..length]) {
            assert!(summary.opsets.len() < whole.opsets.len(), "cut at {length}");
        }
    }
}

#[test]
fn nesting_is_bounded_without_recursion() {
    let nested = |levels: usize| {
        let mut inner = graph(&[]);
        for _ in 0..levels {
            let attribute = message().message(6, inner);
            inner = message().message(1, node("If", "").message(5, attribute));
        }
        model_of(inner).0
    };
    assert!(inspected(&nested(32)).is_ok());
    assert!(refusal(&nested(33)).contains("deeper than 100 levels"));
    assert!(refusal(&nested(2_000)).contains("deeper than 100 levels"));
}

#[test]
fn nodes_are_bounded() {
    let bytes = model_of(graph(&[]).message(1, node("Op", ""))).0;
    let limits = |max_nodes| GraphLimits { max_nodes, ..GraphLimits::default() };
    assert!(inspect(&bytes, &limits(2)).is_ok());
    let message = inspect(&bytes, &limits(1)).unwrap_err().to_string();
    assert_eq!(message, "has more than 1 nodes");
}

proptest! {
    #[test]
    fn any_bytes_are_read_or_refused(bytes in proptest::collection::vec(any::<u8>(), 0..2048)) {
        let _ = inspected(&bytes);
    }

    /// Bytes that begin as a model does get further in.
    #[test]
    fn any_graph_is_read_or_refused(
        bytes in proptest::collection::vec(any::<u8>(), 0..512),
        field in 1u32..30,
    ) {
        let inner = message().bytes(field, bytes);
        let tensor = message().varint(14, 1).raw(&inner.0);
        for graph in [inner.clone(), message().message(5, tensor), message().message(1, inner)] {
            let bytes = model_of(graph).0;
            if let Ok(summary) = inspected(&bytes) {
                prop_assert!(summary.external.len() <= bytes.len());
            }
        }
    }

    /// Damage anywhere is noticed or harmless: what is still external keeps to plain names.
    #[test]
    fn any_flip_is_read_or_refused(at in any::<prop::sample::Index>(), bit in 0u8..8) {
        let mut bytes = model(&[external(&[2], &[("location", "a/w"), ("offset", "4")])]);
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        if let Ok(summary) = inspected(&bytes) {
            for tensor in summary.external {
                prop_assert_eq!(crate::integrity::name_problem(tensor.location), None);
            }
        }
    }
}
