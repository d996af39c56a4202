# What the data sets of this folder share: batch 128 on 8 GPUs. Each adds its files, and its own settings of the metric.
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(test_mode=True),
)
test_dataloader = val_dataloader
# The top 3 as in table 8.
val_evaluator = dict(type='MultiLabelMetric', topk_above_thr=True)
test_evaluator = dict(type='MultiLabelMetric', topk_above_thr=True, per_class=True)
