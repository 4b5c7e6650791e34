"""The loop: resuming, accumulation, stopping, and what it refuses."""

import json
import os
import signal

import pytest
import torch
from training_toys import OPTIM, ToyDataset, ToyModel, assert_same, train, weights

from mmssl.errors import MmsslError
from mmssl.training.checkpoint import RunFolder
from mmssl.training.loop import LoopConfig, fit
from mmssl.training.optim import OptimConfig


def read_metrics(run):
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("first", [4, 5, 6])  # 3 steps an epoch: in, before and at the end of one; logs every 2 steps
def test_n_plus_n_steps_are_2n_steps_bit_for_bit(tmp_path, first, accumulate):
    whole = train(tmp_path / "whole", steps=10, accumulate=accumulate)
    stopped = ToyModel()
    stopped.after_step = lambda _, done=[]: (
        done.append(1),
        len(done) == first and os.kill(os.getpid(), signal.SIGTERM),
    )
    part = train(tmp_path / "parts", stopped, steps=10, accumulate=accumulate)
    assert part.steps == first and part.signal == signal.SIGTERM and not part.finished
    torch.manual_seed(99)  # whatever another process did with its random state
    rest = train(tmp_path / "parts", steps=10, accumulate=accumulate)
    after = torch.get_rng_state()
    assert rest.finished and rest.steps == 10
    assert_same(weights(tmp_path / "whole"), weights(tmp_path / "parts"))
    records = [read_metrics(tmp_path / name) for name in ("whole", "parts")]
    assert [r["step"] for r in records[0]] == [2, 4, 6, 8, 10]
    for one, other in zip(*records, strict=True):
        assert_same(one, other)
    train(None, steps=10, accumulate=accumulate)
    assert torch.equal(after, torch.get_rng_state())
    assert whole.metrics["loss"] == rest.metrics["loss"]


