"""The command: what it accepts and refuses, what it says, and what it costs."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tencentpretrain.cli import main
from tencentpretrain.convert.arrival import Request, arrive
from tencentpretrain.convert.weights import open_weights, read_json
from tencentpretrain.errors import CheckpointError
from tencentpretrain.train import durable
from tencentpretrain.train.saved_checkpoint import open_checkpoint
from tencentpretrain.train.source import find_source
from tests.helpers.reference import VOCABULARY, reference, save

transformers = pytest.importorskip("transformers")

WORDS = ["good", "bad", "film", "a", "the", "very"]
Folder = Callable[[str], Path]


def convert(*words: object) -> int:
    return main("convert", [str(word) for word in words])


def write_vocabulary(folder: Path) -> None:
    names = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *WORDS]
    names += [f"w{number}" for number in range(VOCABULARY - len(names))]
    (folder / "vocab.txt").write_text("".join(f"{name}\n" for name in names))


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("saved")


@pytest.fixture
def saved(cache: Path, tmp_path: Path) -> Folder:
    """Gives a folder of `transformers` with a model and a vocabulary."""

    def make(case: str) -> Path:
        if not (cache / case).exists():
            save(reference(case), cache / case)
            write_vocabulary(cache / case)
        return shutil.copytree(cache / case, tmp_path / f"theirs {case}")

    return make


def change_config(folder: Path, **changes: Any) -> None:
    content = {**read_json(folder / "config.json"), **changes}
    (folder / "config.json").write_text(json.dumps(content))


def test_what_was_converted_is_told(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = saved("bert encoder")
    change_config(theirs, some_new_key=3, hidden_act="gelu")
    assert convert(f"from={theirs}", f"to={tmp_path / 'ours'}") == 0
    said = capsys.readouterr().out
    assert "tensors are converted, none is missing" in said
    assert "kept aside, as no target reads the pooler: `bert.pooler.dense.bias`" in said
    assert "keys of the config that are not used: some_new_key" in said
    assert f"checkpoint      {tmp_path / 'ours'}" in said


def test_fine_tuning_can_start_from_it(saved: Folder, tmp_path: Path) -> None:
    assert convert(f"from={saved('bert')}", f"to={tmp_path / 'ours'}") == 0
    source = find_source(str(tmp_path / "ours"), tmp_path / "run", None)
    assert source.tokenizer is not None
    assert source.tokenizer.id("film") == 7
    fingerprints = open_checkpoint(tmp_path / "ours").manifest.fingerprints
    assert fingerprints == {"tokenizer": source.tokenizer.fingerprint}


def test_pre_training_goes_on_from_it(saved: Folder, tmp_path: Path) -> None:
    ours = tmp_path / "ours"
    assert convert(f"from={saved('bert')}", f"to={ours}") == 0
    corpus = tmp_path / "corpus.txt"
    corpus.write_text("the very good film\na bad film w1 w2\n\nw3 w4 w5\nw6 w7\n\n" * 5)
    words = ["tokenizer=wordpiece", f"tokenizer.vocab={tmp_path / 'theirs bert' / 'vocab.txt'}"]
    words += [f"corpus.path={corpus}", f"output={tmp_path / 'data'}", "workers=1"]
    assert main("preprocess", words) == 0
    words = [f"model={ours / 'model.yaml'}", f"init={ours}", f"data.path={tmp_path / 'data'}"]
    words += [f"run_dir={tmp_path / 'run'}", "trainer.steps=1", "data.holdout=0.2"]
    assert main("pretrain", words) == 0


def test_a_converted_classifier_predicts_what_transformers_predicts(
    saved: Folder, tmp_path: Path
) -> None:
    theirs = saved("bert classify")
    labels = {"0": "bad", "1": "fair", "2": "good"}
    change_config(theirs, id2label=labels, label2id={v: int(k) for k, v in labels.items()})
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert convert(f"from={theirs}", f"to={ours}") == 0
    texts = ["the very good film", "a bad film", "w1 w2 w3"]
    (tmp_path / "test.tsv").write_text("text_a\n" + "".join(f"{text}\n" for text in texts))
    words = [f"checkpoint={ours}", f"data.test={tmp_path / 'test.tsv'}"]
    # Its table of positions has 16 rows only.
    assert main("predict", [*words, f"output={tmp_path / 'out.jsonl'}", "precision=fp32"]) == 0
    rows = [json.loads(line) for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    model = transformers.BertForSequenceClassification.from_pretrained(theirs).eval()
    tokenizer = transformers.BertTokenizer(str(theirs / "vocab.txt"))
    for text, row in zip(texts, rows, strict=True):
        logits = model(**tokenizer(text, return_tensors="pt")).logits
        found = torch.tensor([row["probabilities"][name] for name in labels.values()])
        torch.testing.assert_close(found, logits.softmax(-1)[0], rtol=0, atol=1e-5)
    assert convert(f"from={ours}", f"to={back}") == 0
    loaded = transformers.AutoModelForSequenceClassification.from_pretrained(back).eval()
    inputs = transformers.AutoTokenizer.from_pretrained(back)(texts[0], return_tensors="pt")
    assert inputs["input_ids"].tolist() == tokenizer(texts[:1])["input_ids"]
    torch.testing.assert_close(loaded(**inputs).logits, model(**inputs).logits)
    assert list(loaded.config.id2label.values()) == list(labels.values())


def test_types_can_be_changed_on_both_ways(saved: Folder, tmp_path: Path) -> None:
    ours, back = tmp_path / "ours", tmp_path / "back"
    assert convert(f"from={saved('gpt2')}", f"to={ours}", "dtype=bfloat16") == 0
    assert {t.dtype for t in open_weights(ours).described.values()} == {torch.bfloat16}
    assert convert(f"from={ours}", f"to={back}", "dtype=float16") == 0
    assert {t.dtype for t in open_weights(back).described.values()} == {torch.float16}
    assert read_json(back / "config.json")["torch_dtype"] == "float16"


def test_a_family_can_be_named(saved: Folder, tmp_path: Path) -> None:
    """A model of RoBERTa's kind under a name of its own, and a BERT written as RoBERTa."""
    theirs, ours = saved("roberta"), tmp_path / "ours"
    change_config(theirs, model_type="camembert")
    assert convert(f"from={theirs}", f"to={ours}") == 2
    assert convert(f"from={theirs}", f"to={ours}", "family=roberta") == 0
    assert convert(f"from={ours}", f"to={tmp_path / 'x'}", "family=xlm_r") == 0
    assert read_json(tmp_path / "x" / "config.json")["model_type"] == "xlm-roberta"


