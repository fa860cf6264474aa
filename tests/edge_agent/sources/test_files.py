import logging
import sys
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import msgspec
import numpy as np
import onnx_bundles
import pytest

from edge_agent.sources import Fit, Samples, check_data, load, split
from edge_agent.sources.csv_file import LINE_MAX
from schemas.errors import ConfigError
from schemas.inputs import InputOptions

TABLE = """time,temp,flow,fault
2026-01-01,1.5,2,0
2026-01-02,2.5,3,1

2026-01-03,3.5,4,2
"""


def fit(shape: tuple[int, ...] = (2,), **given: Any) -> Fit:
    return Fit(onnx_bundles.softmax_bundle(shape).manifest, InputOptions(**given))


def of(where: Path, text: str, wanted: Fit | None = None, name: str = "pump.csv") -> Samples:
    file = where / name
    file.write_text(text)
    return load(str(file), wanted or fit(label="fault"), where / "scale.json")


def test_numeric_columns_but_the_label_are_features_in_the_files_order(tmp_path: Path) -> None:
    found = of(tmp_path, TABLE)
    assert found.x.tolist() == [[1.5, 2], [2.5, 3], [3.5, 4]]
    assert found.y.tolist() == [0, 1, 2]
    assert (found.x.dtype, found.y.dtype) == (np.float32, np.int64)


def test_the_tasks_features_have_the_tasks_order(tmp_path: Path) -> None:
    found = of(tmp_path, TABLE, fit(label="fault", features=("flow", "temp")))
    assert found.x.tolist() == [[2, 1.5], [3, 2.5], [4, 3.5]]


@pytest.mark.parametrize("delimiter", [";", "\t"])
def test_a_semicolon_or_a_tab_may_part_the_cells(tmp_path: Path, delimiter: str) -> None:
    assert len(of(tmp_path, "\ufeff" + TABLE.replace(",", delimiter))) == 3


def test_many_rows_come_in_their_order(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n % 3}\n" for n in range(10_000))
    found = of(tmp_path, "a,fault\n" + rows, fit((1,), label="fault"))
    assert found.x[:, 0].tolist() == list(range(10_000))


def test_blank_lines_may_lie_anywhere_below_the_header(tmp_path: Path) -> None:
    head, *rows = TABLE.splitlines()
    assert len(of(tmp_path, "\n".join([head, "", "  ", *rows, "", ""]))) == 3
    with pytest.raises(ValueError, match=r"line 5, column 'temp': 'warm'"):
        of(tmp_path, "\n".join([head, "", "  ", rows[0], "now,warm,1,2"]))


def test_a_delimiter_that_ends_every_line_makes_no_column(tmp_path: Path) -> None:
    found = of(tmp_path, "\n".join(f"{line}," for line in TABLE.splitlines() if line))
    assert found.x.tolist() == [[1.5, 2], [2.5, 3], [3.5, 4]]


def whole(given: InputOptions) -> Fit:
    """The ports of a model that takes two whole numbers."""
    manifest = onnx_bundles.softmax_bundle((2,)).manifest
    port = msgspec.structs.replace(manifest.x, dtype="int64")
    return Fit(msgspec.structs.replace(manifest, x=port), given)


LARGE = 2**60 + 1


def test_whole_numbers_keep_all_their_digits(tmp_path: Path) -> None:
    asked = whole(InputOptions(label="fault"))
    found = of(tmp_path, f"a,b,fault\n{LARGE},-{LARGE},0\n16777217,1e3,1\n", asked)
    assert found.x.tolist() == [[LARGE, -LARGE], [16777217, 1000]]
    assert found.x.dtype == np.int64
    for bad in ("1.5", str(2**63), "-1e300"):
        with pytest.raises(ValueError, match=r"line 2, column 'b': .* is no whole number of int64"):
            of(tmp_path, f"a,b,fault\n1,{bad},0\n", asked)


