"""Round trips through shards, and every way in which they can be damaged."""

import json
import pickle
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from tencentpretrain.config import decode
from tencentpretrain.data.shard_format import INDEX, fingerprint_of
from tencentpretrain.data.shards import Column, Ragged, ShardWriter, open_shards, text_columns
from tencentpretrain.errors import DataError
from tencentpretrain.tokenizers.base import Tokenizer
from tencentpretrain.tokenizers.wordpiece import WordPieceTokenizer

Documents = list[list[list[int]]]


def some_documents(count: int = 60, vocab_size: int = 50) -> Documents:
    rng = np.random.default_rng(0)
    return [
        [rng.integers(0, vocab_size, size=rng.integers(1, 9)).tolist() for _ in range(sentences)]
        for sentences in rng.integers(1, 5, size=count)
    ]


def make(
    directory: Path, documents: Documents, shard_tokens: int = 100, vocab_size: int = 50
) -> Path:
    with ShardWriter(directory, vocab_size=vocab_size, shard_tokens=shard_tokens) as writer:
        for document in documents:
            writer.add(document)
    return directory


def tiny_tokenizer(folder: Path, *entries: str) -> Tokenizer:
    path = folder / "vocab.txt"
    path.write_text("\n".join(["[PAD]", "[UNK]", *entries]), encoding="utf-8")
    config = decode(WordPieceTokenizer.Config, {"name": "wordpiece", "vocab": str(path)})
    return WordPieceTokenizer.from_config(config)


@pytest.mark.parametrize("shard_tokens", [1, 100, 1 << 20])
@pytest.mark.parametrize("vocab_size", [50, 1 << 16, (1 << 16) + 1])
def test_round_trip(tmp_path: Path, shard_tokens: int, vocab_size: int) -> None:
    documents = some_documents(vocab_size=vocab_size)
    shards = open_shards(make(tmp_path / "s", documents, shard_tokens, vocab_size))
    assert shards.documents == len(documents)
    assert shards.read(0).dtype == ("uint16" if vocab_size <= 1 << 16 else "uint32")
    flat = [[number for sentence in document for number in sentence] for document in documents]
    assert shards.tokens == sum(map(len, flat))
    assert shards.lengths().tolist() == list(map(len, flat))
    for number, document in enumerate(documents):
        assert shards.read(number).tolist() == flat[number]
        assert shards.read(number, 2, 5).tolist() == flat[number][2:5]
        ends = np.cumsum([len(sentence) for sentence in document])
        assert shards.sentence_ends(number).tolist() == ends.tolist()


def test_boundaries_run_through_all_documents_and_directories(tmp_path: Path) -> None:
    documents = some_documents()
    a = make(tmp_path / "a", documents[:20])
    b = make(tmp_path / "b", documents[20:], shard_tokens=7)
    shards = open_shards([a, b])
    sentences, ends = shards.sentence_boundaries()
    lengths = [len(sentence) for document in documents for sentence in document]
    assert sentences.tolist() == np.cumsum(lengths).tolist()
    assert ends.tolist() == np.cumsum(shards.lengths()).tolist()
    assert shards.read(20).tolist() == [i for sentence in documents[20] for i in sentence]
    assert shards.fingerprint != open_shards([b, a]).fingerprint


def test_documents_beyond_the_last_are_refused(tmp_path: Path) -> None:
    shards = open_shards(make(tmp_path / "s", some_documents(3)))
    for number in (-1, 3):
        with pytest.raises(IndexError, match="there are 3"):
            shards.read(number)


@pytest.mark.parametrize("shard_tokens", [5, 64, 1000])
def test_bits_along_the_tokens(tmp_path: Path, shard_tokens: int) -> None:
    rng = np.random.default_rng(1)
    lengths = rng.integers(1, 20, size=50)
    bits = rng.random(lengths.sum()) < 0.5
    ids = rng.integers(0, 9, size=lengths.sum())
    columns = text_columns(9, has_words=True)
    with ShardWriter(
        tmp_path / "s", vocab_size=9, columns=columns, shard_tokens=shard_tokens
    ) as writer:
        for chosen in (slice(0, 7), slice(7, 50)):  # batches end in the middle of a byte
            start, stop = lengths[: chosen.start].sum(), lengths[: chosen.stop].sum()
            part, ones = lengths[chosen], np.ones(len(lengths[chosen]), np.int64)
            writer.write(
                {
                    "tokens": Ragged(ids[start:stop], part),
                    "sentences": Ragged(part, ones),
                    "words": Ragged(bits[start:stop], part),
                }
            )
    shards = open_shards(tmp_path / "s")
    parts = np.split(bits, np.cumsum(lengths)[:-1])
    for number, expected in enumerate(parts):
        found = shards.word_starts(number)
        assert found is not None
        assert found.tolist() == expected.tolist()
        assert shards.word_starts(number, 1, 4).tolist() == expected[1:4].tolist()


def test_no_segmentation_is_none(tmp_path: Path) -> None:
    assert open_shards(make(tmp_path / "s", some_documents(2))).word_starts(0) is None


