"""Choose the triplets of each batch, and the seed of each item's augmentation, without global random state."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence

import torch
from torch import Generator, Tensor
from torch.utils.data import Sampler

from trireid.data.randomness import seeded_generator
from trireid.errors import ConfigError, DataError

SampleKey = tuple[int, int]
"""(position in the data set, seed of the item's augmentation). The seed belongs to the item, so the number of
workers or processes does not change its augmentation."""

MAX_SEED = 2**62


class IdentitySampler(Sampler[list[SampleKey]]):
    """Batches of P identities x K images, P = `batch_size / num_instances`, K = `num_instances`.

    In each epoch the images of each identity are shuffled and cut into groups of K; left-over images are not used in
    that epoch. An identity with fewer than K images gives one group: all of them, filled up with repeated draws. Each
    batch is then drawn as P groups of different identities. The number of batches is the largest for which that is
    possible, `max B: sum over identities of min(groups, B) >= B * P`; groups beyond B * P are left out at random. The
    length thus depends on the counts alone and is the same in every epoch.

    Args:
        identities: identity of each item of the data set, in its order.
        batch_size: items in a batch, a multiple of `num_instances`.
        num_instances: items of one identity in a batch.
        seed: of all draws, together with the epoch.

    Raises:
        ConfigError: `batch_size` is not a multiple of `num_instances`.
        DataError: fewer identities than a batch needs.
    """

    def __init__(self, identities: Sequence[str | int], *, batch_size: int, num_instances: int, seed: int) -> None:
        if batch_size % num_instances != 0:
            raise ConfigError(
                f"data.batch_size {batch_size} is not a multiple of data.num_instances {num_instances}; "
                "a batch consists of whole groups of one identity"
            )
        self.batch_size = batch_size
        self.drop_last = True  # every batch is full; accelerate reads this
        self.num_instances = num_instances
        self.num_identities = batch_size // num_instances
        self.seed = seed
        self.epoch = 0
        self._members = _group(identities)
        if len(self._members) < self.num_identities:
            raise DataError(
                f"data.batch_size {batch_size} with data.num_instances {num_instances} needs {self.num_identities} "
                f"identities in a batch, but the training set has only {len(self._members)}; "
                "lower data.batch_size or raise data.num_instances"
            )
        self._num_groups = [max(1, len(members) // num_instances) for members in self._members]
        self._num_batches = count_batches(self._num_groups, self.num_identities)

    def __len__(self) -> int:
        return self._num_batches

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = seeded_generator(self.seed, "identity sampler", self.epoch)
        groups = [self._cut(members, generator) for members in self._members]
        remaining = self._choose_groups(generator)
        for num_left in range(self._num_batches, 0, -1):
            chosen = draw_identities(remaining, num_left, self.num_identities, generator)
            remaining[chosen] -= 1
            items = torch.cat([groups[identity].pop() for identity in chosen.tolist()])
            yield _with_seeds(items, generator)

    def _cut(self, members: Tensor, generator: Generator) -> list[Tensor]:
        """Shuffled images of one identity in groups of K."""
        if len(members) < self.num_instances:
            return [self._fill(members, generator)]
        shuffled = members[torch.randperm(len(members), generator=generator)]
        num_groups = len(shuffled) // self.num_instances
        return list(shuffled[: num_groups * self.num_instances].view(num_groups, self.num_instances))

    def _fill(self, members: Tensor, generator: Generator) -> Tensor:
        """K items of an identity that has fewer: all of them, then draws among them."""
        shuffled = members[torch.randperm(len(members), generator=generator)]
        again = torch.randint(0, len(members), (self.num_instances - len(members),), generator=generator)
        return torch.cat([shuffled, members[again]])

    def _choose_groups(self, generator: Generator) -> Tensor:
        """Number of groups that each identity gives in this epoch, `(identities,)`: B * P in all, at most B each."""
        capped = torch.tensor(self._num_groups).clamp(max=self._num_batches)
        owners = torch.repeat_interleave(torch.arange(len(capped)), capped)
        wanted = self._num_batches * self.num_identities
        chosen = owners[torch.randperm(len(owners), generator=generator)[:wanted]]
        return torch.bincount(chosen, minlength=len(capped))


class UniformIdentitySampler(IdentitySampler):
    """As `IdentitySampler`, but drawn as upstream does: all remaining identities are equally likely.

    The identities of a batch are drawn evenly among those that have a group left, until fewer than P have one. The
    remaining groups are not used in that epoch; they are mostly of large identities, which `IdentitySampler` draws
    earlier. An identity with fewer than K images gives K draws among them, so some images may be missing. The number
    of batches differs between epochs; `len` is exact, because it draws the epoch.

    Source: RandomIdentitySampler of DeMo (public code) and its ancestors.
    Deviation: own generator in place of the global ones of random and numpy; `len` is exact, not an estimate.
    """

    def __len__(self) -> int:
        generator = seeded_generator(self.seed, "uniform identity sampler", self.epoch)
        return sum(1 for _ in self._draw_batches(generator))

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = seeded_generator(self.seed, "uniform identity sampler", self.epoch)
        batches = list(self._draw_batches(generator))
        groups = [self._cut(members, generator) for members in self._members]
        for chosen in batches:
            yield _with_seeds(torch.cat([groups[identity].pop() for identity in chosen]), generator)

    def _draw_batches(self, generator: Generator) -> Iterator[list[int]]:
        """Identities of each batch of the epoch."""
        remaining = torch.tensor(self._num_groups)
        while int((remaining > 0).sum()) >= self.num_identities:
            available = remaining.nonzero().flatten()
            chosen = available[torch.randperm(len(available), generator=generator)[: self.num_identities]]
            remaining[chosen] -= 1
            yield chosen.tolist()

    def _fill(self, members: Tensor, generator: Generator) -> Tensor:
        """K draws among them."""
        return members[torch.randint(0, len(members), (self.num_instances,), generator=generator)]


class RandomBatchSampler(Sampler[list[SampleKey]]):
    """Shuffled full batches without regard to identity; the items of an incomplete last batch are not used.

    Raises:
        ConfigError: fewer items than one batch.
    """

    def __init__(self, num_items: int, *, batch_size: int, seed: int) -> None:
        if num_items < batch_size:
            raise ConfigError(
                f"data.batch_size {batch_size} is more than the {num_items} training triplets; lower data.batch_size"
            )
        self.batch_size = batch_size
        self.drop_last = True
        self.num_items = num_items
        self.seed = seed
        self.epoch = 0

    def __len__(self) -> int:
        return self.num_items // self.batch_size

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch whose batches the next iteration gives."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[list[SampleKey]]:
        generator = seeded_generator(self.seed, "random sampler", self.epoch)
        order = torch.randperm(self.num_items, generator=generator)
        for batch in order[: len(self) * self.batch_size].split(self.batch_size):
            yield _with_seeds(batch, generator)


def count_batches(num_groups: Sequence[int], num_identities: int) -> int:
    """The largest B with `sum(min(groups, B)) >= B * num_identities`.

    Exactly then B batches of different identities exist, because an identity gives at most one group per batch.
    """
    histogram = Counter(num_groups)
    batches = 0
    while sum(min(size, batches + 1) * number for size, number in histogram.items()) >= (batches + 1) * num_identities:
        batches += 1
    return batches


def draw_identities(remaining: Tensor, num_left: int, num_identities: int, generator: Generator) -> Tensor:
    """Draw the identities of the next batch, `(num_identities,)`, without repetition.

    `remaining` sums to `num_left * num_identities` with no entry above `num_left`. An identity with exactly
    `num_left` groups must be in every batch that is left; the others are drawn in proportion to their groups. The
    same then holds for the next batch, so no group is left over at the end.
    """
    forced = (remaining == num_left).nonzero().flatten()
    num_free = num_identities - len(forced)
    if num_free == 0:
        return forced
    weights = remaining.double()
    weights[forced] = 0
    free = torch.multinomial(weights, num_free, replacement=False, generator=generator)
    return torch.cat([forced, free])


def _group(identities: Sequence[str | int]) -> list[Tensor]:
    """Positions of the items of each identity, identities in sorted order."""
    positions: dict[str | int, list[int]] = {}
    for position, identity in enumerate(identities):
        positions.setdefault(identity, []).append(position)
    return [torch.tensor(positions[identity]) for identity in sorted(positions, key=str)]


def _with_seeds(items: Tensor, generator: Generator) -> list[SampleKey]:
    seeds = torch.randint(0, MAX_SEED, (len(items),), generator=generator)
    return list(zip(items.tolist(), seeds.tolist(), strict=True))
