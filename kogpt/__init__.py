"""KoGPT: run, serve, measure, tune and train Korean GPTs."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kogpt.classification import Classification as Classification
    from kogpt.config import ModelConfig as ModelConfig
    from kogpt.errors import KoGPTError as KoGPTError
    from kogpt.generation import KoGPT as KoGPT
    from kogpt.generation import Result as Result
    from kogpt.generation import TokenLogprob as TokenLogprob
    from kogpt.sampling import Sampling as Sampling
    from kogpt.session import Piece as Piece

__version__ = "0.1.0"

# Public name -> its module. Resolved on first use (PEP 562), so that `import kogpt` loads nothing else.
_HOMES = {
    "Classification": "kogpt.classification",
    "KoGPT": "kogpt.generation",
    "KoGPTError": "kogpt.errors",
    "ModelConfig": "kogpt.config",
    "Piece": "kogpt.session",
    "Result": "kogpt.generation",
    "Sampling": "kogpt.sampling",
    "TokenLogprob": "kogpt.generation",
}

__all__ = [
    "Classification",
    "KoGPT",
    "KoGPTError",
    "ModelConfig",
    "Piece",
    "Result",
    "Sampling",
    "TokenLogprob",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'kogpt' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