def test_other_ragged_columns_join_in(tmp_path: Path) -> None:
    columns = {"tokens": Column(dtype="uint16"), "pixels": Column(dtype="uint8")}
    with ShardWriter(tmp_path / "s", vocab_size=9, columns=columns) as writer:
        writer.write(
            {
                "tokens": Ragged(np.array([1, 2, 3]), np.array([1, 2])),
                "pixels": Ragged(np.array([7, 8, 9, 10]), np.array([4, 0])),
            }
        )
    shards = open_shards(tmp_path / "s")
    assert shards.column("pixels", 0).tolist() == [7, 8, 9, 10]
    assert shards.column("pixels", 1).tolist() == []


def test_a_copy_in_another_process_reads_the_same(tmp_path: Path) -> None:
    shards = open_shards(make(tmp_path / "s", some_documents(5)))
    sent = pickle.dumps(shards)
    assert len(sent) < 500
    assert pickle.loads(sent).read(4).tolist() == shards.read(4).tolist()


def test_equal_content_gives_equal_bytes_and_fingerprints(tmp_path: Path) -> None:
    a = make(tmp_path / "a", some_documents())
    b = make(tmp_path / "b", some_documents())
    for file in a.iterdir():
        assert file.read_bytes() == (b / file.name).read_bytes()
    other = make(tmp_path / "c", some_documents()[:-1])
    assert open_shards(a).fingerprint == open_shards(b).fingerprint
    assert open_shards(a).fingerprint != open_shards(other).fingerprint


def test_nothing_appears_when_writing_fails(tmp_path: Path) -> None:
    with suppress(ZeroDivisionError), ShardWriter(tmp_path / "s", vocab_size=9) as writer:
        writer.add([[1]])
        raise ZeroDivisionError
    assert list(tmp_path.iterdir()) == []


def test_d38_two_jobs_in_one_folder_do_not_meet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    documents = some_documents(20)
    with ShardWriter(Path("a"), vocab_size=50) as one, ShardWriter(Path("b"), vocab_size=50) as two:
        for number, document in enumerate(documents):
            (two if number % 3 else one).add(document)
    assert {path.name for path in Path().iterdir()} == {"a", "b"}
    for name, chosen in (
        ("a", documents[::3]),
        ("b", [d for n, d in enumerate(documents) if n % 3]),
    ):
        shards = open_shards(Path(name))
        flat = [[token for sentence in document for token in sentence] for document in chosen]
        assert [shards.read(number).tolist() for number in range(shards.documents)] == flat


def test_a_full_disk_leaves_nothing(tmp_path: Path) -> None:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        with pytest.raises(
            DataError, match=f"^output `{tmp_path / 's'}` cannot be written: File too"
        ):
            make(tmp_path / "s", some_documents(5000), 1 << 20)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_is_full_at_the_end_leaves_what_was_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = make(tmp_path / "s", some_documents(2))
    before = open_shards(target).fingerprint

    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("tencentpretrain.data.shard_writer.json.dump", fail)
    with (
        pytest.raises(DataError, match="cannot be written: No space left on device; mend that"),
        ShardWriter(target, vocab_size=9, overwrite=True) as writer,
    ):
        writer.add([[1, 2]])
    assert list(tmp_path.iterdir()) == [target]
    assert open_shards(target).fingerprint == before


def test_an_existing_output_is_replaced_only_if_asked_and_only_shards(tmp_path: Path) -> None:
    target = make(tmp_path / "s", some_documents(2))
    with pytest.raises(DataError, match="overwrite=true"):
        ShardWriter(target, vocab_size=9)
    with ShardWriter(target, vocab_size=9, overwrite=True) as writer:
        writer.add([[1, 2]])
        assert open_shards(target).documents == 2  # until the new ones are complete
    assert open_shards(target).documents == 1
    assert [file.name for file in tmp_path.iterdir()] == ["s"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.txt").touch()
    with pytest.raises(DataError, match="may be something else"):
        ShardWriter(tmp_path / "home", vocab_size=9, overwrite=True)


def test_the_tokenizer_travels_with_the_shards(tmp_path: Path) -> None:
    tokenizer = tiny_tokenizer(tmp_path, "a", "b")
    with ShardWriter(tmp_path / "s", tokenizer) as writer:
        writer.add([tokenizer.encode("b a b")])
    shards = open_shards(tmp_path / "s")
    assert shards.tokenizer().decode(shards.read(0)) == "b a b"
    assert shards.tokenizer_fingerprint == tokenizer.fingerprint
    assert shards.vocab_size == 4
    file = tmp_path / "s" / "tokenizer" / "tokenizer.json"
    file.write_bytes(file.read_bytes().replace(b'"a"', b'"A"'))
    with pytest.raises(DataError, match="tokenizer was altered"):
        open_shards(tmp_path / "s")


def test_d91_shards_of_different_tokenizers_do_not_mix(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with ShardWriter(tmp_path / name, tiny_tokenizer(tmp_path, name)) as writer:
            writer.add([[1]])
    with pytest.raises(DataError, match="another tokenizer"):
        open_shards([tmp_path / "a", tmp_path / "b"])


def edit_index(directory: Path, change: Callable[[dict], None], sign: bool = True) -> None:
    content = json.loads((directory / INDEX).read_text())
    change(content)
    if sign:
        content["fingerprint"] = fingerprint_of(content)
    (directory / INDEX).write_text(json.dumps(content))


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    "name", ["tokens", "offsets", "sentences", "sentences.offsets"], ids=lambda name: name
)
def test_truncated_altered_and_missing_files_are_named(tmp_path: Path, name: str) -> None:
    path = make(tmp_path / "s", some_documents(), 1 << 20) / f"00000.{name}.npy"
    whole = path.read_bytes()
    for position in (-1, 140, 30):
        flip(path, position)
        with pytest.raises(DataError, match=rf"00000\.{name}\.npy was altered"):
            open_shards(tmp_path / "s")
        path.write_bytes(whole)
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match=rf"00000\.{name}\.npy has .* truncated"):
        open_shards(tmp_path / "s", verify=False)
    path.unlink()
    with pytest.raises(DataError, match=rf"00000\.{name}\.npy is missing"):
        open_shards(tmp_path / "s", verify=False)


