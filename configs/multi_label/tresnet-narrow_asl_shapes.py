# make demo trains this, on the annotation file of fcos_tresnet-narrow_fpn_asl_shapes.py.
_base_ = '../_base_/narrow_classifier.py'

model = dict(
    # The last stage's positions, 4 x 4, are larger than a shape.
    backbone=dict(out_indices=(2,)),
    head=dict(num_classes=6, in_channels=256),
)
_data = dict(
    type='CocoMultiLabelDataset',
    data_root='data/shapes/',
    metainfo=dict(classes=('circle', 'ring', 'square', 'triangle', 'star', 'cross')),
    unannotated='keep',
)
train_dataloader = dict(
    batch_size=8,
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
    dataset=dict(
        **_data,
        ann_file='annotations/val.json',
        data_prefix=dict(img_path='val/'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackMultiLabelInputs')],
    ),
)
test_dataloader = val_dataloader

optim_wrapper = dict(optimizer=dict(lr=2.5e-3))
train_cfg = dict(max_epochs=18, val_interval=6)
randomness = dict(seed=0)
default_hooks = dict(visualization=dict(interval=5))
custom_hooks = [
    dict(type='RawAndEMAHook', metric='multi-label/mAP', momentum=0.01),
    dict(type='DataCheckHook'),
    dict(type='ProbabilityGapHook'),
]
