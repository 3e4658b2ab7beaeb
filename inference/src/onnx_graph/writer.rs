//! A tiny protobuf writer, so that tests can make model files, right ones and wrong ones.

/// A message being written.
#[derive(Clone, Default)]
pub(crate) struct Message(pub(crate) Vec<u8>);

impl Message {
    pub(crate) fn varint(mut self, field: u32, value: u64) -> Self {
        push_varint(&mut self.0, u64::from(field) << 3);
        push_varint(&mut self.0, value);
        self
    }

    pub(crate) fn bytes(mut self, field: u32, bytes: impl AsRef<[u8]>) -> Self {
        let bytes = bytes.as_ref();
        push_varint(&mut self.0, u64::from(field) << 3 | 2);
        push_varint(&mut self.0, bytes.len() as u64);
        self.0.extend_from_slice(bytes);
        self
    }

    pub(crate) fn message(self, field: u32, message: Message) -> Self {
        self.bytes(field, message.0)
    }

    pub(crate) fn raw(mut self, bytes: &[u8]) -> Self {
        self.0.extend_from_slice(bytes);
        self
    }
}

fn push_varint(bytes: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
}

pub(crate) fn message() -> Message {
    Message::default()
}

/// `StringStringEntryProto`.
pub(crate) fn entry(key: &str, value: &str) -> Message {
    message().bytes(1, key).bytes(2, value)
}

/// A `TensorProto` of FLOAT `w` with its elements elsewhere.
pub(crate) fn external(dims: &[u64], entries: &[(&str, &str)]) -> Message {
    let tensor = dims.iter().fold(message(), |tensor, size| tensor.varint(1, *size));
    let tensor = tensor.varint(2, 1).bytes(8, "w").varint(14, 1);
    entries.iter().fold(tensor, |tensor, (key, value)| tensor.message(13, entry(key, value)))
}

/// A `NodeProto`.
pub(crate) fn node(operator: &str, domain: &str) -> Message {
    message().bytes(1, "x").bytes(2, "y").bytes(4, operator).bytes(7, domain)
}

fn value_info(name: &str) -> Message {
    let shape = message().message(1, message().varint(1, 2));
    let tensor = message().varint(1, 1).message(2, shape);
    message().bytes(1, name).message(2, message().message(1, tensor))
}

/// A `GraphProto` that adds `w`, when given, or copies its input.
pub(crate) fn graph(initializers: &[Message]) -> Message {
    let first = match initializers {
        [] => node("Identity", ""),
        _ => message().bytes(1, "x").bytes(1, "w").bytes(2, "y").bytes(4, "Add"),
    };
    let graph = message().message(1, first).bytes(2, "g");
    let graph = initializers.iter().cloned().fold(graph, |graph, tensor| graph.message(5, tensor));
    graph.message(11, value_info("x")).message(12, value_info("y"))
}

/// A `ModelProto` around a graph.
pub(crate) fn model_of(graph: Message) -> Message {
    message().varint(1, 8).message(7, graph).message(8, opset("", 17))
}

/// An `OperatorSetIdProto`.
pub(crate) fn opset(domain: &str, version: u64) -> Message {
    message().bytes(1, domain).varint(2, version)
}

/// A whole model file that ONNX Runtime loads, if what it names is there.
pub(crate) fn model(initializers: &[Message]) -> Vec<u8> {
    model_of(graph(initializers)).0
}
