"""Finds a network's tensors in the checkpoints that other programs write.

Such a file holds a state_dict, or a dict of one and of an optimizer's state, counters and settings.
The names of the tensors may have a prefix, such as `module.`, for each layer that was put around
the network.
"""

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pipeline.base.errors import InputError
from pipeline.base.untrusted.pickle_records import Call
from pipeline.networks import normalisation, torch_files

# Where a file holds several networks that differ, the one under the first of these keys is taken.
# Averaged weights come last, and other keys after them.
KEYS = (
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "module"),
    *("backbone", "encoder", "weights", "params", "state", "ema", "ema_state_dict", "model_ema"),
    *("state_dict_ema", "swa", "swa_state_dict", "swa_model"),
)
MAX_DEPTH = 4  # dicts inside each other
MAX_PARTS = 6  # parts of a name, such as layer1.0.downsample.0.weight
COUNTS = ".num_batches_tracked"
SAVE = "save model.state_dict() instead, where its class is defined"


@dataclass(frozen=True, kw_only=True)
class StateDict:
    """Tensors by name, as records that are not decoded, and the keys of the dicts around them.

    `content` is all that the file holds.
    """

    keys: tuple[str, ...]
    records: dict[str, Any]
    content: Any

    @property
    def others(self) -> Iterator[str]:
        """The keys of the dicts around the tensors, and of other values next to them."""
        inner = self.content
        for key in self.keys:
            items = _items(inner)
            yield from (other for other in items if other != key)
            inner = items[key]
        yield from (other for other in _items(inner) if other not in self.records)

    @property
    def rank(self) -> tuple[int, ...]:
        return tuple(KEYS.index(key) if key in KEYS else len(KEYS) for key in self.keys)

    @property
    def below(self) -> str:
        return f" below {' and '.join(shown(key) for key in self.keys)}" if self.keys else ""


@dataclass(frozen=True, kw_only=True)
class Copy:
    """A network in a state_dict: the tensors whose names begin with `prefix`, without it.

    `around` are the other tensors of the state_dict.
    """

    state_dict: StateDict
    prefix: str
    tensors: dict[str, Tensor]
    around: dict[str, Any]

    def is_equal(self, other: "Copy") -> bool:
        """Return whether all tensors except counts of batches are the same."""
        return all(
            tensor.dtype == other.tensors[name].dtype
            and torch.equal(tensor.nan_to_num(), other.tensors[name].nan_to_num())
            for name, tensor in self.tensors.items()
            if name in other.tensors and not name.endswith(COUNTS)
        )


def state_dicts(content: Any) -> list[StateDict]:
    """Return the state_dicts in a file's content, the one to prefer first.

    Raises InputError, without a path, where there is none.
    """
    found = sorted(_found(content), key=lambda part: (part.rank, part.keys))
    if not found:
        raise InputError(f"expected a state_dict, tensors by name, found {_contents(content)}")
    return found


def _found(content: Any) -> Iterator[StateDict]:
    todo: list[tuple[tuple[str, ...], Any]] = [((), content)]
    seen = {id(content)}
    for keys, value in todo:
        items = _items(value)
        records = {key: part for key, part in items.items() if torch_files.is_tensor(part)}
        if records or (value == {} and not keys):
            yield StateDict(keys=keys, records=records, content=content)
        for key, part in items.items() if len(keys) < MAX_DEPTH else ():
            if isinstance(part, dict | Call) and id(part) not in seen:
                seen.add(id(part))
                todo.append(((*keys, key), part))


def _items(value: Any) -> Mapping[str, Any]:
    """Return the items of a dict, or of an object of a class that is a dict."""
    items = value.entries if isinstance(value, Call) else value
    if not isinstance(items, dict):
        return {}
    return {key: part for key, part in items.items() if isinstance(key, str)}


def _contents(content: Any) -> str:
    """Return what a file holds instead of a state_dict, and what to do."""
    if _is_network(content):
        return f"a whole network, {shown(content.name)}, pickled; {SAVE}"
    for key, value in _items(content).items():
        if _is_network(value):
            return f"a whole network, {shown(value.name)}, pickled under {shown(key)}; {SAVE}"
    if torch_files.is_tensor(content):
        return "a tensor; save network.state_dict() instead"
    if not isinstance(content, dict):
        kind = content.name[:100] if isinstance(content, Call) else type(content).__name__
        return f"a {kind}; save network.state_dict() instead"
    return f"other values under {listed(map(shown, content))}; save network.state_dict() instead"


