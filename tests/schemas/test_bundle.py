from hashlib import sha256

import bundling
import msgspec
import pytest
from bundling import INFER, STEP
from hypothesis import given
from hypothesis import strategies as st
from laws import LEAN
from onnx import helper

from schemas import bundle
from schemas.bundle import (
    BundleRef,
    Port,
    pack_bundle,
    read_bundle,
    ref_of,
)
from schemas.params import ParamSpec, TensorSpec

PARAMS = ParamSpec((TensorSpec("w", (2, 3)), TensorSpec("m", (3,), "buffer")))


def manifest(step=STEP, infer=INFER, **others):
    return bundling.manifest(PARAMS, step, infer, **others)


PACKED = pack_bundle(manifest(), STEP, INFER)


def test_what_is_packed_is_read():
    found = read_bundle(PACKED)
    assert (found.manifest, found.step, found.infer) == (manifest(), STEP, INFER)
    assert found.digest == sha256(PACKED).hexdigest()


def test_the_same_bundle_is_packed_into_the_same_bytes():
    assert pack_bundle(manifest(), STEP, INFER) == PACKED


def test_the_form_of_the_file_stands():
    """Devices of another version read it: change the schema before this."""
    parts = msgspec.msgpack.decode(PACKED)
    assert list(parts) == ["manifest", "step", "infer"]
    assert msgspec.json.decode(parts["manifest"])["params"]["tensors"] == [
        {"name": "w", "shape": [2, 3]},
        {"name": "m", "shape": [3], "kind": "buffer"},
    ]


def test_a_reference_names_the_packed_file():
    ref = ref_of(PACKED, 1024)
    assert ref == BundleRef(sha256(PACKED).hexdigest(), len(PACKED), 1024)
    assert ref.blob == "b" + ref.digest[:16]


@pytest.mark.parametrize(("step", "infer"), [(INFER, INFER), (STEP, STEP), (STEP, INFER + b"\0")])
def test_graphs_that_the_manifest_does_not_tell_of_are_not_packed(step, infer):
    with pytest.raises(ValueError, match="is not the file that the manifest tells of"):
        pack_bundle(manifest(), step, infer)


def test_a_graph_that_was_altered_is_refused_by_name():
    altered = PACKED.replace(INFER, INFER.replace(b"Relu", b"Selu"))
    with pytest.raises(ValueError, match=r"infer\.onnx is not the file"):
        read_bundle(altered)


@pytest.mark.parametrize("which", ["step", "infer"])
def test_a_graph_that_is_not_to_be_loaded_is_refused_by_name(which):
    bad = helper.make_model(helper.make_graph([], "g", [], []), ir_version=10)
    bad.opset_import[0].domain = "com.microsoft"
    graphs = {"step": STEP, "infer": INFER} | {which: bad.SerializeToString()}
    packed = pack_bundle(manifest(**graphs), **graphs)
    with pytest.raises(ValueError, match=rf"{which}\.onnx: the file imports operators"):
        read_bundle(packed)


def test_a_bundle_above_the_bound_is_neither_packed_nor_read(monkeypatch):
    monkeypatch.setattr(bundle, "BUNDLE_BYTES_MAX", len(PACKED) - 1)
    for act in (
        lambda: pack_bundle(manifest(), STEP, INFER),
        lambda: read_bundle(PACKED),
        lambda: ref_of(PACKED, 64),
    ):
        with pytest.raises(ValueError, match=f"a bundle of {len(PACKED)} bytes"):
            act()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        PACKED[:-1],
        PACKED + b"\0",
        msgspec.msgpack.encode({"manifest": b"{}", "step": b"", "infer": b""}),
        msgspec.msgpack.encode([b"{}", b"", b""]),
        b"\x83\xa8manifest\xc6\xff\xff\xff\xff",
        b"\x81" * 5000,
    ],
)
def test_what_is_no_bundle_is_refused(data):
    with pytest.raises(ValueError, match="bundle"):
        read_bundle(data)


@LEAN
@given(data=st.binary(max_size=100), place=st.integers(0, len(PACKED) - 1))
def test_whatever_the_bytes_are_they_are_refused_or_read(data, place):
    for each in (data, PACKED[:place] + data + PACKED[place + len(data) :]):
        try:
            found = read_bundle(each)
        except ValueError:
            continue
        assert found.manifest.step_sha256 == sha256(found.step).hexdigest()


# -- the manifest ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("others", "why"),
    [
        ({"schema": 2}, "schema 2; this fedmq reads 1"),
        ({"opset": 21}, "opset 21 with IR 10 is not read"),
        ({"ir": 11}, "opset 18 with IR 11 is not read"),
        ({"loss": "cross-entropy"}, r"needs a float32 output and a int64 label of shape \(\)"),
        ({"label": Port("label", "float32", (2,))}, r"a float32 label of shape \(3,\)"),
        ({"label": Port("label", "int64", (3,))}, "a float32 label"),
        ({"output": Port("y", "int64", (3,))}, "a float32 output"),
        *(
            (
                {
                    "loss": loss,
                    "label": Port("label", "int64"),
                    "output": Port("y", "float32", shape),
                },
                f"{loss} needs an output of one axis with 2 classes or more",
            )
            for loss in ("cross-entropy", "nll")
            for shape in ((), (1,), (3, 4))
        ),
    ],
)
def test_a_manifest_that_cannot_be_is_refused(others, why):
    with pytest.raises(ValueError, match=why):
        manifest(**others)


@pytest.mark.parametrize("loss", ["cross-entropy", "nll"])
def test_labels_of_classes_are_whole_numbers_without_a_shape(loss):
    assert manifest(loss=loss, label=Port("label", "int64")).loss == loss


def test_an_example_of_too_many_elements_is_refused():
    with pytest.raises(ValueError, match="elements an example, more than"):
        Port("x", "float32", (1 << 13, 1 << 12))
