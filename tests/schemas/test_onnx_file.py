import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN, generator
from onnx import TensorProto, helper, numpy_helper

from schemas import onnx_file
from schemas.onnx_file import check_graph, with_parameters
from schemas.protobuf import head, number

WEIGHTS = {
    "w": generator(1).standard_normal((3, 2)).astype(np.float32),
    "b": np.array([0.5, -1], dtype=np.float32),
    "scale": np.float32(2).reshape(()),
}


def model(nodes=None, *, initializers=(), opset=18, ir=10, domain="", **others):
    """y = scale * (x @ w + b), without the weights unless they are given."""
    nodes = nodes or [
        helper.make_node("Gemm", ["x", "w", "b"], ["g"], name="first"),
        helper.make_node("Mul", ["g", "scale"], ["y"], name="second"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2])],
        list(initializers),
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid(domain, opset)], **others)
    made.ir_version = ir
    return made


BARE = model().SerializeToString()


def refused(made, match):
    data = made if isinstance(made, bytes) else made.SerializeToString()
    with pytest.raises(ValueError, match=match) as caught:
        check_graph(data, what="step.onnx")
    assert str(caught.value).startswith("step.onnx: ")
    return str(caught.value)


def session(data):
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    return onnxruntime.InferenceSession(data, options, providers=["CPUExecutionProvider"])


# -- what is filled ------------------------------------------------------------------------------


def test_a_filled_graph_runs_in_onnxruntime_and_gives_what_the_weights_say():
    x = generator(2).standard_normal((5, 3)).astype(np.float32)
    (y,) = session(with_parameters(BARE, WEIGHTS)).run(None, {"x": x})
    expected = WEIGHTS["scale"] * (x @ WEIGHTS["w"] + WEIGHTS["b"])
    np.testing.assert_allclose(y, expected, rtol=1e-6)


def test_onnx_reads_a_filled_graph_as_a_plain_model_with_these_initializers():
    filled = onnx.load_model_from_string(with_parameters(BARE, WEIGHTS))
    onnx.checker.check_model(filled, full_check=True)
    found = {each.name: numpy_helper.to_array(each) for each in filled.graph.initializer}
    assert found.keys() == WEIGHTS.keys()
    for name, array in WEIGHTS.items():
        assert found[name].dtype == np.float32
        np.testing.assert_array_equal(found[name], array)


def test_a_filled_graph_passes_the_check_too():
    check_graph(with_parameters(BARE, WEIGHTS), what="model.onnx")


def test_a_graph_keeps_the_constants_that_it_has():
    kept = numpy_helper.from_array(WEIGHTS["scale"], "scale")
    bare = model(initializers=[kept]).SerializeToString()
    filled = with_parameters(bare, {name: WEIGHTS[name] for name in ("w", "b")})
    (y,) = session(filled).run(None, {"x": np.zeros((1, 3), np.float32)})
    np.testing.assert_array_equal(y, [2 * WEIGHTS["b"]])


def test_tensors_that_lie_otherwise_in_memory_are_written_in_their_own_order():
    turned = WEIGHTS | {"w": np.asfortranarray(WEIGHTS["w"])}
    assert with_parameters(BARE, turned) == with_parameters(BARE, WEIGHTS)


def test_a_tensor_that_the_graph_has_already_is_refused_by_name():
    own = numpy_helper.from_array(WEIGHTS["b"], "b")
    with pytest.raises(ValueError, match="'b' of its own"):
        with_parameters(model(initializers=[own]).SerializeToString(), WEIGHTS)


def test_a_tensor_of_another_type_is_refused_by_name():
    with pytest.raises(ValueError, match="'b' is float64"):
        with_parameters(BARE, WEIGHTS | {"b": np.zeros(2)})


def test_more_than_a_protobuf_message_can_hold_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_file, "MODEL_BYTES_MAX", len(BARE) + 40)
    with pytest.raises(ValueError, match="of one piece"):
        with_parameters(BARE, WEIGHTS)


# -- what is refused -----------------------------------------------------------------------------


@pytest.mark.parametrize("opset", [18, 19, 20])
@pytest.mark.parametrize("ir", [8, 9, 10])
def test_ordinary_models_pass(opset, ir):
    check_graph(model(opset=opset, ir=ir).SerializeToString(), what="step.onnx")
    check_graph(model(opset=opset, ir=ir, domain="ai.onnx").SerializeToString(), what="step.onnx")


