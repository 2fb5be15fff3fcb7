"""One name for each tensor of a network in which modules or tensors are shared.

In: the base's module. Out: for a tensor that a call reads, the state-dict name that patches use:
the module's first path in the network (the second in nn.Sequential(conv, relu, conv) is the same
module), and of tensors that two modules share, the calling module's own.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from patchdeploy.lower.builder import Parameter


class ModuleNames:
    """Names of ``module``'s tensors."""

    def __init__(self, module: nn.Module) -> None:
        first: dict[nn.Module, str] = {}
        self._paths: dict[str, str] = {}
        self._tensors: dict[str, int] = {}
        for path, layer in module.named_modules(remove_duplicate=False):
            self._paths[path] = first.setdefault(layer, path)
            for name, value in (*layer._parameters.items(), *layer._buffers.items()):
                if value is not None:
                    self._tensors[f"{path}.{name}" if path else name] = id(value)

    def rename(self, value: Any, caller: str) -> Any:
        """``value``, where it is a parameter, by the name that a patch uses in a call by the
        module at ``caller``."""
        if not isinstance(value, Parameter) or value.key not in self._tensors:
            return value
        path, _, name = value.key.rpartition(".")
        own = self._key(self._paths.get(caller, caller), name)
        if self._tensors.get(own) == self._tensors[value.key]:
            return replace(value, key=own)
        return replace(value, key=self._key(self._paths.get(path, path), name))

    def _key(self, path: str, name: str) -> str:
        return f"{path}.{name}" if path else name
