"""Where things are: the declarations that ship with the package, the runs, and the cache.

`configs/`, `data/` and `envs/` stand at the root of a checkout and under `mmssl/resources/` in an installed wheel; the
functions here find them in both.
"""

import os
from pathlib import Path

from mmssl.errors import MmsslError, unknown_name

_PACKAGE = Path(__file__).resolve().parent


def resource_dir(kind: str) -> Path:
    """Folder of the shipped declarations of one kind: "configs", "data" or "envs"."""
    for root in (_PACKAGE.parent, _PACKAGE / "resources"):
        if (root / kind).is_dir() and (root != _PACKAGE.parent or (root / "pyproject.toml").is_file()):
            return root / kind
    raise MmsslError(f"the package's {kind!r} folder is missing from {_PACKAGE}; install mmssl again.")


def list_resources(kind: str) -> list[str]:
    """Short names of all declarations of a kind: paths below its folder without `.yaml`, with forward slashes."""
    folder = resource_dir(kind)
    return sorted(p.relative_to(folder).with_suffix("").as_posix() for p in folder.rglob("*.yaml"))


def find_resource(kind: str, name: str | Path) -> Path:
    """The YAML file called `name`: a path that exists, or the short name of a shipped one.

    Raises an `MmsslError` with the nearest valid short name where there is none.
    """
    given = Path(name)
    if given.suffix in (".yaml", ".yml") and given.is_file():
        return given
    short = str(name).removesuffix(".yaml").removesuffix(".yml")
    shipped = resource_dir(kind) / f"{short}.yaml"
    if short in list_resources(kind):
        return shipped
    raise unknown_name(
        {"configs": "recipe", "data": "dataset card", "envs": "suite"}[kind], str(name), list_resources(kind)
    )


def runs_dir() -> Path:
    """Folder of the run folders: `$MMSSL_RUNS`, else `runs/` where the command was typed."""
    return Path(os.environ.get("MMSSL_RUNS", "runs"))


def cache_dir() -> Path:
    """Folder of what can be made again: `$MMSSL_CACHE`, else `~/.cache/mmssl`."""
    return Path(os.environ.get("MMSSL_CACHE", Path.home() / ".cache" / "mmssl")).expanduser()


def datasets_dir() -> Path:
    """Folder of recorded Minari datasets: Minari's own `$MINARI_DATASETS_PATH`, else `datasets/` in the cache."""
    return Path(os.environ.get("MINARI_DATASETS_PATH", cache_dir() / "datasets")).expanduser()
