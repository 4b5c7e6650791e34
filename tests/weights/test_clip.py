"""CLIP's weights in: transformers' folders of all kinds, OpenAI's and OpenCLIP's files."""

import json
import string

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

import mmssl
from mmssl.config import to_dict
from mmssl.errors import MmsslError
from mmssl.evaluation.joint_space import embed_texts
from mmssl.methods.base import create_method

SIZE, PATCH, DIM, TEXT_DIM, VOCABULARY, LENGTH, END = 32, 8, 64, 128, 40, 12, 39


@pytest.fixture
def make_clip(scrambled):
    """A tiny transformers CLIP by the name of its class: Model, VisionModel, TextModel, TextModelWithProjection."""
    import transformers

    def make(kind="Model", act="quick_gelu", end=END, vocabulary=VOCABULARY):
        shared = {"num_hidden_layers": 2, "hidden_act": act, "projection_dim": 24, "layer_norm_eps": 1e-4}
        vision = {"hidden_size": DIM, "num_attention_heads": 4, "intermediate_size": 200, "image_size": SIZE}
        text = {"hidden_size": TEXT_DIM, "num_attention_heads": 2, "intermediate_size": 512, "vocab_size": vocabulary}
        text |= {"max_position_embeddings": LENGTH, "eos_token_id": end, "pad_token_id": 0, "bos_token_id": 38}
        vision, text = {**vision, "patch_size": PATCH, **shared}, {**text, **shared}
        if kind == "Model":
            config = transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=24)
        else:
            config = (
                transformers.CLIPVisionConfig(**vision) if "Vision" in kind else transformers.CLIPTextConfig(**text)
            )
        return scrambled(getattr(transformers, f"CLIP{kind}")(config))

    return make


@pytest.fixture
def texts() -> dict[str, Tensor]:
    """Texts of several lengths, each ended by END; the padding behind one is END, as CLIP's own tokenizer has it."""
    ids = torch.randint(1, 30, (3, LENGTH), generator=torch.Generator().manual_seed(2))
    mask = torch.arange(LENGTH)[None] < torch.tensor([5, LENGTH, 3])[:, None]
    ids[0, 4:], ids[1, -1], ids[2, 2], ids[2, 3:] = END, END, END, 0
    return {"text": ids, "text_mask": mask}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert ours.shape == theirs.shape and (ours - theirs).abs().max() < 1e-5


@torch.no_grad()
def same_as(method, model, images, texts) -> None:
    """Towers, embeddings, logits and loss are those of a transformers CLIPModel."""
    pixels = method.encoder.tokenizers["image"].prepare(images)
    theirs = model(input_ids=texts["text"], attention_mask=texts["text_mask"], pixel_values=pixels, return_loss=True)
    batch = {"image": images, **texts}
    image, text = method.encoder(batch), method.text_encoder(batch)
    assert_close(image.cls, model.vision_model(pixels).pooler_output)
    real = texts["text_mask"]
    states = model.text_model(texts["text"], attention_mask=real)
    assert_close(text.tokens[real], states.last_hidden_state[real])
    assert_close(text.pooled("last"), states.pooler_output)
    found = method.embed(batch)
    assert_close(found["image"], theirs.image_embeds)
    assert_close(found["text"], theirs.text_embeds)
    assert_close(method.logit_scale.exp() * found["image"] @ found["text"].T, theirs.logits_per_image)
    total, count = method(batch)["loss"]
    assert_close(total / count, theirs.loss)


@pytest.mark.parametrize(("act", "gelu"), [("quick_gelu", "quick"), ("gelu", "exact")])
@pytest.mark.parametrize("end", [END, 2])
def test_a_folder_of_transformers(tmp_path, make_clip, images, texts, act, gelu, end):
    model = make_clip(act=act, end=end)
    model.save_pretrained(tmp_path)
    method = mmssl.load_method(tmp_path)
    same_as(method, model, images, texts)
    assert (method.config.gelu, method.config.norm_eps, method.config.end_id) == (gelu, 1e-4, END)
    without = method.embed({"text": texts["text"]})["text"]  # the mark of the end says where a text ends
    assert_close(without, method.embed(texts)["text"])


