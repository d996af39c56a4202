# Appendix F: data/open_images with the CSVs of V6, and train/, test/. Untagged labels are negatives of reduced weight
# in training (the paper gives no number) and unknown in evaluation, which skips classes without both kinds of labels.
# Machine-generated labels count as untagged: the paper names them, and does not say whether it trained on them.
_base_ = 'multi_label_loaders.py'

train_dataloader = dict(
    dataset=dict(
        type='OpenImagesMultiLabelDataset',
        data_root='data/open_images/',
        metainfo=dict(classes='data/open_images/oidv6-classes-trainable.txt'),
        ann_file='oidv6-train-annotations-human-imagelabels.csv',
        data_prefix=dict(img_path='train/'),
        untagged=0.1,
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='OpenImagesMultiLabelDataset',
        data_root='data/open_images/',
        metainfo=dict(classes='data/open_images/oidv6-classes-trainable.txt'),
        ann_file='test-annotations-human-imagelabels.csv',
        data_prefix=dict(img_path='test/'),
        untagged='unknown',
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(items=('mAP', 'mAP_micro', 'CP', 'CR', 'CF1', 'OP', 'OR', 'OF1'), thr=0.8, require_negatives=True)
test_evaluator = dict(**val_evaluator, per_class=False)
