"""Small datasets in memory and on disk, and encoders whose features are known."""

import json

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from torch import Tensor, nn

from mmssl.config import to_dict
from mmssl.data.clips import ClipSampling
from mmssl.data.crops import Geometry
from mmssl.data.dataset import Dataset
from mmssl.data.loading import DataConfig
from mmssl.encoder import Encoder, EncoderConfig, Features
from mmssl.methods.base import create_method
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.tokenizers.video import VideoTokenizerConfig
from mmssl.training.checkpoint import RunFolder


class InMemory(Dataset):
    """Images (N, 3, H, W) uint8 with labels, as a dataset."""

    def __init__(self, images, labels=None, task=None, groups=None, classes=None, name="memory"):
        self.images, self.values = images, labels
        super().__init__(name, Geometry(tuple(images.shape[2:])))
        self.task, self.classes, self.groups = task, classes, groups
        self.targets = () if labels is None else ("label",)
        self.target = None if labels is None else "label"

    def __len__(self) -> int:
        return len(self.images)

    def _labels(self, target: str) -> Tensor:
        return self.values

    def fetch(self, index, keys=None, augmentation=None):
        batch = {"image": self.images[index], "index": index.clone()}
        return batch if self.values is None else {**batch, "label": self.values[index]}


class InMemoryClips(InMemory):
    """Clips (N, T, 3, H, W) uint8 with labels; `views` neighbours are of one video."""

    modality = "video"

    def __init__(self, clips, labels=None, task=None, classes=None, views=1, how="dense", groups=None):
        if groups is None:
            groups = torch.arange(len(clips)) // views
        super().__init__(clips.flatten(0, 1), labels, task, groups, classes, name="clips")
        self.clips, self.views = clips, views
        self.clip = ClipSampling(how=how, frames=clips.shape[1])
        self.bad.total = len(clips)

    def __len__(self) -> int:
        return len(self.clips) if hasattr(self, "clips") else 0

    def fetch(self, index, keys=None, augmentation=None):
        batch = {"video": self.clips[index], "index": index.clone()}
        return batch if self.values is None else {**batch, "label": self.values[index]}


class Looker(nn.Module):
    """Encoder whose tokens are the 2x2 quadrants' channel means: features that are known exactly."""

    embed_dim, modalities = 3, ("image",)

    def forward(self, batch, masks=None):
        x = batch["image"].float() / 255
        tokens = nn.functional.adaptive_avg_pool2d(x, 2).flatten(2).transpose(1, 2)  # (B, 4, 3)
        index = torch.arange(4).expand(len(x), -1)
        return Features(tokens, index, torch.ones_like(index, dtype=torch.bool), None, {"image": (2, 2)})


@pytest.fixture
def in_memory():
    return InMemory


@pytest.fixture
def in_memory_clips():
    return InMemoryClips


@pytest.fixture
def looker():
    return Looker()


@pytest.fixture
def tiny_encoder():
    """A real encoder, 16x16 images in patches of 4, 32 wide."""
    torch.manual_seed(0)
    tokenizer = ImageTokenizerConfig(image_size=16, patch_size=4)
    return Encoder(EncoderConfig(tokenizers={"image": tokenizer}, dim=32, depth=2, heads=2)).eval()


@pytest.fixture
def tiny_video_encoder():
    """A real encoder, 16x16 clips of 4 frames in tubelets of 2 and patches of 4, 32 wide."""
    torch.manual_seed(0)
    tokenizer = VideoTokenizerConfig(frames=4, image_size=16, patch_size=4, tubelet=2)
    return Encoder(EncoderConfig(tokenizers={"video": tokenizer}, dim=32, depth=2, heads=2, cls_token=False)).eval()


def moving_blobs(n: int, seed: int, views: int = 1):
    """Clips (n * views, 4, 3, 16, 16) of 3 classes, whose colour grows, falls, or stays; labels (n * views,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = (torch.arange(n) % 3).repeat_interleave(views)
    clips = torch.randint(60, 120, (n * views, 4, 3, 16, 16), generator=generator)
    growth = torch.tensor([-1, 0, 1])[labels][:, None] * torch.arange(4)
    clips[:, :, 0] += 30 * growth[:, :, None, None]
    return clips.clamp(0, 255).byte(), labels


@pytest.fixture
def clip_classification(in_memory_clips):
    """(train, test) of three classes of motion; each test video has 3 views."""
    train, test = moving_blobs(60, 0), moving_blobs(30, 1, views=3)
    names = ["falls", "stays", "grows"]
    return in_memory_clips(*train, "single_label", names), in_memory_clips(*test, "single_label", names, views=3)


def blobs(n: int, seed: int, noise: int = 30):
    """Images of 3 classes that differ in the mean of a colour channel; labels (N,)."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(n) % 3
    images = torch.randint(0, 100 + noise, (n, 3, 16, 16), generator=generator)
    images[torch.arange(n), labels] += 80
    return images.clamp(0, 255).byte(), labels


