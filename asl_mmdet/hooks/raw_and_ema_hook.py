"""Both raw and averaged weights are evaluated, and the better counts, as in the authors' training script."""

import math

import torch
from mmdet.registry import HOOKS
from mmengine.hooks import EMAHook
from mmengine.logging import print_log
from mmengine.runner.amp import autocast

from .safe_checkpoint_hook import share_statistics


@HOOKS.register_module()
class RawAndEMAHook(EMAHook):
    """mmengine's EMAHook with a second pass over the validation set, because the first sees the average alone.

    The metrics of the better ones keep their names, so that ``save_best`` and schedules see them; those of either stand
    beside them under ``raw/`` and ``ema/``, and a line of the log compares the two. A checkpoint that is written after
    a validation and before the next step, as that of ``save_best``, has the better weights as its ``state_dict``; any
    other has the average, as with EMAHook. The other weights are under ``ema_state_dict``, so that both go on when
    training resumes.

    Resume with this hook, not with EMAHook, from a checkpoint whose ``raw_in_state_dict`` is set. With gradient
    accumulation, set ``interval`` to ``accumulative_counts``, or the average is taken that many times per step.

    Args:
        metric: the name that decides, such as 'multi-label/mAP'; None takes the first that the evaluator returns.
        rule: 'greater' or 'less', which value of ``metric`` is better.
        momentum: weight of the newest value in the average: 1 - 0.9997.
        update_buffers: average BN's running statistics as well.
        ema_type: the average, mmengine's exponential one in few operations, or another that takes ``momentum``.
        kwargs: those of EMAHook and the average.

    Raises:
        ValueError: ``rule`` is something else.
        KeyError: the evaluator does not return ``metric``.
    """

    # Before RuntimeInfoHook, which takes the metrics to the log, and after AdaptiveAsymmetryHook, whose buffers are
    # averaged too.
    priority = 5

    def __init__(
        self,
        metric: str | None = None,
        rule: str = 'greater',
        momentum: float = 0.0003,
        update_buffers: bool = True,
        ema_type: str = 'mmdet.MultiTensorEMA',
        **kwargs,
    ) -> None:
        super().__init__(ema_type, momentum=momentum, update_buffers=update_buffers, **kwargs)
        if rule not in ('greater', 'less'):
            raise ValueError(f"rule={rule!r} of RawAndEMAHook must be 'greater' or 'less'")
        self.metric = metric
        self.rule = rule
        # True between a validation that the raw weights won and the next step of training.
        self.raw_is_best = False

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self.raw_is_best = False

    def before_val_epoch(self, runner) -> None:
        super().before_val_epoch(runner)
        # SafeCheckpointHook, which does so too, need not be there.
        share_statistics(runner.model)

    def after_val_epoch(self, runner, metrics: dict[str, float] | None = None) -> None:
        super().after_val_epoch(runner, metrics)
        if metrics is None:
            return
        ema = dict(metrics)
        runner.logger.info('Evaluating the raw weights beside their average')
        raw = self._evaluate(runner)
        if not (raw or ema):
            return
        key = next(iter(ema or raw)) if self.metric is None else self.metric
        # mmdet's CocoMetric gives nothing where no object was found.
        for values in filter(None, (ema, raw)):
            if key not in values:
                raise KeyError(f'metric={key!r} of RawAndEMAHook is none of the metrics: {", ".join(values)}')
        worst = -math.inf if self.rule == 'greater' else math.inf
        of_raw, of_ema = (values.get(key, worst) for values in (raw, ema))
        self.raw_is_best = bool(of_raw > of_ema if self.rule == 'greater' else of_raw < of_ema)
        metrics.update(raw if self.raw_is_best else ema)
        for prefix, values in (('raw', raw), ('ema', ema)):
            metrics.update({f'{prefix}/{name}': value for name, value in values.items()})
        told = [f'{values[key]:.4f}' if values else 'nothing was found' for values in (raw, ema)]
        print_log(
            f'{key}: {told[0]} with raw weights, {told[1]} with their average; '
            f'{"the raw weights are" if self.raw_is_best else "the average is"} better',
            'current',
        )

    @torch.no_grad()
    def _evaluate(self, runner) -> dict[str, float]:
        loop = runner.val_loop
        share_statistics(runner.model)
        with autocast(enabled=loop.fp16):
            for data_batch in loop.dataloader:
                outputs = runner.model.val_step(data_batch)
                loop.evaluator.process(data_samples=outputs, data_batch=data_batch)
        return loop.evaluator.evaluate(len(loop.dataloader.dataset))

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        super().before_save_checkpoint(runner, checkpoint)
        checkpoint['raw_in_state_dict'] = self.raw_is_best
        if self.raw_is_best:
            self._swap_ema_state_dict(checkpoint)

    def after_load_checkpoint(self, runner, checkpoint: dict) -> None:
        if checkpoint.get('raw_in_state_dict') and runner._resume:
            self._swap_ema_state_dict(checkpoint)
        super().after_load_checkpoint(runner, checkpoint)
