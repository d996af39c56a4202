"""The 1-cycle policy of appendix B, in a form that auto_scale_lr and lr_mult reach."""

from mmdet.registry import PARAM_SCHEDULERS
from mmengine.optim import OneCycleLR


@PARAM_SCHEDULERS.register_module()
class ScalableOneCycleLR(OneCycleLR):
    """mmengine's ``OneCycleLR`` with each parameter group's own learning rate as the maximum of its cycle.

    ``OneCycleLR`` sets every group to ``eta_max`` and so undoes, without a word, what ``auto_scale_lr`` and ``lr_mult``
    ask for. All other options are those of ``OneCycleLR``.

    Raises:
        ValueError: ``eta_max`` is given.
    """

    def __init__(self, optimizer, *args, **kwargs) -> None:
        if 'eta_max' in kwargs:
            raise ValueError(
                f'eta_max={kwargs["eta_max"]} of ScalableOneCycleLR: the maximum is the lr of the '
                'optimizer; set optim_wrapper.optimizer.lr'
            )
        super().__init__(optimizer, *args, eta_max=[group['lr'] for group in optimizer.param_groups], **kwargs)

    def state_dict(self) -> dict:
        # Restricted loading refuses functions, and this one is chosen by the constructor.
        return {name: value for name, value in super().state_dict().items() if name != 'anneal_func'}
