"""Training stops at the first loss or gradient that is infinite or NaN, and keeps the batch that gave it."""

import io
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import wraps
from pathlib import Path

import torch
from mmdet.registry import HOOKS
from mmengine.dist import all_gather_object, all_reduce
from mmengine.hooks import Hook
from mmengine.model import is_model_wrapper
from mmengine.optim import OptimWrapper
from mmengine.structures import BaseDataElement
from torch import Tensor, nn

from ..structures import never_compiled
from .probability_gap_hook import is_logging_step
from .safe_checkpoint_hook import AtomicLocalBackend, optim_wrappers


class NonFiniteError(FloatingPointError):
    """A loss or a gradient is not finite."""


@dataclass
class _Iteration:
    """Whether each loss term and each gradient was finite; known once ``event`` is over, where there is one."""

    number: int
    epoch: int
    batch: object
    names: list[tuple[str, str]]
    finite: Tensor
    stepped: bool
    event: torch.cuda.Event | None


@dataclass
class _Fault:
    iteration: int
    epoch: int
    rank: int
    seed: int
    losses: list[str]
    gradients: list[str]
    img_paths: list[str]


def data_samples(batch: object) -> Iterator[BaseDataElement]:
    """Those in a batch of any form."""
    if isinstance(batch, BaseDataElement):
        yield batch
    elif isinstance(batch, (Mapping, list, tuple)):
        for part in batch.values() if isinstance(batch, Mapping) else batch:
            yield from data_samples(part)


def image_paths(batch: object) -> list[str]:
    return [sample.img_path for sample in data_samples(batch) if sample.get('img_path')]


