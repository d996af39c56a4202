"""How far a long command is: a bar with the time left on a terminal, elsewhere a line now and then."""

import sys
import time
from collections.abc import Collection, Iterator
from datetime import timedelta
from typing import TypeVar

from rich import progress
from rich.console import Console

T = TypeVar('T')


def track(items: Collection[T], what: str, every: float = 30) -> Iterator[T]:
    """The items, one after the other, while stderr tells how many are done and how long the others take.

    Args:
        what: is done with them, the beginning of each line.
        every: seconds between lines where stderr is no terminal; what takes less time is silent there.
    """
    console = Console(stderr=True)
    if console.is_terminal:
        # What is printed meanwhile stands above the bar, but stays in a file that stdout was sent to.
        with progress.Progress(console=console, redirect_stdout=sys.stdout.isatty()) as bar:
            yield from bar.track(items, description=what)
        return
    start = told = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - told >= every and done < len(items):
            told = now
            left = timedelta(seconds=round((now - start) / done * (len(items) - done)))
            print(f'{what}: {done:,} of {len(items):,}, eta {left}', file=sys.stderr, flush=True)
