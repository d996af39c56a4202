# Appendix G: data/herbarium/train/metadata.json of the competition. Its test labels are not public, so a tenth of the
# training images, chosen by a fixed rule, validates.
_base_ = 'multi_label_loaders.py'

train_dataloader = dict(
    dataset=dict(
        type='HerbariumDataset',
        data_root='data/herbarium/',
        holdout=dict(fraction=0.1, part='train'),
    ),
)
val_dataloader = dict(
    dataset=dict(
        type='HerbariumDataset',
        data_root='data/herbarium/',
        holdout=dict(fraction=0.1, part='val'),
    ),
)
test_dataloader = val_dataloader
val_evaluator = dict(items=('macro_F1',))
test_evaluator = dict(items=('macro_F1',), per_class=False)
