"""What every registered method must do on its own kind of data, with tiny settings: nothing here names a method."""

import dataclasses

import numpy as np
import pytest
import torch

import mmssl
from mmssl.data.audio_sampling import AudioSampling
from mmssl.data.clips import ClipSampling
from mmssl.encoder import Encoder
from mmssl.errors import MmsslError
from mmssl.keys import sample_keys
from mmssl.methods.base import Method
from mmssl.methods.joint import JointAutoencoder
from mmssl.registry import METHODS
from mmssl.report.modalities import read_modalities
from mmssl.tokenizers.vector import VECTORS
from mmssl.training.pictures import save_pictures

TINY = {
    "size": "custom", "dim": 16, "depth": 2, "heads": 2, "image_size": 16, "patch_size": 4, "frames": 4, "tubelet": 2,
    "mel_bins": 16, "mask_ratio": 0.5, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2, "views": ("a", "b"),
    "text_length": 8, "budget": 10, "classes": 5, "text_dim": 16, "text_depth": 1, "text_heads": 2, "joint_dim": 8,
    "width": 8, "reward_dim": 16,
}  # fmt: skip
SOUND = {"frames": 32}  # in place of these, where there are mel bins
WIDTH = 3  # of vectors
CANDIDATES = {"image": (3, 16, 16), "video": (4, 3, 16, 16), "pair": (2, 3, 16, 16), "five": (5, 3, 16, 16)}
CANDIDATES |= {"audio": (1, 5000)}


def tiny(name: str):
    fields = {field.name for field in dataclasses.fields(METHODS.get(name).config_class)}
    wanted = TINY | SOUND if "mel_bins" in fields else TINY
    vectors = getattr(METHODS.get(name).config_class(), "widths", None)
    wanted = wanted | ({"widths": dict.fromkeys(vectors, WIDTH)} if vectors else {})
    torch.manual_seed(0)
    return mmssl.create_method(name, **{key: value for key, value in wanted.items() if key in fields})


