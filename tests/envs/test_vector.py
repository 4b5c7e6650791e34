"""Vector worlds against Gymnasium's own, and what they promise: seeds, ends, breakdowns, wrong input."""

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.vector import AutoresetMode, SyncVectorEnv

from mmssl.control.base import Spaces
from mmssl.envs.batch_mujoco import BatchMujoco
from mmssl.envs.single import make_single
from mmssl.envs.vector import checkpoint_seed, episode_seed, make_vec, wrap_vec
from mmssl.envs.vector_bodies import Here
from mmssl.errors import MmsslError

pytest.importorskip("mujoco")
FAST = ("HalfCheetah-v5", "Hopper-v5", "Walker2d-v5", "Ant-v5", "InvertedPendulum-v5", "Swimmer-v5")


class Seeded(gym.Wrapper):
    """Gymnasium's own environment, begun with the seeds that a world of ours would take."""

    def __init__(self, env, seed, place):
        super().__init__(env)
        self.seed, self.place, self.episode = seed, place, 0

    def reset(self, **_):
        self.episode += 1
        return self.env.reset(seed=episode_seed(self.seed, self.place, self.episode - 1))


def gymnasiums_own(task, n, seed):
    made = [lambda i=i: Seeded(gym.make(task), seed, i) for i in range(n)]
    return SyncVectorEnv(made, autoreset_mode=AutoresetMode.NEXT_STEP)


class Count(gym.Env):
    """Counts its steps from a number that the seed says; ends truly at 3, or is cut at 5 where `cut`."""

    observation_space = gym.spaces.Box(-np.inf, np.inf, (2,), np.float32)
    action_space = gym.spaces.Box(-2.0, 4.0, (1,), np.float32)

    def __init__(self, cut=False, sick_at=None, sick="obs"):
        self.cut, self.sick_at, self.sick = cut, sick_at, sick

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.seed, self.steps = seed % 97, 0
        return np.array([self.seed, 0], np.float32), {}

    def step(self, action):
        self.steps += 1
        obs, reward = np.array([self.seed, self.steps], np.float32), float(action[0])
        if self.steps == self.sick_at:
            obs, reward = (obs * np.nan, reward) if self.sick == "obs" else (obs, np.inf)
        end = self.steps == (5 if self.cut else 3)
        return obs, reward, end and not self.cut, end and self.cut, {"success": self.steps == 2}


def sick_reward():
    return Count(sick_at=2, sick="reward")


@pytest.mark.parametrize(
    ("task", "settings", "runner", "steps"),
    [(task, {}, BatchMujoco, 1010 if task == "HalfCheetah-v5" else 150) for task in FAST]
    + [("Hopper-v5", {"workers": 2}, BatchMujoco, 100)]  # threads
    + [("Hopper-v5", {"fast": False}, Here, 60), ("Reacher-v5", {}, Here, 60)],
)
def test_same_numbers_as_gymnasium(task, settings, runner, steps):
    """Observations, rewards and ends are Gymnasium's own, bit by bit, over whole episodes."""
    ours, theirs = make_vec(f"gym/{task}", 3, seed=3, **settings), gymnasiums_own(task, 3, 3)
    assert isinstance(ours.runner, runner)
    obs, (expected, _) = ours.reset()[0], theirs.reset()
    ends = np.zeros(2, int)
    for _ in range(steps):
        np.testing.assert_array_equal(obs["state"], expected.astype(np.float32))
        actions = ours.random_actions()
        obs, reward, terminated, truncated, _ = ours.step(actions)
        expected, *values, _ = theirs.step(ours.to_env(actions))
        for mine, own in zip((reward, terminated, truncated), values, strict=True):
            np.testing.assert_array_equal(mine, own)
        ends += terminated.sum(), truncated.sum()
    ours.close()
    if task in ("HalfCheetah-v5", "Reacher-v5"):
        assert ends[0] == 0 and ends[1] >= 3
    elif task not in ("Swimmer-v5", "Ant-v5"):
        assert ends[0] >= 3


