"""What mmengine logged in a work dir, over all the runs that wrote into it."""

import json
import math
import re
from pathlib import Path


class TrainingLogError(ValueError):
    """A log that cannot be read."""


def logged_lines(folder: Path) -> list[dict[str, float]]:
    """Lines of training (those with a ``loss`` and a ``step``) and of validation, in the order they were logged.

    Runs follow one another by the time in their folders' names. One that was resumed, by the config that mmengine
    saves beside its log, replaces what runs before it logged from its first training step on; any other replaces them
    whole. A run without training lines is left out, unless it was resumed, to make up for the last validation.

    Args:
        folder: a work dir, or the folder of a single run in it.

    Raises:
        TrainingLogError: a line before the last, which may be unfinished, is not a JSON object.
    """
    logs = sorted(folder.glob('*/vis_data/scalars.json')) or list(folder.glob('vis_data/scalars.json'))
    lines = []
    for log in logs:
        # A crash of the machine may leave bytes that are no text: a line of them is named like any other.
        texts = _text(log).splitlines()
        run = []
        for number, text in enumerate(texts, 1):
            try:
                run.append(dict(json.loads(text)))
            except (TypeError, ValueError) as error:
                if number < len(texts):
                    raise TrainingLogError(
                        f'{log}, line {number}: {text[:60]!r} is not a JSON object; delete the line'
                    ) from error
        config = log.with_name('config.py')
        resumed = config.is_file() and re.search(r'^resume = True$', _text(config), re.MULTILINE)
        start = next((line['step'] for line in run if is_training(line)), math.inf)
        if start == math.inf and not resumed:
            continue
        replaced = (i for i, line in enumerate(lines) if not resumed or is_training(line) and line['step'] >= start)
        lines = lines[: next(replaced, len(lines))] + run
    return lines


def _text(path: Path) -> str:
    return path.read_text(encoding='utf-8', errors='replace')


def is_training(line: dict[str, float]) -> bool:
    return 'loss' in line and 'step' in line
