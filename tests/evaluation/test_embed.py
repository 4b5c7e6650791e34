"""`mmssl embed`."""

import json

import pytest
import torch
from safetensors.torch import load_file

from mmssl.errors import MmsslError
from mmssl.evaluation.embed import embed


def test_features_labels_and_names_of_every_file(run_folder, picture_folder, tmp_path):
    out = embed(str(run_folder), data=(str(picture_folder),), out=tmp_path / "deep" / "f.safetensors", device="cpu")
    tensors, index = load_file(out), json.loads(out.with_suffix(".json").read_text())
    assert tensors["features"].shape == (24, 32) and tensors["features"].dtype == torch.float32
    assert tensors["index"].tolist() == list(range(24)) == [row["index"] for row in index["rows"]]
    assert tensors["labels"].tolist() == [0] * 12 + [1] * 12 and index["classes"] == ["blue", "red"]
    assert index["rows"][13]["name"].endswith("red/01.png")
    again = load_file(embed(str(run_folder), data=(str(picture_folder),), out=tmp_path / "g.safetensors", batch_size=5))
    torch.testing.assert_close(again["features"], tensors["features"], atol=1e-5, rtol=1e-5)


def test_all_tokens(run_folder, picture_folder, tmp_path):
    out = embed(
        str(run_folder), data=(str(picture_folder),), out=tmp_path / "t.safetensors", pooling="tokens", split="test"
    )
    assert load_file(out)["features"].shape[1:] == (16, 32)


@pytest.mark.parametrize(
    "change, words",
    [
        ({"data": ()}, "--data"),
        ({"pooling": "avg"}, "pooling"),
        ({"out": "x.pt"}, "safetensors"),
        ({"split": "dev"}, "split"),
    ],
)
def test_wrong_input(run_folder, picture_folder, tmp_path, change, words):
    with pytest.raises(MmsslError, match=words):
        embed(str(run_folder), **{"data": (str(picture_folder),), "out": tmp_path / "x.safetensors", **change})