def _is_network(value: Any) -> bool:
    return isinstance(value, Call) and isinstance(value.state, dict) and "_modules" in value.state


def fitting(parts: list[StateDict], expected: Mapping[str, Tensor]) -> list[Copy]:
    """Return the copies of a network in the state_dicts that are preferred, the shortest first.

    The result is empty where there is none.
    """
    found: list[Copy] = []
    for part in parts:
        if found and part.rank > found[0].state_dict.rank:
            break
        found += [copy for copy in copies(part, expected) if not differing(copy, expected)]
    return found


def copies(part: StateDict, expected: Mapping[str, Tensor]) -> Iterator[Copy]:
    """Yield the tensors under each prefix with the most of the network's names."""
    prefixes = _prefixes(part.records, expected)
    whole = [prefix for prefix, count in prefixes.items() if count == max(prefixes.values())]
    for prefix in whole or [""]:
        yield _copy(part, prefix, [other for other in whole if other != prefix])


def _prefixes(names: Mapping[str, Any], expected: Mapping[str, Tensor]) -> Counter[str]:
    """Count the network's names that stand after each prefix, the shortest prefix first."""
    counts: Counter[str] = Counter()
    for name in names:
        parts = name.rsplit(".", MAX_PARTS)
        for first in range(len(parts)):
            rest = ".".join(parts[first:])
            if rest in expected and not rest.endswith(COUNTS):
                counts[name.removesuffix(rest)] += 1
    return Counter({prefix: counts[prefix] for prefix in sorted(counts, key=_by_length)})


def _by_length(prefix: str) -> tuple[int, str]:
    return len(prefix), prefix


def _copy(part: StateDict, prefix: str, others: list[str]) -> Copy:
    """Return the tensors after a prefix.

    Those of a normalisation, and those under the longer prefix of another copy, are around it.
    """
    longer = tuple(other for other in others if other.startswith(prefix))
    inside = {
        name: record
        for name, record in part.records.items()
        if name.startswith(prefix) and not (name.startswith(longer) or normalisation.is_part(name))
    }
    around = {name: record for name, record in part.records.items() if name not in inside}
    found = {name.removeprefix(prefix): record for name, record in inside.items()}
    return Copy(state_dict=part, prefix=prefix, tensors=torch_files.tensors(found), around=around)


def differing(copy: Copy, expected: Mapping[str, Tensor]) -> list[str]:
    """Return the names of tensors that are missing, are too many, or have another shape or kind.

    Old files, torchvision's among them, lack BatchNorm's counts of batches.
    """
    return [
        name
        for name in {**expected, **copy.tensors}
        if kind(copy.tensors.get(name)) != kind(expected.get(name))
        and not (name not in copy.tensors and name.endswith(COUNTS))
        and not name.startswith("fc.")
    ]


def kind(tensor: Tensor | None) -> tuple[torch.Size, bool] | None:
    """Return what must agree: the shape, and whether the numbers are floating point.

    float16, bfloat16 and float64 can be converted to float32. Whole numbers cannot.
    """
    return None if tensor is None else (tensor.shape, tensor.is_floating_point())


def chosen(equal: list[Copy]) -> Copy:
    """Return the copy to take of those that are preferred equally.

    Raises InputError, without a path, where they differ.
    """
    first = equal[0]
    different = [copy for copy in equal[1:] if not first.is_equal(copy)]
    if different:
        places = listed(f"{copy.prefix or 'no prefix'}{copy.state_dict.below}" for copy in equal)
        raise InputError(
            f"expected one network, found {len(equal)} that differ: {places};"
            " save the state_dict of the one to start from by itself"
        )
    return first


def shown(name: Any) -> str:
    return ascii(name)[:100] if isinstance(name, str) else f"a {type(name).__name__}"


def listed(names: Iterable[str], most: int = 5) -> str:
    """Return the first of some names, and how many more there are."""
    every = list(names)
    more = f" and {len(every) - most} more" if len(every) > most else ""
    return f"{', '.join(every[:most])}{more}"
