# Section 4.1.2: data/VOCdevkit/VOC2007, trainval and test; difficult objects do not count in evaluation.
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(type='VOCMultiLabelDataset', data_root='data/VOCdevkit/VOC2007/', split='trainval'),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(type='VOCMultiLabelDataset', data_root='data/VOCdevkit/VOC2007/', split='test', test_mode=True),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='MultiLabelMetric')
test_evaluator = val_evaluator
