"""Segmentation and depth from patch tokens: heads, losses and scores against slow versions, and the whole path."""

import json

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, jaccard_score
from torch import nn

import mmssl
from mmssl.data.loading import open_dataset
from mmssl.encoder import Features
from mmssl.errors import MmsslError
from mmssl.evaluation.dense import DepthConfig, SegmentationConfig, constant, depth, inputs_of, segmentation
from mmssl.evaluation.dense_heads import ConvHead, PatchHead
from mmssl.evaluation.dense_maps import collect, token_map
from mmssl.evaluation.dense_tasks import DepthTask, SegmentationTask, segmentation_task
from mmssl.evaluation.features import Splits
from mmssl.evaluation.modalities import ChosenEncoder
from mmssl.evaluation.probe import parse_question, probe
from mmssl.evaluation.scores import table, to_scores

SHORT = {"steps": 60, "lr": 1e-2}


@pytest.fixture(scope="module")
def splits(scenes):
    """Training and test frames of the front camera, with both planes."""
    parts = (open_dataset(scenes, split=split, extras=("depth", "segmentation")) for split in ("train", "test"))
    return Splits(*parts, labelled=False)


class Telling(nn.Module):
    """Tokens (B, 4, 4, 2) that are each patch's share of block pixels, and 1."""

    embed_dim, modalities = 2, ("image",)

    def forward(self, batch, masks=None):
        warm = (batch["image"][:, 0].float() > 100).float()
        share = nn.functional.avg_pool2d(warm[:, None], 4).flatten(2).transpose(1, 2)  # (B, 16, 1)
        tokens = torch.cat([share, torch.rand_like(share)], 2)
        index = torch.arange(16).expand(len(warm), -1)
        return Features(tokens, index, torch.ones_like(index, dtype=torch.bool), None, {"image": (4, 4)})


def test_scores_of_a_segmentation_are_sklearns():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(-1, 5, (4, 9, 7), generator=generator).short()
    guess = torch.where(torch.rand(truth.shape, generator=generator) < 0.6, truth, 2).clamp_min(0).short()
    guess[0, 0, 0] = 5  # a class that the truth never has
    found = SegmentationTask(7).score(guess, truth)
    there = (truth >= 0).numpy()
    pair = truth.numpy()[there], guess.numpy()[there]
    seen = np.union1d(*pair)
    assert found["miou"] == pytest.approx(jaccard_score(*pair, labels=seen, average="macro", zero_division=0))
    assert found["pixel_accuracy"] == pytest.approx(accuracy_score(*pair))


def test_scores_of_a_depth_pixel_by_pixel():
    generator = torch.Generator().manual_seed(0)
    truth = 0.5 + 3 * torch.rand(3, 5, 4, generator=generator)
    guess = truth * (0.6 + 0.8 * torch.rand(truth.shape, generator=generator))
    truth[0, 0, 0], truth[1, 2, 3], truth[2, 1, 1] = 0, torch.inf, torch.nan  # not known
    near, squares, shares = [], [], []
    for t, g in zip(truth.flatten().tolist(), guess.flatten().tolist(), strict=True):
        if t > 0 and np.isfinite(t):
            near.append(max(t / g, g / t) < 1.25)
            squares.append((t - g) ** 2)
            shares.append(abs(t - g) / t)
    found = DepthTask(0.0, 1.0).score(guess, truth)
    assert len(near) == 57 and found["delta1"] == pytest.approx(np.mean(near))
    assert found["rmse"] == pytest.approx(np.mean(squares) ** 0.5, rel=1e-5)
    assert found["abs_rel"] == pytest.approx(np.mean(shares), rel=1e-5)


