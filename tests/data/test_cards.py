"""Dataset cards: all that ship are valid, and a wrong or missing one says what to do."""

import pytest
import yaml

from mmssl import open_dataset, paths
from mmssl.config import from_dict, to_dict
from mmssl.data.cards import load_card
from mmssl.data.loading import DataConfig
from mmssl.errors import MmsslError
from mmssl.registry import DATASETS

CARD = {
    "name": "mine",
    "modality": "image",
    "kind": "image_folder",
    "layout": "l",
    "how_to_get": "Ask me.",
    "licence": "MIT",
}


@pytest.mark.parametrize("name", paths.list_resources("data"))
def test_shipped_cards(name):
    card, file = load_card(name)
    assert card.name == name == file.stem and card.kind in DATASETS
    assert card.licence and card.how_to_get and card.layout and (card.path or card.tasks)


def test_the_shipped_cards_are_there():
    assert {"samples", "imagenet-1k", "metaworld10", "recorded"} <= set(paths.list_resources("data"))


def test_metaworld10_names_real_tasks():
    from mmssl.envs.suites import load_suite

    card, _ = load_card("metaworld10")
    assert len(card.tasks) == 10
    for task in card.tasks:
        _, suite, name = task.split("/")
        assert name.removesuffix("-v1") in load_suite(suite).tasks


def write(tmp_path, **changes):
    file = tmp_path / "mine.yaml"
    file.write_text(yaml.safe_dump({**CARD, **changes}))
    return file


def test_own_card_with_a_path_beside_it_and_its_own_class_order(pictures, tmp_path):
    dataset = open_dataset(write(tmp_path, path="pictures", classes=["bee", "ant"], crop_fraction=1.0), image_size=8)
    assert dataset.name == "mine" and dataset.classes == ["bee", "ant"] and dataset.labels()[0] == 1
    assert dataset.geometry.crop_fraction == 1.0


def test_classes_that_are_not_those_of_the_folder(pictures, tmp_path):
    with pytest.raises(MmsslError, match=r"lists the classes bee, but its folder also has ant"):
        open_dataset(write(tmp_path, path="pictures", classes=["bee"]), image_size=8)


def test_recorded_card(record, tmp_path):
    record("metaworld/reach", episodes=2)
    record("metaworld/push", episodes=2)
    card = write(tmp_path, kind="recorded", tasks=["metaworld/push", "metaworld/reach"], target="task")
    assert open_dataset(card, split="all").classes == ["metaworld/push", "metaworld/reach"]


def test_what_is_missing_says_how_to_get_it(tmp_path, monkeypatch):
    monkeypatch.delenv("IMAGENET", raising=False)
    with pytest.raises(MmsslError, match=r"\$\{IMAGENET\}, which is not set.*image-net\.org"):
        open_dataset("imagenet-1k")
    with pytest.raises(MmsslError, match=r"no folder .*nowhere.*Ask me"):
        open_dataset(write(tmp_path, path="nowhere"))
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    with pytest.raises(MmsslError, match=r"no recording of 'mmssl/metaworld/reach-v1'.*--randomize 0.5"):
        open_dataset("metaworld10")


def test_wrong_cards(tmp_path):
    with pytest.raises(MmsslError, match=r"unknown key.*'licnce': did you mean 'licence'"):
        open_dataset(write(tmp_path, licnce="x"))
    with pytest.raises(MmsslError, match=r"unknown kind of dataset 'folder'"):
        open_dataset(write(tmp_path, kind="folder", path="."))
    with pytest.raises(MmsslError, match=r"cards: .*samples"):
        open_dataset("sampels")


def test_data_config_round_trip_and_limits():
    config = DataConfig(source=("samples",), image_size=(32, 32))
    assert from_dict(DataConfig, to_dict(config)) == config
    assert len(config.open(split="all")) == 8
    with pytest.raises(MmsslError, match=r"no data was given"):
        DataConfig().open()
    for wrong in ({"image_size": (0, 8)}, {"max_bad": 2.0}, {"crop_fraction": 0.0}, {"test_every": 1}):
        with pytest.raises(MmsslError, match=next(iter(wrong))):
            DataConfig(**wrong)


def test_kinds_are_not_mixed(pictures, record):
    with pytest.raises(MmsslError, match=r"different kinds"):
        open_dataset([pictures, record()])
