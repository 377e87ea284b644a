"""Stands in for packages that SGLang imports and that a text model on a CPU never calls.

With this folder on PYTHONPATH, Python runs this module at the start of each of SGLang's processes.
A stand-in can be imported, named and derived from. Calling it raises, so it computes nothing.
"""

import sys
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any, Final, NoReturn

ABSENT: Final = frozenset({"sgl_kernel", "torchaudio", "torchvision"})


class StandIn(type):
    """The class of every name in an absent package."""

    def __getattr__(cls, name: str) -> "StandIn":
        return _stand_in(cls.__qualname__, name)

    def __call__(cls, *_args: Any, **_kwargs: Any) -> NoReturn:
        raise NotImplementedError(f"{cls.__qualname__} is a stand-in: its package is not installed")


def _stand_in(owner: str, name: str) -> StandIn:
    if name.startswith("__"):
        raise AttributeError(f"{owner} has no {name}: it is a stand-in")
    return StandIn(f"{owner}.{name}", (), {})


class AbsentModule(ModuleType):
    def __getattr__(self, name: str) -> StandIn:
        return _stand_in(self.__name__, name)


class _Finder(MetaPathFinder, Loader):
    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        absent = fullname.partition(".")[0] in ABSENT
        return ModuleSpec(fullname, self, is_package=True) if absent else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return AbsentModule(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        # transformers compares it; everything else is made when it is asked for.
        vars(module)["__version__"] = "0"


sys.meta_path.append(_Finder())