BAD = {
    "an empty cell": (TABLE.replace("3.5", ""), r"pump\.csv line 5, column 'temp': '' is no fin"),
    "text": (TABLE.replace("3.5", "warm"), r"line 5, column 'temp': 'warm' is no finite number"),
    "infinity": (TABLE.replace("3.5", "inf"), r"line 5, column 'temp': 'inf' is no finite number"),
    "a short row": (TABLE.replace(",3,1", ",3"), r"line 3: has 3 cells, the header 4"),
    "no rows": ("time,temp,flow,fault\n", r"needs a header and at least one row"),
    "nothing": ("", r"needs a header"),
    "no label": (TABLE.replace("fault", "broken"), r"no column 'fault'; there are 'time', 'temp'"),
    "two labels": (TABLE.replace("time", "fault"), r"two columns 'fault'"),
    "a half class": (TABLE.replace("3,1", "3,0.5"), r"line 3, column 'fault': label 0\.5, but"),
    "a class too many": (
        TABLE.replace("3,1", "3,7"),
        r"pump\.csv line 3, column 'fault': label 7, but the model has 3 classes, counted from 0",
    ),
    "a class below 0": (TABLE.replace("4,2", "4,-1"), r"line 5, column 'fault': label -1, but"),
    "an empty cell in the first row": (
        TABLE.replace("1.5", " "),
        r"line 2, column 'temp': ' ' is no finite number.*leave the column out of \[input\] feat",
    ),
    "an empty label in the first row": (
        TABLE.replace("2,0", "2,"),
        r"line 2, column 'fault': '' is no finite number",
    ),
    "a short first row": (TABLE.replace("1.5,2,0", "1.5"), r"line 2: has 2 cells, the header 4"),
    "Python's own way to write": (
        TABLE.replace("1.5", "1_5"),
        r"line 2, column 'temp': '1_5' is no finite number",
    ),
    "beyond float32": (TABLE.replace("3.5", "1e39"), r"line 5, column 'temp': '1e39' is no fin"),
    "a line without end": ("a,fault\n" + "1" * LINE_MAX, r"line 2: is longer"),
    "no UTF-8": ("a,\udcff\n", r"UTF-8"),
    "a quote that never ends": ('a,fault\n1,"' + "x" * 200_000, r"is it a CSV"),
}


@pytest.mark.parametrize(("text", "complaint"), BAD.values(), ids=BAD)
def test_what_cannot_be_read_is_told_by_line_and_column(
    tmp_path: Path, text: str, complaint: str
) -> None:
    file = tmp_path / "pump.csv"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ValueError, match=complaint):
        load(str(file), fit(label="fault"), tmp_path / "scale.json")


def test_what_does_not_fit_the_model_is_told_with_both_shapes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"shape \[2\].*'x' takes \[3\]"):
        of(tmp_path, TABLE, fit((3,), label="fault"))


def test_without_a_label_the_device_is_asked_for_one(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="label: must be named: --label COLUMN"):
        of(tmp_path, TABLE, fit((3,)))
    with pytest.raises(ValueError, match="give an array y"):
        load(npz(tmp_path, x=np.zeros((1, 2))), fit(), tmp_path / "s")


def test_a_sample_may_be_its_own_label(tmp_path: Path) -> None:
    line = onnx_bundles.line_bundle(1).manifest
    found = of(tmp_path, "a\n1\n2\n", Fit(line, InputOptions()))
    assert found.y.tolist() == found.x.tolist() == [[1], [2]]


def test_rows_are_cut_into_windows_and_the_label_may_lie_ahead(tmp_path: Path) -> None:
    rows = "".join(f"{n},{n % 3}\n" for n in range(8))
    ahead = fit((3,), features=("a",), label="fault", window=3, stride=2, horizon=1)
    found = of(tmp_path, "a,fault\n" + rows, ahead)
    assert found.x.tolist() == [[0, 1, 2], [2, 3, 4], [4, 5, 6]]
    assert found.y.tolist() == [3 % 3, 5 % 3, 7 % 3]


def test_a_window_is_turned_for_a_model_whose_channels_come_first(tmp_path: Path) -> None:
    rows = "".join(f"{n},{10 * n},0\n" for n in range(3))
    found = of(tmp_path, "a,b,fault\n" + rows, fit((2, 3), label="fault", window=3))
    assert found.x.tolist() == [[[0, 1, 2], [0, 10, 20]]]


