# Section 4.1.1: data/coco/{train2014,val2014,annotations}. Images without any annotation are left out, which leaves
# 82,081 for training and 40,137 for validation; other numbers are an error.
_base_ = 'multi_label_loaders.py'

train_dataloader = dict(
    dataset=dict(
        type='CocoMultiLabelDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_train2014.json',
        data_prefix=dict(img_path='train2014/'),
        expected_images=82081,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='CocoMultiLabelDataset',
        data_root='data/coco/',
        ann_file='annotations/instances_val2014.json',
        data_prefix=dict(img_path='val2014/'),
        expected_images=40137,
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(thr=0.8, best_threshold=True)
test_evaluator = val_evaluator
