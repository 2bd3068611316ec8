"""`transformers` and its conversion give the same states, logits, losses and gradients.

Rows are padded to different lengths, dropout is off, weights are large and random, and everything
is in fp32. The tables of the converter map weights and gradients.
"""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from tencentpretrain.types import TGT, Batch, Hidden, Stream, Want
from tests.helpers.models import layout_of, total_loss
from tests.helpers.reference import LAYERS, MODELS, Pair, pair

pytest.importorskip("transformers")

ROW_LOGITS = {"nsp": "seq_relationship_logits", "sop": "sop_logits", "classify": "logits"}


@pytest.fixture(scope="module", params=MODELS)
def models(request: pytest.FixtureRequest) -> Pair:
    return pair(request.param)


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-5, atol=1e-5)


def stacks(models: Pair) -> Iterator[tuple[Hidden, tuple[Tensor, ...]]]:
    """What each stack returns, and the reference's states of all its layers."""
    ours, streams = models.ours, models.batch.streams
    arguments = {key: value for key, value in models.arguments.items() if "label" not in key}
    theirs = models.theirs(**arguments, output_hidden_states=True)
    want = Want(tuple(range(LAYERS + 1)))
    embedded = ours.embedding(streams["src"])
    memory = ours.encoder(embedded.states, embedded.layout, want)
    if ours.decoder is None or ours.target_embedding is None:
        yield memory, theirs.hidden_states
        return
    yield memory, theirs.encoder_hidden_states
    embedded = ours.target_embedding(streams[TGT])
    want = Want(tuple(range(len(theirs.decoder_hidden_states))))
    states = ours.decoder(embedded.states, embedded.layout, memory, want)
    yield states, theirs.decoder_hidden_states


def test_states_of_every_layer_are_those_of_transformers(models: Pair) -> None:
    for hidden, theirs in stacks(models):
        valid = hidden.layout.valid
        assert len(hidden.layers) == len(theirs) > 2
        for ours, reference in zip((*hidden.layers[:-1], hidden.states), theirs, strict=True):
            close(ours[valid], reference[valid])


def test_logits_are_those_of_transformers(models: Pair) -> None:
    if not models.ours.target.names:
        pytest.skip("an encoder alone has no logits")
    assert set(models.batch.labels) == set(models.ours.target.names)
    out = models.ours.encode(models.batch)
    theirs = models.theirs(**models.arguments)
    for name, labels in models.batch.labels.items():
        logits = models.ours.target[name].logits(out, models.batch)
        if name == "span":
            close(logits, torch.stack([theirs.start_logits, theirs.end_logits], 1).flatten(0, 1))
        elif labels.index is None:
            close(logits, theirs[ROW_LOGITS[name]])
        else:
            grid = theirs["prediction_logits" if "prediction_logits" in theirs else "logits"]
            close(logits, grid.flatten(0, 1)[labels.index])


def test_d99_loss_and_gradients_are_those_of_transformers(models: Pair) -> None:
    if not models.ours.target.weights:
        pytest.skip("an encoder alone has no loss")
    models.ours.zero_grad()
    models.theirs.zero_grad()
    loss = total_loss(models.ours(models.batch))
    reference = models.theirs(**models.arguments).loss
    close(loss, reference)
    loss.backward()
    reference.backward()
    gradients = models.our_gradients()
    for name, parameter in models.ours.named_parameters():
        assert parameter.grad is not None, name
        close(parameter.grad, gradients[name])
        is_read = not (name.endswith("key.bias") or name in models.shifts)
        assert parameter.grad.abs().max() > 1e-4 or not is_read, name


GENERATORS = [name for name, (cls, _, _) in MODELS.items() if "CausalLM" in cls or "LMHead" in cls]
SEQUENCES = [
    name
    for name, (cls, _, _) in MODELS.items()
    if "ConditionalGeneration" in cls and name not in ("s2t", "whisper")
]
STEPS, START = 6, 2


def greedy(models: Pair, source: Tensor, written: Tensor, stream: str) -> Tensor:
    """The likeliest continuation [1, STEPS], everything computed again for each token."""
    for _ in range(STEPS):
        streams = {"src": source, stream: written}
        batch = Batch({n: Stream({"ids": i}, layout_of([i.shape[1]])) for n, i in streams.items()})
        out = models.ours.encode(batch)
        following = models.ours.target["lm"].logits(out, batch)[-1].argmax()
        written = torch.cat([written, following.view(1, 1)], 1)
    return written[:, -STEPS:]


@pytest.mark.parametrize("case", [*GENERATORS, *SEQUENCES])
def test_greedy_continuations_are_those_of_transformers(case: str) -> None:
    from transformers import GenerationConfig

    models = pair(case)
    source = models.batch.streams["src"].inputs["ids"][:1]
    options = {"do_sample": False, "max_new_tokens": STEPS, "pad_token_id": 0}
    models.theirs.generation_config = GenerationConfig(**options, decoder_start_token_id=START)
    theirs = models.theirs.generate(source, attention_mask=torch.ones_like(source))
    if case in SEQUENCES:
        ours = greedy(models, source, torch.full((1, 1), START), TGT)
    else:
        ours = greedy(models, source[:, :0], source, "src")
    assert ours.tolist() == theirs[:, -STEPS:].tolist()
