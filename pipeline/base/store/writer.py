"""Writes an image set shard by shard, and resumes after an interruption."""

import math
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from pipeline.base import files, unfinished
from pipeline.base.errors import InputError
from pipeline.base.store import card, manifest, shards
from pipeline.base.store.blocks import Block
from pipeline.base.store.image_set import ImageSet
from pipeline.base.store.manifest import Attributes, Run
from pipeline.base.words import counted


class Writer:
    """A context manager that writes an image set shard by shard.

    `attributes` must hold all that decides the content, because an interrupted run resumes only
    where they and `bounds` are equal. On a clean exit, all shards must exist, and the set gets its
    name. An earlier set of that name stays until that moment. Raises InputError where something
    else has that name.
    """

    def __init__(self, path: Path, attributes: Attributes, *, bounds: list[Run]) -> None:
        self.path = path
        self.attributes: Attributes = {
            "schema": manifest.SCHEMA,
            **attributes,
            "rows": bounds[-1][1],
        }
        self._bounds = bounds
        self._part = unfinished.path_for(
            path, {"fingerprint": manifest.fingerprint(self.attributes), "bounds": bounds}
        )
        self._behind = ThreadPoolExecutor(1)
        self._pending: Future[None] | None = None

    def __enter__(self) -> "Writer":
        if self.path.exists() and not self._may_be_replaced():
            raise InputError(
                f"{self.path}: expected an image set or nothing, found other files, which the set "
                "would replace; move them, or name another folder"
            )
        self._part.mkdir(parents=True, exist_ok=True)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self._behind.shutdown()
        if kind is None:
            self.flush()
            self._publish()

    def missing(self) -> list[Run]:
        """Return the row ranges of the shards that an earlier, interrupted run did not complete."""
        names = [shards.shard_name(index) for index in range(len(self._bounds))]
        recorded = self._recorded()
        with ThreadPoolExecutor(2) as pool:
            whole = list(pool.map(lambda name: self._is_whole(name, recorded.get(name)), names))
        return [
            bounds for bounds, is_whole in zip(self._bounds, whole, strict=True) if not is_whole
        ]

    def require_space(self, missing: Sequence[Run], image_shape: tuple[int, ...]) -> None:
        """Raise InputError unless the disk has room for the `missing` rows.

        `image_shape` is (C, H, W).
        """
        n_images = sum(stop - start for start, stop in missing)
        n_bytes = n_images * (math.prod(image_shape) + shards.ROW_BYTES)
        files.require_space(self.path, n_bytes, f"storing {counted(n_images, 'image')}")

    def write_behind(self, start: int, block: Block) -> None:
        """Write the shard that begins at row `start` in the background.

        The block's arrays must not change any more. Only one shard is written at a time, so this
        waits for the previous one, as `flush` does. A clean exit waits for the last one.
        """
        self.flush()
        self._pending = self._behind.submit(self.write, start, block)

    def flush(self) -> None:
        """Wait until the block that `write_behind` was given is written.

        Raises the error of that write, if there was one.
        """
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def write(self, start: int, block: Block) -> None:
        """Write the shard that begins at row `start`."""
        name = shards.shard_name(self._bounds.index((start, start + len(block))))
        entry = shards.write(self._part / name, self.attributes, start, block)
        manifest.write(self._part, self.attributes, {**self._recorded(), name: entry})

    def _may_be_replaced(self) -> bool:
        return self.path.is_dir() and (
            (self.path / manifest.NAME).exists() or not any(self.path.iterdir())
        )

    def _recorded(self) -> dict[str, manifest.Entry]:
        """Return the shards that the manifest of the unfinished set names."""
        try:
            found = manifest.read(self._part)
        except InputError:
            return {}
        return found.shards if found.attributes == self.attributes else {}

    def _is_whole(self, name: str, entry: manifest.Entry | None) -> bool:
        if entry is None:
            return False
        try:
            shards.Shard(self._part / name, self.attributes, entry).verify()
        except InputError:
            return False
        return True

    def _publish(self) -> None:
        if missing := self.missing():
            raise RuntimeError(
                f"{self.path}: rows {missing[0][0]} to {missing[0][1]} were never written"
            )
        files.write_bytes(self._part / card.NAME, card.text(ImageSet(self._part)).encode())
        replaced = self.path.with_name(f".{self.path.name}.replaced.part")
        unfinished.clear([replaced])
        if self.path.exists():
            self.path.replace(replaced)
        self._part.replace(self.path)
        files.sync_folder(self.path.parent)
        unfinished.clear([replaced])
