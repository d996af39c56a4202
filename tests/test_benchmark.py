import argparse
import importlib
import re
import sys

import pytest

from tests.conftest import ROOT, run_tool


@pytest.fixture
def benchmarking(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis_tools')
    return importlib.import_module('benchmarking')


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / 'tools/analysis_tools')
    return importlib.import_module('benchmark')


def test_the_slope_is_the_exponent_of_the_larger_half(benchmarking):
    assert benchmarking.slope({1: 5, 10: 50}) == pytest.approx(1)
    # Quadratic from 4 on, flat before.
    assert benchmarking.slope({1: 16, 2: 16, 4: 16, 8: 64, 16: 256}) == pytest.approx(2)
    assert benchmarking.slope({8: 3, 2: 3, 4: 3}) == pytest.approx(0)


def test_growth_is_tabulated_by_size(benchmarking):
    text = benchmarking.growth_table('images', {'ours': {1000: 1.0, 100: 0.125}, 'peer': {1000: 2.0, 100: 2.0}}, 's')
    assert text.splitlines() == [
        '| images | ours, s | peer, s |',
        '| --- | --- | --- |',
        '| 100 | 0.125 | 2 |',
        '| 1,000 | 1 | 2 |',
        '| slope | 0.90 | 0.00 |',
    ]


def test_all_take_turns_after_a_first_call(benchmarking):
    calls = []
    times = benchmarking.median_times({name: lambda name=name: calls.append(name) for name in 'ab'}, 2)
    assert calls == list('abab' + 'ab') and times.keys() == {'a', 'b'} and all(time > 0 for time in times.values())


def test_tables_are_taken_with_their_captions_and_nothing_else(benchmark):
    text = 'warning\n\nloss, 2 threads\n| a | b |\n|---|---|\n| 1 | 2 |\nrounds 100%\n\nnext\n\n| c |\n| --- |\n| 3 |'
    assert benchmark.captioned_tables(text) == (
        'loss, 2 threads\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nnext\n\n| c |\n| --- |\n| 3 |'
    )
    assert benchmark.captioned_tables('no table\nhere | or there\n') == ''


def test_every_benchmark_is_run_without_arguments(benchmark):
    names = {command.partition(' ')[0] for command in benchmark.default_commands()}
    assert {f'benchmark_{name}.py' for name in ('loss', 'metric', 'data', 'startup')} <= names
    assert benchmark.MORE_ARGUMENTS.keys() <= names
    assert 'benchmark.py' not in names and 'benchmarking.py' not in names


def test_every_default_command_is_understood(benchmark, monkeypatch):
    class Understood(Exception):
        pass

    def parse(parser, parse_args=argparse.ArgumentParser.parse_args):
        parse_args(parser)
        raise Understood

    monkeypatch.setattr(argparse.ArgumentParser, 'parse_args', parse)
    for command in benchmark.default_commands():
        monkeypatch.setattr(sys, 'argv', command.split())
        with pytest.raises(Understood):
            importlib.import_module(sys.argv[0].removesuffix('.py')).main()


def test_results_are_written_with_commands_machine_and_figures(tmp_path):
    out, figure = tmp_path / 'docs/benchmarks.md', tmp_path / 'docs/figures/growth.png'
    out.parent.mkdir()
    command = f'benchmark_metric.py --sizes 60x5 --rounds 1 --growth {figure} --growth-images 9 20 --growth-classes 2 3'
    done = run_tool('tools/analysis_tools/benchmark.py', '--out', out, command)
    assert done.returncode == 0, done.stdout
    text = out.read_text()
    for line in ('Processor: ', 'Memory: ', 'GPU: '):
        assert re.search(rf'^- {line}\S', text, re.MULTILINE)
    assert f'```bash\npython tools/analysis_tools/{command}\n```\n' in text
    assert re.search(r'^Metrics, multiples .*\n\n\| computation \| 60 x 5 \|', text, re.MULTILINE)
    assert '](figures/growth.png)' in text and figure.is_file()
    assert '━' not in text


def test_a_benchmark_that_fails_leaves_the_results_alone(benchmark, tmp_path, monkeypatch):
    out = tmp_path / 'benchmarks.md'
    out.write_text('as it was')
    monkeypatch.setattr('sys.argv', ['benchmark.py', '--out', str(out), 'benchmark_none.py --sizes 60'])
    with pytest.raises(SystemExit, match='benchmark_none.py --sizes 60 ended with status 2 and printed no table'):
        benchmark.main()
    assert out.read_text() == 'as it was'
