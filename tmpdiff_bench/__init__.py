"""How quantization errors of single denoising steps add up, and which steps can bear them.

The public names, listed in the stub beside this file, are loaded when first used: importing the
package imports no torch.
"""

from typing import Any

import lazy_loader

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("tmpdiff_bench")
    return _load(name)
