"""Normalised scores, and the references they stand on."""

import pytest

from mmssl.envs.scores import normalized_score
from mmssl.envs.suites import Reference, find_task, list_tasks
from mmssl.errors import MmsslError

CHEETAH = "gym/HalfCheetah-v5"


def test_the_references_are_the_ends_of_the_scale():
    reference = find_task(CHEETAH).reference
    assert normalized_score(CHEETAH, reference.random) == 0
    assert normalized_score(find_task(CHEETAH), reference.expert) == pytest.approx(100)


def test_every_reference_of_ours_is_in_order():
    measured = [task for task in map(find_task, list_tasks()) if task.reference]
    assert {CHEETAH, "gym/Pendulum-v1"} <= {t.full_name for t in measured}
    assert all(t.reference.expert > t.reference.random for t in measured)


def test_a_task_without_references_says_so():
    with pytest.raises(MmsslError, match=r"gym/Ant-v5 has no reference scores.*reference_scores\.py"):
        normalized_score("gym/Ant-v5", 1.0)


def test_a_reference_that_cannot_be():
    with pytest.raises(MmsslError, match=r"must be above the random one, got 1\.0 and 2\.0"):
        Reference(random=2.0, expert=1.0)


def test_a_reference_of_no_task(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("family: gymnasium\ntasks: {Ant-v5: walk}\nreferences: {Ant-v4: {random: 0.0, expert: 1.0}}\n")
    with pytest.raises(MmsslError, match=r"'Ant-v4'.*'Ant-v5'"):
        find_task(f"{path}/Ant-v5")