SQUARE = "a,b,fault\n1,10,0\n2,20,0\n"


@pytest.mark.parametrize(
    ("layout", "given"),
    [("window-first", [[1, 10], [2, 20]]), ("features-first", [[1, 2], [10, 20]])],
)
def test_a_square_window_is_laid_as_the_task_says(
    tmp_path: Path, layout: str, given: list[list[int]]
) -> None:
    asked = fit((2, 2), label="fault", window=2, layout=layout)
    assert of(tmp_path, SQUARE, asked).x[0].tolist() == given


def test_a_square_window_is_refused_where_the_task_does_not_say(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"2 readings of 2 features.*say \[input\] layout = "):
        of(tmp_path, SQUARE, fit((2, 2), label="fault", window=2))
    flat = of(tmp_path, SQUARE, fit((4,), label="fault", window=2))
    assert flat.x.tolist() == [[1, 10, 2, 20]]


def test_a_layout_that_the_model_has_not_is_refused(tmp_path: Path) -> None:
    rows = "a,b,fault\n" + "1,2,0\n" * 3
    for layout, shape in (("window-first", (2, 3)), ("features-first", (3, 2))):
        asked = fit(shape, label="fault", window=3, layout=layout)
        with pytest.raises(ValueError, match=r"\[input\] features, window and layout"):
            of(tmp_path, rows, asked)


def test_windows_beyond_the_bound_are_never_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.sources.files.BYTES_MAX", 8 * 2 * 4 - 1)
    rows = "a,fault\n" + "1,0\n" * 9
    with pytest.raises(ValueError, match="8 windows take 64 bytes, more than 63: choose a larger"):
        of(tmp_path, rows, fit((2,), label="fault", window=2))
    assert len(of(tmp_path, rows, fit((2,), label="fault", window=2, stride=2))) == 4


# -- npz, functions, Parquet ---------------------------------------------------------------------


def npz(where: Path, **arrays: Any) -> str:
    file = where / "pump.npz"
    np.savez(file, **arrays)
    return str(file)


def test_an_npz_has_x_and_y_of_any_shape_that_fits(tmp_path: Path) -> None:
    x = np.arange(12).reshape(3, 4)
    found = load(npz(tmp_path, x=x, y=[0, 1, 2]), fit((1, 2, 2)), tmp_path / "s")
    assert found.x.shape == (3, 1, 2, 2)
    assert found.x.reshape(3, 4).tolist() == x.tolist()


ARRAYS: dict[str, tuple[dict[str, Any], str]] = {
    "no x": ({"y": [0]}, "no array 'x'"),
    "axes that would be mistaken": ({"x": np.zeros((3, 2, 3)), "y": [0, 1, 2]}, r"\[2, 3\]"),
    "another number of labels": ({"x": np.zeros((3, 6)), "y": [0, 1]}, "3 samples but 2 labels"),
    "NaN": ({"x": np.full((1, 6), np.nan), "y": [0]}, "NaN"),
    "beyond float32": ({"x": np.full((1, 6), 1e300), "y": [0]}, "beyond float32"),
    "text": ({"x": np.full((1, 6), "a"), "y": [0]}, "numbers are needed"),
    "objects": ({"x": np.array([[None] * 6]), "y": [0]}, "plain arrays"),
    "nothing": ({"x": np.zeros((0, 6)), "y": []}, "no samples"),
    "one number for x": ({"x": np.float32(3), "y": [0]}, r"x is a single number.*numpy\.savez"),
    "one number for y": ({"x": np.zeros((3, 6)), "y": 1}, r"y is a single number.*numpy\.savez"),
    "a class too many": (
        {"x": np.zeros((3, 6)), "y": [0, 3, 2]},
        r"pump\.npz: label 3 at index 1, but the model has 3 classes, counted from 0",
    ),
    "a half class": ({"x": np.zeros((2, 6)), "y": [0, 0.5]}, "int64, not 0.5 at index 1"),
}


