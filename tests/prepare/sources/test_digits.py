import numpy as np

from pipeline.prepare import sources


def test_digits_are_the_real_ones_enlarged(settings):
    source = sources.open_source(settings.data)
    images = source.read(np.arange(1797))
    assert images.shape == (1797, 3, 32, 32)
    assert images.dtype == np.uint8
    assert (images[:, 0] == images[:, 2]).all()
    assert images.max() == 255
    assert np.bincount(source.labels).tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
