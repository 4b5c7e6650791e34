"""Returns on a common scale: 0 is what random actions get, 100 what the task's expert gets (D4RL, Fu et al. 2020).

The references stand in the suites' files, with the command that measured them. They are mean sums of rewards over whole
episodes, up to the task's horizon: of a recording that ends soon after the first success (`after_success`) the return
is smaller, and no measure of skill.
"""

from mmssl.envs.suites import Task, find_task
from mmssl.errors import MmsslError


def normalized_score(task: Task | str, total: float) -> float:
    """100 (R - random) / (expert - random) of a sum of rewards R, undiscounted; `task` is "suite/task" or a `Task`.

    Raises:
        MmsslError: the suite's file has no references for the task.
    """
    task = find_task(task) if isinstance(task, str) else task
    if task.reference is None:
        raise MmsslError(
            f"{task.full_name} has no reference scores, so no normalised one; measure them "
            f"(benchmarks/reference_scores.py) and write them into the suite's file."
        )
    return 100 * (total - task.reference.random) / (task.reference.expert - task.reference.random)
