"""Store the adversarial sets that were refreshed during training."""

import dataclasses
from pathlib import Path

from torch import Tensor

from pipeline import networks
from pipeline.base import store
from pipeline.harden import params
from pipeline.networks.torchvision_models import models

BATCH = 256  # images per forward pass


def store_refreshed(
    cached: store.ImageSet,
    images: Tensor,
    network: models.ResNet,
    model_sha256: str,
    refresh: params.Refresh,
    out: Path,
) -> store.ImageSet:
    """Store a cached set with refreshed training rows.

    `images` (N, 3, H, W; uint8) replace the training rows. Validation rows are unchanged.
    `model_sha256` identifies `network`, the trained model. The column `fooled` refers to it.
    """
    attributes: store.Attributes = {
        **cached.attributes,
        "kind": "refreshed",
        "cached.digest": cached.digest,
        "cached.model.sha256": cached.attributes["model.sha256"],
        "model.sha256": model_sha256,
        **{f"refresh.{key}": value for key, value in refresh if value is not None},
    }
    remaining = images.cpu().numpy()
    with store.Writer(out, attributes, bounds=cached.bounds) as writer:
        missing = writer.missing()
        for (start, _), block in zip(cached.bounds, cached.blocks(), strict=True):
            trained = block.split == store.SPLITS["train"]
            new = block.images.copy()
            new[trained], remaining = remaining[: trained.sum()], remaining[trained.sum() :]
            if (start, start + len(block)) in missing:
                fooled = networks.predict(network, new, BATCH) != block.labels
                writer.write(start, dataclasses.replace(block, images=new, fooled=fooled))
    return store.ImageSet(out)
