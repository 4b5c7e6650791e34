"""The command line: every verb resolves, mistakes end in one sentence."""

import pytest

from mmssl import cli
from mmssl.config import load_config
from mmssl.data.clips import ClipSampling
from mmssl.paths import find_resource
from mmssl.training.pretrain import PretrainConfig


def run(capsys, *args):
    """Exit code, stdout and stderr of one command."""
    try:
        cli.main(list(args))
        code = 0
    except SystemExit as stop:
        code = stop.code
    out = capsys.readouterr()
    return code, out.out, out.err


@pytest.mark.parametrize("verb", cli.VERBS)
def test_every_verb_has_help(verb, capsys):
    code, out, _ = run(capsys, verb, "--help")
    assert code == 0 and "usage" in out


def test_overview_names_every_verb(capsys):
    code, out, _ = run(capsys)
    assert code == 0 and all(f"  {verb} " in out for verb in cli.VERBS)


def test_version(capsys):
    assert run(capsys, "--version")[1].startswith("mmssl 0.")


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["pretrian"], "unknown verb 'pretrian': did you mean 'pretrain'?"),
        (["pretrain", "mae/pretrain_tini_demo"], "unknown recipe 'mae/pretrain_tini_demo': did you mean"),
        (["pretrain", "--run", "x"], "the recipe comes first"),
        (["pretrain", "mae/pretrain_tiny_demo", "--run"], "--run needs a value"),
        (["list", "recipe"], "did you mean 'recipes'"),
    ],
)
def test_mistakes_end_in_one_sentence(capsys, args, message):
    code, _, err = run(capsys, *args)
    assert code == 2 and message in err and "Traceback" not in err and err.count("\n") == 1


def test_unknown_field_of_a_recipe_gives_the_nearest(capsys):
    code, out, err = run(capsys, "pretrain", "mae/pretrain_tiny_demo", "--method.mask-ratoi", "0.5")
    assert code == 2 and "mask-ratio" in out + err


def test_list_shows_recipes_and_methods(capsys):
    code, out, _ = run(capsys, "list")
    assert code == 0 and "mae/pretrain_tiny_demo" in out and "\n  mae\n" in out


def test_a_group_that_is_null_is_filled_where_one_of_its_fields_is_named():
    config = load_config(PretrainConfig, find_resource("configs", "mae/pretrain_tiny_demo"))
    assert config.data.clip is None and cli.override(config, ["--loop.compile", "True"], "x").data.clip is None
    assert cli.override(config, ["--loop.epochs", "null", "--data.target=null"], "x").loop.epochs is None
    changed = cli.override(config, ["--data.clip.how", "pair", "--data.clip.frames=2", "--loop.compile", "True"], "x")
    assert changed.data.clip == ClipSampling(how="pair", frames=2) and changed.loop.compile
    again = cli.override(changed, ["--data.clip.gap", "3", "9"], "x")
    assert again.data.clip == ClipSampling(how="pair", frames=2, gap=(3, 9))
