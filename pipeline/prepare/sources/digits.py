"""Read the source `digits`: 1,797 handwritten digits (UCI), enlarged.

The originals have 8x8 pixels and 17 grey levels. They are part of the package scikit-learn.
"""

import hashlib

import numpy as np
from PIL import Image
from sklearn.datasets import load_digits

from pipeline.prepare.sources.common import Images, Source, numbered

SIZE = 8  # pixels per side of the originals


def read(image_size: int) -> Source:
    """Return all digits as grey images of `image_size`, in three equal channels."""
    pixels, labels = load_digits(return_X_y=True)
    labels = labels.astype(np.int64)
    grey = np.rint(pixels.reshape(-1, SIZE, SIZE) * (255 / 16)).astype(np.uint8)
    size = (image_size, image_size)
    large = [
        np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC)) for image in grey
    ]
    images: Images = np.repeat(np.stack(large)[:, None], 3, axis=1)
    return Source(
        labels=labels,
        ids=np.arange(len(labels)),
        read=lambda rows: images[rows],
        class_names=numbered(10),
        image_size=image_size,
        sha256=hashlib.sha256(pixels.tobytes() + labels.tobytes()).hexdigest(),
    )
