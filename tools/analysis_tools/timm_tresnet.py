"""timm's TResNet as a peer, with torchvision or without."""

import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import sys
import types


class _TorchvisionStub(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Empty ``torchvision`` modules whose every attribute is an empty class, for timm's imports alone."""

    class _Empty(type):
        def __getattr__(cls, name):
            return name  # an enumeration's member

    def find_spec(self, name, path=None, target=None):
        if name.split('.')[0] == 'torchvision':
            return importlib.machinery.ModuleSpec(name, self, is_package=True)

    def create_module(self, spec):
        module = types.ModuleType(spec.name)
        module.__file__ = module.__doc__ = spec.name
        module.__getattr__ = lambda name: self._Empty(name, (), {})
        return module

    def exec_module(self, module):
        pass


def import_timm_tresnet() -> types.ModuleType | None:
    """timm's models/tresnet.py and the layers it uses, untouched; None where timm is not installed.

    timm imports torchvision at its top, for data sets and transforms, and no build of that fits CPU torch 2.13. TResNet
    uses none of it, so where it is absent an empty stand-in answers those imports; both leave sys.modules right after.
    """
    if importlib.util.find_spec('timm') is None:
        return None
    if importlib.util.find_spec('torchvision') is not None:
        return importlib.import_module('timm.models.tresnet')
    before = set(sys.modules)
    stub = _TorchvisionStub()
    sys.meta_path.insert(0, stub)
    try:
        return importlib.import_module('timm.models.tresnet')
    finally:
        sys.meta_path.remove(stub)
        for name in set(sys.modules) - before:
            if name.split('.')[0] in ('torchvision', 'timm'):
                del sys.modules[name]
