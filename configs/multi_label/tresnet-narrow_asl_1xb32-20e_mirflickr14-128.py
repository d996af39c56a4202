# A CSV of one's own, small enough for a CPU: photographs of MIRFLICKR at 128 pixels with 14 of its labels. Wanted are
# data/mirflickr14/{images,train.csv,classes.txt}, the table with the columns image and labels (separated by ;).
_base_ = '../_base_/narrow_classifier.py'

model = dict(head=dict(num_classes=14))
_data = dict(
    type='CSVMultiLabelDataset',
    data_root='data/mirflickr14/',
    ann_file='train.csv',
    data_prefix=dict(img_path='images/'),
    metainfo=dict(classes='data/mirflickr14/classes.txt'),
)
train_dataloader = dict(
    batch_size=32,
    dataset=dict(
        **_data,
        holdout=dict(fraction=0.2, part='train'),
        pipeline=[
            dict(type='LoadImageFromFile'),
            dict(type='RandomFlip', prob=0.5),
            dict(type='CutOut', n_holes=1, cutout_ratio=(0.5, 0.5), fill_in=(128, 128, 128)),
            dict(type='PackMultiLabelInputs'),
        ],
    ),
)
val_dataloader = dict(
    dataset=dict(
        **_data,
        holdout=dict(fraction=0.2, part='val'),
        pipeline=[dict(type='LoadImageFromFile'), dict(type='PackMultiLabelInputs')],
    ),
)
test_dataloader = val_dataloader

train_cfg = dict(max_epochs=20, val_interval=5)
auto_scale_lr = dict(enable=False, base_batch_size=32)
custom_hooks = [
    dict(type='RawAndEMAHook', metric='multi-label/mAP', momentum=0.003),
    dict(type='DataCheckHook'),
    dict(type='ProbabilityGapHook'),
]
