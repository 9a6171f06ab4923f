"""Updates made ahead: in order, one at most, errors where they are asked for, nothing left running."""

from __future__ import annotations

import threading
from collections.abc import Generator

import pytest
import torch

from components.core.errors import DataError
from components.data.batch import Batch, Example, Picture, collate
from components.training.transfer import read_ahead, sent_ahead


def batch(number: int) -> Batch:
    ids = torch.tensor([number, number + 1])
    picture = Picture(tensors={"pixel_values": torch.zeros(1, 2)}, num_tokens=1)
    example = Example(sample_id=str(number), instruction="", input_ids=ids, labels=ids, pictures=(picture,))
    return collate([example], pad_id=0, padding_side="right")


class Source:
    """Three updates, then what the loader does at the end of the rows."""

    def __init__(self) -> None:
        self.made: list[int] = []
        self.threads: set[int] = set()
        self.closed = False

    def updates(self) -> Generator[list[Batch], None, None]:
        try:
            for number in range(3):
                self.threads.add(threading.get_ident())
                self.made.append(number)
                yield [batch(number)]
            raise DataError("no more rows")
        finally:
            self.closed = True


def test_updates_come_in_order_and_one_is_under_way() -> None:
    source = Source()
    updates = read_ahead(source.updates())
    first = next(updates)
    assert first[0].sample_ids == ["0"]
    assert [next(updates)[0].sample_ids for _ in range(2)] == [["1"], ["2"]]
    assert threading.get_ident() not in source.threads
    with pytest.raises(DataError, match="no more rows"):
        next(updates)
    assert source.made == [0, 1, 2]
    assert source.closed


def test_no_more_than_one_is_made_ahead_and_closing_leaves_nothing_running() -> None:
    source, before = Source(), threading.active_count()
    updates = read_ahead(source.updates())
    next(updates)
    updates.close()
    assert source.made in ([0], [0, 1])
    assert source.closed
    assert threading.active_count() == before


def test_a_last_update_may_be_followed_by_none() -> None:
    """The worker asks for as many as there are and closes; what then fails ahead of it is nobody's."""
    source = Source()
    updates = read_ahead(source.updates())
    for _ in range(3):
        next(updates)
    updates.close()
    assert source.closed


def test_on_a_cpu_updates_pass_as_they_are() -> None:
    source = Source()
    updates = sent_ahead(source.updates(), torch.device("cpu"))
    next(updates)
    assert source.threads == {threading.get_ident()}
    assert source.made == [0]
    updates.close()
    assert source.closed


def test_a_batch_names_all_its_tensors() -> None:
    """ids, mask, labels, places of labels and the picture's: each must be kept until the GPU is done with it."""
    assert len(list(batch(0).tensors())) == 5


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_batches_arrive_as_they_were() -> None:
    device = torch.device("cuda", torch.cuda.current_device())
    updates = sent_ahead(Source().updates(), device)
    for number in range(3):
        for found, made in zip(next(updates)[0].tensors(), batch(number).tensors(), strict=True):
            assert found.device == device
            assert torch.equal(found.cpu(), made)
    updates.close()
