"""README.md and docs/: their code runs, and what they name is there."""

import ast
import itertools
import re
import subprocess
import sys
from collections import Counter
from functools import cache

import pytest

from tests.conftest import ROOT, run_tool
from tests.documentation import FENCE, FILE_NAME, Block, PageError, blocks, pages

README = ROOT / 'README.md'
TROUBLESHOOTING = ROOT / 'docs/troubleshooting.md'
PAGES = pages()
DEFAULT = ('README.md',)
# Written by an installation.
WRITTEN = ('asl_mmdet/.mim',)
# Of pip, make, git, srun and others.
OPTIONS_ELSEWHERE = ('--help', '--kill-on-bad-exit', '--no-build-isolation')
FOLDERS = ('asl_mmdet', 'configs', 'docs', 'requirements', 'tests', 'tools')
OPTION = re.compile(r'(?<![\w-])--[a-z][\w-]*')


def by_name(page):
    return str(page.relative_to(ROOT))


def without_blocks(page):
    return FENCE.sub('', page.read_text())


# ------------------------------------------------------------------------------------------------------------ the code


@pytest.mark.parametrize(
    'page',
    [pytest.param(page, id=by_name(page), marks=[pytest.mark.slow] * (page.name not in DEFAULT)) for page in PAGES],
)
def test_the_code_of_a_page_runs(page, capsys):
    done = run_tool(sys.executable, '-m', 'tests.documentation', page, timeout=1800)
    assert done.returncode == 0, done.stdout
    with capsys.disabled():
        print(*re.findall(r'^.*: \w+ block, [\d.]+ s$', done.stdout, re.M), sep='\n', end=' ')


def test_what_is_not_run_has_a_reason(capsys):
    """Prints how many blocks are run, and why the others are not."""
    every = [block for page in PAGES for block in blocks(page)]
    code = [block for block in every if block.language in ('python', 'bash')]
    assert [block.place for block in every if block.language in ('', 'sh', 'shell', 'console', 'py')] == []
    left_out = [block for block in code if block.not_run is not None]
    assert [block.place for block in left_out if len(block.not_run) < 8] == []
    # As a program it would do nothing: it needs a name, and a base.
    assert [block.place for block in code if block.is_config and not (block.file_name or block.not_run)] == []
    with capsys.disabled():
        print(f'\n{len(code) - len(left_out)} blocks are run, {len(left_out)} are not:')
        for block in left_out:
            print(f'  {block.place} ({block.language}): {block.not_run}')


@pytest.mark.parametrize('page', PAGES, ids=by_name)
def test_the_code_of_a_page_is_well_formed(page):
    for block in blocks(page):
        # Configs may hold {{_base_.key}}.
        if block.language == 'python' and '{{' not in block.text:
            compile(block.text, block.place, 'exec')
        if block.language == 'bash':
            done = subprocess.run(['bash', '-n', '-c', block.commands], capture_output=True, text=True)
            assert (done.returncode, done.stderr) == (0, ''), block.place


# --------------------------------------------------------------------------------------------------- what pages name


def headings(page):
    """Anchors as GitHub makes them."""
    titles = re.findall(r'^#+ (.*)$', without_blocks(page), re.M)
    return [re.sub(r'[^\w\- ]', '', title.lower()).replace(' ', '-') for title in titles]


@pytest.mark.parametrize('page', PAGES, ids=by_name)
def test_links_lead_somewhere(page):
    broken = []
    for target in re.findall(r'\]\(([^)\s]+)\)', without_blocks(page)):
        path, _, anchor = target.partition('#')
        if '://' in target:
            continue
        goal = (page.parent / path).resolve() if path else page
        if not goal.exists() or (anchor and anchor not in headings(goal)):
            broken.append(target)
    assert broken == []


def test_readme_leads_to_every_page_and_is_three_screens_long():
    text = README.read_text()
    assert [by_name(page) for page in PAGES[1:] if f'({by_name(page)})' not in text] == []
    lines = text.splitlines()
    assert len([line for line in lines if not line.startswith('<!--')]) <= 130 and max(map(len, lines)) <= 120


