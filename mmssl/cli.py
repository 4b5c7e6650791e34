"""The command line: verbs only. Each verb is a typed function in the module that does the work.

`mmssl VERB --help` is made by tyro from the function's signature and docstring. A verb that runs a recipe reads the
YAML first; every field of it can then be overridden with its dotted name (`--optim.base-lr 1e-3`).
"""

import dataclasses
import re
import sys
import typing
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import tyro

from mmssl.errors import MmsslError, unknown_name

# verb -> (where its function is, what `mmssl --help` says of it)
VERBS = {
    "demo": ("mmssl.demo:demo", "record, pretrain, judge and report, in minutes"),
    "list": ("mmssl.cli:list_names", "what there is: recipes, methods, algorithms, dataset cards, suites, evaluators"),
    "record": ("mmssl.recording:record", "record episodes of simulated robots as a Minari dataset"),
    "pretrain": ("mmssl.training.pretrain:pretrain", "run a pretraining recipe"),
    "finetune": ("mmssl.evaluation.finetune:finetune", "run a fine-tuning recipe on pretrained weights"),
    "probe": ("mmssl.evaluation.probe:probe", "judge frozen features beside a random encoder and raw pixels"),
    "track": ("mmssl.evaluation.tracking:track", "carry masks, parts or joints through videos with frozen features"),
    "retrieve": ("mmssl.evaluation.retrieve:retrieve", "captions by images, images by captions, classes by prompts"),
    "trajectories": (
        "mmssl.trajectories:trajectories",
        "judge a masked trajectory model, on data and in the environment",
    ),
    "rl": ("mmssl.control.run:rl", "train a policy in a simulated world, several seeds at once"),
    "rl play": ("mmssl.control.play:play", "run a trained policy: returns, successes and a film"),
    "embed": ("mmssl.evaluation.embed:embed", "write the features of a dataset to a safetensors file"),
    "report": ("mmssl.report.html:report", "write the report of a run folder, or compare several"),
    "export": ("mmssl.weights.export:export", "write a run's encoder for users"),
    "doctor": ("mmssl.doctor:doctor", "what works on this machine, and how to mend what does not"),
}

# verb -> the dataclass that its recipe fills
RECIPES = {
    "pretrain": "mmssl.training.pretrain:PretrainConfig",
    "finetune": "mmssl.evaluation.finetune:FinetuneConfig",
    "rl": "mmssl.control.rl_config:RLConfig",
}
USAGE = "RECIPE [--data SOURCE ...] [--run FOLDER] [--overwrite] [--init WEIGHTS] [--a.b VALUE]"
USAGES = {
    "rl": "ALGORITHM_OR_RECIPE --task SUITE/TASK [--seeds 0 1 2] [--steps N] [--run FOLDER] [--overwrite] [--a.b VALUE]"
}


def list_names(kind: Annotated[str, tyro.conf.Positional] = "all") -> None:
    """Print the names that can be typed.

    Args:
        kind: recipes, methods, algorithms, data, suites, evaluators, or all of them.
    """
    from mmssl.paths import list_resources
    from mmssl.registry import ALGORITHMS, EVALUATORS, METHODS

    sources: dict[str, Callable[[], list[str]]] = {
        "recipes": lambda: list_resources("configs"),
        "methods": METHODS.names,
        "algorithms": ALGORITHMS.names,
        "data": lambda: list_resources("data"),
        "suites": lambda: list_resources("envs"),
        "evaluators": EVALUATORS.names,
    }
    if kind != "all" and kind not in sources:
        raise unknown_name("kind of name", kind, [*sources, "all"])
    for name in sources if kind == "all" else [kind]:
        print(f"{name}:", *sources[name](), sep="\n  ")


