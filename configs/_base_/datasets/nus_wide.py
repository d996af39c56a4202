# Appendix E: the authors' variant, data/nus_wide/nus_wid_data.csv and data/nus_wide/images.
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='NUSWideDataset', data_root='data/nus_wide/', split='train'),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='NUSWideDataset', data_root='data/nus_wide/', split='val', test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='MultiLabelMetric')
test_evaluator = val_evaluator