def test_losses_are_means_over_the_pixels_that_count():
    generator = torch.Generator().manual_seed(1)
    scores = torch.randn(2, 3, 4, 5, generator=generator)
    truth = torch.randint(-2, 3, (2, 4, 5), generator=generator)
    truth[1] = -1
    found = SegmentationTask(3).losses(scores, truth)
    slow = [
        -scores[0, :, r, c].log_softmax(0)[truth[0, r, c]] for r in range(4) for c in range(5) if truth[0, r, c] >= 0
    ]
    torch.testing.assert_close(found, torch.stack([torch.stack(slow).mean(), torch.zeros(())]))
    metres = 1 + torch.rand(2, 4, 5, generator=generator)
    metres[0, :2] = 0
    task = DepthTask.of(metres)
    logs = metres[metres > 0].log()
    assert task.mean == pytest.approx(logs.mean().item(), rel=1e-5)
    assert task.std == pytest.approx(logs.std(unbiased=False).item(), rel=1e-5)
    output = torch.randn(2, 1, 4, 5, generator=generator)
    slow = [((output[0, 0, 2:] * task.std + task.mean) - metres[0, 2:].log()).abs().mean() / task.std]
    torch.testing.assert_close(task.losses(output, metres)[0], slow[0])
    torch.testing.assert_close(task.restore((metres.log() - task.mean)[:, None] / task.std)[1], metres[1])


def test_constant_answers():
    ids = torch.tensor([[[0, 1, -1]], [[0, 2, -1]], [[1, 2, -1]]])
    assert SegmentationTask(3).constant(ids).tolist() == [[0, 2, 0]]  # a tie over all places: the lower class
    metres = torch.tensor([[[1.0, 4.0, 0.0]], [[2.0, 0.0, 0.0]], [[9.0, 5.0, 0.0]]])
    assert DepthTask(0, 1).constant(metres).tolist() == [[2, 4, 4]]  # torch takes the lower of two middles