def test_one_tower_of_a_folder(tmp_path, make_clip, images, texts):
    model = make_clip()
    model.save_pretrained(tmp_path)
    image, text = mmssl.load(tmp_path), mmssl.load(tmp_path, modality="text")
    with torch.no_grad():
        pixels = image.tokenizers["image"].prepare(images)
        assert_close(image({"image": images}).cls, model.vision_model(pixels).pooler_output)
        assert_close(text(texts).pooled("last"), model.text_model(texts["text"]).pooler_output)
    assert (image.config.heads, text.config.heads, text.config.causal) == (4, 2, True)
    assert text.tokenizers["text"].config.vocab_size == VOCABULARY
    method = mmssl.load_method(tmp_path)
    for tower, whole in ((image, method.encoder), (text, method.text_encoder)):
        assert tower.config == whole.config
        assert all(torch.equal(v, whole.state_dict()[k]) for k, v in tower.state_dict().items())


@pytest.mark.parametrize("prefix", ["as saved", "vision_model.", ""])
def test_a_folder_of_the_image_tower_alone(tmp_path, make_clip, images, prefix):
    model = make_clip("VisionModel")
    model.save_pretrained(tmp_path)
    if prefix != "as saved":  # transformers 4 and 5 differ
        state = {k.removeprefix("vision_model."): v for k, v in load_file(tmp_path / "model.safetensors").items()}
        save_file({f"{prefix}{k}": v for k, v in state.items()}, tmp_path / "model.safetensors")
    encoder = mmssl.load(tmp_path)
    with torch.no_grad():
        pixels = encoder.tokenizers["image"].prepare(images)
        theirs = model(pixels)
        assert_close(encoder({"image": images}).cls, theirs.pooler_output)
        assert_close(encoder({"image": images}).tokens, model.post_layernorm(theirs.last_hidden_state)[:, 1:])
    with pytest.raises(MmsslError, match="one tower of CLIP, and not that of text"):
        mmssl.load_method(tmp_path)
    with pytest.raises(MmsslError, match="says itself that modality is 'image'"):
        mmssl.load(tmp_path, modality="text")


@pytest.mark.parametrize("kind", ["TextModel", "TextModelWithProjection"])
def test_a_folder_of_the_text_tower_alone(tmp_path, make_clip, texts, kind):
    model = make_clip(kind)
    model.save_pretrained(tmp_path)
    encoder = mmssl.load(tmp_path)
    with torch.no_grad():
        theirs = (model.text_model if "With" in kind else model)(texts["text"]).pooler_output
        assert_close(encoder(texts).pooled("last"), theirs)


def test_mean_and_std_vocabulary_and_doubled_settings_are_the_folders(tmp_path, make_clip):
    make_clip().save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text('{"image_mean": [0.5, 0.4, 0.3], "image_std": [0.1, 0.2, 0.3]}')
    assert mmssl.load_method(tmp_path).config.vocabulary == "openai/clip-vit-base-patch32"
    (tmp_path / "tokenizer.json").write_text("{}")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config_dict"] = {"num_attention_heads": 4}  # as in LAION's folders
    (tmp_path / "config.json").write_text(json.dumps(config))
    found = mmssl.load_method(tmp_path).config
    assert (found.mean, found.std) == ((0.5, 0.4, 0.3), (0.1, 0.2, 0.3))
    assert (found.vocabulary, found.text_heads) == (str(tmp_path), 4)


