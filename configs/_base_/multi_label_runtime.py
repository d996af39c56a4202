_base_ = 'mmdet::_base_/default_runtime.py'

default_hooks = dict(
    checkpoint=dict(save_best='multi-label/mAP', max_keep_ckpts=2),
    # The first image of every 50th batch of a validation.
    visualization=dict(_delete_=True, type='MultiLabelVisualizationHook', draw=True, interval=50),
)
# Without mmdet's name for it: in one process, a second run would go on in the folder of the first.
visualizer = dict(
    _delete_=True,
    type='MultiLabelVisualizer',
    vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
)
custom_hooks = [
    dict(type='RawAndEMAHook', metric='multi-label/mAP', momentum=0.0003),
    dict(type='DataCheckHook'),
]