@pytest.mark.parametrize("verify", [True, False])
def test_d90_an_array_of_objects_is_never_unpickled(
    tmp_path: Path, verify: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    class Evil:
        def __reduce__(self) -> tuple[object, ...]:
            return print, ("executed",)

    directory = make(tmp_path / "s", some_documents(), 1 << 20)
    path = directory / "00000.tokens.npy"
    np.save(path, np.array([Evil()]), allow_pickle=True)
    if not verify:  # even if the sizes are made to fit
        size = path.stat().st_size
        edit_index(directory, lambda i: i["files"][path.name].update(bytes=size))
    with pytest.raises(DataError, match=r"00000\.tokens\.npy"):
        open_shards(directory, verify)
    assert "executed" not in capsys.readouterr().out


def set_key(*path: object, to: object) -> Callable[[dict], None]:
    def change(content: dict) -> None:
        for key in path[:-1]:
            content = content[key]
        content[path[-1]] = to

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (set_key("format", to=2), "format version 2, but this program reads 1"),
        (set_key("vocab_size", to=10), "token id 49 is not in the vocabulary of 10"),
        (set_key("documents", to=7), "its parts disagree"),
        (set_key("shards", 0, "values", "tokens", to=7), "its parts disagree"),
        (set_key("shards", 0, "values", to={}), "its parts disagree"),
        (set_key("shards", 0, "documents", to=-1), "is damaged"),
        (set_key("columns", "tokens", "dtype", to="O"), "is damaged"),
        (set_key("columns", "../x", to={"dtype": "uint8"}), "is damaged"),
        (set_key("files", "../../x", to={"bytes": 1, "checksum": ""}), "its parts disagree"),
        (set_key("surprise", to=1), "is damaged"),
    ],
    ids=range(10),
)
def test_a_false_index_is_refused(
    tmp_path: Path, change: Callable[[dict], None], message: str
) -> None:
    directory = make(tmp_path / "s", some_documents(), 1 << 20)
    edit_index(directory, change)
    with pytest.raises(DataError, match=rf"index\.json.*{message}"):
        open_shards(directory)


def test_an_altered_index_is_refused(tmp_path: Path) -> None:
    directory = make(tmp_path / "s", some_documents(), 1 << 20)
    edit_index(directory, set_key("vocab_size", to=60), sign=False)
    with pytest.raises(DataError, match="its parts disagree"):
        open_shards(directory)
    (directory / INDEX).write_text("{")
    with pytest.raises(DataError, match="is damaged"):
        open_shards(directory)


@pytest.mark.parametrize(
    ("name", "values", "message"),
    [
        ("tokens", [3, 99, 4], "token id 99"),
        ("offsets", [0, 3, 2, 3], "do not grow"),
        ("offsets", [1, 2, 3, 3], "does not fit"),
        ("sentences", [1, 1, 2], "sentences do not end"),
    ],
)
def test_files_made_by_hand_are_checked(
    tmp_path: Path, name: str, values: list[int], message: str
) -> None:
    from tencentpretrain.data.checksum import file_checksum

    directory = make(tmp_path / "s", [[[1]], [[2]], [[3]]])
    path = directory / f"00000.{name}.npy"
    np.save(path, np.array(values, np.load(path).dtype))
    edit_index(directory, set_key("files", path.name, "checksum", to=file_checksum(path)))
    with pytest.raises(DataError, match=message):
        open_shards(directory)


def test_what_is_no_directory_of_shards_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        open_shards(tmp_path / "missing")
    with pytest.raises(DataError, match=r"there is no index\.json"):
        open_shards(tmp_path)
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        open_shards(tmp_path / "file")
    with pytest.raises(DataError, match="no directory"):
        open_shards([])