def openai_state(model) -> dict[str, Tensor]:
    """The weights of a transformers CLIPModel under OpenAI's names."""
    theirs = {"logit_scale": model.logit_scale, "text_projection": model.text_projection.weight.T}
    theirs |= {"visual.proj": model.visual_projection.weight.T}
    image, text = model.vision_model, model.text_model
    theirs |= {
        "visual.class_embedding": image.embeddings.class_embedding,
        "visual.conv1.weight": image.embeddings.patch_embedding.weight,
        "visual.positional_embedding": image.embeddings.position_embedding.weight,
        "token_embedding.weight": text.embeddings.token_embedding.weight,
        "positional_embedding": text.embeddings.position_embedding.weight,
    }
    norms = {"visual.ln_pre": image.pre_layrnorm, "visual.ln_post": image.post_layernorm}
    parts = norms | {"ln_final": text.final_layer_norm}
    for tower, start in ((image, "visual."), (text, "")):
        for k, layer in enumerate(tower.encoder.layers):
            block, attn = f"{start}transformer.resblocks.{k}", layer.self_attn
            parts |= {f"{block}.ln_1": layer.layer_norm1, f"{block}.ln_2": layer.layer_norm2}
            parts |= {f"{block}.mlp.c_fc": layer.mlp.fc1, f"{block}.mlp.c_proj": layer.mlp.fc2}
            parts |= {f"{block}.attn.out_proj": attn.out_proj}
            for kind in ("weight", "bias"):
                three = [getattr(p, kind) for p in (attn.q_proj, attn.k_proj, attn.v_proj)]
                theirs[f"{block}.attn.in_proj_{kind}"] = torch.cat(three)
    theirs |= {f"{name}.{kind}": getattr(part, kind) for name, part in parts.items() for kind in ("weight", "bias")}
    return {k: v.detach().contiguous() for k, v in theirs.items()}


OPENAI = {"input_resolution": torch.tensor(SIZE), "context_length": torch.tensor(12), "vocab_size": torch.tensor(40)}


def save(state: dict[str, Tensor], path, **beside):
    torch.save({"state_dict": state, **beside} if beside else state, path)
    return path


def with_their_eps(model):
    """Files do not say the epsilon: OpenAI's and OpenCLIP's is 1e-5."""
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5
    return model


def test_a_file_of_openai(tmp_path, make_clip, images, texts):
    model = with_their_eps(make_clip())
    method = mmssl.load_method(save(openai_state(model) | OPENAI, tmp_path / "ViT-B-32.pt"), heads=4)
    same_as(method, model, images, texts)
    assert (method.config.gelu, method.config.end_id, method.config.image_size) == ("quick", END, (SIZE, SIZE))
    text = mmssl.load(tmp_path / "ViT-B-32.pt", modality="text")
    assert all(torch.equal(v, method.text_encoder.state_dict()[k]) for k, v in text.state_dict().items())


def test_a_file_of_openclip(tmp_path, make_clip, images, texts):
    model = with_their_eps(make_clip(act="gelu"))
    state = {f"module.{k}": v for k, v in openai_state(model).items()}
    path = save(state, tmp_path / "epoch_32.pt", epoch=32)
    with pytest.raises(MmsslError, match=r"does not say which GELU .* gelu='quick' .* gelu='exact'"):
        mmssl.load_method(path, heads=4)
    same_as(mmssl.load_method(path, heads=4, gelu="exact"), model, images, texts)
    half = save({k: v.half() for k, v in openai_state(model).items()}, tmp_path / "half.pt")
    encoder = mmssl.load(half, heads=4, gelu="exact")
    assert {p.dtype for p in encoder.parameters()} == {torch.float32} and encoder.config.gelu == "exact"


def test_the_published_widths_have_their_heads(tmp_path, make_clip):
    model = make_clip()
    path = save(openai_state(model) | OPENAI, tmp_path / "x.pt")
    assert mmssl.load(path).config.heads == DIM // 64 and mmssl.load(path, modality="text").config.heads == 2
    with pytest.raises(MmsslError, match=r"attention heads.*3 do not divide.*heads="):
        mmssl.load(path, heads=3)


def test_images_that_are_no_square(tmp_path, make_clip):
    state = openai_state(make_clip()) | OPENAI
    state["visual.positional_embedding"] = state["visual.positional_embedding"][:9]  # 2 x 4 patches
    path = save(state, tmp_path / "x.pt")
    with pytest.raises(MmsslError, match=r"positions for 8 patches.*image_size=\(H, W\)"):
        mmssl.load(path)
    assert mmssl.load(path, image_size=(16, 32)).grids == {"image": (2, 4)}