def test_accumulation_and_uneven_counts_weigh_as_one_batch():
    one, three = ToyModel(dropout=0), ToyModel(dropout=0)
    train(None, one, steps=4, batch_size=12)
    train(None, three, steps=4, batch_size=12, accumulate=3)
    assert int(one.seen) == int(three.seen) == 48
    for a, b in zip(one.parameters(), three.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_first_step_has_the_gradient_of_the_mean_over_what_counts():
    model, reference, data = ToyModel(dropout=0), ToyModel(dropout=0), ToyDataset()
    optim = OptimConfig(name="sgd", lr=0.1, momentum=0.0, weight_decay=0.0)
    loop = LoopConfig(steps=1, batch_size=24, accumulate=4, device="cpu", precision="fp32")  # every sample once
    fit(model, data, loop, optim, quiet=True)
    counts = torch.arange(24) % 3 > 0
    loss = (reference.body(data.x[counts]) - data.label[counts]).square().sum() / counts.sum()
    loss.backward()
    for a, b in zip(model.parameters(), reference.parameters(), strict=True):
        torch.testing.assert_close(a, b - 0.1 * b.grad, rtol=1e-5, atol=1e-6)


def test_it_learns_a_linear_map():
    before = train(None, ToyModel(width=64, dropout=0), steps=3, log_every=1).metrics["loss"]
    after = train(None, ToyModel(width=64, dropout=0), steps=300).metrics["loss"]
    assert after < 0.1 * before


def test_checkpoints_come_by_steps_and_the_newest_are_kept(tmp_path):
    train(tmp_path, steps=10, checkpoint_every=3, keep=2)
    assert [c.step for c in RunFolder(tmp_path).all_checkpoints()] == [9, 10]


def test_checkpoints_come_by_minutes(tmp_path, monkeypatch):
    saved = []
    save = RunFolder.save
    monkeypatch.setattr(RunFolder, "save", lambda self, step, *a: (saved.append(step), save(self, step, *a))[1])
    train(tmp_path, steps=4, checkpoint_every=0, checkpoint_minutes=1e-9)
    assert saved == [1, 2, 3, 4]
    saved.clear()
    train(tmp_path / "no", steps=4, checkpoint_every=0, checkpoint_minutes=0)
    assert saved == [4]


def test_a_finished_run_is_left_as_it_is(tmp_path):
    train(tmp_path, steps=4)
    before = (tmp_path / "metrics.jsonl").read_text(), weights(tmp_path)
    model = ToyModel()
    result = train(tmp_path, model, steps=4)
    assert result.finished and result.steps == 4
    assert (tmp_path / "metrics.jsonl").read_text() == before[0]
    assert_same(model.state_dict(), before[1][1])


def test_a_longer_run_goes_on_from_a_finished_one(tmp_path):
    train(tmp_path, steps=4)
    assert train(tmp_path, steps=6).steps == 6
    assert [record["step"] for record in read_metrics(tmp_path)] == [2, 4, 6]


def test_nan_stops_the_run_and_is_never_saved(tmp_path):
    model = ToyModel()

    def spoil(progress):
        if progress >= 0.5:
            with torch.no_grad():
                model.body[0].weight.fill_(float("nan"))

    model.after_step = spoil
    with pytest.raises(MmsslError, match=r"at step 7; the last good checkpoint is .*step_00000004"):
        train(tmp_path, model, steps=10, log_every=8)
    assert weights(tmp_path)[0] == 4
    assert all(torch.isfinite(t).all() for t in weights(tmp_path)[1].values())


def test_a_bad_gradient_behind_a_good_loss_is_seen_too(tmp_path):
    model = ToyModel()
    model.body[3].weight.register_hook(lambda g: torch.full_like(g, float("inf")))
    with pytest.raises(MmsslError, match="at step 1; there is no good checkpoint yet"):
        train(tmp_path, model, log_every=100)
    assert RunFolder(tmp_path).latest() is None


def test_a_time_limit_ends_the_run_with_the_rate_annealed(tmp_path):
    model = ToyModel()
    result = train(tmp_path, model, steps=10**9, max_minutes=1 / 120, log_every=10**9)
    assert result.finished and 0 < result.steps < 10**6
    assert result.metrics["lr"] < 0.05 * OPTIM.lr and model.progress[-1] > 0.9
    assert train(tmp_path, steps=10**9, max_minutes=1 / 120).steps == result.steps


def test_a_step_in_which_nothing_counts_changes_nothing(tmp_path):
    class Silent(ToyModel):
        def forward(self, batch, masks=None, keys=None):
            return {"loss": (self.body(batch["x"]).sum() * 0, torch.zeros(()))}

    model = Silent()
    before = model.body[0].bias.clone()
    assert train(tmp_path, model, steps=4).finished
    assert torch.equal(model.body[0].bias, before)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_saves_and_gives_the_exit_code_of_shells(tmp_path, number):
    model = ToyModel()
    model.after_step = lambda progress: os.kill(os.getpid(), number)
    result = train(tmp_path, model)
    assert weights(tmp_path)[0] == result.steps == 1
    with pytest.raises(SystemExit) as exit_:
        result.leave()
    assert exit_.value.code == 128 + number
    assert train(tmp_path).leave() is None  # an end by itself is no interruption


def test_frozen_parameters_stay():
    model = ToyModel()
    model.body[0].requires_grad_(False)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    train(None, model)
    assert torch.equal(model.body[0].weight, before["body.0.weight"])
    assert not torch.equal(model.body[3].weight, before["body.3.weight"])


def test_transform_sees_batch_and_keys():
    seen = []

    def transform(batch, keys):
        seen.append((len(batch["x"]), keys.shape, "keys" in batch))
        return batch

    loop = LoopConfig(steps=3, batch_size=8, device="cpu", precision="fp32")
    fit(ToyModel(), ToyDataset(), loop, OPTIM, transform=transform, quiet=True)
    assert seen == [(8, (8,), False)] * 3


def test_bf16_on_the_cpu_learns_and_keeps_float32_weights():
    model = ToyModel(width=64, dropout=0)
    seen = []
    model.body[3].register_forward_hook(lambda m, i, o: seen.append(o.dtype))
    result = train(None, model, steps=200, precision="bf16")
    assert set(seen) == {torch.bfloat16} and model.body[0].weight.dtype == torch.float32
    assert result.metrics["loss"] < 1.0


def test_compiled_steps_give_the_same_weights(monkeypatch):
    plain, compiled = ToyModel(dropout=0), ToyModel(dropout=0)
    train(None, plain, steps=3)
    real = torch.compile
    monkeypatch.setattr(torch, "compile", lambda model: real(model, backend="aot_eager"))
    train(None, compiled, steps=3, compile=True)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    for a, b in zip(plain.parameters(), compiled.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    ("loop", "words"),
    [
        ({"batch_size": 25}, "24 samples times loop.repeats 1 do not fill one batch of loop.batch_size 25"),
        ({"batch_size": 8, "accumulate": 3}, "choose a multiple of 3"),
        ({"steps": None}, "exactly one of loop.steps and loop.epochs"),
        ({"epochs": 3}, "exactly one of loop.steps and loop.epochs"),
        ({"steps": 0}, "loop.steps must be 1 or more"),
        ({"steps": 2}, "the warm-up of 2 steps is not shorter than the run of 2 steps"),
        ({"clip_grad": 0.0}, "loop.clip_grad must be above 0"),
        ({"device": "mps"}, "'mps' was asked for"),
    ],
)
def test_wrong_settings_are_said(loop, words):
    with pytest.raises(MmsslError, match=words):
        train(None, **loop)


def test_nothing_to_train_is_said():
    with pytest.raises(MmsslError, match="no parameter that needs a gradient"):
        train(None, ToyModel().requires_grad_(False))
