# Paper, appendix H: what its detectors share. Configs take it over by name, as two bases must not define one key.
appendix_h = dict(
    model=dict(
        data_preprocessor=dict(mean=[0.0, 0.0, 0.0], std=[255.0, 255.0, 255.0], bgr_to_rgb=True),
        backbone=dict(
            _delete_=True,
            type='TResNet',
            arch='m',
            out_indices=(0, 1, 2, 3),
            # As mmdet's ResNets; appendix H does not say.
            frozen_stages=1,
            norm_eval=True,
            init_cfg=dict(type='Pretrained', checkpoint='checkpoints/tresnet_m.pth'),
        ),
        neck=dict(in_channels=[64, 128, 1024, 2048]),
    ),
    param_scheduler=[
        dict(type='LinearLR', start_factor=0.001, by_epoch=False, begin=0, end=500),
        dict(type='MultiStepLR', by_epoch=True, begin=0, end=70, milestones=[40, 60], gamma=0.1),
    ],
    train_cfg=dict(max_epochs=70),
    train_dataloader=dict(batch_size=6),
    auto_scale_lr=dict(base_batch_size=48),
    default_hooks=dict(checkpoint=dict(save_best='coco/bbox_mAP', max_keep_ckpts=3)),
    # Without mmdet's name for it: in one process, a second run would go on in the folder of the first.
    visualizer=dict(
        _delete_=True,
        type='DetLocalVisualizer',
        vis_backends=[dict(type='LocalVisBackend'), dict(type='TensorboardVisBackend')],
    ),
)
