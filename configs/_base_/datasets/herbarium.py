# Appendix G: data/herbarium/train/metadata.json of the competition. Its test labels are not public, so a tenth of the
# training images, chosen by a fixed rule, validates.
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='HerbariumDataset',
        data_root='data/herbarium/',
        holdout=dict(fraction=0.1, part='train'),
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='HerbariumDataset',
        data_root='data/herbarium/',
        holdout=dict(fraction=0.1, part='val'),
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='MultiLabelMetric', items=('macro_F1',))
test_evaluator = val_evaluator