@pytest.mark.parametrize(("arrays", "complaint"), ARRAYS.values(), ids=ARRAYS)
def test_arrays_that_do_not_fit_are_refused(
    tmp_path: Path, arrays: dict[str, Any], complaint: str
) -> None:
    with pytest.raises(ValueError, match=complaint):
        load(npz(tmp_path, **arrays), fit((3, 1, 2)), tmp_path / "s")


@pytest.mark.parametrize("garbage", [b"", b"garbage", b"PK\x03\x04 damaged"], ids=str)
def test_a_damaged_npz_is_a_sentence(tmp_path: Path, garbage: bytes) -> None:
    (tmp_path / "pump.npz").write_bytes(garbage)
    with pytest.raises(ValueError, match=r"numpy\.savez"):
        load(str(tmp_path / "pump.npz"), fit(), tmp_path / "s")


def _marked(raw: bytes, local: int, central: int, value: int) -> bytes:
    """The archive with a byte of every header of its members changed."""
    changed = bytearray(raw)
    for magic, offset in ((b"PK\x03\x04", local), (b"PK\x01\x02", central)):
        at = raw.find(magic)
        while at >= 0:
            changed[at + offset] = value
            at = raw.find(magic, at + 4)
    return bytes(changed)


def test_an_encrypted_or_strangely_compressed_npz_is_a_sentence(tmp_path: Path) -> None:
    file = Path(npz(tmp_path, x=np.zeros((2, 2)), y=[0, 1]))
    plain = file.read_bytes()
    damaged = {
        "encrypted": _marked(plain, 6, 8, 1),
        "compression method": _marked(plain, 8, 10, 99),
        "plain arrays": _marked(plain, 8, 10, 14),  # LZMA, but it is none
    }
    for complaint, raw in damaged.items():
        file.write_bytes(raw)
        with pytest.raises(ValueError, match=rf"pump\.npz.*{complaint}.*numpy\.savez"):
            load(str(file), fit(), tmp_path / "s")


def test_a_header_that_promises_too_much_is_a_sentence(tmp_path: Path) -> None:
    file = tmp_path / "pump.npz"
    head = b"{'descr': '<f4', 'fortran_order': False, 'shape': (%d, 2)}" % (1 << 58)
    with ZipFile(file, "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + len(head).to_bytes(2, "little") + head)
    with pytest.raises(ValueError, match=r"pump\.npz: not an \.npz"):
        load(str(file), fit(), tmp_path / "s")


def good() -> tuple[Any, Any]:
    return [[1, 2], [3, 4]], [0, 1]


def bad() -> int:
    return 7


def failing() -> None:
    raise OSError("the sensor is gone")


def ragged() -> tuple[Any, Any]:
    return [[1, 2], [3]], [0, 1]


def single() -> tuple[Any, Any]:
    return 7, [0]


def greedy() -> tuple[Any, Any]:
    raise MemoryError


class Greedy:
    def __array__(self, *_: object, **__: object) -> None:
        raise MemoryError


def greedy_array() -> tuple[Any, Any]:
    return Greedy(), None


HERE = "test_files_functions"


@pytest.fixture
def functions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, HERE, sys.modules[__name__])


@pytest.mark.usefixtures("functions")
def test_a_function_gives_x_and_y(tmp_path: Path) -> None:
    assert load(f"{HERE}:good", fit(), tmp_path / "s").y.tolist() == [0, 1]
    with pytest.raises(ValueError, match=r"must return \(x, y\)"):
        load(f"{HERE}:bad", fit(), tmp_path / "s")
    with pytest.raises(ValueError, match="has failed: OSError: the sensor is gone"):
        load(f"{HERE}:failing", fit(), tmp_path / "s")
    for name in ("ragged", "single", "greedy_array"):
        with pytest.raises(ValueError, match=rf"{name} must return two arrays: \w+"):
            load(f"{HERE}:{name}", fit(), tmp_path / "s")
    with pytest.raises(ValueError, match="greedy has failed: MemoryError"):
        load(f"{HERE}:greedy", fit(), tmp_path / "s")
    with pytest.raises(ConfigError, match="data"):
        load(f"{HERE}:nothing", fit(), tmp_path / "s")