def test_attributes_of_every_ordinary_kind_pass():
    constant = numpy_helper.from_array(np.arange(3, dtype=np.int64), "c")
    nodes = [
        helper.make_node("Constant", [], ["c"], value=constant),
        helper.make_node("Conv", ["x", "w"], ["z"], pads=[0, 1, 0, 1], group=1),
        helper.make_node("Elu", ["z"], ["y"], alpha=0.5),
        helper.make_node("Constant", [], ["f"], value_floats=[1.0, 2.0]),
        helper.make_node("Constant", [], ["s"], value_strings=["a", "b"]),
        helper.make_node("Gelu", ["y"], ["g"], approximate="tanh"),
    ]
    check_graph(model(nodes).SerializeToString(), what="step.onnx")


@pytest.mark.parametrize("ir", [3, 11, 13])
def test_an_ir_version_that_not_every_onnxruntime_reads_is_refused(ir):
    assert "model.ir_version" in refused(model(ir=ir), f"IR version {ir}; from 4 to 10 are read")


@pytest.mark.parametrize("opset", [17, 21, 24])
def test_an_opset_outside_the_range_is_refused(opset):
    assert "version_converter" in refused(model(opset=opset), f"opset {opset}; 18 to 20")


def test_a_second_opset_or_ir_version_is_looked_at_too():
    opset = helper.make_opsetid("", 24).SerializeToString()
    refused(BARE + head(8, len(opset)) + opset, "opset 24")
    refused(BARE + number(1, 11), "IR version 11")


def test_an_import_of_another_domain_is_refused():
    refused(model(domain="com.microsoft"), "imports operators of 'com.microsoft'")


def test_a_node_of_another_domain_is_refused_by_name():
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], name="n7", domain="com.microsoft")
    told = refused(model([node]), r"node 'n7' \(FusedMatMul\) is an operator of 'com.microsoft'")
    assert "use ONNX' own operators" in told


def test_functions_of_the_models_own_are_refused():
    made = model()
    made.functions.append(
        helper.make_function(
            "", "mine", ["a"], ["c"], [helper.make_node("Relu", ["a"], ["c"])], made.opset_import
        )
    )
    refused(made, "functions of its own; inline them")


def test_an_overload_is_refused_by_its_node():
    node = helper.make_node("Relu", ["x"], ["y"], name="r", overload="fast")
    refused(model([node]), r"node 'r' \(Relu\) calls one of several functions")


@pytest.mark.parametrize("kind", ["If", "Loop", "Scan"])
def test_a_node_with_a_graph_in_it_is_refused_by_name(kind):
    body = helper.make_graph([], "body", [], [])
    node = helper.make_node(kind, ["x"], ["y"], name="deep", body=body)
    refused(model([node]), rf"node 'deep' \({kind}\) holds a graph")


def test_a_node_with_several_graphs_is_refused():
    node = helper.make_node("Any", ["x"], ["y"], name="deep")
    attribute = node.attribute.add(name="branches")
    attribute.graphs.append(helper.make_graph([], "body", [], []))
    refused(model([node]), "holds graphs")


def external(tensor):
    entry = tensor.external_data.add()
    entry.key, entry.value = "location", "/etc/passwd"
    tensor.data_location = TensorProto.EXTERNAL
    return tensor


def test_an_external_initializer_is_refused_by_its_name():
    tensor = external(TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[3, 2]))
    refused(model(initializers=[tensor]), r"lies in another file .*\(tensor 'w'\)")


def test_an_external_tensor_in_a_node_is_refused_by_the_node():
    tensor = external(TensorProto(name="c", data_type=TensorProto.FLOAT, dims=[1]))
    node = helper.make_node("Constant", [], ["y"], name="far", value=tensor)
    refused(model([node]), r"a tensor of node 'far' \(Constant\) lies in another file")


@pytest.mark.parametrize("mark", [1, (1 << 32) + 1])
def test_a_mark_of_external_data_alone_is_refused_however_long_it_is(mark):
    """A parser reads an enum's lower 32 bits."""
    tensor = TensorProto(name="w", data_type=TensorProto.FLOAT, dims=[1]).SerializeToString()
    tensor += number(14, mark)
    graph = head(5, len(tensor)) + tensor
    refused(BARE + head(7, len(graph)) + graph, "lies in another file")


def test_an_external_entry_without_the_mark_is_refused():
    tensor = external(TensorProto(name="w"))
    tensor.ClearField("data_location")
    refused(model(initializers=[tensor]), "lies in another file")


