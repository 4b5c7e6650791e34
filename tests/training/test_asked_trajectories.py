"""What a method of trajectories asks of the data, and what pretraining on them settles and refuses."""

import sys
from pathlib import Path

import h5py
import pytest
import torch

import mmssl
from mmssl.config import from_dict
from mmssl.data.loading import DataConfig
from mmssl.data.trajectory_sampling import TrajectorySampling
from mmssl.encoder import Encoder, EncoderConfig
from mmssl.errors import MmsslError
from mmssl.methods.base import create_method
from mmssl.methods.mtm_settings import MTMConfig
from mmssl.tokenizers.image import ImageTokenizerConfig
from mmssl.training.asked import as_asked, check_data, settle_statistics, trajectory_sampling
from mmssl.training.pretrain import PretrainConfig, pretrain

sys.path.append(str(Path(__file__).parents[1] / "data"))  # tests are imported from their files, not as a package

from trajectory_toys import write_toys

SMALL = {"dim": 8, "depth": 1, "heads": 2, "length": 3}


def mtm(**settings):
    return create_method(MTMConfig(**{"widths": {"state": 3, "action": 2}, **SMALL, **settings}))


def test_the_method_says_length_and_modalities():
    frames = mtm(image_size=8, patch_size=4, cameras=("top", "side"))
    assert trajectory_sampling(mtm(), None) == TrajectorySampling(3, ("state", "action"))
    assert trajectory_sampling(frames, None).modalities == ("state", "action", "video/top", "video/side")
    given = TrajectorySampling(2, ("state",), stride=4)
    assert trajectory_sampling(mtm(), given) == TrajectorySampling(2, ("state", "action"), stride=4)
    with pytest.raises(MmsslError, match=r"data.trajectory.length is 4 and the method reads 3 steps; lower the first"):
        trajectory_sampling(mtm(), TrajectorySampling(4))
    other = Encoder(EncoderConfig({"image": ImageTokenizerConfig(image_size=8, patch_size=4)}, 8, 1, 2))
    assert trajectory_sampling(other, None) is None and trajectory_sampling(other, given) is given
    with pytest.raises(MmsslError, match=r"write it with `mmssl embed`, and set trajectory.features"):
        trajectory_sampling(mtm(widths={"features": 4}), None)


def test_statistics_and_widths(tmp_path):
    folder, said = write_toys(tmp_path, (4, 6, 3)), []
    with h5py.File(folder / "data/main_data.hdf5", "a") as file:
        for e in range(3):
            file[f"episode_{e}/actions"][:, 1] = 7
    model = mtm(min_std=0.01)
    data = as_asked(model, DataConfig(source=(str(folder),))).open()
    settle_statistics(model, data, said.append)
    assert said[0] == "state is standardised by its mean and std over 10 frames of own/toy."
    assert said[1].endswith("of own/toy; dimensions [1] of it never change, and are not divided by it.")
    for name in ("state", "action"):
        mean, std = data.statistics(name)
        torch.testing.assert_close(model.encoder.tokenizer(name).mean, mean.float())
        torch.testing.assert_close(model.encoder.tokenizer(name).std, torch.where(std == 0, 1, std).float())
    check_data(model, data)
    with pytest.raises(MmsslError, match=r"'state' of dataset 'own/toy' has 3 numbers .* reads 4; set its width to 3"):
        wide = mtm(widths={"state": 4, "action": 2})
        check_data(wide, as_asked(wide, DataConfig(source=(str(folder),))).open())


def test_pretraining_on_trajectories(tmp_path, monkeypatch):
    """Short episodes, and some without their actions, too."""
    monkeypatch.setattr("mmssl.training.pretrain._finish", lambda *_: None)
    folder = write_toys(tmp_path, (4, 6, 2, 9, 5, 3))
    recipe = {
        "method": {"name": "mtm", "widths": {"state": 3, "action": 2, "return": 1}, **SMALL},
        "data": {"source": [str(folder)], "trajectory": {"length": 3, "without_action": 0.5}},
        "loop": {"steps": 4, "batch_size": 4, "device": "cpu"},
    }
    pretrain(from_dict(PretrainConfig, recipe), tmp_path / "run")
    model = mmssl.load_method(str(tmp_path / "run"))
    data = DataConfig(source=(str(folder),), trajectory=TrajectorySampling(3)).open()
    torch.testing.assert_close(model.encoder.tokenizer("state").mean, data.statistics("state")[0].float())
    found = model.predict(data.fetch(torch.arange(2)), "bc", step=1)
    assert found["action"].shape == (2, 3, 2) and found["action"].isfinite().all()
