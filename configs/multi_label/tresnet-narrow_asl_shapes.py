# make demo trains this, on the annotation file of fcos_tresnet-narrow_fpn_asl_shapes.py.
_base_ = [
    '../_base_/asl_mmdet.py',
    '../_base_/models/tresnet-l_asl.py',
    '../_base_/datasets/multi_label_loaders.py',
    '../_base_/multi_label_runtime.py',
]

model = dict(
    # The last stage's positions, 4 x 4, are larger than a shape.
    backbone=dict(arch=dict(_delete_=True, layers=(1, 1, 2, 1), width=0.25), out_indices=(2,), init_cfg=None),
    head=dict(num_classes=6, in_channels=256, thr=0.5),
)
_data = dict(
    type='CocoMultiLabelDataset',
    data_root='data/shapes/',
    metainfo=dict(classes=('circle', 'ring', 'square', 'triangle', 'star', 'cross')),
    unannotated='keep',
)
train_dataloader = dict(
    batch_size=8,
    num_workers=2,
    dataset=dict(
        **_data,
        ann_file='annotations/train.json',
        data_prefix=dict(img_path='train/'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomFlip', prob=0.5, direction=['horizontal', 'vertical']),
            dict(type='PackMultiLabelInputs'),
        ],
    ),
)
val_dataloader = dict(
    num_workers=2,
    dataset=dict(
        **_data,
        ann_file='annotations/val.json',
        data_prefix=dict(img_path='val/'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackMultiLabelInputs')],
    ),
)
test_dataloader = val_dataloader

optim_wrapper = dict(
    type='OptimWrapper',
    optimizer=dict(type='AdamW', lr=2.5e-3, weight_decay=0.05),
    paramwise_cfg=dict(flat_decay_mult=0.0),
)
param_scheduler = [
    dict(type='ScalableOneCycleLR', total_steps=18, pct_start=0.2, by_epoch=True, convert_to_iter_based=True)
]
train_cfg = dict(type='EpochBasedTrainLoop', max_epochs=18, val_interval=6)
val_cfg = dict(type='ValLoop')
test_cfg = dict(type='TestLoop')
randomness = dict(seed=0)
default_hooks = dict(visualization=dict(interval=5))
custom_hooks = [
    dict(type='RawAndEMAHook', metric='multi-label/mAP', momentum=0.01),
    dict(type='DataCheckHook'),
    dict(type='ProbabilityGapHook'),
]
