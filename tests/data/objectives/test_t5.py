import numpy as np
import pytest

from tencentpretrain.config import ConfigError
from tencentpretrain.data.spans import count_noise
from tencentpretrain.errors import DataError
from tests.helpers.denoise import NamedTokenizer, denoising, rows, texts
from tests.helpers.objectives import objective
from tests.helpers.shards import FakeTokenizer, numbered_shards, random_shards


def restore(made, source, target):
    """The text, and the spans that were hidden."""
    names = {number: name for name, number in made.tokenizer.names.items()}
    assert [names[t] for t in source if t in names] == [
        f"<extra_id_{n}>" for n in range(sum(t in names for t in source))
    ]
    spans, span = {}, []
    for token in target[:-1]:
        if token in names:
            span = spans.setdefault(token, [])
        else:
            span.append(token)
    assert target[0] in names
    final = target[-2]
    assert names[final] == f"<extra_id_{len(spans) - 1}>"
    assert spans.pop(final) == []
    text = []
    for token in source[:-1]:
        text += spans.get(token, [token])
    return text, [*spans.values()]


@pytest.mark.parametrize("pack", [False, True])
@pytest.mark.parametrize(("rate", "mean"), [(0.15, 3.0), (0.5, 3.0), (0.3, 1.0), (0.9, 2.0)])
def test_source_and_target_restore_the_text(pack, rate, mean):
    shards = random_shards(60)
    values = {"length": 40, "target_length": 400, "mask_rate": rate, "mean_span": mean}
    made = denoising("t5", shards, pack=pack, **values)
    restored = []
    for source, target in rows(made, 1):
        text, spans = restore(made, source, target)
        noise, count = count_noise(len(text), rate, mean)
        assert (sum(map(len, spans)), len(spans)) == (noise, count)
        assert min(map(len, spans)) > 0
        if noise < len(text):
            assert source[0] == text[0]  # as published, a row begins with what stays
        restored += text
    if pack:
        start = restored.index(7)
        restored = restored[start:] + restored[:start]
    assert restored == texts(shards)


def test_full_rows_fill_the_length_exactly():
    shards = numbered_shards([[3000], [700]])
    for pack in (False, True):
        made = denoising("t5", shards, length=128, pack=pack)
        sizes = [len(source) for source, _ in rows(made)]
        assert made.config.tokens == 141
        assert sizes.count(128) == 3700 // 141 if pack else 3000 // 141 + 700 // 141
        assert len(sizes) == (27 if pack else 22 + 5)


def test_spans_lie_anywhere():
    made = denoising("t5", numbered_shards([[700]] * 5), length=128)
    hidden = np.zeros(141)
    for epoch in range(40):
        for source, target in rows(made, epoch):
            text, spans = restore(made, source, target)
            if len(text) == 141:
                flat = [token - text[0] for span in spans for token in span]
                hidden[flat] += 1
    share = hidden / hidden.sum() * 141
    # Only the two ends are determined: the last token is hidden, the first one is not.
    assert share[0] == 0
    assert share[-1] == share.max()
    assert share[2:-8].min() > 0.5
    assert share[2:-8].max() < 1.6


def test_sentinels_are_found_by_their_text():
    shards = numbered_shards([[12]])
    tokenizer = NamedTokenizer(shards.tokens)
    example = objective("t5", shards, tokenizer).make(0, 0)
    assert example["labels"][0] == tokenizer.vocab_size - 1  # descending, as in T5's vocabulary
    own = NamedTokenizer(shards.tokens, "[unused{}]")
    own.names.pop("[unused0]")
    example = objective("t5", shards, own, sentinel="[unused{}]").make(0, 0)
    assert example["labels"][0] == own.names["[unused1]"]
    assert example["labels"][-2] == own.names["[unused2]"]


def test_missing_sentinels_are_told():
    shards = numbered_shards([[12]])
    with pytest.raises(DataError, match=r"has 0 written as `<extra_id_0>`, .*objective.sentinel"):
        objective("t5", shards, NamedTokenizer(shards.tokens, "<x{}>"))
    with pytest.raises(DataError, match=r"needs 115 sentinels .* but the vocabulary has 100"):
        denoising("t5", shards, length=2048, target_length=2048)
    denoising("t5", shards, length=1700, target_length=2048)
    with pytest.raises(DataError, match="has 0 written as `<y0>`"):
        denoising("t5", shards, sentinel="<y{}>")


def test_contradictions_are_told():
    shards = numbered_shards([[12]])
    with pytest.raises(ConfigError, match="target_length must be at least 115 for what length=512"):
        denoising("t5", shards, length=512, target_length=114)
    denoising("t5", shards, length=512, target_length=115)
    with pytest.raises(ConfigError, match=r"sentinel must have \{\} once"):
        denoising("t5", shards, sentinel="<extra_id_0>")


def test_a_vocabulary_without_pad_is_told():
    tokenizer = FakeTokenizer(missing=["pad"])
    with pytest.raises(DataError, match="objective `t5` needs the special token `pad`"):
        objective("t5", numbered_shards([[12]]), tokenizer)
