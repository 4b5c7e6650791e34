"""The YAML suites and how tasks are found in them."""

import pytest

from mmssl.envs.suites import Camera, expand_tasks, find_task, list_suites, list_tasks, load_suite
from mmssl.errors import MmsslError


def test_every_task_of_every_suite_reads():
    assert {"metaworld", "dmc", "gym", "robotics"} <= set(list_suites())
    tasks = [find_task(name) for name in list_tasks()]
    assert len(tasks) == len({t.full_name for t in tasks}) >= 99
    for task in tasks:
        assert task.instruction and task.horizon > 0 and task.action_repeat > 0, task


def test_metaworld_names_match_the_package():
    policies = pytest.importorskip("metaworld.policies").ENV_POLICY_MAP
    assert {find_task(t).id for t in list_tasks("metaworld")} == set(policies)


def test_task_overrides_its_suite():
    push = find_task("robotics/FetchPush-v4")
    assert push.horizon == 50 and load_suite("robotics").horizon == 200
    assert push.cameras["scene"].distance == 2.5
    assert find_task("metaworld/drawer-open").id == "drawer-open-v3"


def test_a_line_adds_a_task(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("family: gymnasium\nhorizon: 7\ntasks:\n  Ant-v5: walk\n  Ant-v4: {horizon: 3}\n")
    assert find_task(f"{path}/Ant-v5").horizon == 7
    other = find_task(f"{path}/Ant-v4")
    assert (other.horizon, other.instruction, other.full_name) == (3, "Ant v4", "mine/Ant-v4")


def test_unknown_key_in_a_suite(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text("family: gymnasium\nhorizn: 7\ntasks: {Ant-v5: walk}\n")
    with pytest.raises(MmsslError, match=r"bad\.yaml.*'horizn'.*'horizon'"):
        find_task(f"{path}/Ant-v5")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("metaworld/draw-open", "did you mean 'drawer-open'.*window-open"),
        ("metawrld/drawer-open", "did you mean 'metaworld'"),
        ("drawer-open", "SUITE/TASK.*metaworld"),
    ],
)
def test_unknown_names(name, words):
    with pytest.raises(MmsslError, match=words):
        find_task(name)


def test_patterns():
    assert len(expand_tasks(("metaworld/*",))) == 50
    assert [t.name for t in expand_tasks(("metaworld/door-*", "metaworld/door-open"))] == [
        "door-close",
        "door-lock",
        "door-open",
        "door-unlock",
    ]
    with pytest.raises(MmsslError, match="drawer-open"):
        expand_tasks(("metaworld/nothing*",))


def test_view_needs_a_distance():
    with pytest.raises(MmsslError, match="distance"):
        Camera(lookat=(0.0, 0.0, 0.0))
