# Table 2: focal loss with a static weight, which the paper sought between 0.5 and 0.95 without naming the best.
_base_ = 'tresnet-l_focal_8xb16-60e_coco2014-448.py'

model = dict(head=dict(loss=dict(alpha=0.75)))