def sample_of(name: str, n: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Random input of one modality, by the kind that its name begins with."""
    kind = name.split("/")[0]
    if kind == "text":
        length = torch.tensor([8, 5, 3, 8])[:n]
        ids = torch.randint(1, 250, (n, 8), generator=generator)
        ids[torch.arange(n), length - 1] = 258  # the mark of a text's end
        mask = torch.arange(8)[None] < length[:, None]
        return {"text": ids * mask, "text_mask": mask}
    if kind == "segmentation":
        return {name: torch.randint(0, 5, (n, 16, 16), generator=generator)}
    if kind in VECTORS:
        valid = torch.arange(4)[None] < torch.tensor([4, 4, 2, 3])[:n, None]
        return {name: torch.randn(n, 4, WIDTH, generator=generator) * valid[..., None], "valid": valid}
    if kind == "depth":
        return {name: 1 + torch.rand(n, 1, 16, 16, generator=generator)}
    x = torch.randint(0, 256, (n, *CANDIDATES[kind]), dtype=torch.uint8, generator=generator)
    return {"video" if name in ("pair", "five") else name: 0.001 * (x.float() - 127.5) if kind == "audio" else x}


def batch_for(method, n: int = 4) -> dict[str, torch.Tensor]:
    """All that the method's encoders read; or, where its check refuses that, the first kind of batch that it takes."""
    generator, refused = torch.Generator().manual_seed(1), []
    encoders = [module for module in method.modules() if isinstance(module, Encoder)]
    read = [m for encoder in encoders for m in encoder.modalities]
    beside = [m for m in read if m == "text"]
    for names in (read, *([name, *beside] for name in CANDIDATES)):
        batch = {"index": torch.arange(n)}
        for name in names:
            batch |= sample_of(name, n, generator)
        try:
            method.check(batch)
            return batch
        except MmsslError as error:
            refused.append(str(error))
    pytest.fail(f"no batch suits {method.config.name}: {refused}")


@pytest.fixture(params=METHODS.names())
def method(request):
    return tiny(request.param)


def test_it_learns_by_steps_of_its_gradient(method):
    batch = batch_for(method)
    optimizer, losses = torch.optim.AdamW(method.parameters(), lr=3e-3), []
    for _ in range(15):
        total, count = method(batch)["loss"]
        loss = total / count
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert all(np.isfinite(losses)) and losses[-1] < losses[0]
    idle = [n for n, p in method.named_parameters() if p.requires_grad and p.grad is None]
    assert idle == [], "parameters that no loss reaches"


def test_the_same_call_gives_the_same_loss_and_other_keys_another(method):
    batch = batch_for(method.eval())
    one, two = (method(batch)["loss"][0] for _ in range(2))
    other = method(batch, keys=sample_keys(7, 0, 0, batch["index"]))["loss"][0]
    assert torch.equal(one, two) and not torch.equal(one, other)


def reconstructs(method) -> bool:
    return type(method).reconstruct is not Method.reconstruct


def test_what_it_reconstructs_can_be_looked_at(method):
    batch = batch_for(method.eval())
    if not reconstructs(method):
        with pytest.raises(MmsslError, match="does not reconstruct"):
            method.reconstruct(batch)
        return
    found = method.reconstruct(batch)
    shapes = {tuple(found[key].shape) for key in ("target", "masked", "prediction")}
    assert len(shapes) == 1 and len(shapes.pop()) in (4, 5)
    assert found["mask"].dtype == torch.bool and 0 < found["mask"].float().mean() < 1
    low, high = (-20, 10) if "audio" in batch else (0, 1)  # log-mel values, or pixels
    for key in ("target", "masked", "prediction"):
        assert found[key].dtype == torch.float32 and found[key].min() >= low and found[key].max() <= high
    hidden = (found["masked"] != found["target"]).any(-3)
    assert 0 < hidden.float().mean() < 1
    shown = ~hidden.unsqueeze(-3).expand_as(found["target"])
    torch.testing.assert_close(found["prediction"][shown], found["target"][shown])


class Held:
    """A dataset of one batch, and the config that opens it."""

    def __init__(self, batch):
        self.batch = batch
        self.audio = AudioSampling() if "audio" in batch else None
        self.clip = ClipSampling(frames=batch["video"].shape[1]) if "video" in batch else None

    def open(self, split="train"):
        return self

    def __len__(self):
        return len(self.batch["index"])

    def fetch(self, places):
        return {key: x[places] for key, x in self.batch.items()}


def test_its_pictures_are_saved(method, tmp_path):
    batch = batch_for(method.eval())
    save_pictures(method, Held(batch), tmp_path)
    if "audio" in batch:
        with np.load(tmp_path / "spectrograms.npz") as file:
            assert file["original"].shape == file["masked"].shape == file["reconstructed"].shape == (4, 32, 16)
        return
    if isinstance(method, JointAutoencoder):
        found = read_modalities(tmp_path)
        pictures = [name for name in batch if f"{name.split('/')[0]}" in ("image", "video", "depth", "segmentation")]
        assert sorted(found.names) == sorted(pictures) and len(found.texts) == (4 if "text" in batch else 0)
        assert len(found.crossed) == len(pictures) * (len(pictures) - 1)
        return
    if not reconstructs(method):
        return
    with np.load(tmp_path / "reconstruction.npz") as file:
        assert file["original"].shape == file["masked"].shape == file["reconstructed"].shape
        assert file["original"].ndim == (5 if "video" in batch else 4) and file["original"].dtype == np.uint8
    with np.load(tmp_path / "features.npz") as file:
        assert file["image"].shape[0] == file["tokens"].shape[0] and file["tokens"].shape == file["random"].shape


def test_its_encoder_comes_back_from_disk(method, tmp_path):
    method.encoder.save_pretrained(tmp_path)
    encoder = mmssl.load(tmp_path)
    assert encoder.config == method.encoder.config
    assert all(torch.equal(v, encoder.state_dict()[k]) for k, v in method.encoder.state_dict().items())
