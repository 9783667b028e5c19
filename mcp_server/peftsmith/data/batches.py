"""Rows as a batch holds them: packed, padded or laid end to end.

Knows: TRL 1.16's pack_dataset (bfd, bfd_split, wrapped) and the collators of its trainers and of transformers.
Does not know: how rows and their labels came about (labels.py).
"""

from __future__ import annotations

from bisect import bisect_left, insort
from collections import defaultdict, deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

from peftsmith.data.labels import IGNORED, Row, Settings, SettingsRefused
from peftsmith.data.tokenizer_files import TokenizerFiles

Item = TypeVar("Item")
_PACKED_TOGETHER = 1000  # rows that datasets.Dataset.map hands to the packing function at once


@dataclass(frozen=True)
class Prepared:
    """Ids and labels of one row of the prepared set; `lengths` are those of the samples packed into it."""

    ids: list[int]
    labels: list[int]
    lengths: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """Token ids, labels, and the attention mask of a padded batch or the positions of a flattened one.

    `labels` are what the loss reads: ids or IGNORED (sft, tagging, seq2seq), the completion mask (dpo, kto), one class
    a row (classification), first and last place of the answer (answers).
    """

    ids: list[list[int]]
    labels: list[list[int]]
    attention: list[list[int]] | None = None
    positions: list[list[int]] | None = None


def sequences(rows: Sequence[Row], settings: Settings) -> list[Prepared]:
    """The prepared set: kept rows as they are, or packed."""
    kept = [Prepared(row.ids, row.labels(), (len(row.ids),)) for row in rows if not row.dropped]
    if not settings.packing or settings.max_length is None:
        return kept
    pack = _wrapped if settings.packing_strategy == "wrapped" else _best_fit
    packed: list[Prepared] = []
    for start in range(0, len(kept), _PACKED_TOGETHER):
        packed += pack(kept[start : start + _PACKED_TOGETHER], settings.max_length, settings.packing_strategy)
    return packed


def _wrapped(rows: Sequence[Prepared], size: int, strategy: str) -> Iterator[Prepared]:
    """All rows end to end, cut every `size` places; where one sample ends and the next begins is forgotten."""
    ids = [token for row in rows for token in row.ids]
    labels = [label for row in rows for label in row.labels]
    for start in range(0, len(ids), size):
        part = ids[start : start + size]
        yield Prepared(part, labels[start : start + size], (len(part),))


def _best_fit(rows: Sequence[Prepared], size: int, strategy: str) -> Iterator[Prepared]:
    """Best fit, longest first. Source: trl 1.16 data_utils.py `_pack_bfd` (arXiv 2404.10830)."""
    pieces: list[Prepared] = []
    for row in rows:
        ends = range(0, len(row.ids), size) if strategy == "bfd_split" else ([0] if row.ids else [])
        for start in ends:
            part = row.ids[start : start + size]
            pieces.append(Prepared(part, row.labels[start : start + size], (len(part),)))
    bins: list[list[Prepared]] = []
    by_space: dict[int, deque[list[Prepared]]] = defaultdict(deque)
    spaces: list[int] = []  # of the bins that have room, ascending
    for piece in sorted(pieces, key=lambda each: -len(each.ids)):
        place = bisect_left(spaces, len(piece.ids))
        if place < len(spaces):
            space = spaces[place]
            chosen = by_space[space].popleft()
            if not by_space[space]:
                spaces.pop(place)
        else:
            space, chosen = size, []
            bins.append(chosen)
        chosen.append(piece)
        space -= len(piece.ids)
        if space > 0:
            if not by_space[space]:
                insort(spaces, space)
            by_space[space].append(chosen)
    for each in bins:
        yield Prepared(
            [token for piece in each for token in piece.ids],
            [label for piece in each for label in piece.labels],
            tuple(len(piece.ids) for piece in each),
        )