def test_a_folder_for_larger_images(tmp_path, make_clip, images):
    model = make_clip()
    model.save_pretrained(tmp_path)
    encoder = mmssl.load(tmp_path, image_size=48)
    larger = torch.randint(0, 256, (2, 3, 48, 48), dtype=torch.uint8)
    with torch.no_grad():
        pixels = encoder.tokenizers["image"].prepare(larger)
        theirs = model.vision_model(pixels, interpolate_pos_encoding=True).pooler_output
        assert_close(encoder({"image": larger}).cls, theirs)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda s: s.pop("ln_final.weight"), "lacks ln_final.weight"),
        (lambda s: s.pop("visual.proj"), "lacks visual.proj"),
        (lambda s: s.pop("visual.ln_pre.bias"), "missing: encoder.norm_pre.bias"),
        (lambda s: s.update({"visual.attnpool.positional_embedding": torch.zeros(2, 2)}), "CLIP with a ResNet"),
        (lambda s: s.update({"logit_bias": torch.zeros(())}), "unknown: text_encoder.logit_bias"),
        (lambda s: s.pop("transformer.resblocks.0.mlp.c_fc.weight"), "lacks transformer.resblocks.0.mlp.c_fc.weight"),
    ],
    ids=["norm", "projection", "norm before", "resnet", "more", "block"],
)
def test_what_is_missing_or_has_no_place_is_named(tmp_path, make_clip, change, words):
    state = openai_state(make_clip()) | OPENAI
    change(state)
    with pytest.raises(MmsslError, match=words):
        mmssl.load_method(save(state, tmp_path / "x.pt"), heads=4)


def test_wrong_settings_are_one_sentence(tmp_path, make_clip):
    make_clip().save_pretrained(tmp_path)
    with pytest.raises(MmsslError, match="says itself that gelu is 'quick'"):
        mmssl.load(tmp_path, gelu="exact")
    with pytest.raises(MmsslError, match="read as a whole without modality"):
        mmssl.load_method(tmp_path, modality="text")
    config = json.loads((tmp_path / "config.json").read_text())
    config["text_config"]["hidden_act"] = "gelu"
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(MmsslError, match=r"activations gelu, quick_gelu .* share one"):
        mmssl.load(tmp_path)


def test_a_torchscript_archive_is_not_run(tmp_path):
    torch.jit.script(torch.nn.Linear(2, 2)).save(tmp_path / "ViT-B-32.pt")
    with pytest.raises(MmsslError, match=r"TorchScript archive.*torch.jit.load\(path\).state_dict\(\)"):
        mmssl.load(tmp_path / "ViT-B-32.pt")


def test_both_towers_of_a_run(tmp_path):
    shape = {"size": "custom", "dim": 16, "depth": 1, "heads": 2, "image_size": 16, "patch_size": 8, "text_length": 8}
    method = create_method("clip", **shape, text_dim=32, text_depth=1, text_heads=2, joint_dim=8)
    run = tmp_path / "run"
    (run / "checkpoints/step_1").mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump({"method": to_dict(method.config)}))
    save_file(method.state_dict(), run / "checkpoints/step_1/model.safetensors")
    method.encoder.save_pretrained(run / "export")
    assert mmssl.load(run).config == method.encoder.config
    text = mmssl.load(run, modality="text")
    assert text.config == method.text_encoder.config
    assert all(torch.equal(v, method.text_encoder.state_dict()[k]) for k, v in text.state_dict().items())
    assert mmssl.load_method(run).config == method.config


def test_texts_of_a_folder_with_its_tokenizer(tmp_path, make_clip):
    """From strings to vectors as transformers goes, with the tokenizer that lies beside the weights."""
    from transformers import CLIPTokenizer

    tokens = [*string.ascii_lowercase, *(f"{c}</w>" for c in string.ascii_lowercase), "<|startoftext|>"]
    vocabulary = {token: k for k, token in enumerate([*tokens, "<|endoftext|>"])}
    (tmp_path / "vocab.json").write_text(json.dumps(vocabulary))
    (tmp_path / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    model = make_clip(end=53, vocabulary=54)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    method, texts = mmssl.load_method(tmp_path), ["a cat", "the dog", "b", "a house in the woods"]
    ids = tokenizer(texts, padding=True, truncation=True, max_length=LENGTH, return_tensors="pt")
    with torch.no_grad():
        theirs = torch.nn.functional.normalize(model.get_text_features(**ids).pooler_output, dim=-1)
    assert_close(embed_texts(method, texts), theirs)
