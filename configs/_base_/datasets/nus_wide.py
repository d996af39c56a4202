# Appendix E: the authors' variant, data/nus_wide/nus_wid_data.csv and data/nus_wide/images.
_base_ = 'multi_label_loaders.py'

train_dataloader = dict(
    dataset=dict(type='NUSWideDataset', data_root='data/nus_wide/', split='train'),
)
val_dataloader = dict(
    dataset=dict(type='NUSWideDataset', data_root='data/nus_wide/', split='val'),
)
test_dataloader = val_dataloader
val_evaluator = dict(thr=0.8, best_threshold=True)
test_evaluator = val_evaluator
