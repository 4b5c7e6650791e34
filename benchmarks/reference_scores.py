"""What random actions and an expert get on a task: the `references` of a suite's file, as lines to be put there.

    python benchmarks/reference_scores.py 'metaworld/*'                                # against the tasks' own scripts
    python benchmarks/reference_scores.py gym/HalfCheetah-v5 --expert runs/td3-cheetah  # a run of `mmssl rl`

A score is the mean undiscounted return of whole episodes, up to the task's horizon, without noise. An expert from a run
is the best policy at hand, which the comment beside its line must name.
"""

import argparse

import numpy as np

from mmssl.control.recorded_policy import recorded_policy
from mmssl.envs.make import SimEnvironment, make_sim, without_opengl
from mmssl.envs.policies import Policy, find_policy
from mmssl.envs.rollout import episode_seed
from mmssl.envs.suites import Task, expand_tasks


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tasks", nargs="+", help="SUITE/TASK, or patterns")
    parser.add_argument("--expert", default="expert", help="a policy, as for mmssl record")
    parser.add_argument("--episodes", type=int, default=20)
    asked = parser.parse_args()
    policy, label = recorded_policy(asked.expert)
    print(f"# {asked.episodes} episodes each, the expert is {label}", flush=True)
    for task in expand_tasks(tuple(asked.tasks)):
        with without_opengl():
            env = make_sim(task)
        means = [
            mean_return(env, task, p, asked.episodes) for p in (find_policy("random"), policy or find_policy(label))
        ]
        env.close()
        print(f"  {task.name}: {{random: {means[0]:.1f}, expert: {means[1]:.1f}}}", flush=True)


def mean_return(env: SimEnvironment, task: Task, policy: Policy, episodes: int) -> float:
    """Mean sum of rewards over the episodes of numbers 0 to `episodes` - 1."""
    return float(np.mean([episode_return(env, policy, episode_seed(0, task, i)) for i in range(episodes)]))


def episode_return(env: SimEnvironment, policy: Policy, seed: np.random.SeedSequence) -> float:
    """The sum of rewards of one episode."""
    world, actions = seed.spawn(2)
    observation, _ = env.reset(seed=int(world.generate_state(1)[0] % 2**31))
    act, total, ended = policy(env, np.random.default_rng(actions)), 0.0, False
    while not ended:
        action = np.clip(act(observation), env.action_space.low, env.action_space.high).astype(np.float32)
        observation, reward, terminated, truncated, _ = env.step(action)
        total, ended = total + reward, terminated or truncated
    return total


if __name__ == "__main__":
    main()
