# Paper, appendix H: ATSS assignment with focal loss.
_base_ = [
    'mmdet::atss/atss_r50_fpn_1x_coco.py',
    '../_base_/asl_mmdet.py',
    '../_base_/appendix_h.py',
]

model = {{_base_.appendix_h.model}}
train_dataloader = {{_base_.appendix_h.train_dataloader}}
train_cfg = {{_base_.appendix_h.train_cfg}}
param_scheduler = {{_base_.appendix_h.param_scheduler}}
auto_scale_lr = {{_base_.appendix_h.auto_scale_lr}}
default_hooks = {{_base_.appendix_h.default_hooks}}
visualizer = {{_base_.appendix_h.visualizer}}
