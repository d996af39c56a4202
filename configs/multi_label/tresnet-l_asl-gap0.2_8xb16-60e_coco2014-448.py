# Table 3, target 0.2.
_base_ = 'tresnet-l_asl-gap0_8xb16-60e_coco2014-448.py'

_hooks = _base_.custom_hooks
_hooks[-1].target = 0.2
custom_hooks = _hooks
