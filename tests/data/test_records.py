"""Records of all kinds out of lines, and what is done about lines that are none."""

import json
from collections import Counter
from pathlib import Path

import pytest

from tencentpretrain.config import ConfigError, decode
from tencentpretrain.data import lines, records
from tencentpretrain.data.corpora import CorpusConfig, find_files
from tencentpretrain.data.documents import read_documents
from tencentpretrain.data.records import Record, read_records
from tencentpretrain.data.slices import slices
from tencentpretrain.errors import DataError
from tests.helpers.records import json_lines


def read(
    path: Path, content: str, slice_bytes: int = 1 << 20, remarks: Counter | None = None, **keys
) -> list[Record]:
    config = decode(CorpusConfig, {"path": str(path), "content": content, **keys})
    found: Counter[str] = Counter() if remarks is None else remarks
    return [
        record
        for file in find_files(config)
        for piece in slices(file, config, slice_bytes)
        for record in read_records(piece, config, found)
    ]


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


PAIRS = [Record((f"source {number} 字", f"target {number}")) for number in range(50)]


@pytest.mark.parametrize("end", ["\n", "\r\n"])
@pytest.mark.parametrize("is_closed", [True, False])
@pytest.mark.parametrize("layout", ["lines", "tsv", "jsonl"])
def test_d37_pairs_in_all_formats_lose_and_double_nothing(
    tmp_path: Path, layout: str, end: str, is_closed: bool
) -> None:
    if layout == "jsonl":
        rows = [json.dumps({"source": r.texts[0], "target": r.texts[1]}) for r in PAIRS]
    elif layout == "tsv":
        rows = ["x\ttarget\tsource", *(f"0\t{r.texts[1]}\t{r.texts[0]}" for r in PAIRS)]
    else:
        rows = ["\t".join(record.texts) for record in PAIRS]
    path = write(tmp_path / "pairs", end.join(rows) + (end if is_closed else ""))
    for slice_bytes in (1, 7, 100, 1 << 20):
        assert read(path, "pair", slice_bytes, format=layout) == PAIRS


def test_fields_have_the_names_that_the_user_says(tmp_path: Path) -> None:
    fields = {"source": "en", "target": "zh"}
    tsv = write(tmp_path / "a.tsv", "zh\ten\n我\tI\n")
    assert read(tsv, "pair", fields=fields) == [Record(("I", "我"))]
    rows = write(tmp_path / "a.jsonl", json_lines([{"zh": "我\n是", "en": " I"}]))
    assert read(rows, "pair", fields=fields) == [Record((" I", "我\n是"))]


def test_formats_follow_extensions_and_content(tmp_path: Path) -> None:
    names = {"a.txt": "lines", "b.tsv.gz": "tsv", "c.jsonl": "jsonl", "d": "lines"}
    for name in names:
        write(tmp_path / name, "")

    def formats(content: str) -> list[str]:
        config = decode(CorpusConfig, {"path": str(tmp_path), "content": content})
        return [file.format for file in find_files(config)]

    assert formats("pair") == formats("label") == list(names.values())
    assert formats("chat") == ["jsonl"] * 4
    for content, layout in (("pair", "sentences"), ("label", "text"), ("chat", "tsv")):
        with pytest.raises(ConfigError, match=f"for content={content}, but is {layout}"):
            decode(CorpusConfig, {"path": "x", "content": content, "format": layout})