@cache
def registered():
    import mmdet.registry
    import mmengine.registry
    from mmdet.utils import register_all_modules

    import asl_mmdet  # noqa: F401

    register_all_modules(init_default_scope=False)
    registries = [*vars(mmengine.registry).values(), *vars(mmdet.registry).values()]
    return {name for one in registries if isinstance(one, mmengine.registry.Registry) for name in one.module_dict}


@pytest.mark.parametrize('page', PAGES, ids=by_name)
def test_types_are_registered(page):
    named = re.findall(r'type=[\'"](?:mmdet\.|mmengine\.)?([\w.]+)[\'"]', page.read_text())
    assert [name for name in named if name not in registered() and not name.startswith('mmpretrain.')] == []


def options_of(tool):
    """Options of a script, with those that it has from asl_mmdet.command_line or a module beside it."""
    text = tool.read_text()
    for module in re.findall(r'from (?:asl_mmdet\.)?(\w+) import', text):
        for path in (tool.with_name(f'{module}.py'), ROOT / f'asl_mmdet/{module}.py'):
            text += path.read_text() if path.is_file() else ''
    return set(re.findall(r'[\'"](--[a-z][\w-]*)[\'"]', text)) | {'--help'}


@pytest.mark.parametrize('page', PAGES, ids=by_name)
def test_options_exist(page):
    tools = [*ROOT.glob('tools/**/*.py'), *ROOT.glob('asl_mmdet/**/*.py')]
    every = set().union(*map(options_of, tools), OPTIONS_ELSEWHERE)
    spans = re.findall(r'`[^`\n]+`', without_blocks(page))
    unknown = [option for span in spans for option in OPTION.findall(span) if option not in every]
    for block in blocks(page):
        if block.language != 'bash':
            continue
        for line in block.commands.splitlines():
            for command in re.split(r'[|;&]', line.partition(' # ')[0]):
                tool = re.search(r'\b(tools/[\w/]+\.(?:py|sh))', command)
                if tool is None or not (ROOT / tool[1]).is_file():
                    continue
                # The scripts hand their arguments on.
                goal = {'tools/dist_train.sh': 'tools/train.py', 'tools/slurm_train.sh': 'tools/train.py'}
                goal = ROOT / {**goal, 'tools/dist_test.sh': 'tools/test.py'}.get(tool[1], tool[1])
                known = options_of(goal)
                unknown += [f'{block.place}: {one}' for one in OPTION.findall(command) if one not in known]
    assert unknown == []


def alternatives(path):
    """a/{b,c} as a/b and a/c."""
    parts = [part[1:-1].split(',') if part[:1] == '{' else [part] for part in re.split(r'(\{[^}]*\})', path)]
    return [''.join(choice) for choice in itertools.product(*parts)]


@pytest.mark.parametrize('page', PAGES, ids=by_name)
def test_files_of_the_repository_that_are_named_exist(page):
    code = [block for block in blocks(page) if block.language in ('python', 'bash')]
    made = {block.file_name for block in code} | set(WRITTEN)
    # Folders of a name of ours within those of the reader do not count.
    token = re.compile(rf'(?<![\w./-])(?:{"|".join(FOLDERS)})/[\w./*{{}},…:-]+')
    spans = re.findall(r'`[^`\n]+`', without_blocks(page)) + [block.text for block in code]
    spans += [block.not_run for block in code if block.not_run]
    spans = [re.sub(r'\$\{?\w+\}?', '*', span) for span in spans]
    missing = []
    for name in {name for span in spans for name in token.findall(span)}:
        for path in alternatives(name.rstrip('.,:')):
            path, _, test = path.partition('::')
            found = list(ROOT.glob(path.replace('…', '*')))
            if path not in made and (not found or test and f'def {test}(' not in found[0].read_text()):
                missing.append(path + (f'::{test}' if test else ''))
    assert missing == []


# --------------------------------------------------------------------------------------------------------- the messages

HOLE = '\0'


