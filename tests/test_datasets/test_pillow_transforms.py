import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmdet.registry import TRANSFORMS


def transformed(kind, image, **options):
    return TRANSFORMS.build(dict(type=kind, **options))({'img': image.copy()})['img']


@pytest.mark.parametrize('kind', ['AutoContrast', 'Equalize'])
@given(
    seed=st.integers(0, 2**32 - 1),
    size=st.tuples(st.integers(1, 40), st.integers(1, 40)),
    values=st.tuples(st.integers(0, 255), st.integers(0, 255)).map(sorted),
    colours=st.integers(1, 300),
)
def test_gives_the_pixels_of_mmcv(kind, seed, size, values, colours):
    generator = np.random.default_rng(seed)
    palette = generator.integers(values[0], values[1] + 1, (colours, 3), dtype=np.uint8)
    image = palette[generator.integers(0, colours, size)]
    result = transformed(f'Pillow{kind}', image)
    assert result.dtype == np.uint8
    np.testing.assert_array_equal(result, transformed(kind, image))


@pytest.mark.parametrize(
    # 20 lies half-way, at 127.5, and 255 of 510 darker pixels lie below it, at two for each step of brightness.
    'kind, becomes',
    [('AutoContrast', (0, 127, 255)), ('Equalize', (0, 128, 255))],
)
def test_values_by_hand(kind, becomes):
    columns = np.array([10, 20, 30], np.uint8)[None, :, None]
    image = np.broadcast_to(columns, (255, 3, 3)).copy()
    image[..., 2] = 7
    result = transformed(f'Pillow{kind}', image)
    assert [tuple(np.unique(result[..., channel])) for channel in range(3)] == [becomes, becomes, (7,)]
    result[0, 0] = 128  # as CutOut does


@pytest.mark.parametrize('kind', ['PillowAutoContrast', 'PillowEqualize'])
def test_prob(kind):
    image = np.full((24, 24, 3), 100, np.uint8)
    image[:12], image[12:18] = 50, 75
    np.testing.assert_array_equal(transformed(kind, image, prob=0.0), image)
    assert (transformed(kind, image) != image).any()
