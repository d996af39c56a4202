"""mmengine reads ``_base_ = 'asl_mmdet::fcos/…'`` in every process, those of mmdet's tools and of mim among them.

mmengine takes configs from the packages of its MODULE2PACKAGE only, and reads them before it imports what they name.
So asl_mmdet_scope.pth imports this when Python starts. It waits for mmengine, adds the plugin's name, and is gone; by
itself it imports nothing.
"""

import sys


class ScopeFinder:
    """Leaves every import to the other finders, and is asked no more after the one that it waits for."""

    @classmethod
    def find_spec(cls, name, path=None, target=None):
        if name != 'mmengine.config.utils':
            return None
        from importlib.machinery import PathFinder

        sys.meta_path.remove(cls)
        spec = PathFinder.find_spec(name, path)
        if spec is not None:
            execute = spec.loader.exec_module

            def execute_and_add(module):
                execute(module)
                # As in asl_mmdet/registry.py.
                getattr(module, 'MODULE2PACKAGE', {})['asl_mmdet'] = 'asl_mmdet.registry'

            spec.loader.exec_module = execute_and_add
        return spec


sys.meta_path.insert(0, ScopeFinder)
