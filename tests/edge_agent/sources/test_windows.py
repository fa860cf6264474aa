import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from edge_agent.sources.windows import Windower, windowed
from schemas.inputs import InputOptions


@given(st.integers(0, 30), st.integers(1, 6), st.integers(1, 8), st.integers(0, 4))
def test_a_stream_gives_the_windows_of_a_table(
    n: int, window: int, stride: int, ahead: int
) -> None:
    how = InputOptions(window=window, stride=stride, horizon=ahead)
    x = np.arange(2 * n, dtype=np.float32).reshape(n, 2)
    cut, labels = windowed(x, np.arange(n), how)
    assert labels is not None
    windower, found, told = Windower(how), [], []
    for number, row in enumerate(x):
        sample = windower.push(row.tolist())
        if sample is not None:
            found.append(sample)
            told.append(number)
    assert told == labels.tolist()
    assert np.array(found).reshape(-1, window, 2).tolist() == cut.reshape(-1, window, 2).tolist()


def test_no_window_spans_a_gap() -> None:
    windower = Windower(InputOptions(window=2))
    assert windower.push([1.0]) is None
    windower.cut()
    assert windower.push([2.0]) is None
    found = windower.push([3.0])
    assert found is not None
    assert found.tolist() == [[2], [3]]