@pytest.fixture
def classification(in_memory):
    """(train, test) of three easy classes, in groups of 3 samples."""
    parts = []
    for n, seed in ((150, 0), (60, 1)):
        images, labels = blobs(n, seed)
        parts.append(in_memory(images, labels, "single_label", torch.arange(n) // 3, ["r", "g", "b"]))
    return tuple(parts)


@pytest.fixture
def regression(in_memory):
    """(train, test) whose two label dimensions are linear in quadrant means; a third one is constant."""
    parts = []
    for n, seed in ((200, 0), (80, 1)):
        generator = torch.Generator().manual_seed(seed)
        quadrants = torch.randint(0, 256, (n, 3, 2, 2), generator=generator)
        images = quadrants.repeat_interleave(8, 2).repeat_interleave(8, 3).byte()
        q = quadrants.float().flatten(1) / 255
        labels = torch.stack([5 * q[:, 0] - q[:, 7] + 3, 100 * q[:, 3], torch.full((n,), 7.0)], 1)
        parts.append(in_memory(images, labels, "regression", torch.arange(n) // 10))
    return tuple(parts)


@pytest.fixture(scope="session")
def picture_folder(tmp_path_factory):
    """Class folders of 24 small PNG files: reddish and bluish noise."""
    root = tmp_path_factory.mktemp("pictures")
    for name, channel in (("blue", 2), ("red", 0)):
        (root / name).mkdir()
        images, _ = blobs(12, seed=channel)
        images[:, channel] = 255 - images[:, channel] // 8
        for i, image in enumerate(images):
            Image.fromarray(image.permute(1, 2, 0).numpy()).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """A recording of 16x16 frames of a warm block, 6x6 and near, somewhere on a cold floor; the camera `side` mirrors.

    Classes are 0, background, and 5, block; depth is 1 and 2 metres; `state` is the block's row and column.
    """
    import h5py

    data = tmp_path_factory.mktemp("scenes") / "mmssl/toys/block-v0/data"
    data.mkdir(parents=True)
    rng = np.random.default_rng(0)
    with h5py.File(data / "main_data.hdf5", "w") as file:
        for episode in range(10):
            group, place = file.create_group(f"episode_{episode}"), rng.integers(0, 11, (8, 2))
            ids, rgb = np.zeros((8, 16, 16), np.int16), rng.integers(0, 60, (8, 16, 16, 3), dtype=np.uint8)
            for frame, (row, column) in enumerate(place):
                ids[frame, row : row + 6, column : column + 6] = 1
            rgb[..., 0] += (160 * ids).astype(np.uint8)
            rgb[..., 2] += (120 * (1 - ids)).astype(np.uint8)
            planes = {"rgb": rgb, "depth": (2 - ids).astype(np.float16), "segmentation": ids}
            for name, values in planes.items():
                group[f"observations/{name}/front"] = values
                group[f"observations/{name}/side"] = values[:, :, ::-1]
            group["observations/state"] = place.astype(np.float32)
            group["rewards"] = np.zeros(7, np.float32)
    own = {"cameras": {"front": {}, "side": {}}, "geoms": ["floor", "block"], "has_success": False}
    (data / "metadata.json").write_text(json.dumps({"dataset_id": "mmssl/toys/block-v0", "mmssl": own}))
    return data.parent


def tiny_multimae(**settings):
    """A MultiMAE of 16x16 image, depth and segmentation in patches of 4, with fresh weights."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    shape = {"image_size": 16, "patch_size": 4, "classes": 6, "class_stride": 1, "class_dim": 8, "budget": 16}
    return create_method("multimae", size="custom", **sizes, **{**shape, **settings}).eval()


def run_of(method, folder, **data):
    """A run folder as pretraining leaves it, with its `data` section."""
    run = RunFolder(folder)
    run.start()
    run.config.write_text(yaml.safe_dump({"method": to_dict(method.config), "data": to_dict(DataConfig(**data))}))
    run.save(1, method, {"step": 1}, keep=1)
    method.encoder.save_pretrained(run.export)
    return run.path


@pytest.fixture
def make_multimae():
    return tiny_multimae


@pytest.fixture
def make_run_of():
    return run_of


@pytest.fixture
def joint_run(tmp_path, scenes):
    """A run folder of the tiny MultiMAE on the scenes."""
    extras = ("depth", "segmentation")
    return run_of(tiny_multimae(), tmp_path / "joint", source=(str(scenes),), image_size=(16, 16), extras=extras)


def tiny_mae(norm_pix: bool = True):
    """A MAE of 16x16 images in patches of 4, with fresh weights."""
    torch.manual_seed(0)
    sizes = {"dim": 32, "depth": 2, "heads": 2, "decoder_dim": 16, "decoder_depth": 1, "decoder_heads": 2}
    return create_method("mae", size="custom", image_size=16, patch_size=4, norm_pix=norm_pix, **sizes).eval()


@pytest.fixture
def make_mae():
    return tiny_mae


@pytest.fixture
def run_folder(tmp_path, picture_folder):
    """A run folder as pretraining leaves it: config.yaml, a checkpoint and an export."""
    method, run = tiny_mae(), RunFolder(tmp_path / "run")
    run.start()
    data = to_dict(DataConfig(source=(str(picture_folder),), image_size=(16, 16)))
    run.config.write_text(yaml.safe_dump({"method": to_dict(method.config), "data": data}))
    run.save(1, method, {"step": 1}, keep=1)
    method.encoder.save_pretrained(run.export)
    return run.path
