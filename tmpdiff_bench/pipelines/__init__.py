"""Diffusion pipelines of any class: their loading, their own loops, the layers levels change."""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