def test_a_linear_head_speaks_for_its_own_patch_alone():
    torch.manual_seed(0)
    head = PatchHead(
        6,
        3,
        (2, 3),
        (16, 48),
    ).eval()  # cells of 4 x 4 pixels, 2 x 4 of them in a patch
    nn.init.normal_(head.fc.weight)
    head.norm.running_mean.normal_()
    maps = torch.randn(2, 2, 3, 6)
    assert head.cells == (2, 4)
    cells = torch.zeros(2, 3, 4, 12)
    for row in range(2):
        for column in range(3):
            x = (maps[:, row, column] - head.norm.running_mean) / (head.norm.running_var + 1e-5).sqrt()
            said = (x @ head.fc.weight.T + head.fc.bias).view(2, 3, 2, 4)
            cells[:, :, 2 * row : 2 * row + 2, 4 * column : 4 * column + 4] = said
    expected = nn.functional.interpolate(cells, (16, 48), mode="bilinear", align_corners=False)
    torch.testing.assert_close(head(maps), expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("grid, size, convs", [((4, 4), (16, 16), 1), ((2, 2), (32, 32), 2), ((3, 2), (42, 28), 2)])
def test_a_convolutional_head_doubles_up_to_a_quarter(grid, size, convs):
    head = ConvHead(6, 3, grid, size, width=8)
    assert len(head.convs) == convs and head(torch.randn(2, *grid, 6)).shape == (2, 3, *size)


def test_what_the_tokens_tell_is_learned(splits):
    settings = {**SHORT, "head": "linear"}
    found = segmentation(Telling(), splits, SegmentationConfig(**settings))
    flat = constant(Telling(), splits, SegmentationConfig(), "segmentation")
    assert flat["miou"] < 0.6 and found["miou"] > 0.7 and found["pixel_accuracy"] > flat["pixel_accuracy"] + 0.05
    settings = {**SHORT, "head": "conv", "width": 16}
    found, flat = depth(Telling(), splits, DepthConfig(**settings)), constant(Telling(), splits, DepthConfig(), "depth")
    assert found["abs_rel"] < 0.97 * flat["abs_rel"] and found["rmse"] < 0.97 * flat["rmse"]


def test_the_constant_is_that_of_the_training_part(splits):
    found = constant(Telling(), splits, SegmentationConfig(), "segmentation")
    train, test = (part.fetch(torch.arange(len(part)))["segmentation"] for part in (splits.train, splits.test))
    answer = torch.stack([(train == k).sum(0) for k in range(6)]).argmax(0)
    assert found["pixel_accuracy"] == pytest.approx((test == answer).float().mean().item())


def test_few_pictures_and_draws(splits):
    found = segmentation(Telling(), splits, SegmentationConfig(steps=2, labels=5, draws=2))
    assert set(found) == {"miou", "pixel_accuracy", "miou/spread", "pixel_accuracy/spread"}
    with pytest.raises(MmsslError, match="labels per class needs a single_label target, and this one is depth"):
        depth(Telling(), splits, DepthConfig(steps=2, labels_per_class=2))


def test_pictures_without_depth_are_left_out(in_memory):
    class Some(in_memory):
        def fetch(self, index, keys=None, augmentation=None):
            planes = torch.where(index % 3 == 0, 0.0, 2.0)[:, None, None, None].expand(-1, 1, 16, 16)
            return {**super().fetch(index), "depth": planes, "present/depth": index % 3 != 1}

    data = Some(torch.randint(0, 256, (9, 3, 16, 16), dtype=torch.uint8))
    found = collect(data, DepthConfig(), "depth", ("image",), Telling())
    assert found.index.tolist() == [2, 5, 8] and found.features.shape == (3, 4, 4, 2)
    model_loss = depth(Telling(), Splits(data, data, labelled=False), DepthConfig(steps=2, train_encoder=True))
    assert set(model_loss) == {"delta1", "rmse", "abs_rel"}
    with pytest.raises(MmsslError, match="no picture of 'memory' has a depth"):
        collect(data.subset([0, 1, 3]), DepthConfig(), "depth", ("image",), Telling())


def test_ids_that_are_no_class():
    config = SegmentationConfig()
    assert config.plane(torch.tensor([[[3, 255, -4, 254]]])).tolist() == [[[3, -1, -4, -1]]]
    assert segmentation_task(None, torch.tensor([4, -1]), torch.tensor([2])).outputs == 5
    assert segmentation_task(list("abcdefg"), torch.tensor([4])).outputs == 7
    with pytest.raises(MmsslError, match="holds the id 9 and names 3 classes"):
        segmentation_task(list("abc"), torch.tensor([9]))


def test_training_the_encoder_too(joint_run, splits):
    encoder = mmssl.load(joint_run)
    before = {name: x.clone() for name, x in encoder.state_dict().items()}
    settings = {"steps": 40, "lr": 1e-2, "train_batch": 16}
    frozen = depth(encoder, splits, DepthConfig(**settings))
    tuned = depth(encoder, splits, DepthConfig(**settings, train_encoder=True))
    assert tuned["abs_rel"] < 0.95 * frozen["abs_rel"]
    assert all(torch.equal(x, before[name]) for name, x in encoder.state_dict().items())


def test_maps_of_several_pictures_of_one_camera_are_joined():
    tokens = torch.randn(2, 12, 5)
    index = torch.arange(12).expand(2, -1)
    names = ("image/a", "image/b", "depth/b")
    features = Features(tokens, index, torch.ones_like(index, dtype=torch.bool), None, dict.fromkeys(names, (2, 2)))
    assert torch.equal(
        token_map(features, names, "b"), torch.cat([features.map("image/b"), features.map("depth/b")], -1)
    )
    assert torch.equal(token_map(features, names), features.map("image/a"))
    features.grid = {"image": (3, 2, 2)}
    with pytest.raises(MmsslError, match="one lattice of tokens"):
        token_map(features, ("image",))


def test_the_encoder_is_shown_its_image_unless_told_otherwise(joint_run):
    encoder = mmssl.load(joint_run)
    every = ChosenEncoder(encoder, encoder.modalities, asked=False)
    asked = ChosenEncoder(encoder, ("image", "segmentation"))
    assert inputs_of(every, DepthConfig(), "depth") == ("image",)
    assert inputs_of(asked, DepthConfig(), "depth") == ("image", "segmentation")
    assert inputs_of(asked, DepthConfig(inputs=("image",)), "depth") == ("image",)
    assert inputs_of(every, SegmentationConfig(inputs=("depth", "image")), "segmentation") == ("image", "depth")
    blind = ChosenEncoder(encoder, ("depth", "segmentation"), asked=False)
    assert inputs_of(blind, SegmentationConfig(), "segmentation") == ("depth",)
    assert inputs_of(every, DepthConfig(inputs=("depth",), show_target=True), "depth") == ("depth",)


@pytest.mark.parametrize(
    "settings, words",
    [
        ({"modalities": ("image", "depth")}, "depth is what is to be predicted, and the encoder is shown it"),
        ({"options": ("depth.inputs=[dept]",)}, "unknown modality of this encoder 'dept'"),
        ({"options": ("depth.width=12",)}, "width must be a multiple of 8"),
        ({"options": ("depth.steps=0",)}, "steps must be above 0"),
        ({"options": ("depth.max_gb=1e-6",)}, "more than max_gb=1e-06"),
        ({"clip": ("frames=2", "stride=1")}, "give --clip none"),
        ({"evaluators": ("depth", "ridge")}, "choose what to predict with --target"),
    ],
)
def test_wrong_input_is_one_sentence(joint_run, settings, words):
    with pytest.raises(MmsslError, match=words):
        probe(str(joint_run), **{"evaluators": ("depth",), "quiet": True, "device": "cpu", **settings})


def test_data_without_the_plane(run_folder):
    with pytest.raises(MmsslError, match="the data give no depth"):
        probe(str(run_folder), evaluators=("depth",), quiet=True, device="cpu")


def test_a_run_is_judged_on_every_pixel_beside_random_pixels_and_the_constant(joint_run, capsys):
    options = ("depth.steps=5", "segmentation.steps=5", "segmentation.head=conv", "segmentation.width=8")
    settings = {"evaluators": ("segmentation", "depth"), "reconstruction": False, "device": "cpu"}
    rows = probe(str(joint_run), options=options, **settings)
    assert {(r.evaluator, r.target) for r in rows} == {
        ("segmentation, conv, image", "segmentation"),
        ("depth, image", "depth"),
    }
    assert {r.encoder for r in rows} == {"pretrained", "random", "pixels", "constant"} and len(rows) == 4 * 5
    assert {r.metric: r.higher_is_better for r in rows} == {
        "miou": True, "pixel_accuracy": True, "delta1": True, "rmse": False, "abs_rel": False,
    }  # fmt: skip
    assert "constant" in capsys.readouterr().out
    assert len(json.loads((joint_run / "scores.json").read_text())["rows"]) == 20


def test_an_encoder_of_images_is_judged_on_a_recording(run_folder, scenes):
    settings = {"data": (str(scenes),), "evaluators": ("segmentation",), "options": ("segmentation.steps=3",)}
    rows = probe(str(run_folder / "export"), quiet=True, device="cpu", **settings)
    assert {r.evaluator for r in rows} == {"segmentation"} and {r.metric for r in rows} == {"miou", "pixel_accuracy"}
    assert {r.encoder for r in rows} == {"pretrained", "random", "pixels", "constant"}


def test_pixels_are_those_of_the_modalities_asked_for(joint_run):
    settings = {"evaluators": ("depth",), "options": ("depth.steps=3",), "reconstruction": False, "quiet": True}
    both = probe(str(joint_run), modalities=("image", "segmentation"), **settings)
    assert {r.evaluator for r in both} == {"depth, image+segmentation"}
    pixels = {r.metric: r.value for r in both if r.encoder == "pixels"}
    alone = {r.metric: r.value for r in probe(str(joint_run), **settings) if r.encoder == "pixels"}
    assert set(pixels) == {"delta1", "rmse", "abs_rel"} and pixels != alone


def test_of_errors_the_lowest_is_starred():
    rows = [r for name, value in (("a", 1.0), ("b", 2.0)) for r in to_scores("depth", "depth", name, {"rmse": value})]
    assert "1.000 *" in table(rows)
    assert parse_question("depth", {}).plane == "depth" and parse_question("ridge", {}).plane is None
