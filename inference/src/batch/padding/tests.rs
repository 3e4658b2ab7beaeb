use super::*;
use crate::batch;
use crate::contract::TensorSpec;
use crate::datatype::Datatype;
use proptest::prelude::*;

fn spec(name: &str, datatype: Datatype, shape: &[&str]) -> TensorSpec {
    let dimension = |text: &&str| match text.parse() {
        Ok(size) => Dimension::Fixed(size),
        Err(_) => Dimension::Dynamic((*text != "?").then(|| (*text).to_owned())),
    };
    let shape = Some(shape.iter().map(dimension).collect());
    TensorSpec { name: name.to_owned(), datatype, shape }
}

fn integers(shape: &[usize], from: i64) -> Tensor {
    let count = i64::try_from(shape.iter().product::<usize>()).unwrap();
    let bytes: Vec<u8> = (from..from + count).flat_map(i64::to_le_bytes).collect();
    Tensor::raw(Datatype::Int64, shape.to_vec(), bytes.into()).unwrap()
}

fn texts(shape: &[usize], from: usize) -> Tensor {
    let count: usize = shape.iter().product();
    let elements = (from..from + count).map(|at| Bytes::from(at.to_string())).collect();
    Tensor::strings(shape.to_vec(), elements).unwrap()
}

fn values(pairs: &[(&str, PadValue)]) -> BTreeMap<String, PadValue> {
    pairs.iter().map(|(name, value)| ((*name).to_owned(), value.clone())).collect()
}

/// A grid of numbers and a line of texts, both padded, and an output of the form of each.
fn padding() -> Padding {
    let contract = Contract {
        inputs: vec![
            spec("grid", Datatype::Int64, &["n", "high", "2", "wide"]),
            spec("line", Datatype::Bytes, &["n", "wide"]),
        ],
        outputs: vec![
            spec("grid_out", Datatype::Int64, &["n", "high", "2", "wide"]),
            spec("line_out", Datatype::Bytes, &["n", "wide"]),
        ],
    };
    let of = [("grid", PadValue::Integer(-1)), ("line", PadValue::Text("-".to_owned()))];
    let padding = Padding::of(&values(&of), &contract).unwrap().unwrap();
    padding.set(true);
    padding
}

proptest! {
    /// For a model that leaves every element as it is, padding, running together and cutting back is no change.
    #[test]
    fn cutting_undoes_padding(
        sizes in proptest::collection::vec((1usize..4, 0usize..4, 0usize..5), 1..6),
    ) {
        let padding = padding();
        let requests: Vec<Vec<Tensor>> = sizes
            .iter()
            .enumerate()
            .map(|(at, (rows, high, wide))| {
                let grid = integers(&[*rows, *high, 2, *wide], 1000 * i64::try_from(at).unwrap());
                vec![grid, texts(&[*rows, *wide], 1000 * at)]
            })
            .collect();
        let parts: Vec<&[Tensor]> = requests.iter().map(Vec::as_slice).collect();
        prop_assert!(parts.iter().all(|part| padding.takes(part) && padding.makes_alike(part, parts[0])));
        let joined = padding.concatenate(&parts);
        let rows: Vec<usize> = sizes.iter().map(|(rows, _, _)| *rows).collect();
        let high = sizes.iter().map(|(_, high, _)| *high).max().unwrap();
        let wide = sizes.iter().map(|(_, _, wide)| *wide).max().unwrap();
        prop_assert_eq!(joined[0].shape(), [rows.iter().sum(), high, 2, wide]);
        // Outputs are asked for in any order.
        let outputs = [joined[1].clone(), joined[0].clone()];
        let apart = batch::split(&outputs, &rows).unwrap();
        let cut = padding.cut(&joined, &parts, &[1, 0], apart).unwrap();
        for (request, mut answer) in requests.iter().zip(cut) {
            answer.reverse();
            prop_assert_eq!(request, &answer);
        }
    }
}

#[test]
fn what_is_short_is_filled_behind_its_end() {
    let padding = padding();
    let (a, b) = (
        [integers(&[1, 1, 2, 1], 10), texts(&[1, 1], 7)],
        [integers(&[1, 1, 2, 2], 20), texts(&[1, 2], 8)],
    );
    let joined = padding.concatenate(&[&a, &b]);
    let TensorData::Raw(raw) = joined[0].data() else { unreachable!() };
    let numbers: Vec<i64> =
        raw.chunks_exact(8).map(|bytes| i64::from_le_bytes(bytes.try_into().unwrap())).collect();
    assert_eq!(numbers, [10, -1, 11, -1, 20, 21, 22, 23]);
    let expected = ["7", "-", "8", "9"].map(Bytes::from).to_vec();
    assert_eq!(joined[1], Tensor::strings(vec![2, 2], expected).unwrap());
}