def main(args: list[str] | None = None) -> None:
    """Entry point of the `mmssl` command. Errors meant for users are one sentence on stderr and exit code 2."""
    args = sys.argv[1:] if args is None else list(args)
    try:
        _dispatch(args)
    except MmsslError as error:
        print(f"mmssl: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        print("mmssl: interrupted; the same command goes on from what was saved.", file=sys.stderr)
        raise SystemExit(130) from None
    except BrokenPipeError:
        sys.stderr.close()
        raise SystemExit(0) from None


def _dispatch(args: list[str]) -> None:
    if not args or args[0] in ("-h", "--help", "help"):
        print(_overview())
        return
    if args[0] in ("-V", "--version"):
        from mmssl import __version__

        print(f"mmssl {__version__}")
        return
    verb, rest = (" ".join(args[:2]), args[2:]) if " ".join(args[:2]) in VERBS else (args[0], args[1:])
    if verb not in VERBS:
        raise unknown_name("verb", verb, VERBS)
    _run_recipe(verb, rest) if verb in RECIPES else _run_function(verb, rest)


def _overview() -> str:
    width = max(map(len, VERBS))
    rows = "\n".join(f"  {verb:<{width}}  {text}" for verb, (_, text) in VERBS.items())
    title = "mmssl: multimodal and robotics representation learning"
    return f"{title}\n\n{rows}\n\n'mmssl VERB --help' tells what each takes."


def _locate(target: str) -> Any:
    module, name = target.split(":")
    return getattr(import_module(module), name)


def _run_function(verb: str, rest: list[str]) -> None:
    tyro.cli(_locate(VERBS[verb][0]), prog=f"mmssl {verb}", args=rest, config=(tyro.conf.PositionalRequiredArgs,))


def _run_recipe(verb: str, rest: list[str]) -> None:
    """`mmssl VERB RECIPE [--data SOURCE ...] [--run FOLDER] [--overwrite] [--init WEIGHTS] [--a.b VALUE ...]`.

    `pretrain` takes `--init-shared WEIGHTS` as well.
    """
    usage = f"usage: mmssl {verb} {USAGES.get(verb, USAGE)}"
    if not rest or rest[0] in ("-h", "--help"):
        print(f"{usage}\n\nRECIPE is a YAML file or the short name of a shipped one ('mmssl list recipes').")
        return
    if rest[0].startswith("-"):
        raise MmsslError(f"the recipe comes first; {usage}")
    config = _read_recipe(_locate(RECIPES[verb]), rest[0])
    options, rest = _take_options(rest[1:], usage)
    if "shared_only" in options and verb != "pretrain":
        raise MmsslError(f"--init-shared is for mmssl pretrain; mmssl {verb} takes --init.")
    if verb == "rl" and options.pop("init") is not None:
        raise MmsslError("mmssl rl takes no --init; it begins anew, or goes on in its run folder.")
    _locate(VERBS[verb][0])(override(config, rest, f"mmssl {verb} RECIPE"), **options)


def _read_recipe(kind: Any, name: str) -> Any:
    """The recipe called `name`; for `rl` the name of an algorithm stands for its defaults."""
    from mmssl.config import load_config
    from mmssl.paths import find_resource

    found = kind.from_name(name) if hasattr(kind, "from_name") else None
    return found or load_config(kind, find_resource("configs", name))


def override(config: Any, words: list[str], prog: str) -> Any:
    """A recipe with the fields changed that `words` name: `--optim.base-lr 1e-3`, `--loop.epochs null`.

    A group of fields that is not set (`data.clip: null`) begins with its defaults where one of its fields is named.
    """
    words = [re.sub(r"(^|=)null$", r"\1None", word) for word in words]  # as YAML and as Python say it
    for word in words:
        if word.startswith("--"):
            config = _begin(config, word[2:].partition("=")[0].replace("-", "_").split(".")[:-1])
    # A group that may be null is no subcommand, and True or False stand behind the name of a switch.
    style = (tyro.conf.AvoidSubcommands, tyro.conf.FlagConversionOff)
    return tyro.cli(type(config), default=config, prog=prog, args=words, config=style)


def _begin(config: Any, path: list[str]) -> Any:
    """The config with the group at `path` filled with its defaults, if it is one that may be null, and is."""
    if not path or not hasattr(config, path[0]):
        return config
    inner = getattr(config, path[0])
    if inner is None:
        kinds = typing.get_args(typing.get_type_hints(type(config))[path[0]])
        inner = next((kind() for kind in kinds if dataclasses.is_dataclass(kind)), None)
    inner = _begin(inner, path[1:])
    return config if inner is getattr(config, path[0]) else dataclasses.replace(config, **{path[0]: inner})


def _take_options(rest: list[str], usage: str) -> tuple[dict[str, Any], list[str]]:
    """Split off what belongs to the verb from the recipe's own overrides; `--data` is short for `--data.source`."""
    options: dict[str, Any] = {"run": None, "overwrite": False, "init": None}
    left: list[str] = []
    words = iter(rest)
    for word in words:
        name, _, value = word.removeprefix("--").partition("=")
        if word == "--overwrite":
            options["overwrite"] = True
        elif word.startswith("--") and name in ("run", "init", "init-shared"):
            value = value or next(words, "")
            if not value:
                raise MmsslError(f"--{name} needs a value; {usage}")
            options["run" if name == "run" else "init"] = Path(value) if name == "run" else value
            options |= {"shared_only": True} if name == "init-shared" else {}
        else:
            left.append("--data.source" if word == "--data" else word)
    return options, left


if __name__ == "__main__":
    main()