def test_a_table_without_a_header_is_told_what_to_say(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tsv", "good day\tguten Tag\n")
    with pytest.raises(DataError, match=r"no column `source`; .*corpus\.format=lines"):
        read(path, "pair")
    assert read(path, "pair", format="lines") == [Record(("good day", "guten Tag"))]


def test_one_or_two_labelled_texts(tmp_path: Path) -> None:
    plain = write(tmp_path / "a.txt", "good\tone\nbad \ttwo\tthree\ngood\tfour\t \n")
    expected = [
        Record(("one",), "good"),
        Record(("two", "three"), "bad"),
        Record(("four",), "good"),
    ]
    assert read(plain, "label") == expected
    tsv = write(tmp_path / "a.tsv", "text_b\tlabel\ttext_a\n\tgood\tone\nthree\tbad\ttwo\n")
    assert read(tsv, "label") == expected[:2]
    single = write(tmp_path / "b.tsv", "label\ttext_a\n1\tone\n")
    assert read(single, "label") == [Record(("one",), "1")]
    values = [{"label": 1, "text_a": "a"}, {"label": True, "text_a": "a", "text_b": None}]
    rows = write(tmp_path / "a.jsonl", json_lines([*values, {"label": " x ", "text_a": "a"}]))
    assert [record.label for record in read(rows, "label")] == ["1", "true", "x"]


def test_messages_or_a_prompt_and_its_answer(tmp_path: Path) -> None:
    talk = [("system", "be brief"), ("user", "hi"), ("assistant", "hello\n")]
    rows = [
        {"messages": [{"role": role, "content": text, "name": 1} for role, text in talk]},
        {"prompt": "hi", "answer": "hello"},
    ]
    path = write(tmp_path / "a.jsonl", json_lines(rows))
    roles, texts = zip(*talk, strict=True)
    expected = Record(("hi", "hello"), roles=("user", "assistant"))
    assert read(path, "chat") == [Record(texts, roles=roles), expected]


def test_instruction_and_input_are_joined(tmp_path: Path) -> None:
    rows = [
        {"instruction": "add", "input": "1 2", "output": "3"},
        {"instruction": "joke", "input": "", "output": "no"},
        {"instruction": "joke", "output": "no"},
    ]
    path = write(tmp_path / "a.jsonl", json_lines(rows))
    fields = {"prompt": ["instruction", "input"], "answer": "output"}
    found = [record.texts for record in read(path, "chat", fields=fields)]
    assert found == [("add\n1 2", "3"), ("joke", "no"), ("joke", "no")]


USER = {"role": "user", "content": "hi"}
BAD = [
    ("pair", "lines", "only", r"must be 2 fields with tabs between them, but there are 1"),
    ("pair", "lines", "a\tb\tc", r"must be 2 fields .* there are 3"),
    ("pair", "lines", "a\t ", "the target is empty"),
    ("pair", "tsv", "a", r"at least 2 fields .* there are 1"),
    ("pair", "jsonl", '{"source": "a", "traget": "b"}', "no key `target`; did you mean `traget`"),
    ("pair", "jsonl", '{"source": "a", "target": 3}', "`target` must be a text, but is 3"),
    ("pair", "jsonl", '["a", "b"]', "no record"),
    ("pair", "jsonl", '{"source": ', "not valid JSON"),
    ("label", "lines", "1", r"must be 2 or 3 fields .* there are 1"),
    ("label", "lines", " \ta", "the label is empty"),
    ("label", "lines", "1\t", "the text is empty"),
    ("chat", "jsonl", '{"question": "a"}', r"neither `messages` nor `prompt` \(the keys are"),
    ("chat", "jsonl", '{"prompt": "a"}', "no key `answer`"),
    ("chat", "jsonl", '{"prompt": "a", "answer": " "}', "the answer is empty"),
    ("chat", "jsonl", '{"prompt": "", "answer": "a"}', "the prompt is empty"),
    ("chat", "jsonl", '{"messages": []}', "no message of the role `assistant`"),
    ("chat", "jsonl", json.dumps({"messages": [USER]}), "no message of the role `assistant`"),
    ("chat", "jsonl", '{"messages": [{"role": "assistant"}]}', "`messages` must be a list"),
    ("chat", "jsonl", '{"messages": {"role": "assistant"}}', "`messages` must be a list"),
]


@pytest.mark.parametrize(("content", "layout", "line", "reason"), BAD)
@pytest.mark.parametrize("slice_bytes", [1, 1 << 20])
def test_d36_bad_lines_are_located_or_counted(
    tmp_path: Path, content: str, layout: str, line: str, reason: str, slice_bytes: int
) -> None:
    good = {
        "jsonl": json.dumps(
            {"source": "a", "target": "b", "prompt": "a", "answer": "b", "label": 0, "text_a": "a"}
        )
    }.get(layout, "a\tb")
    header = "source\ttarget\n" if layout == "tsv" else ""
    start = f"{header}{good}\n\n"
    path = write(tmp_path / "a", f"{start}{line}\n{good}")
    number, byte = start.count("\n") + 1, len(start)
    with pytest.raises(DataError, match=rf"/a, line {number}, byte {byte}: .*{reason}"):
        read(path, content, slice_bytes, format=layout)
    remarks: Counter[str] = Counter()
    found = read(path, content, slice_bytes, remarks, format=layout, bad_lines="skip")
    assert len(found) == 2
    assert remarks.pop(records.BLANK) == 1
    assert sum(remarks.values()) == 1


def test_half_characters_and_nul_are_handled_as_in_text(tmp_path: Path) -> None:
    path = write(tmp_path / "a.jsonl", r'{"source": "a\ud800b", "target": "x\u0000y"}')
    with pytest.raises(DataError, match="stands alone"):
        read(path, "pair")
    remarks: Counter[str] = Counter()
    assert read(path, "pair", remarks=remarks, encoding_errors="replace") == [
        Record(("a\ufffdb", "xy"))
    ]
    assert remarks == {lines.NUL: 1, lines.REPLACED: 1}
    assert read(path, "pair", encoding_errors="skip") == []


def test_texts_of_records_serve_for_vocabularies(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lines, "MAX_CHARACTERS", 5)
    path = write(tmp_path / "a.txt", "0\tone two\tthree\n")
    config = decode(CorpusConfig, {"path": str(path), "content": "label"})
    (piece,) = slices(find_files(config)[0], config)
    assert list(read_documents(piece, config, Counter())) == [["one", " two", "three"]]


def test_real_pairs_are_all_read(shared_data: Path) -> None:
    path = shared_data / "translation" / "news_commentary_en_zh.tsv"
    content = path.read_bytes()
    found = read(path, "pair", 1000, format="lines")
    # The file ends without a newline, so that counting newlines would miss its last line.
    assert not content.endswith(b"\n")
    assert len(found) == content.count(b"\n") + 1
    rebuilt = b"\n".join("\t".join(record.texts).encode() for record in found)
    assert rebuilt == content.replace(b"\r\n", b"\n")


def test_real_labels_and_questions_are_all_read(shared_data: Path) -> None:
    path = shared_data / "classification" / "rt_polarity_en" / "dev.tsv"
    rows = [line.split("\t") for line in path.read_text(encoding="utf-8").split("\n")[1:] if line]
    found = read(path, "label", 5000)
    assert [(record.label, *record.texts) for record in found] == [tuple(row) for row in rows]
    path = shared_data / "instruction" / "gsm8k_test.jsonl"
    content = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    found = read(path, "chat", 5000, fields={"prompt": "question"})
    assert [record.texts for record in found] == [(c["question"], c["answer"]) for c in content]
