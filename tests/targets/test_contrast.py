import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.errors import DataError
from tencentpretrain.sizes import Sizes
from tencentpretrain.targets.base import TARGETS
from tencentpretrain.targets.classify import pool
from tencentpretrain.targets.contrast import ContrastTarget
from tencentpretrain.types import Batch, Hidden, ModelOutput, Ratio, Stream, TargetOutput
from tests.helpers.models import layout_of, randomise, tiny_model

LENGTHS = {"src": (6, 2, 4, 1), "pair": (3, 5, 1, 2)}


def target_of(**keys: Any) -> ContrastTarget:
    config = decode(ContrastTarget.Config, {"name": "contrast", **keys})
    target = TARGETS.build(config, Sizes(8, 8, 20), "contrast")
    assert isinstance(target, ContrastTarget)
    randomise(target, 0.5)
    target.init_weights(0.02)
    return target


def output_of(seed: int = 0) -> ModelOutput:
    generator = torch.Generator().manual_seed(seed)
    encoded = {}
    for name, lengths in LENGTHS.items():
        layout = layout_of(lengths)
        states = torch.randn(*layout.valid.shape, 8, generator=generator)
        states = (states * layout.valid[..., None]).requires_grad_()
        encoded[name] = Hidden(states, layout)
    return ModelOutput(encoded["src"], encoded)


def batch_of(out: ModelOutput) -> Batch:
    return Batch({name: Stream({}, hidden.layout) for name, hidden in out.encoded.items()})


def formula(vectors: list[Tensor], scale: Tensor | float) -> tuple[Tensor, int]:
    """Sum over pairs of the mean of both directions' losses, and the number of right answers."""
    one, other = (x / x.norm(dim=-1, keepdim=True) for x in vectors)
    total, right = torch.zeros(()), 0
    for row in range(len(one)):
        for mine, them in ((one, other), (other, one)):
            scores = torch.stack([scale * (mine[row] * them[k]).sum() for k in range(len(them))])
            total = total + (torch.logsumexp(scores, 0) - scores[row]) / 2
            right += int(scores.argmax() == row)
    return total, right