@HOOKS.register_module()
class NonFiniteHook(Hook):
    """Stops training where a loss term or a gradient is not finite.

    On a CPU it looks before every step of the optimizer, so that the weights stay as they were. On a GPU it looks with
    every line of the log, every ``interval`` iterations, at the end of an epoch and before a checkpoint is written, and
    nothing waits for the GPU in between; steps have then been taken with the fault. It names the first iteration that
    had one, on whichever process. A model's loss terms are what its ``forward`` returns under names with "loss".

    With an AmpOptimWrapper, whose loss scaler skips such steps, training stops when the scaler has given up: its scale
    has come below 1, where the loss is no longer scaled up, or ``max_skipped`` iterations in a row had a fault. Named
    is the first of the last row.

    The batch is saved as ``work_dir/non_finite/iter_<number>_rank_<process>.pth`` by the process that had it, by all
    where only the gradient shows it. To see it again, with the model of the config::

        fault = torch.load(path, weights_only=False)        # your own file: it may hold any object of the batch
        model.load_state_dict(fault['state_dict'])          # None where the steps have spoiled it: the last checkpoint
        data = model.data_preprocessor(fault['data_batch'], training=True)
        model.train()(**data, mode='loss')

    with ``iteration``, ``epoch``, ``rank``, ``seed``, ``losses``, ``gradients`` (of which parameters) and
    ``img_paths`` beside these.

    Args:
        interval: on a GPU, look every so many iterations at least.
        max_skipped: iterations, see above.

    Raises:
        ValueError: an argument is below 1.
        NonFiniteError: while training, in all processes.
    """

    # Before hooks that log or save what the fault has spoiled.
    priority = 'ABOVE_NORMAL'

    def __init__(self, interval: int = 50, max_skipped: int = 20) -> None:
        for name, value in dict(interval=interval, max_skipped=max_skipped).items():
            if value < 1:
                raise ValueError(f'{name}={value} of NonFiniteHook must be 1 or more')
        self.interval = interval
        self.max_skipped = max_skipped
        self._unknown: deque[_Iteration] = deque()
        self._fault: _Fault | None = None
        self._row = 0

    def before_train(self, runner) -> None:
        self._model = runner.model.module if is_model_wrapper(runner.model) else runner.model
        self._on_cpu = next(self._model.parameters()).device.type == 'cpu'
        self._parameter_names = {parameter: name for name, parameter in self._model.named_parameters()}
        self._findings: list[tuple[list[tuple[str, str]], Tensor]] = []
        self._stepped = False
        self._forward_hook = self._model.register_forward_hook(self._see_losses)
        wrappers = optim_wrappers(runner.optim_wrapper)
        scalers = [one.loss_scaler for one in wrappers if hasattr(one, 'loss_scaler')]
        self._scalers = [scaler for scaler in scalers if scaler.is_enabled()]
        self._steps = [(one, one.step) for one in wrappers]
        for one, step in self._steps:
            one.step = self._watched(runner, one, step)

    def after_train(self, runner) -> None:
        self._forward_hook.remove()
        for wrapper, step in self._steps:
            wrapper.step = step

    def before_train_iter(self, runner, batch_idx: int, data_batch=None) -> None:
        self._batch = data_batch

    def after_train_iter(self, runner, batch_idx: int, data_batch=None, outputs: dict | None = None) -> None:
        if self._on_cpu:
            # Where the optimizer made no step, for its gradients are being accumulated.
            if self._findings:
                self._look(runner)
            return
        self._close_iteration(runner)
        self._judge(runner, wait=False)
        if (
            is_logging_step(runner, batch_idx)
            or self.every_n_train_iters(runner, self.interval)
            or self.end_of_epoch(runner.train_dataloader, batch_idx)
            or self.is_last_train_iter(runner)
        ):
            self._look(runner)

    def before_save_checkpoint(self, runner, checkpoint: dict) -> None:
        # By the first process alone, in which a step with another's fault shows as well.
        self._judge(runner, wait=True)
        if self._has_given_up():
            self._stop(runner, [self._fault])

    def _see_losses(self, model: nn.Module, inputs: tuple, output: object) -> None:
        if not (torch.is_grad_enabled() and isinstance(output, Mapping)):
            return
        for name, value in output.items():
            # Their means are what BaseModel.parse_losses adds up.
            parts = [value] if torch.is_tensor(value) else value
            if 'loss' in name and parts is not None and len(parts):
                finite = torch.stack([part.detach().mean().isfinite() for part in parts])
                self._findings.append(([('losses', name)], finite.all(0, keepdim=True)))

    def _watched(self, runner, wrapper: OptimWrapper, step: Callable) -> Callable:
        # Where mmengine compiles a step of training, the optimizer's is left as it is: torch.compile does not read the
        # groups of parameters that paramwise_cfg makes. By its marks a schedule knows the step for the optimizer's own.
        @never_compiled
        @wraps(step)
        def watched(**kwargs) -> None:
            self._see_gradients(wrapper)
            if self._on_cpu:
                self._look(runner)
            step(**kwargs)

        return watched

    def _see_gradients(self, wrapper: OptimWrapper) -> None:
        self._stepped = True
        parameters = [one for group in wrapper.param_groups for one in group['params'] if one.grad is not None]
        gradients = [one.grad.coalesce().values() if one.grad.is_sparse else one.grad for one in parameters]
        pairs = [(parameter, gradient) for parameter, gradient in zip(parameters, gradients) if gradient.numel()]
        if pairs:
            parameters, gradients = zip(*pairs)
            # Unlike a sum of squares, what is greatest is finite for finite gradients.
            if self._on_cpu and not any(map(torch.is_complex, gradients)):
                # In a fifth of the norm's time; complex numbers have no order.
                bounds = torch.stack([bound for one in gradients for bound in (one.amin(), one.amax())])
                finite = bounds.isfinite().view(-1, 2).all(1)
            else:
                finite = torch.stack(torch._foreach_norm(gradients, float('inf'))).isfinite()
            names = [('gradients', self._parameter_names.get(parameter, 'a parameter')) for parameter in parameters]
            self._findings.append((names, finite))

    def _close_iteration(self, runner) -> None:
        if not self._findings:
            return
        names = [name for names, _ in self._findings for name in names]
        finite = torch.cat([finite for _, finite in self._findings])
        event = None
        if finite.is_cuda:
            finite, event = finite.to('cpu', non_blocking=True), torch.cuda.Event()
            event.record()
        self._unknown.append(
            _Iteration(runner.iter + 1, runner.epoch + 1, self._batch, names, finite, self._stepped, event)
        )
        self._findings, self._stepped = [], False

    def _judge(self, runner, wait: bool) -> None:
        while self._unknown and (wait or self._unknown[0].event is None or self._unknown[0].event.query()):
            one = self._unknown.popleft()
            if one.event is not None:
                one.event.synchronize()
            if one.finite.all():
                if one.stepped and self._scalers:
                    self._row = 0
                continue
            if self._row == 0:
                bad = [name for name, finite in zip(one.names, one.finite.tolist()) if not finite]
                losses, gradients = (
                    [name for kind, name in bad if kind == wanted] for wanted in ('losses', 'gradients')
                )
                paths = image_paths(one.batch)
                self._fault = _Fault(one.number, one.epoch, runner.rank, runner.seed, losses, gradients, paths)
                self._faulty_batch = one.batch
            self._row += 1

    def _has_given_up(self) -> bool:
        if self._fault is None or not self._scalers:
            return self._fault is not None
        return self._row >= self.max_skipped or any(scaler.get_scale() < 1 for scaler in self._scalers)

    def _look(self, runner) -> None:
        """All processes stop, or none does."""
        self._close_iteration(runner)
        self._judge(runner, wait=True)
        fault = self._fault if self._has_given_up() else None
        number_of_faults = torch.tensor(int(fault is not None))
        all_reduce(number_of_faults)
        if number_of_faults:
            self._stop(runner, [fault for fault in all_gather_object(fault) if fault is not None])

    def _stop(self, runner, faults: list[_Fault]) -> None:
        first = min(fault.iteration for fault in faults)
        faults = [fault for fault in faults if fault.iteration == first]
        # The gradient is everyone's, the loss belongs to whoever has the batch.
        faults = [fault for fault in faults if fault.losses] or faults
        names = {name: None for fault in faults for name in fault.losses or fault.gradients}
        what = 'loss' if faults[0].losses else 'gradient of'
        files = [
            Path(runner.work_dir) / 'non_finite' / f'iter_{fault.iteration}_rank_{fault.rank}.pth' for fault in faults
        ]
        saved = f'The batch is saved in {", ".join(map(str, files))}, see NonFiniteHook'
        for fault, file in zip(faults, files):
            if fault.rank == runner.rank:
                try:
                    self._save(fault, file)
                except OSError as error:
                    saved = f'The batch could not be saved: {error.strerror}'
        scales = ', '.join(f'{scaler.get_scale():g}' for scaler in self._scalers)
        given_up = f', and the loss scaler has given up: scale {scales}, {self._row} in a row' if scales else ''
        paths = [path for fault in faults for path in fault.img_paths]
        raise NonFiniteError(
            f'Iteration {first} (epoch {faults[0].epoch}): the {what} {_list(names)} is not finite{given_up}. '
            f'Images: {", ".join(paths) or "the batch names none"}. {saved}. allow_non_finite=True in the config of '
            'tools/train.py goes on regardless'
        )

    def _save(self, fault: _Fault, file: Path) -> None:
        state = {name: value.cpu() for name, value in self._model.state_dict().items() if torch.is_tensor(value)}
        whole = all(bool(parameter.isfinite().all()) for parameter in self._model.parameters())
        content = io.BytesIO()
        torch.save(dict(asdict(fault), data_batch=self._faulty_batch, state_dict=state if whole else None), content)
        AtomicLocalBackend().put(content.getvalue(), file)


def _list(names: Mapping[str, None]) -> str:
    return ', '.join([*names][:5]) + (f' and {len(names) - 5} more' if len(names) > 5 else '')
