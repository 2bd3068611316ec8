"""What each divergence repairs first, on a small version of the toy problem of the benchmarks."""

import pytest

from benchmarks.methods.akl_toy import OBJECTIVES, Toy, learn


@pytest.mark.parametrize("seed", [0, 1])
def test_forward_fits_the_head_reverse_the_tail_and_the_adaptive_one_most(seed: int) -> None:
    toy = Toy(positions=96, outcomes=120, rank=14)
    found = {name: learn(toy, name, seed, [200])[200] for name in OBJECTIVES}
    head, tail, total = ({n: gaps[k] for n, gaps in found.items()} for k in range(3))
    assert head["fkl"] < head["akl"] < head["rkl"]
    assert tail["rkl"] < tail["akl"] < tail["fkl"]
    assert min(total, key=lambda name: total[name]) in ("akl", "mix")
    assert total["akl"] < min(total["fkl"], total["rkl"])


@pytest.mark.parametrize("name", OBJECTIVES)
def test_a_student_of_any_rank_reaches_the_teacher_by_all_of_them(name: str) -> None:
    """All have one minimum; they differ in the way there."""
    toy = Toy(positions=24, outcomes=40, rank=None, rate=0.1)
    assert learn(toy, name, 0, [400])[400][2] <= 1e-4
