import pytest

from asl_mmdet.datasets.whole_file import whole_file


def test_what_breaks_off_leaves_the_file_as_it_was(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with whole_file('a.bin') as file:
        file.write(b'one')
        assert not (tmp_path / 'a.bin').exists()
    with pytest.raises(KeyboardInterrupt), whole_file(tmp_path / 'a.bin') as file:
        file.write(b'two')
        raise KeyboardInterrupt
    assert (tmp_path / 'a.bin').read_bytes() == b'one' and list(tmp_path.iterdir()) == [tmp_path / 'a.bin']