def test_settings_of_a_task_reach_the_fast_path(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text(
        "family: gymnasium\nhorizon: 7\ntasks: {Hopper-v5: {kwargs: {healthy_reward: 5.0, frame_skip: 2}}}\n"
    )
    world, own = make_vec(f"{path}/Hopper-v5", 1), gym.make("Hopper-v5", healthy_reward=5.0, frame_skip=2)
    world.reset()
    own.reset(seed=episode_seed(0, 0, 0))
    for step in range(7):
        action = world.random_actions()
        _, reward, _, truncated, _ = world.step(action)
        assert reward[0] == own.step(action[0])[1] and truncated[0] == (step == 6)


def test_ends_and_what_is_said_of_them():
    world = wrap_vec(Count, 2, seed=1)
    obs, infos = world.reset()
    assert obs["state"][:, 1].tolist() == [0, 0] and not world.starting.any() and not infos["success"].any()
    for step in (1, 2, 3):
        obs, reward, terminated, truncated, infos = world.step(np.full((2, 1), 0.5, np.float32))
        assert obs["state"][:, 1].tolist() == [step, step] and reward.dtype == np.float64
        assert infos["success"].tolist() == [step == 2] * 2 and ("episode" in infos) == (step == 3)
    assert terminated.all() and not truncated.any() and world.starting.all()
    assert infos["_episode"].all() and infos["episode"]["l"].tolist() == [3, 3]
    assert infos["episode"]["success"].all() and infos["episode"]["r"].tolist() == [7.5, 7.5]  # 0.5 -> 2.5
    first = obs["state"][:, 0].copy()
    obs, reward, terminated, truncated, infos = world.step(np.ones((2, 1), np.float32))  # only begins
    assert obs["state"][:, 1].tolist() == [0, 0] and (obs["state"][:, 0] != first).all()
    assert not reward.any() and not (terminated | truncated | world.starting | infos["success"]).any()
    cut = wrap_vec(lambda: Count(cut=True), 1)
    cut.reset()
    ends = [cut.step(np.zeros((1, 1)))[2:4] for _ in range(5)]
    assert [(bool(a[0]), bool(b[0])) for a, b in ends] == [(False, False)] * 4 + [(False, True)]


def test_seed_of_an_episode():
    seeds = {episode_seed(s, e, k) for s in range(4) for e in range(4) for k in range(4)}
    assert len(seeds) == 64 and all(0 <= s < 2**31 for s in seeds)
    assert checkpoint_seed(1, 2, 3) not in (episode_seed(1, 2, 3), checkpoint_seed(1, 2, 4))
    world = wrap_vec(Count, 3, seed=5)
    first = world.reset()[0]["state"][:, 0]
    assert first.tolist() == [episode_seed(5, i, 0) % 97 for i in range(3)]
    later = world.reset()[0]["state"][:, 0]
    assert later.tolist() == [episode_seed(5, i, 1) % 97 for i in range(3)]
    np.testing.assert_array_equal(world.reset(seed=5)[0]["state"][:, 0], first)


def test_random_actions_and_action_space_are_seeded():
    a, b, c = (wrap_vec(Count, 2, seed=s) for s in (0, 0, 1))
    drawn = np.stack([a.random_actions() for _ in range(50)])
    assert drawn.dtype == np.float32 and drawn.shape == (50, 2, 1) and (np.abs(drawn) <= 1).all() and drawn.std() > 0.4
    np.testing.assert_array_equal(drawn, np.stack([b.random_actions() for _ in range(50)]))
    assert not np.array_equal(drawn[0], c.random_actions())
    np.testing.assert_array_equal(a.action_space.sample(), b.action_space.sample())


def walk(world, steps):
    rows = []
    for _ in range(steps):
        obs, reward, *_ = world.step(world.random_actions())
        rows.append(np.column_stack([obs["state"], reward]))
    return np.stack(rows)


def test_going_on_after_a_checkpoint():
    """A world that is reset at a checkpoint goes on as a new one that is given its counters."""
    world = make_vec("gym/InvertedPendulum-v5", 2, seed=4)
    world.reset()
    walk(world, 40)
    state = world.state_dict()
    begun, _ = world.reset_all(lambda i: checkpoint_seed(4, i, 1))
    after = walk(world, 40)
    again = make_vec("gym/InvertedPendulum-v5", 2, seed=0)
    again.load_state_dict(state)
    np.testing.assert_array_equal(again.reset_all(lambda i: checkpoint_seed(4, i, 1))[0]["state"], begun["state"])
    np.testing.assert_array_equal(walk(again, 40), after)
    assert world.episodes.min() > 3
    with pytest.raises(MmsslError, match="2 environments, this one 3"):
        wrap_vec(Count, 3).load_state_dict(state)


def test_reset_where_leaves_the_others():
    world = wrap_vec(Count, 3)
    world.reset()
    world.step(np.zeros((3, 1)))
    obs, _ = world.reset_where(np.array([True, False, False]))
    assert obs["state"][:, 1].tolist() == [0, 1, 1]
    _, _, terminated, _, infos = [world.step(np.zeros((3, 1))) for _ in range(2)][1]
    assert terminated.tolist() == [False, True, True] and infos["episode"]["l"].tolist() == [0, 3, 3]


def test_actions_are_mapped_and_clipped():
    world = make_vec("gym/InvertedPendulum-v5", 2)
    np.testing.assert_array_equal(world.to_env(np.array([[-1], [0.5]], np.float32)), [[-3], [1.5]])
    np.testing.assert_array_equal(world.to_env(np.array([[7], [-7]], np.float32)), [[3], [-3]])
    assert (world.single_action_space.low, world.single_action_space.high) == (-1, 1)
    drawn = np.random.default_rng(0).uniform(-1, 1, (2, 6)).astype(np.float32)
    np.testing.assert_array_equal(make_vec("gym/HalfCheetah-v5", 2).to_env(drawn), drawn)
    plain = wrap_vec(Count, 1, scale=False)
    plain.reset()
    assert plain.step(np.array([[3.5]]))[1][0] == 3.5 and plain.single_action_space == Count.action_space
    assert (np.abs(plain.random_actions()) <= 4).all()


def test_discrete_actions():
    class Button(Count):
        action_space = gym.spaces.Discrete(3, start=1)

        def step(self, action):
            return super().step([action])

    world = wrap_vec(Button, 2)
    world.reset()
    drawn = np.stack([world.random_actions() for _ in range(40)])
    assert set(drawn.ravel().tolist()) == {1, 2, 3} and world.step(np.array([1, 3]))[1].tolist() == [1.0, 3.0]
    assert Spaces(**world.spaces()).discrete and world.spaces()["action_dim"] == 3


def test_action_repeat_adds_rewards():
    once, twice = (make_vec("dmc/cheetah-run", 1, action_repeat=k) for k in (1, 2))
    once.reset(), twice.reset()
    for _ in range(5):
        action = once.random_actions()
        two = [once.step(action) for _ in range(2)]
        obs, reward, *_ = twice.step(action)
        assert reward[0] == pytest.approx(two[0][1][0] + two[1][1][0])
        np.testing.assert_array_equal(obs["state"], two[1][0]["state"])


def test_values_that_are_not_finite_cut_the_episode():
    world = wrap_vec(lambda: Count(sick_at=2), 2, limit=3)
    before = world.reset()[0]["state"]
    before = world.step(np.ones((2, 1)))[0]["state"]
    obs, reward, terminated, truncated, infos = world.step(np.ones((2, 1)))
    np.testing.assert_array_equal(obs["state"], before)  # the last that was seen
    assert not reward.any() and not terminated.any() and truncated.all() and infos["broken"].all() and world.broken == 2
    obs, *_, infos = world.step(np.ones((2, 1)))
    assert obs["state"][:, 1].tolist() == [0, 0] and "broken" not in infos
    world.step(np.ones((2, 1)))
    with pytest.raises(MmsslError, match=r"broke down 4 times.*more than the 3 allowed"):
        world.step(np.ones((2, 1)))
    world = wrap_vec(sick_reward, 1)
    world.reset()
    rewards = [world.step(np.ones((1, 1)))[1][0] for _ in range(2)]
    assert rewards == [4.0, 0.0] and world.starting.all() and world.broken == 1


@pytest.mark.parametrize("fast", [True, False])
def test_mujoco_that_begins_anew_is_noticed(fast, tmp_path, monkeypatch):
    """MuJoCo resets a world that diverges without a word in observation or reward; only a warning is counted."""
    monkeypatch.chdir(tmp_path)  # MuJoCo writes a log there
    world = make_vec("gym/HalfCheetah-v5", 2, fast=fast)
    world.reset()
    before = world.step(np.zeros((2, 6)))[0]["state"]
    data = world.runner.datas[1] if fast else world.runner.bodies[1].env.data
    data.qvel[:] = 1e20
    obs, reward, terminated, truncated, _ = world.step(np.zeros((2, 6)))
    assert truncated.tolist() == [False, True] and not terminated.any() and reward[1] == 0 and world.broken == 1
    np.testing.assert_array_equal(obs["state"][1], before[1])
    obs, *_ = world.step(np.zeros((2, 6)))
    assert not world.starting.any() and np.abs(obs["state"][1]).max() < 1 and world.broken == 1


def test_single_episode_and_its_end():
    env = make_single("gym/InvertedPendulum-v5")
    first, _ = env.reset(seed=3)
    length, done = 0, False
    while not done:
        _, _, done, _, info = env.step(np.ones(1, np.float32))
        length += 1
    assert info["episode"] == {"r": length - 1.0, "l": length, "success": False}
    with pytest.raises(MmsslError, match="episode is over"):
        env.step(np.ones(1, np.float32))
    np.testing.assert_array_equal(env.reset(seed=3)[0]["state"], first["state"])
    assert not np.array_equal(env.reset()[0]["state"], first["state"])


def test_spaces_and_the_flat_view():
    world = make_vec("gym/Hopper-v5", 2, fast=False, proprio=True)
    spaces = Spaces(**world.spaces())
    assert spaces.vectors == {"state": 11, "proprio": 6} and spaces.action_dim == 3 and spaces.n_envs == 2
    obs, _ = world.reset()
    assert obs in world.observation_space and world.random_actions() in world.action_space
    flat = world.flat
    assert flat.reset(seed=0)[0] in flat.observation_space and flat.observation_space.shape == (2, 11)
    assert flat.step(flat.random_actions())[0].shape == (2, 11) and not flat.starting.any()


@pytest.mark.parametrize(
    ("task", "n", "settings", "words"),
    [
        ("gym/HalfCheeta-v5", 1, {}, "did you mean 'HalfCheetah-v5'"),
        ("gim/HalfCheetah-v5", 1, {}, "did you mean 'gym'"),
        ("gym/Hopper-v5", 0, {}, "n must be at least 1, got 0"),
        ("gym/Hopper-v5", 1, {"workers": -1}, "workers must be at least 0, got -1"),
        ("gym/Hopper-v5", 1, {"frame_stack": 0}, "frame_stack must be at least 1"),
        ("gym/Hopper-v5", 1, {"action_repeat": 0}, "action_repeat must be at least 1"),
        ("gym/Hopper-v5", 1, {"seed": -2}, "seed must be 0 or more"),
        ("gym/Hopper-v5", 1, {"limit": -1}, "limit must be at least 0"),
        ("gym/Hopper-v5", 1, {"observe": "pixel"}, "did you mean 'pixels'"),
        ("gym/Hopper-v5", 1, {"cameras": ("track",)}, "need observe='pixels'"),
        ("gym/Hopper-v5", 1, {"observe": "pixels", "cameras": "track"}, "list of names"),
        ("gym/Hopper-v5", 1, {"observe": "pixels", "size": (0, 84)}, "size must be"),
    ],
)
def test_wrong_settings(task, n, settings, words):
    with pytest.raises(MmsslError, match=words):
        make_vec(task, n, **settings)


def test_wrong_use():
    world = wrap_vec(Count, 2)
    with pytest.raises(MmsslError, match="reset the world before"):
        world.step(np.zeros((2, 1)))
    world.reset()
    with pytest.raises(MmsslError, match=r"takes actions \(2, 1\), got \(2, 2\)"):
        world.step(np.zeros((2, 2)))
    with pytest.raises(MmsslError, match="actions must be finite, got nan"):
        world.step(np.array([[0.0], [np.nan]]))

    class Seeing(Count):
        observation_space = gym.spaces.Dict({"image/front": gym.spaces.Box(0, 255, (3, 8, 8), np.uint8)})

    with pytest.raises(MmsslError, match="does not show its state"):
        _ = wrap_vec(Seeing, 1).flat

    class Strange(Count):
        observation_space = gym.spaces.Discrete(3)

    class Unbounded(Count):
        action_space = gym.spaces.Box(-np.inf, np.inf, (1,))

    class Upright(Count):
        observation_space = gym.spaces.Dict({"image/front": gym.spaces.Box(0, 1, (8, 8), np.float32)})

    for kind, words in ((Strange, "Box or a Dict"), (Unbounded, "without bounds"), (Upright, "neither a vector nor")):
        with pytest.raises(MmsslError, match=words):
            wrap_vec(kind, 1)