def test_sparse_tensors_are_refused():
    made = model()
    made.graph.sparse_initializer.add()
    refused(made, "sparse initializers")
    node = helper.make_node("Constant", [], ["y"], name="thin")
    node.attribute.add(name="sparse_value").sparse_tensor.SetInParent()
    refused(model([node]), r"node 'thin' \(Constant\) holds a sparse tensor")


def test_training_info_is_refused():
    made = model()
    made.training_info.add()
    refused(made, "training_info")


def test_a_graph_of_too_many_nodes_is_refused(monkeypatch):
    monkeypatch.setattr(onnx_file, "NODES_MAX", 1)
    refused(BARE, "more than 1 nodes")


def test_too_many_fields_are_refused(monkeypatch):
    monkeypatch.setattr(onnx_file, "FIELDS_MAX", 10)
    refused(BARE, "more than 10 fields")


@pytest.mark.parametrize("where", ["model", "graph", "node", "initializer"])
def test_notes_above_their_bound_are_refused_wherever_they_are(where):
    made = model(initializers=[numpy_helper.from_array(WEIGHTS["b"], "b")])
    graph = made.graph
    place = {"model": made, "graph": graph, "node": graph.node[0]}
    holder = place.get(where, graph.initializer[0])
    entry = holder.metadata_props.add()
    entry.key, entry.value = "trace", "x" * (onnx_file.NOTES_BYTES_MAX // 2)
    check_graph(made.SerializeToString(), what="step.onnx")
    holder.doc_string = "x" * (onnx_file.NOTES_BYTES_MAX // 2)
    refused(made, "clear metadata_props, doc_string and producer_name")


@pytest.mark.parametrize(
    ("place", "field"),
    [
        ("model", "producer_name"),
        ("model", "producer_version"),
        ("model", "domain"),
        ("graph", "name"),
        ("input", "doc_string"),
        ("output", "doc_string"),
        ("value", "doc_string"),
    ],
)
def test_what_nobody_reads_is_counted_as_notes(place, field):
    """Room for bytes of another format that nothing looks at."""
    made = model()
    graph = made.graph
    graph.value_info.add(name="g")
    holders = {"model": made, "graph": graph, "input": graph.input[0], "output": graph.output[0]}
    setattr(holders.get(place, graph.value_info[0]), field, "x" * (onnx_file.NOTES_BYTES_MAX + 1))
    refused(made, f"more than {onnx_file.NOTES_BYTES_MAX} bytes of notes")


def test_a_file_that_onnxruntime_would_take_for_its_own_format_is_refused():
    polyglot = number(1, 10) + head(2, 4) + b"ORTM" + BARE
    assert onnx.load_model_from_string(polyglot).graph.name == "net"
    refused(polyglot, r"onnxruntime's own format \(ORT\); give it as ONNX")


def test_lengths_that_no_writer_makes_are_refused():
    refused(BARE + b"\x92\x00" + b"\x01a", "18 is written in 2 bytes, more than it needs")
    refused(BARE + b"\x12\x81\x00a", "1 is written in 2 bytes, more than it needs")


def test_a_file_of_nothing_but_fields_is_not_looked_at_for_long():
    graph = head(1, 2 * onnx_file.FIELDS_MAX) + b"\x0a\x00" * onnx_file.FIELDS_MAX
    assert onnx_file.FIELDS_MAX <= 1 << 19
    refused(BARE + head(7, len(graph)) + graph, f"more than {onnx_file.FIELDS_MAX} fields")


def test_a_field_that_is_not_known_is_refused():
    refused(BARE + number(99, 1), "field 99 that is not understood")
    refused(BARE + number(7, 1), "field 7 that is not understood")  # no graph is a number


@pytest.mark.parametrize("data", [b"", b"\x08\x0a", b"PK\x03\x04", BARE[:-3], b"\xff" * 40])
def test_what_is_no_onnx_is_refused(data):
    refused(data, r"no ONNX|not understood")


@LEAN
@given(data=st.binary(max_size=200))
def test_whatever_the_bytes_are_they_are_refused_not_crashed_at(data):
    with pytest.raises(ValueError):  # noqa: PT011 - that it is one is all that is asked
        check_graph(data, what="step.onnx")


@LEAN
@given(place=st.integers(0, len(BARE) - 1), byte=st.integers(0, 255))
def test_an_altered_byte_passes_or_is_refused(place, byte):
    altered = bytearray(BARE)
    altered[place] = byte
    try:
        check_graph(bytes(altered), what="step.onnx")
    except ValueError as exc:
        assert str(exc).startswith("step.onnx: ")  # noqa: PT017 - most bytes are names, and pass
