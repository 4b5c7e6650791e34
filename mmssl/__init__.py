"""mmssl: multimodal and robotics representation learning."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

# The public face. Each name is imported when it is first asked for, so that `import mmssl` stays fast.
_PUBLIC = {
    "Encoder": "mmssl.encoder",
    "Features": "mmssl.encoder",
    "MmsslError": "mmssl.errors",
    "create_method": "mmssl.methods.base",
    "list_methods": "mmssl.methods.base",
    "load": "mmssl.weights.load",
    "load_method": "mmssl.weights.load",
    "open_dataset": "mmssl.data.loading",
}
__all__ = ["__version__", *sorted(_PUBLIC)]

if TYPE_CHECKING:
    from mmssl.data.loading import open_dataset
    from mmssl.encoder import Encoder, Features
    from mmssl.errors import MmsslError
    from mmssl.methods.base import create_method, list_methods
    from mmssl.weights.load import load, load_method


def __getattr__(name: str) -> Any:
    if name not in _PUBLIC:
        raise AttributeError(f"module 'mmssl' has no attribute {name!r}")
    return getattr(import_module(_PUBLIC[name]), name)
