import pytest

from fedmq.simulator.virtual.plots import draw, lorenz, refuse_folder
from schemas.errors import ConfigError
from tests.fedmq.simulator.virtual.runs import run_of


def test_pictures_are_drawn(tmp_path):
    pytest.importorskip("matplotlib")
    drawn = draw(tmp_path / "plots", [run_of("a"), run_of("b", reached=False)])
    assert all(path.stat().st_size > 5_000 for path in drawn)


def test_a_folder_that_cannot_be_is_refused_by_its_name(tmp_path):
    (tmp_path / "file").write_text("")
    (tmp_path / "cost.png").mkdir()
    for folder in (tmp_path / "file" / "plots", tmp_path / "file", tmp_path):
        with pytest.raises(ConfigError, match="another") as refused:
            refuse_folder(folder)
        assert refused.value.field == "plots"
    refuse_folder(tmp_path / "new" / "plots")
    assert list((tmp_path / "new" / "plots").iterdir()) == []


def test_lorenz_begins_at_nothing_and_ends_at_all():
    devices, weight = lorenz([1.0, 3.0])
    assert devices == [0.0, 0.5, 1.0]
    assert weight == [0.0, 0.25, 1.0]
