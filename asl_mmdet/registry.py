"""The scope of what mmengine reads from ``'asl_mmdet::…'``.

The classes of the plugin are in mmdet's registries. Those of this scope are children without content, which find every
name there, as a config of mmdet's own does.
"""

import mmdet.registry
from mmengine.config.utils import MODULE2PACKAGE
from mmengine.registry import Registry

# mmengine wants the folder that .mim lies in. By the name of a distribution it would look in site-packages, where an
# editable install has none; there is no distribution of this name, so it asks where the module is.
MODULE2PACKAGE['asl_mmdet'] = __name__

LOCATIONS = ['mmdet.datasets', 'mmdet.engine', 'mmdet.evaluation', 'mmdet.models', 'mmdet.visualization', 'asl_mmdet']

for parent in list(vars(mmdet.registry).values()):
    if isinstance(parent, Registry) and parent.scope == 'mmdet':
        Registry(parent.name, parent=parent, scope='asl_mmdet', locations=LOCATIONS)
