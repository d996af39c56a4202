"""The 1-cycle policy of appendix B, in a form that auto_scale_lr and lr_mult reach."""

from mmdet.registry import PARAM_SCHEDULERS
from mmengine.optim import OneCycleLR
from mmengine.optim.scheduler.param_scheduler import INF


@PARAM_SCHEDULERS.register_module()
class ScalableOneCycleLR(OneCycleLR):
    """mmengine's ``OneCycleLR`` with each parameter group's own learning rate as the maximum of its cycle.

    ``OneCycleLR`` sets every group to ``eta_max`` and so undoes, without a word, what ``auto_scale_lr`` and ``lr_mult``
    ask for. All other options are those of ``OneCycleLR``: without ``total_steps`` the cycle is as long as training,
    also where a resumed run was made longer or shorter, or has more or fewer iterations an epoch, by another number of
    processes or batch size.

    Raises:
        ValueError: ``eta_max`` is given, or a cycle that ends before training does.
    """

    # Iterations of an epoch, where the config counts in epochs and the schedule in iterations.
    epoch_length: int | None = None

    def __init__(self, optimizer, *args, **kwargs) -> None:
        if 'eta_max' in kwargs:
            raise ValueError(
                f'eta_max={kwargs["eta_max"]} of ScalableOneCycleLR: the maximum is the lr of the '
                'optimizer; set optim_wrapper.optimizer.lr'
            )
        # A scheduler that was built before, a warm-up or another cycle, has changed the rate, and kept what it was.
        maxima = [
            next(group[name] for name in ('max_lr', 'initial_lr', 'lr') if name in group)
            for group in optimizer.param_groups
        ]
        super().__init__(optimizer, *args, eta_max=maxima, **kwargs)
        length = self.end - self.begin
        if self.total_steps < length < INF:
            raise ValueError(
                f'total_steps of ScalableOneCycleLR gives a cycle of {self.total_steps:,} steps, but training takes '
                f'{length:,}: leave total_steps out, and the cycle is as long as training'
            )

    @classmethod
    def build_iter_from_epoch(cls, *args, epoch_length: int, **kwargs) -> 'ScalableOneCycleLR':
        scheduler = super().build_iter_from_epoch(*args, epoch_length=epoch_length, **kwargs)
        scheduler.epoch_length = epoch_length
        return scheduler

    def state_dict(self) -> dict:
        # Restricted loading refuses functions, and this one is chosen by the constructor.
        return {name: value for name, value in super().state_dict().items() if name != 'anneal_func'}

    def load_state_dict(self, state_dict: dict) -> None:
        """Where the cycle stands; its length is the config's.

        An epoch that had another number of iterations begins again, and the cycle stands where it does.
        """
        length = ('total_steps', '_schedule_phases', 'begin', 'end', 'epoch_length')
        super().load_state_dict({name: value for name, value in state_dict.items() if name not in length})
        before = state_dict.get('epoch_length')
        if before and self.epoch_length not in (None, before):
            for name in ('last_step', '_global_step'):
                step = getattr(self, name)
                if step > 0:  # or it has not begun
                    setattr(self, name, step // before * self.epoch_length)