@pytest.mark.parametrize("learned", [True, False])
@pytest.mark.parametrize("size", [None, 5])
@pytest.mark.parametrize("pooling", ["first", "last", "mean", "max"])
def test_it_equals_the_formula(pooling: Any, size: int | None, learned: bool) -> None:
    keys = {"pooling": pooling, "size": size, "learn_temperature": learned, "temperature": 0.2}
    target, out = target_of(**keys), output_of()
    vectors = [pool(out.encoded[name], pooling) for name in LENGTHS]
    if size is not None:
        layers = target.projections
        vectors = [layer(vector) for layer, vector in zip(layers, vectors, strict=True)]
    scale = target.log_scale.exp() if target.log_scale is not None else 5.0
    expected, right = formula(vectors, scale)
    result = target(out, batch_of(out))
    loss, accuracy = result.losses["contrast"], result.metrics["contrast/accuracy"]
    torch.testing.assert_close(loss.total, expected)
    assert int(loss.count) == int(target.units(batch_of(out))) == 4
    assert (int(accuracy.total), int(accuracy.count)) == (right, 8)
    wanted = [*(hidden.states for hidden in out.encoded.values()), *target.parameters()]
    found = torch.autograd.grad(loss.total, wanted)
    for one, other in zip(found, torch.autograd.grad(expected, wanted), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_it_equals_the_usual_form_of_clip() -> None:
    target, out = target_of(), output_of()
    one, other = (F.normalize(pool(out.encoded[name], "mean"), dim=-1) for name in LENGTHS)
    scores = one @ other.T / 0.07
    torch.testing.assert_close(target.logits(out, batch_of(out)), scores)
    own = torch.arange(4)
    expected = (F.cross_entropy(scores, own) + F.cross_entropy(scores.T, own)) / 2
    torch.testing.assert_close(target(out, batch_of(out)).losses["contrast"].value, expected)


def test_d47_the_temperature_stays_above_its_limit_and_can_come_back() -> None:
    target, out = target_of(), output_of()
    assert target.log_scale is not None
    assert float(target.log_scale.detach()) == pytest.approx(math.log(1 / 0.07))
    with torch.no_grad():
        target.log_scale.fill_(9.0)
    loss = target(out, batch_of(out)).losses["contrast"].total
    assert float(target.log_scale.detach()) == pytest.approx(math.log(100))
    loss.backward()
    # Random vectors are told apart badly, so that a lower factor is better.
    assert target.log_scale.grad is not None
    assert float(target.log_scale.grad) > 0


def test_d47_short_batches_count_as_many_pairs_as_they_have() -> None:
    """Sums and counts of batches of different sizes add up; nothing assumes equal ones."""
    target, total = target_of(), Ratio(torch.zeros(()), torch.tensor(0))
    for rows in (4, 1):
        out = output_of()
        for name, hidden in out.encoded.items():
            layout = layout_of(LENGTHS[name][:rows], hidden.layout.valid.shape[1])
            out.encoded[name] = Hidden(hidden.states[:rows], layout)
        result: TargetOutput = target(out, batch_of(out))
        assert int(target.units(batch_of(out))) == rows
        total = total + result.losses["contrast"]
    # A pair alone is found for certain.
    assert float(result.losses["contrast"].total.detach()) == 0
    assert int(total.count) == 5


def test_scores_are_in_fp32_whatever_the_states_are() -> None:
    target, out = target_of(), output_of()
    for name, hidden in out.encoded.items():
        out.encoded[name] = Hidden(hidden.states.detach().bfloat16(), hidden.layout)
    with torch.autocast("cpu", torch.bfloat16):
        scores = target.logits(out, batch_of(out))
    one, other = (F.normalize(pool(out.encoded[n], "mean").float(), dim=-1) for n in LENGTHS)
    assert scores.dtype == torch.float32
    torch.testing.assert_close(scores, one @ other.T / 0.07)


def test_only_what_is_asked_for_has_parameters() -> None:
    def names(**keys: Any) -> list[str]:
        return sorted(name for name, _ in target_of(**keys).named_parameters())

    assert names() == ["log_scale"]
    assert names(learn_temperature=False) == []
    assert names(learn_temperature=False, size=3) == [f"projections.{n}.weight" for n in range(2)]


def test_evaluation_leaves_the_temperature_as_it_was_stored() -> None:
    target, out = target_of().eval(), output_of()
    assert target.log_scale is not None
    stored = torch.tensor(math.log(100)).half().float()  # 100.03
    with torch.no_grad():
        target.log_scale.copy_(stored)
    one, other = target.vectors(out)
    torch.testing.assert_close(target.logits(out, batch_of(out)), stored.exp() * one @ other.T)
    assert torch.equal(target.log_scale, stored)


def test_initialisation_keeps_the_temperature() -> None:
    keys = {"temperature": 0.05, "size": 64, "learn_temperature": True}
    target = tiny_model("sbert/tiny", {"target": {"contrast": keys}}).target["contrast"]
    assert isinstance(target, ContrastTarget)
    assert target.log_scale is not None
    assert float(target.log_scale.detach().exp()) == pytest.approx(20)
    weight = target.projections[0].get_parameter("weight")
    assert float(weight.detach().std()) == pytest.approx(0.02, rel=0.15)


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"temperature": 0.001}, r"temperature: must be >= 0.01, but is 0.001"),
        ({"streams": ["a", "a"]}, r"streams must differ, but both are `a`"),
        ({"streams": ["a"]}, r"streams"),
        ({"pooling": "men"}, r"did you mean `mean`"),
    ],
)
def test_wrong_keys_are_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        target_of(**keys)


def test_a_stream_that_is_not_there_is_named_with_those_that_are() -> None:
    target, out = target_of(streams=["text", "image"]), output_of()
    for call in (lambda: target.logits(out, batch_of(out)), lambda: target.units(batch_of(out))):
        with pytest.raises(DataError, match=r"names `text`, but the batches have src, pair"):
            call()
