# Small enough for two CPU cores: python tools/make_shapes.py data/shapes, 128 x 128 pixels, 6 classes, and a narrow
# TResNet from scratch. Taken over by name, as appendix_h is.
_data = dict(data_root='data/shapes/', metainfo=dict(classes=('circle', 'ring', 'square', 'triangle', 'star', 'cross')))
_test_dataloader = dict(
    batch_size=16,
    dataset=dict(
        **_data,
        ann_file='annotations/val.json',
        data_prefix=dict(img='val/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='Resize', scale=(128, 128), keep_ratio=True),
            dict(type='LoadAnnotations', with_bbox=True),
            dict(type='PackDetInputs', meta_keys=('img_id', 'img_path', 'ori_shape', 'img_shape', 'scale_factor')),
        ],
    ),
)
shapes = dict(
    model=dict(
        backbone=dict(
            arch=dict(_delete_=True, layers=(1, 1, 2, 1), width=0.25), frozen_stages=-1, norm_eval=False, init_cfg=None
        ),
        neck=dict(in_channels=[16, 32, 256, 512], out_channels=64, num_outs=3),
    ),
    train_dataloader=dict(
        batch_size=8,
        dataset=dict(
            **_data,
            ann_file='annotations/train.json',
            data_prefix=dict(img='train/'),
            filter_cfg=dict(_delete_=True, filter_empty_gt=False),
            pipeline=[
                dict(type='LoadImageFromFile'),
                dict(type='LoadAnnotations', with_bbox=True),
                dict(type='Resize', scale=(128, 128), keep_ratio=True),
                dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
                dict(type='PackDetInputs'),
            ],
        ),
    ),
    test_dataloader=_test_dataloader,
    test_evaluator=dict(ann_file='data/shapes/annotations/val.json'),
    optim_wrapper=dict(optimizer=dict(_delete_=True, type='AdamW', lr=5e-3, weight_decay=0.05), paramwise_cfg=None),
    param_scheduler=[
        dict(type='ScalableOneCycleLR', pct_start=0.2, by_epoch=True, convert_to_iter_based=True),
    ],
    train_cfg=dict(max_epochs=5, val_interval=5),
    auto_scale_lr=dict(base_batch_size=8),
    randomness=dict(seed=0),
    default_hooks=dict(
        logger=dict(interval=25), checkpoint=dict(save_best=None), visualization=dict(draw=True, interval=10)
    ),
)
