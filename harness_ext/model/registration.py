"""Factored checkpoints made known to transformers, without importing it, and to vLLM.

transformers finds quantisers in a registry that has to be filled by whoever offers one; it knows no entry points for
that. So importing `harness_ext` sets a hook on the import of the registry's module, which costs nothing where
transformers is not used. (A `.pth` file, which would do without that import, would run in every Python of the
environment.)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from importlib.util import find_spec
from types import ModuleType

_REGISTRY = "transformers.quantizers.auto"
_OURS = "harness_ext.model.factored_quantizer"


class _Hook(MetaPathFinder):
    """Finds the registry as anybody would, and has it filled once it is loaded."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname != _REGISTRY:
            return None
        _unhook()
        spec = find_spec(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _Filling(spec.loader)
        return spec


class _Filling(Loader):
    """The loader of the registry, and what follows."""

    def __init__(self, loader: Loader) -> None:
        self._loader = loader

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)

    def exec_module(self, module: ModuleType) -> None:
        self._loader.exec_module(module)
        import_module(_OURS)

    def __getattr__(self, name: str) -> object:
        return getattr(self._loader, name)


def register_factored_checkpoints() -> None:
    """Make `AutoModelForCausalLM.from_pretrained` load factored checkpoints; harmless where it does already."""
    if _REGISTRY in sys.modules:
        import_module(_OURS)
    elif not any(isinstance(finder, _Hook) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Hook())


def register_in_vllm() -> None:
    """Make vLLM load factored checkpoints: the entry point `vllm.general_plugins`, which vLLM calls in each of its
    processes.
    """
    import_module("harness_ext.model.vllm_layers")


def _unhook() -> None:
    sys.meta_path[:] = [finder for finder in sys.meta_path if not isinstance(finder, _Hook)]