def batches(rows: Sequence[Sequence[Row]], settings: Settings, files: TokenizerFiles, size: int) -> list[Batch]:
    """What the trainer's collator makes of `size` rows at a time, in the order of the set.

    `rows` holds what labels.rows_of gives for each example, without errors. Source: the collators of trl 1.16's
    sft_trainer, dpo_trainer and kto_trainer, and transformers' for classification, tagging and seq2seq.
    """
    if settings.trainer == "sft":
        prepared = sequences([row for example in rows for row in example], settings)
        make = _flat if settings.flattens else _padded
        return [make(part, settings, files) for part in _parts(prepared, size)]
    if settings.trainer == "answers":  # every window is a row of its own
        rows = [[window] for example in rows for window in example]
    kept = [example for example in rows if not any(row.dropped for row in example)]
    made = []
    for part in _parts(kept, size):
        # All chosen rows of a batch come before the rejected ones
        flat = [example[place] for place in range(len(part[0])) for example in part]
        made.append(_rows(flat, settings, files))
    return made


def pad_id(settings: Settings, files: TokenizerFiles) -> int:
    """The id that pads: the plan's, else the tokenizer's, else its eos. Source: trl 1.16 sft_trainer.py."""
    if settings.pad_token is not None:
        found = files.tokenizer.token_to_id(settings.pad_token)
    else:
        found = files.pad_id if files.pad_id is not None else files.eos_id
    if found is None:
        raise SettingsRefused(
            "There is no token to pad with: no pad_token, no eos_token",
            value=settings.pad_token,
            next_step="Set pad_token to a token of the vocabulary.",
        )
    return found


def _rows(rows: Sequence[Row], settings: Settings, files: TokenizerFiles) -> Batch:
    if settings.trainer in ("dpo", "kto"):
        masked = [Prepared(row.ids, row.mask_bits(), (len(row.ids),)) for row in rows]
        return _pad(masked, settings, files, filler=0, side="right")
    values = [Prepared(row.ids, row.values or [], (len(row.ids),)) for row in rows]
    # The script for answers pads on the right, whatever the tokenizer does: its labels count from the left
    side = "right" if settings.trainer == "answers" else files.padding_side
    batch = _pad(values, settings, files, filler=IGNORED, side=side)
    if settings.trainer == "classification":
        return Batch(batch.ids, [[row.label if row.label is not None else IGNORED] for row in rows], batch.attention)
    if settings.trainer == "answers":
        return Batch(batch.ids, [row.values or [] for row in rows], batch.attention)
    return batch


def _padded(rows: Sequence[Prepared], settings: Settings, files: TokenizerFiles) -> Batch:
    return _pad(rows, settings, files, filler=IGNORED, side="right")


def _pad(rows: Sequence[Prepared], settings: Settings, files: TokenizerFiles, *, filler: int, side: str) -> Batch:
    """Padded to the longest row, or on to a multiple; labels (of a target as well) to their own longest."""

    def level(lists: list[list[int]], value: int) -> list[list[int]]:
        width = _up(max(map(len, lists)), settings)
        fillers = [[value] * (width - len(each)) for each in lists]
        return [[*more, *each] if side == "left" else [*each, *more] for each, more in zip(lists, fillers, strict=True)]

    return Batch(
        level([row.ids for row in rows], pad_id(settings, files)),
        level([row.labels for row in rows], filler),
        attention=level([[1] * len(row.ids) for row in rows], 0),
    )


def _flat(rows: Sequence[Prepared], settings: Settings, files: TokenizerFiles) -> Batch:
    """One sequence of them all; nothing predicts the first token of a sample, so that its label goes."""
    ids = [token for row in rows for token in row.ids]
    labels = [label for row in rows for label in row.labels]
    # A wrapped pack keeps no sample lengths: its positions run through
    positions = [place for row in rows for length in row.lengths for place in range(length)]
    more = _up(len(ids), settings) - len(ids)
    positions += [0] * more
    labels += [IGNORED] * more
    labels = [label if place else IGNORED for place, label in zip(positions, labels, strict=True)]
    return Batch([ids + [pad_id(settings, files)] * more], [labels], positions=[positions])


def _parts(items: Sequence[Item], size: int) -> Iterator[Sequence[Item]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]


def _up(length: int, settings: Settings) -> int:
    step = settings.pad_to_multiple_of or 1
    return -(-length // step) * step
