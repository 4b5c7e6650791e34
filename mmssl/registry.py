"""Names -> methods, tokenizers, datasets, evaluators, environments and algorithms; settings that are chosen by name.

A registry belongs to a package folder. The first question put to it imports every module of that folder, so that a new
file which registers a name is found without anything else being edited.
"""

import importlib
import pkgutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from mmssl.errors import MmsslError, unknown_name


class Registry:
    """A mapping from names to classes or functions, filled by the modules of one package."""

    def __init__(self, kind: str, package: str):
        self.kind = kind
        self.package = package
        self._entries: dict[str, Any] = {}
        self._scanned = False

    def register(self, name: str) -> Callable[[Any], Any]:
        """Decorator that files its argument under `name`."""

        def file_entry(entry: Any) -> Any:
            known = self._entries.get(name)
            if known is not None and (known.__module__, known.__qualname__) != (entry.__module__, entry.__qualname__):
                raise MmsslError(
                    f"{self.kind} {name!r} is registered twice: {known.__module__} and {entry.__module__}."
                )
            self._entries[name] = entry
            return entry

        return file_entry

    def get(self, name: str) -> Any:
        """The entry called `name`; an `MmsslError` with the nearest valid name where there is none."""
        self._scan()
        if name not in self._entries:
            raise unknown_name(self.kind, name, self._entries)
        return self._entries[name]

    def names(self) -> list[str]:
        self._scan()
        return sorted(self._entries)

    def __contains__(self, name: str) -> bool:
        self._scan()
        return name in self._entries

    def _scan(self) -> None:
        if self._scanned:
            return
        package = importlib.import_module(self.package)
        for module in pkgutil.iter_modules(package.__path__):
            importlib.import_module(f"{self.package}.{module.name}")
        self._scanned = True


@dataclass(frozen=True)
class NamedConfig:
    """Settings whose `name` chooses their class: the `config_class` of what is registered under it.

    A kind of thing has a base of its own that names the registry; its things' settings are subclasses of that.
    """

    name: str
    registry: ClassVar[Registry]

    @classmethod
    def config_class_for(cls, mapping: dict[str, Any]) -> type["NamedConfig"]:
        """The config class of what `mapping["name"]` names; this one where it names nothing (`mmssl.config`).

        Raises:
            MmsslError: an unknown name, or none where this is the base of a kind.
        """
        if "name" in mapping:
            return cls.registry.get(mapping["name"]).config_class
        if "registry" in vars(cls):
            kind, names = cls.registry.kind, ", ".join(cls.registry.names())
            raise MmsslError(f"the {kind}'s settings need a 'name', one of: {names}.")
        return cls


METHODS = Registry("method", "mmssl.methods")
TOKENIZERS = Registry("tokenizer", "mmssl.tokenizers")
DATASETS = Registry("kind of dataset", "mmssl.data")
EVALUATORS = Registry("evaluator", "mmssl.evaluation")
ENVIRONMENTS = Registry("environment family", "mmssl.envs")
ALGORITHMS = Registry("algorithm", "mmssl.control")

register_method = METHODS.register
register_tokenizer = TOKENIZERS.register
register_dataset = DATASETS.register
register_evaluator = EVALUATORS.register
register_environment = ENVIRONMENTS.register
register_algorithm = ALGORITHMS.register