def test_classes_with_names_of_their_own_are_read_by_their_tensors(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = saved("llama")
    change_config(theirs, architectures=["OurLlamaForChat"])
    assert convert(f"from={theirs}", f"to={tmp_path / 'ours'}") == 0
    assert "aside" not in capsys.readouterr().out


def refused(capsys: pytest.CaptureFixture[str], *words: object) -> str:
    assert convert(*words) == 2
    return capsys.readouterr().err


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "roberto"}, "cannot be converted; did you mean `roberta`?; the families"),
        ({"model_type": "mamba"}, "the families are bert, albert, distilbert, roberta"),
        ({"position_embedding_type": "relative_key"}, "must be 'absolute', but is 'relative_key'"),
        ({"is_decoder": True}, "`is_decoder` must be False, but is True"),
        ({"hidden_act": "gelo"}, "`hidden_act` is `gelo`; did you mean `gelu`"),
        ({"hidden_size": None}, "config.json has no `hidden_size`"),
        ({"num_hidden_layers": 2}, "which the model has not by its config"),
        ({"num_hidden_layers": 4}, "`encoder.layers.3.attention.query.weight` of the model is in"),
        ({"intermediate_size": 63}, "is [63, 32] by the config, but [64, 32] in"),
    ],
)
def test_configs_that_mean_something_else_are_refused(
    saved: Folder, changes: dict[str, Any], message: str
) -> None:
    theirs = saved("bert")
    change_config(theirs, **changes)
    with pytest.raises(CheckpointError) as error:
        arrive(theirs, Request())
    assert message in str(error.value)


