"""How quantization errors of single denoising steps add up, and which steps can bear them.

The public names, listed in the stub beside this file, are loaded when first used: importing the
package imports no torch.
"""

import logging
from typing import Any

import lazy_loader

# What diffusers 0.42 prints when it imports an installed torchao, which nothing here uses.
_IMPORT_NOISE = {
    "torch.utils._pytree": "is an Enum subclass and is now natively supported",
    "diffusers.quantizers.torchao.torchao_quantizer": "Unable to import `torchao` Tensor objects",
}
for _logger, _text in _IMPORT_NOISE.items():
    logging.getLogger(_logger).addFilter(lambda record, text=_text: text not in record.getMessage())

_load, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version  # slow to import

        return version("tmpdiff_bench")
    try:
        return _load(name)
    except ModuleNotFoundError as error:
        from tmpdiff_bench.errors import not_installed

        raise ImportError(not_installed(error) or str(error)) from error
