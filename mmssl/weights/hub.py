"""Repositories of the Hugging Face hub -> a local folder."""

import re
from pathlib import Path

from mmssl.errors import MmsslError

_NAME = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
_FILES = ("*.json", "merges.txt", "*.safetensors", "pytorch_model.bin", "config.yaml")


def is_hub_name(source: str) -> bool:
    """Whether a string has the form `organisation/name`."""
    return bool(_NAME.match(source)) and not source.endswith((".pth", ".pt", ".bin", ".safetensors"))


def download(name: str, asked: str | None = None) -> Path:
    """Folder of a hub repository: from the local cache, else downloaded into it.

    Args:
        name: `organisation/name`.
        asked: what the user typed, for messages.

    Raises:
        MmsslError: no such repository, no access, or no connection and not in the cache.
    """
    import huggingface_hub
    from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

    asked = asked or name
    local = "" if asked.startswith("timm:") else f"there is no local file or folder {asked!r}, and "
    try:
        return Path(huggingface_hub.snapshot_download(name, allow_patterns=list(_FILES)))
    except GatedRepoError:
        raise MmsslError(
            f"{local}the hub gives {name!r} only to users it knows; log in with `hf auth login`."
        ) from None
    except RepositoryNotFoundError:
        raise MmsslError(f"{local}the Hugging Face hub has no repository {name!r}; check the name.") from None
    except (OSError, HfHubHTTPError, ValueError) as error:
        said = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise MmsslError(
            f"{local}{name!r} could not be had from the Hugging Face hub and is not in its local cache ({said}); "
            "connect to the internet, or give a local file or folder."
        ) from None