def test_nothing_is_written_where_something_is_refused(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = saved("bert")
    (theirs / "model.safetensors").write_bytes(b"damaged")
    reason = "is no readable safetensors file"
    assert reason in refused(capsys, f"from={theirs}", f"to={tmp_path / 'ours'}")
    assert not (tmp_path / "ours").exists()


def test_places_that_make_no_sense_are_refused(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs, ours = saved("bert"), tmp_path / "ours"
    assert "there is nothing at" in refused(capsys, "from=absent", f"to={ours}")
    assert "must be another directory" in refused(capsys, f"from={theirs}", f"to={theirs}")
    (tmp_path / "m.bin").write_bytes(b"x")
    assert "give its JSON config" in refused(capsys, f"from={tmp_path / 'm.bin'}", f"to={ours}")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.txt").write_text("x")
    words = f"from={theirs}", f"to={tmp_path / 'full'}", "overwrite=true"
    assert "exists and is no model, so it is not replaced" in refused(capsys, *words)
    assert convert(f"from={theirs}", f"to={ours}") == 0
    capsys.readouterr()
    assert "replace the model in it" in refused(capsys, f"from={theirs}", f"to={ours}")
    assert convert(f"from={theirs}", f"to={ours}", "overwrite=true") == 0
    assert "did you mean `bert`" in refused(
        capsys, f"from={theirs}", f"to={tmp_path / 'x'}", "family=brt"
    )


def test_models_that_no_class_computes_are_refused_with_the_reason(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    ours = tmp_path / "ours"
    words = [f"from={saved('bert')}", f"to={ours}", "model.encoder.residual_attention=true"]
    assert convert(*words) == 0
    capsys.readouterr()
    reason = "encoder.residual_attention is True, but there it would be False"
    assert reason in refused(capsys, f"from={ours}", f"to={tmp_path / 'x'}")
    assert reason in refused(capsys, f"from={ours}", f"to={tmp_path / 'x'}", "family=bert")
    assert "it has the targets `mlm nsp`" in refused(
        capsys, f"from={ours}", f"to={tmp_path / 'x'}", "family=distilbert"
    )


def test_a_damaged_checkpoint_is_not_exported(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert convert(f"from={saved('bert')}", f"to={tmp_path / 'ours'}") == 0
    weights = tmp_path / "ours" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    capsys.readouterr()
    words = f"from={tmp_path / 'ours'}", f"to={tmp_path / 'x'}"
    assert "is damaged" in refused(capsys, *words)


def anonymous() -> int:
    """Bytes of memory of this process that are not views of files."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("RssAnon"))


def test_one_tensor_at_a_time_is_in_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Fused and transposed layers included; torch's file cannot be wholly in memory either."""
    config = transformers.GPT2Config(
        vocab_size=16000, n_embd=512, n_layer=3, n_head=8, bos_token_id=1, eos_token_id=1
    )
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    model = transformers.GPT2LMHeadModel(config)
    config.architectures = ["GPT2LMHeadModel"]
    config.save_pretrained(theirs)
    torch.save(model.state_dict(), theirs / "pytorch_model.bin")
    del model
    sizes: list[int] = []
    write = durable.DurableFile.write

    def watched(self: durable.DurableFile, data: bytes | memoryview) -> None:
        sizes.append(anonymous())
        write(self, data)

    monkeypatch.setattr(durable.DurableFile, "write", watched)
    largest, total = 16000 * 512 * 4, (theirs / "pytorch_model.bin").stat().st_size
    steps = [("theirs", "ours"), ("ours", "back"), ("back", "again")]
    for source, to in steps:
        sizes.clear()
        before = anonymous()
        assert convert(f"from={tmp_path / source}", f"to={tmp_path / to}") == 0
        assert max(sizes) - before < 1.3 * largest + 8e6 < total


def test_d42_a_vocabulary_that_is_larger_than_the_word_table_is_refused(
    saved: Folder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = saved("gpt2")
    with open(theirs / "vocab.txt", "a") as file:
        file.write("one more\n")
    message = f"must be at least the tokenizer's size {VOCABULARY + 1}, but is {VOCABULARY}"
    assert message in refused(capsys, f"from={theirs}", f"to={tmp_path / 'ours'}")