#[test]
fn what_goes_together_padded() {
    let padding = padding();
    let request = |rows, high, wide| [integers(&[rows, high, 2, wide], 0), texts(&[rows, wide], 0)];
    let base = request(1, 1, 8);
    let table = [
        (request(3, 1, 8), true, "only rows differ"),
        (request(1, 1, 10), true, "a quarter longer"),
        (request(1, 1, 11), false, "more than a quarter longer"),
        (request(1, 1, 7), true, "shorter"),
        (request(1, 1, 6), false, "a third is more than a quarter"),
        (request(1, 2, 8), false, "twice as high"),
        (request(1, 1, 0), false, "nothing in it"),
    ];
    for (other, expected, why) in table {
        assert_eq!(padding.joins(&base, &other), expected, "{why}");
        assert_eq!(padding.joins(&other, &base), expected, "{why}, the other way");
    }
    assert!(!padding.joins(&base, &[texts(&[1, 8], 0), texts(&[1, 8], 0)]), "datatype");
    assert!(!padding.joins(&base, &base[..1]), "number of inputs");
    let uneven = [integers(&[1, 1, 2, 8], 0), texts(&[1, 7], 0)];
    assert!(padding.takes(&base) && !padding.takes(&uneven), "one name, two sizes");
    padding.set(false);
    assert!(!padding.joins(&base, &request(1, 1, 9)), "switched off");
}

#[test]
fn what_cannot_be_cut_is_told() {
    let padding = padding();
    let (a, b) = (
        [integers(&[1, 1, 2, 3], 0), texts(&[1, 3], 0)],
        [integers(&[1, 1, 2, 4], 0), texts(&[1, 4], 0)],
    );
    let joined = padding.concatenate(&[&a, &b]);
    // The model gave back three of four.
    let outputs = [integers(&[2, 1, 2, 3], 0)];
    let apart = batch::split(&outputs, &[1, 1]).unwrap();
    let error = padding.cut(&joined, &[&a, &b], &[0], apart).unwrap_err();
    assert_eq!(error, "an output of a run padded to 4 has the shape [1, 1, 2, 3]");
}

#[test]
fn settings_that_a_model_cannot_have_are_told_all_at_once() {
    use Datatype::{Fp32, Int64};
    let zero = |name| (name, PadValue::Integer(0));
    let ids = || spec("ids", Int64, &["n", "len"]);
    let y = |shape: &[&str]| spec("y", Fp32, shape);
    type Case<'a> = (Vec<TensorSpec>, TensorSpec, &'a [(&'a str, PadValue)], &'a [&'a str]);
    let table: [Case<'_>; 9] = [
        (vec![ids()], y(&["n", "len", "384"]), &[zero("ids")], &[]),
        (
            vec![ids()],
            y(&["n", "2"]),
            &[zero("ids"), zero("mask")],
            &["batching.padding.mask: the model has no such input; it has ids"],
        ),
        (
            vec![spec("ids", Int64, &["n", "8"])],
            y(&["n", "2"]),
            &[zero("ids")],
            &[
                "batching.padding.ids: the input has no dimension to pad, which is one behind the first that varies; its shape is [-1, 8]",
            ],
        ),
        (
            vec![ids()],
            y(&["n", "2"]),
            &[("ids", PadValue::Float(0.5))],
            &[
                "batching.padding.ids must be an integer from -9223372036854775808 to 9223372036854775807, for the input is INT64; found 0.5",
            ],
        ),
        (
            vec![ids()],
            y(&["n", "tokens"]),
            &[zero("ids")],
            &[
                "batching.padding: output \"y\" could not be cut back: no padded input has its dimension \"tokens\"",
            ],
        ),
        (
            vec![ids()],
            y(&["n", "?"]),
            &[zero("ids")],
            &[
                "batching.padding: output \"y\" could not be cut back: its dimension 1 has no name in the model",
            ],
        ),
        (
            vec![ids(), spec("mask", Int64, &["n", "?"])],
            y(&["n", "len"]),
            &[zero("ids"), zero("mask")],
            &[
                "batching.padding.mask: dimension 1 of the input has no name in the model, so output \"y\" could not be cut back",
            ],
        ),
        (
            vec![ids(), spec("mask", Int64, &["n", "len"])],
            y(&["n", "2"]),
            &[zero("ids")],
            &[
                "batching.padding.mask: missing, and the input has the dimension \"len\" of another one that is padded",
            ],
        ),
        (
            vec![ids()],
            y(&["2", "len"]),
            &[zero("x"), ("ids", PadValue::Text("a".to_owned()))],
            &[
                "batching.padding is for requests that share runs",
                "batching.padding.x: ",
                "batching.padding.ids must be",
            ],
        ),
    ];
    for (inputs, output, given, expected) in table {
        let contract = Contract { inputs, outputs: vec![output] };
        let problems = Padding::of(&values(given), &contract).err().unwrap_or_default();
        assert_eq!(problems.len(), expected.len(), "{problems:?}");
        for (problem, start) in problems.iter().zip(expected) {
            assert!(problem.starts_with(start), "{problem} should begin with {start}");
        }
    }
    // Without a name, but nothing is to be cut.
    let contract =
        Contract { inputs: vec![spec("ids", Int64, &["n", "?"])], outputs: vec![y(&["n", "2"])] };
    assert!(Padding::of(&values(&[zero("ids")]), &contract).unwrap().is_some());
    assert!(Padding::of(&BTreeMap::new(), &contract).unwrap().is_none());
}
