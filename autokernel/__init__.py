"""autokernel: makes a PyTorch model faster while its owner sleeps.

``apply``, ``restore`` and ``engagement`` put what a run won into a model; they import torch when they are first named.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from autokernel.engage.apply import apply, engagement, restore

__all__ = ["apply", "engagement", "restore"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name in __all__:
        from autokernel.engage import apply

        return getattr(apply, name)
    raise AttributeError(f"module 'autokernel' has no attribute '{name}'")