def text_of(node):
    """A string with a hole for whatever is filled in when the program runs."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return ''.join(map(text_of, node.values))
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        return text_of(node.left) + text_of(node.right)
    return HOLE


@cache
def messages_of_ours():
    paths = [path for folder in ('asl_mmdet', 'tools') for path in (ROOT / folder).rglob('*.py')]
    trees = [ast.parse(path.read_text()) for path in paths]
    kinds = (ast.Constant, ast.JoinedStr, ast.BinOp)
    texts = [text_of(node) for tree in trees for node in ast.walk(tree) if isinstance(node, kinds)]
    return [*texts, (ROOT / 'Makefile').read_text(), *(path.read_text() for path in ROOT.glob('tools/*.sh'))]


@pytest.mark.skipif(not TROUBLESHOOTING.is_file(), reason='not written')
def test_messages_of_ours_that_are_explained_occur_in_the_code():
    """A heading of the third level quotes a message; an ellipsis stands for what differs."""
    ours, _, elsewhere = TROUBLESHOOTING.read_text().partition('\n## Messages of other packages\n')
    quoted = re.findall(r'^### `(.*)`$', ours, re.M)
    assert elsewhere and len(quoted) >= 20
    unknown = []
    for message in quoted:
        pattern = re.compile('.*'.join(re.escape(part) for part in message.split('…')), re.S)
        if len(message.replace('…', '')) < 12 or not any(pattern.search(text) for text in messages_of_ours()):
            unknown.append(message)
    assert unknown == []


def test_explained_messages_stand_once():
    if TROUBLESHOOTING.is_file():
        counts = Counter(re.findall(r'^### `(.*)`$', TROUBLESHOOTING.read_text(), re.M))
        assert [message for message, count in counts.items() if count > 1] == []


# ------------------------------------------------------------------------------------------------------------ the tool


def run_page(tmp_path, text):
    page = tmp_path / 'page.md'
    page.write_text(text)
    return run_tool(sys.executable, '-m', 'tests.documentation', page, '--folder', tmp_path / 'work')


def test_blocks_share_a_folder_and_a_program(tmp_path):
    done = run_page(
        tmp_path,
        '```python\n# mine/greet.py\nimport sys\n\nprint("hello", *sys.argv[1:])\n```\n'
        '```python\nnumber = 6\n```\n'
        '<!-- run with: mine/greet.py --loud -->\n\n```bash\npython mine/greet.py you  # and me\n```\n'
        '<!-- not run: this would fail -->\n```bash\nexit 3\n```\n'
        '- ```python\n  open("answer", "w").write(str(7 * number))\n  ```\n'.replace('- ```', '  ```')
        + '```bash\ncat answer\n```\n```text\nnothing\n```\n',
    )
    assert done.returncode == 0, done.stdout
    assert '\nhello you --loud\n' in done.stdout and '\n42' in done.stdout
    assert sorted(path.name for path in (tmp_path / 'work').iterdir()) == ['answer', 'configs', 'mine', 'tools']


@pytest.mark.parametrize(
    ('block', 'reason'),
    [
        ('bash\nfalse | cat', 'CalledProcessError'),
        ('bash\nfalse\ntrue', 'CalledProcessError'),
        ('python\n1 / 0', 'ZeroDivisionError: division by zero'),
        ("python\nraise SystemExit('out')", 'SystemExit: out'),
        ("python\n# c.py\n_base_ = 'nowhere.py'", 'FileNotFoundError'),
    ],
)
def test_a_block_that_fails_ends_the_page(tmp_path, block, reason):
    done = run_page(tmp_path, f'one\n\n```{block}\n```\n\n```bash\necho "never $((1 + 1))"\n```\n')
    assert done.returncode == 1 and 'never 2' not in done.stdout
    assert f'page.md:3 failed: {reason}' in done.stdout


def test_options_for_a_tool_that_is_not_called_are_refused():
    block = Block('page.md', 1, 'bash', 'python tools/test.py x', run_with={'tools/train.py': '--resume'})
    with pytest.raises(PageError, match='page.md:1: run with: the block does not call tools/train.py'):
        block.commands


def test_file_names():
    assert FILE_NAME.match('# configs/my-own/a_b.py')[1] == 'configs/my-own/a_b.py'
    assert not FILE_NAME.match('# see configs/a.py')