def test_a_folder_of_parquet_is_read_in_the_order_of_its_names(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra [parquet]")
    from pyarrow import parquet

    for number in (1, 0):
        table = pa.table(
            {"when": ["a", "b"], "temp": [number, 9], "flow": [0.5, 1], "fault": [1, 2]}
        )
        parquet.write_table(table, tmp_path / f"part-{number}.parquet")
    found = load(str(tmp_path), fit(label="fault"), tmp_path / "s")
    assert found.x.tolist() == [[0, 0.5], [9, 1], [1, 0.5], [9, 1]]
    assert found.y.tolist() == [1, 2, 1, 2]
    with pytest.raises(ValueError, match="'when' holds no numbers"):
        load(str(tmp_path), fit(label="fault", features=("when", "flow")), tmp_path / "s")
    holes = pa.table({"temp": [1.0, None], "flow": [1.0, 2.0], "fault": [0, 0]})
    parquet.write_table(holes, tmp_path / "part-2.parquet")
    with pytest.raises(ValueError, match=r"part-2\.parquet: column 'temp' has 1 empty cells"):
        load(str(tmp_path), fit(label="fault"), tmp_path / "s")


def test_no_window_spans_the_files_of_a_folder(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow", reason="needs the extra [parquet]")
    from pyarrow import parquet

    for number, rows in enumerate((3, 1, 4)):
        first = 10 * number
        table = pa.table(
            {"a": [first + n for n in range(rows)], "fault": [n % 3 for n in range(rows)]}
        )
        parquet.write_table(table, tmp_path / f"pump-{number}.PARQUET")
    found = load(str(tmp_path), fit((2,), features=("a",), label="fault", window=2), tmp_path / "s")
    assert found.x.tolist() == [[0, 1], [1, 2], [20, 21], [21, 22], [22, 23]]
    assert found.y.tolist() == [1, 2, 1, 2, 0]


def test_parquet_keeps_whole_numbers_and_names_the_place_of_a_bad_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edge_agent.sources.parquet_files._ROWS", 1)
    pa = pytest.importorskip("pyarrow", reason="needs the extra [parquet]")
    from pyarrow import parquet

    def table(**columns: list[float]) -> str:
        parquet.write_table(pa.table(columns), tmp_path / "p.parquet")
        return str(tmp_path / "p.parquet")

    asked = whole(InputOptions(label="fault"))
    found = load(table(a=[LARGE, 16777217], b=[1.0, 2.0], fault=[0, 1]), asked, tmp_path / "s")
    assert found.x.tolist() == [[LARGE, 1], [16777217, 2]]
    with pytest.raises(ValueError, match="column 'b' holds more than whole numbers of int64"):
        load(table(a=[1], b=[0.5], fault=[0]), asked, tmp_path / "s")
    told = r"p\.parquet, column 'fault': label 7 at index 1, but the model has 3 classes"
    with pytest.raises(ValueError, match=told):
        load(table(a=[1, 2], b=[1, 2], fault=[0, 7]), asked, tmp_path / "s")


def test_parquet_without_pyarrow_names_the_extra(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    (tmp_path / "pump.parquet").write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=r"fedmq\[parquet\]"):
        load(str(tmp_path / "pump.parquet"), fit(label="fault"), tmp_path / "s")


def test_garbage_for_parquet_is_a_sentence(tmp_path: Path) -> None:
    pytest.importorskip("pyarrow", reason="needs the extra [parquet]")
    (tmp_path / "pump.parquet").write_bytes(b"garbage")
    with pytest.raises(ValueError, match="cannot be read as Parquet"):
        load(str(tmp_path / "pump.parquet"), fit(label="fault"), tmp_path / "s")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match=r"no \*\.parquet"):
        load(str(tmp_path / "empty"), fit(label="fault"), tmp_path / "s")


@pytest.mark.parametrize(
    "what",
    [
        "nowhere.csv",
        "nowhere.npz",
        "pumps",
        "nowhere.parquet",
        "nowhere.CSV",
        r"C:\data\pump.csv",
        r"C:\data\pump.CSV",
        r"C:\data\pumps",
        "d:/data/pumps",
    ],
)
def test_what_can_never_be_read_is_refused_at_once(what: str) -> None:
    with pytest.raises(ConfigError, match=r"data: .*(does not exist|not understood); name FILE"):
        check_data(what)


@pytest.mark.parametrize("name", ["PUMP.CSV", "Pump.Csv"])
def test_a_suffix_may_be_in_upper_case(tmp_path: Path, name: str) -> None:
    assert len(of(tmp_path, TABLE, name=name)) == 3


# -- scales --------------------------------------------------------------------------------------


def test_a_device_scales_by_its_own_data_and_stays_with_it(tmp_path: Path) -> None:
    asked = fit(label="fault", normalise="device")
    found = of(tmp_path, TABLE, asked)
    assert found.x.mean(axis=0) == pytest.approx([0, 0], abs=1e-6)
    assert found.x.std(axis=0) == pytest.approx([1, 1])
    again = of(tmp_path, TABLE.replace("3.5", "100"), asked)
    assert again.x[:2] == pytest.approx(found.x[:2])


def test_a_damaged_or_foreign_scale_is_measured_anew(tmp_path: Path) -> None:
    asked = fit(label="fault", normalise="device")
    for kept in ("garbage", '{"features": ["a"], "mean": [0, 0], "std": [1, 1]}', "[]"):
        (tmp_path / "scale.json").write_text(kept)
        assert of(tmp_path, TABLE, asked).x.std(axis=0) == pytest.approx([1, 1])


def test_a_scale_is_never_that_of_other_data(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING, "fedmq.agent")
    asked = fit((3,), normalise="device")
    some = np.arange(12, dtype=np.float32).reshape(4, 3)

    def scaled(name: str, x: Any, wanted: Fit = asked) -> Samples:
        (tmp_path / name).mkdir(exist_ok=True)
        return load(npz(tmp_path / name, x=x, y=[0] * len(x)), wanted, tmp_path / "scale.json")

    first = scaled("a", some)
    assert scaled("a", some + 7).x[0] == pytest.approx(first.x[0] + 7 / some[:, 0].std())
    assert not caplog.messages
    shaped = some.reshape(4, 3, 1)
    for place, other in (("b", 5000 + some), ("b", 5000.0 + some.astype("f8")), ("b", shaped)):
        caplog.clear()
        assert scaled(place, other).x.mean() == pytest.approx(0, abs=1e-5)
        assert any("scale_measured_anew" in line for line in caplog.messages)


def test_no_scale_is_measured_on_one_sample(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"scale\.json has no scale of it, and one sample"):
        of(tmp_path, "a,b,fault\n1,2,0\n", fit(label="fault", normalise="device"))
    assert not (tmp_path / "scale.json").exists()


def test_the_task_may_fix_the_scale(tmp_path: Path) -> None:
    asked = fit(label="fault", normalise="task", mean=(1.5, 0), std=(2, 1))
    assert of(tmp_path, TABLE, asked).x[1].tolist() == [0.5, 3]
    assert not (tmp_path / "scale.json").exists()
    with pytest.raises(ValueError, match="2 features, but a mean and std of 3"):
        of(tmp_path, TABLE, fit(label="fault", normalise="task", mean=(0,) * 3, std=(1,) * 3))


def test_a_feature_that_never_changes_is_not_blown_up(tmp_path: Path) -> None:
    still = "a,b,fault\n" + "7,1,0\n7,2,1\n"
    found = of(tmp_path, still, fit(label="fault", normalise="device"))
    assert found.x[:, 0].tolist() == [0, 0]


# -- hold-out ------------------------------------------------------------------------------------


def test_a_sample_stays_on_its_side_whatever_comes_after_it() -> None:
    numbers = np.arange(100)
    _, early = split(Samples(numbers[:50], numbers[:50]), 0.1)
    _, late = split(Samples(numbers[20:], numbers[20:], first=20), 0.1)
    assert set(early.x[early.x >= 20]) == set(late.x[late.x < 50]) == {29, 39, 49}
