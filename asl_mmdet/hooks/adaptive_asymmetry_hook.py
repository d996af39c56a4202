"""Moves the asymmetry of the loss until a wanted probability gap is reached (section 2.7)."""

from collections.abc import Sequence

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapperDict
from torch import Tensor

from ..models.asymmetric_loss import AsymmetricLoss, ProbabilityStatistics, dtype_of_sums, mean_probabilities
from .probability_gap_hook import asymmetric_losses, is_logging_step, log_scalars


def adapted(value: Tensor, gap: Tensor, target: float, step: float, bounds: Sequence[float]) -> Tensor:
    """Eq. 11, ``value + step * (target - gap)``, held inside ``bounds``; unchanged where the gap is not finite.

    The paper prints the opposite sign, ``+ lambda (gap - target)``. A larger gamma_neg widens the gap, so that this
    would run away for positive lambda; ours follows the paper's text, in which a larger target means more asymmetry.
    """
    moved = (value + step * (target - gap)).clamp(*bounds)
    return torch.where(gap.isfinite(), moved, value)


@HOOKS.register_module()
class AdaptiveAsymmetryHook(Hook):
    """Adapts gamma_neg, the margin or both after every step of the optimizer (eq. 11), for every AsymmetricLoss.

    The gap of a step is that of all elements that the loss was given since the last one, over all processes and all
    calls: a head that calls it once per level, or gradient accumulation, make no difference. Steps without positives,
    or without negatives, change nothing. The values start at those of the config, belong to the state of the model, go
    on when training resumes, and are logged as ``gamma_neg`` and ``clip`` beside the scalars of ProbabilityGapHook.

    With ``per_class`` every class has a gamma_neg of its own. Its gap is taken from sums and counts that decay by
    ``decay`` at each step in which the class has a positive, and only such a step moves it: a class that is absent
    from most batches moves seldom and by an average of many images, and the step is that much slower for it.

    Args:
        target: gap that is wanted; 0 to 0.3 in table 3.
        step: lambda of eq. 11 for gamma_neg. The margin moves by ``step`` times the ratio of the two ranges' widths, so
            that both cross their ranges at one speed.
        adapt: 'gamma_neg', 'clip' or 'both'.
        per_class: of gamma_neg only.
        gamma_neg_range, clip_range: lowest and highest value; those of the config must lie inside.
        decay: of the averages with ``per_class``, in [0, 1).

    Raises:
        ValueError: an argument is out of its range; at the start of a run, the model has no AsymmetricLoss, or one
            whose values lie outside the ranges, or, with ``per_class``, that is in no module with ``num_classes``, or
            has been adapted by a run with another ``per_class``; or there are several optimizers.
    """

    # Before the hooks that average weights: they copy the model, with its buffers, at the start of a run.
    priority = 'HIGHEST'

    def __init__(
        self,
        target: float = 0.1,
        step: float = 0.01,
        adapt: str = 'gamma_neg',
        per_class: bool = False,
        gamma_neg_range: Sequence[float] = (0.0, 10.0),
        clip_range: Sequence[float] = (0.0, 0.5),
        decay: float = 0.9,
    ) -> None:
        if adapt not in ('gamma_neg', 'clip', 'both'):
            raise ValueError(f"adapt={adapt!r} of AdaptiveAsymmetryHook must be 'gamma_neg', 'clip' or 'both'")
        if per_class and adapt != 'gamma_neg':
            raise ValueError(f"per_class=True of AdaptiveAsymmetryHook is for adapt='gamma_neg', not {adapt!r}")
        if not -1 < target < 1:
            raise ValueError(f'target={target} of AdaptiveAsymmetryHook is a difference of probabilities, in (-1, 1)')
        if not 0 < step < float('inf'):
            raise ValueError(f'step={step} of AdaptiveAsymmetryHook must be a finite number above 0')
        if not 0 <= decay < 1:
            raise ValueError(f'decay={decay} of AdaptiveAsymmetryHook must lie in [0, 1)')
        for name, bounds, highest in (
            ('gamma_neg_range', gamma_neg_range, float('inf')),
            ('clip_range', clip_range, 1),
        ):
            if len(bounds) != 2 or not 0 <= bounds[0] < bounds[1] < highest:
                raise ValueError(
                    f'{name}={tuple(bounds)} of AdaptiveAsymmetryHook must be a lowest and a highest value, '
                    f'0 <= lowest < highest < {highest}'
                )
        self.target = target
        self.per_class = per_class
        self.decay = decay
        widths = [bounds[1] - bounds[0] for bounds in (gamma_neg_range, clip_range)]
        settings = dict(gamma_neg=(step, gamma_neg_range), clip=(step * widths[1] / widths[0], clip_range))
        self.settings = {name: settings[name] for name in settings if adapt in (name, 'both')}

    def before_run(self, runner) -> None:
        model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        device = next(model.parameters()).device
        num_classes = {
            child: getattr(module, 'num_classes', None) for module in model.modules() for child in module.children()
        }
        for place, loss in asymmetric_losses(model).items():
            if self.per_class and not num_classes[loss]:
                raise ValueError(
                    f'per_class=True of AdaptiveAsymmetryHook: the module that holds {place} has no num_classes'
                )
            shape = (num_classes[loss],) if self.per_class else ()
            for name, (_, bounds) in self.settings.items():
                value = getattr(loss, name)
                if torch.is_tensor(value):
                    if value.shape != shape:
                        raise ValueError(
                            f'per_class={self.per_class} of AdaptiveAsymmetryHook: {name} of this model has the shape '
                            f'{tuple(value.shape)} from an earlier run; build the model anew, or set '
                            f'per_class={value.ndim == 1}'
                        )
                    continue
                if not bounds[0] <= value <= bounds[1]:
                    raise ValueError(
                        f'{name}={value} of AsymmetricLoss, where AdaptiveAsymmetryHook starts, lies outside '
                        f'{name}_range={tuple(bounds)}'
                    )
                loss.make_adaptive(name, shape, device)
            if self.per_class and 'probability_sums' not in loss._buffers:
                sums = torch.zeros(4, *shape, dtype=dtype_of_sums(device), device=device)
                loss.register_buffer('probability_sums', sums)

    def before_train(self, runner) -> None:
        if isinstance(runner.optim_wrapper, OptimWrapperDict):
            raise ValueError('AdaptiveAsymmetryHook follows the steps of one optim_wrapper, but this run has several')
        self._watched = {}
        for place, loss in asymmetric_losses(runner.model).items():
            statistics = ProbabilityStatistics(len(loss.gamma_neg) if self.per_class else None)
            loss.observe(statistics)
            self._watched[place] = (loss, statistics)

    def after_train(self, runner) -> None:
        for loss, statistics in self._watched.values():
            loss.stop_observing(statistics)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        """Weights to start from bring no values of an earlier run; a checkpoint to resume does."""
        if not runner._resume:
            for place in asymmetric_losses(runner.model):
                for name in AsymmetricLoss.ADAPTIVE_STATE:
                    checkpoint.get('state_dict', checkpoint).pop(f'{place}.{name}', None)

    @torch.no_grad()
    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if runner.optim_wrapper.should_update():
            for loss, statistics in self._watched.values():
                self._adapt(loss, statistics.take())
        if is_logging_step(runner, batch_idx):
            for place, (loss, _) in self._watched.items():
                for name in self.settings:
                    value = getattr(loss, name)
                    scalars = {name: value.mean().item()}
                    if self.per_class:
                        scalars.update({f'{name}_min': value.min().item(), f'{name}_max': value.max().item()})
                    log_scalars(runner, place, scalars)

    def _adapt(self, loss: AsymmetricLoss, sums: Tensor) -> None:
        device = getattr(loss, next(iter(self.settings))).device
        sums = sums.to(device, dtype_of_sums(device))
        if self.per_class:
            # One batch of NaN must not stay in the average.
            has_positive = (sums[1] > 0) & sums.isfinite().all(0)
            loss.probability_sums.copy_(
                torch.where(has_positive, self.decay * loss.probability_sums + sums, loss.probability_sums)
            )
            sums = torch.where(has_positive, loss.probability_sums, torch.nan)
        p_t_pos, p_t_neg = mean_probabilities(sums)
        gap = p_t_pos - p_t_neg
        for name, (step, bounds) in self.settings.items():
            value = getattr(loss, name)
            value.copy_(adapted(value, gap.view(value.shape), self.target, step, bounds))
