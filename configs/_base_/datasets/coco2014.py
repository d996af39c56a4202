# Section 4.1.1: data/coco/{train2014,val2014,annotations}. Images without any annotation are left out, which leaves
# 82,081 for training and 40,137 for validation; other numbers are an error. Batch 128 on 8 GPUs.
train_dataloader = dict(
    batch_size=16,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=True),
    dataset=dict(
        type='CocoMultiLabelDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_train2014.json',
        data_prefix=dict(img_path='train2014/'),
        expected_images=82081,
    ),
)
val_dataloader = dict(
    batch_size=32,
    num_workers=8,
    persistent_workers=True,
    sampler=dict(type='DefaultSampler', shuffle=False),
    dataset=dict(
        type='CocoMultiLabelDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_val2014.json',
        data_prefix=dict(img_path='val2014/'),
        expected_images=40137,
        test_mode=True,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(type='MultiLabelMetric', thr=0.8)
test_evaluator = val_evaluator
