from schemas.keys import TaskKeys


def _all_keys(task: str) -> list[str]:
    keys = TaskKeys(task)
    names = [name for name, value in vars(TaskKeys).items() if isinstance(value, property)]
    return [getattr(keys, name) for name in names if name != "all"] + [keys.blob("k1-7")]


def test_all_keys_of_a_task_share_its_hash_tag():
    assert all(key.startswith("fedmq:{digits}:") for key in _all_keys("digits"))


def test_no_two_things_share_a_key():
    keys = _all_keys("digits")
    assert len(keys) == len(set(keys)) > 10


def test_a_task_that_is_deleted_names_every_key():
    assert sorted([*TaskKeys("digits").all, TaskKeys("digits").blob("k1-7")]) == sorted(
        _all_keys("digits")
    )
