import pytest

from asl_mmdet import progress


@pytest.fixture
def clock(monkeypatch):
    """Seconds since the start, which the test moves."""
    now = [100.0]
    monkeypatch.setattr(progress.time, 'monotonic', lambda: now[0])
    return now


def test_a_line_now_and_then_where_there_is_no_terminal(clock, capsys):
    done = []
    for item in progress.track(range(1200), 'Inference', every=30):
        done.append(item)
        clock[0] += 0.125
    assert done == list(range(1200))
    lines = capsys.readouterr().err.splitlines()
    assert lines == [
        'Inference: 240 of 1,200, eta 0:02:00',
        'Inference: 480 of 1,200, eta 0:01:30',
        'Inference: 720 of 1,200, eta 0:01:00',
        'Inference: 960 of 1,200, eta 0:00:30',
    ]


def test_a_bar_on_a_terminal(monkeypatch, capsys):
    monkeypatch.setenv('FORCE_COLOR', '1')
    assert list(progress.track('abc', 'Inference')) == ['a', 'b', 'c']
    assert 'Inference' in (text := capsys.readouterr().err) and '100%' in text


def test_what_a_command_prints_meanwhile_goes_where_it_was_sent(monkeypatch, capsys):
    """stderr is a terminal here, stdout a file."""
    monkeypatch.setenv('FORCE_COLOR', '1')
    for item in progress.track('abc', 'Inference'):
        print('found', item)
    assert capsys.readouterr().out == 'found a\nfound b\nfound c\n'
