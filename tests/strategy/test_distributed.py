"""What the ranks of tests and benchmarks may return."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from tests.strategy.distributed import fork


def test_an_answer_may_be_of_a_class_that_no_module_holds() -> None:
    """As a class of a script is, such as those of benchmarks."""

    @dataclass(frozen=True)
    class Answer:
        rank: int
        value: torch.Tensor

    def answer() -> Answer:
        return Answer(torch.distributed.get_rank(), torch.ones(2))

    found = fork(2, answer)
    assert [one.rank for one in found] == [0, 1] and all(isinstance(one, Answer) for one in found)
    assert torch.equal(found[1].value, torch.ones(2))
