"""Runs the code of a page of the documentation as a reader would: python -m tests.documentation docs/quick_start.md

Blocks fenced as ``python`` and ``bash`` are executed in their order, in one new folder that holds copies of tools/ and
configs/ and nothing else. The first line of a python block may name a file, ``# configs/mine.py`` or ``# predict.py``:
the block is written there, for the commands that follow. Where the file is a config, it is loaded and its model built
as well. Other python blocks of a page are one program, each bash block is a shell of its own.

What stands in comments on the lines above a block:

``<!-- not run: REASON -->``: the block is not executed.
``<!-- run with: tools/train.py OPTIONS -->``: these options are added where the block calls that tool.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import textwrap
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FENCE = re.compile(r'^(?P<indent> *)```(?P<language>[^\n`]*)\n(?P<text>.*?)^(?P=indent)```[ \t]*$', re.M | re.S)
COMMENTS = re.compile(r'(?:^ *<!--(?:(?!-->).)*-->\s*\n)+\Z', re.M | re.S)
MARK = re.compile(r'<!--\s*(not run|run with):\s*(.*?)\s*-->', re.S)
CONFIG = re.compile(r'^(?:_base_|model|custom_imports|custom_hooks|default_hooks) =', re.M)
FILE_NAME = re.compile(r'# ([\w./-]+\.py)$')


class PageError(Exception):
    """A page, line and what is wrong there."""


@dataclass
class Block:
    page: str
    line: int
    language: str
    text: str
    not_run: str | None = None
    run_with: dict[str, str] = field(default_factory=dict)

    @property
    def place(self) -> str:
        return f'{self.page}:{self.line}'

    @property
    def file_name(self) -> str | None:
        match = FILE_NAME.match(self.text.partition('\n')[0]) if self.language == 'python' else None
        return match and match[1]

    @property
    def is_config(self) -> bool:
        return self.language == 'python' and bool(CONFIG.search(self.text))

    @property
    def commands(self) -> str:
        """The text of a bash block on one line a command, with the options of ``run with``."""
        text = self.text.replace('\\\n', ' ')
        for tool, options in self.run_with.items():
            text, count = re.subn(rf'(?m)({re.escape(tool)}\b[^#|&;<>\n)]*)', rf'\1 {options} ', text)
            if not count:
                raise PageError(f'{self.place}: run with: the block does not call {tool}')
        return text


def pages() -> list[Path]:
    return [ROOT / 'README.md', *sorted((ROOT / 'docs').glob('*.md'))]


def blocks(page: Path) -> list[Block]:
    """Every fenced block of a page, of whatever language."""
    text = page.read_text(encoding='utf-8')
    name = str(page.relative_to(ROOT)) if page.is_relative_to(ROOT) else str(page)
    found = []
    for fence in FENCE.finditer(text):
        block = Block(
            page=name,
            line=text.count('\n', 0, fence.start()) + 1,
            language=fence['language'].strip(),
            text=textwrap.dedent(fence['text']),
        )
        above = COMMENTS.search(text[: fence.start()])
        for kind, content in MARK.findall(above[0] if above else ''):
            if kind == 'not run':
                block.not_run = ' '.join(content.split())
            else:
                tool, _, options = ' '.join(content.split()).partition(' ')
                block.run_with[tool] = options
        found.append(block)
    return found


def check_config(path: str) -> None:
    from mmdet.registry import MODELS
    from mmengine.config import Config
    from mmengine.registry import init_default_scope

    # Imports what custom_imports names.
    cfg = Config.fromfile(path)
    init_default_scope(cfg.get('default_scope', 'mmdet'))
    if 'model' in cfg:
        MODELS.build(cfg.model)


def execute(page: Path) -> list[tuple[Block, float]]:
    """Executes the blocks of a page in the current folder; returns those that were run, with their seconds.

    Raises:
        PageError: a block failed; what it wrote stands above.
    """
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ['PATH']])
    namespace, done = {'__name__': '__main__'}, []
    for block in blocks(page):
        if block.language not in ('python', 'bash') or block.not_run is not None:
            continue
        print(f'--- {block.place}\n{block.text}---', flush=True)
        start = time.perf_counter()
        try:
            if block.language == 'bash':
                command = ['bash', '-euo', 'pipefail', '-c', block.commands]
                subprocess.run(command, check=True, env={**os.environ, 'PATH': path}, stdin=subprocess.DEVNULL)
            elif block.file_name:
                Path(block.file_name).parent.mkdir(parents=True, exist_ok=True)
                Path(block.file_name).write_text(block.text, encoding='utf-8')
                if block.is_config:
                    check_config(block.file_name)
            else:
                # At its place, so that a traceback names it.
                exec(compile('\n' * block.line + block.text, page, 'exec'), namespace)
        except (Exception, SystemExit) as error:
            raise PageError(f'{block.place} failed: {type(error).__name__}: {error}') from error
        done.append((block, time.perf_counter() - start))
    return done


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('page', type=Path)
    parser.add_argument('--folder', type=Path, help='new folder to work in (default: a temporary one)')
    args = parser.parse_args()
    page = args.page.resolve()
    with tempfile.TemporaryDirectory() as temporary:
        folder = args.folder or Path(temporary)
        for name in ('tools', 'configs'):
            shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns('__pycache__'))
        os.chdir(folder)
        sys.path[0] = str(folder)
        for block, seconds in execute(page):
            print(f'{block.place}: {block.language} block, {seconds:.1f} s')
        os.chdir(ROOT)


if __name__ == '__main__':
    main()
