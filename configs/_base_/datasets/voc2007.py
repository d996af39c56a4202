# Section 4.1.2: data/VOCdevkit/VOC2007, trainval and test; difficult objects do not count in evaluation.
_base_ = 'multi_label_loaders.py'

train_dataloader = dict(
    dataset=dict(type='VOCMultiLabelDataset', data_root='data/VOCdevkit/VOC2007/', split='trainval'),
)
val_dataloader = dict(
    dataset=dict(type='VOCMultiLabelDataset', data_root='data/VOCdevkit/VOC2007/', split='test'),
)
test_dataloader = val_dataloader
val_evaluator = dict(thr=0.8, best_threshold=True)
test_evaluator = val_evaluator
