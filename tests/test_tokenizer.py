"""Text <-> ids: round trips, streams at every split, special tokens that are text, and what is refused."""

from __future__ import annotations

import json
import unicodedata
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tokenizers
from conftest import TINY
from hypothesis import given, settings
from hypothesis import strategies as st
from korean import HARD, PROSE, SYLLABLES
from transformers import AddedToken, PreTrainedTokenizerFast

import kogpt
from kogpt.errors import PromptError, TokenizerError
from kogpt.tokenizer import BYTES, Tokenizer

FAMILY = "👨‍👩‍👧‍👦"
MINI = Path(kogpt.__file__).parent / "mini"
ALL_HARD = "".join(HARD)


@pytest.fixture(scope="module")
def tokenizer(tiny_tokenizer: Path) -> Tokenizer:
    return Tokenizer.from_file(tiny_tokenizer)


def nfc(text: str) -> str:
    return unicodedata.normalize("NFC", text)


def byte_tokens(tokenizer: Tokenizer) -> list[int]:
    """The id of each single byte: the finest split that there is."""
    ids = {tokenizer.token_bytes(token): token for token in reversed(range(tokenizer.n_vocab))}
    return [ids[bytes([byte])] for byte in range(256)]


def stream(tokenizer: Tokenizer, ids: list[int]) -> str:
    decoder = tokenizer.decoder()
    return "".join([decoder.push(token) for token in ids]) + decoder.flush()


# ------------------------------------------------------------------------------------------ round trips


@pytest.mark.parametrize("text", [*PROSE, *HARD, SYLLABLES, ""])
def test_any_text_round_trips_up_to_nfc(tokenizer: Tokenizer, text: str) -> None:
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == stream(tokenizer, ids) == nfc(text)


@given(st.text())
@settings(deadline=None)
def test_any_unicode_round_trips(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == nfc(text)


@given(st.text(alphabet=st.characters(min_codepoint=0x1100, max_codepoint=0x11FF)))
@settings(deadline=None)
def test_jamo_round_trip(tokenizer: Tokenizer, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == nfc(text)


def test_nfd_costs_no_more_than_nfc(tokenizer: Tokenizer) -> None:
    text = "한국어 ㅋㅋ 값"
    decomposed = unicodedata.normalize("NFD", text)
    assert len(decomposed) > len(text)
    assert tokenizer.encode(decomposed) == tokenizer.encode(text)


def test_compatibility_characters_keep_their_form(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode(tokenizer.encode("ㅋㅋㅠㅠ ㈜ ①")) == "ㅋㅋㅠㅠ ㈜ ①"


def test_encode_agrees_with_the_library(tokenizer: Tokenizer, tiny_tokenizer: Path) -> None:
    library = tokenizers.Tokenizer.from_file(str(tiny_tokenizer))
    for text in (*PROSE, *HARD[:7], SYLLABLES):
        expected = library.encode(nfc(text), add_special_tokens=False).ids
        assert tokenizer.encode(text) == expected
        assert tokenizer.decode(expected) == library.decode(expected)


def test_merges_are_pairs_or_texts(tokenizer: Tokenizer, tiny_tokenizer: Path, tmp_path: Path) -> None:
    def join(document: dict[str, Any]) -> None:
        document["model"]["merges"] = [" ".join(pair) for pair in document["model"]["merges"]]

    older = Tokenizer.from_file(edited(tiny_tokenizer, tmp_path, join))
    for text in (*PROSE, *HARD):
        assert older.encode(text) == tokenizer.encode(text)


def test_a_batch_is_its_texts_one_by_one(tokenizer: Tokenizer) -> None:
    texts = [*PROSE, *HARD]
    assert tokenizer.encode_batch(texts) == [tokenizer.encode(text) for text in texts]


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("가\ud800나", r"character 2 is the lone surrogate U\+D800"),
        ("\udc82", r"character 1 is the lone surrogate U\+DC82"),
        ("\u1112\u1161\u11ab\udceb\udc82", r"character 4 is the lone surrogate U\+DCEB"),
        ("봄\ud83d", r"character 2 .* U\+D83D, half of a character; write the whole character"),
    ],
)
def test_lone_surrogates_are_refused_at_their_place_in_the_text(
    tokenizer: Tokenizer, text: str, where: str
) -> None:
    for encode in (tokenizer.encode, tokenizer.encode_prompt, lambda text: tokenizer.encode_batch([text])):
        with pytest.raises(PromptError, match=where) as caught:
            encode(text)
        f"{caught.value.en} {caught.value.ko}".encode()
    for context, choice in ((text, "가"), ("", text)):
        with pytest.raises(PromptError, match=where):
            tokenizer.encode_choices(context, [choice])


# ------------------------------------------------------------------- the border of question and answer

CHOICE_TEXT = st.text(alphabet="가각나 닥\u0301a\n[EOS]", max_size=6)


def slow_choices(encode: Callable[[str], list[int]], context: str, choices: list[str]) -> tuple[Any, Any]:
    """The rule by trying every border, the last first."""
    texts = [encode(context), *(encode(context + choice) for choice in choices)]
    for n in range(len(texts[0]), -1, -1):
        if all(ids[:n] == texts[0][:n] for ids in texts):
            return texts[0][:n] or [1], [ids[n:] for ids in texts[1:]]
    raise AssertionError


@given(CHOICE_TEXT, st.lists(CHOICE_TEXT.filter(bool), max_size=4))
@settings(deadline=None, max_examples=300)
def test_choices_are_split_as_by_trying_every_border(
    tokenizer: Tokenizer, context: str, choices: list[str]
) -> None:
    found = tokenizer.encode_choices(context, choices)
    assert found == slow_choices(tokenizer.encode, context, choices)
    other = tokenizer.encode_choices("가", ["나"])
    assert tokenizer.encode_choices_batch([(context, choices), ("가", ["나"])]) == [found, other]
    for choice, ids in zip(choices, found[1], strict=True):
        assert ids and found[0]
        whole = tokenizer.encode(context + choice)
        assert [*found[0], *ids] in (whole, [tokenizer.eos_token_id, *whole])


@given(CHOICE_TEXT, CHOICE_TEXT.filter(bool), st.lists(CHOICE_TEXT.filter(bool), min_size=1, max_size=3))
@settings(deadline=None)
def test_a_prefix_only_leaves_its_own_ids_out(
    tokenizer: Tokenizer, prefix: str, context: str, choices: list[str]
) -> None:
    before = tokenizer.encode(prefix)
    whole, expected = tokenizer.encode_choices(prefix + context, choices)
    if prefix and (whole[: len(before)] != before or len(whole) == len(before)):
        with pytest.raises(PromptError, match="no token begins after the shared text"):
            tokenizer.encode_choices(context, choices, prefix)
    else:
        assert tokenizer.encode_choices(context, choices, prefix) == (whole[len(before) :], expected)


@pytest.fixture(scope="module")
def merging(tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """Ids 0 to 4 are special; merges make "ab" and "abc", and "ᆨ" composes with what precedes it."""
    alphabet = {character: 5 + i for i, character in enumerate(sorted(BYTES))}
    vocabulary = {f"[{name}]": i for i, name in enumerate(("BOS", "EOS", "UNK", "PAD", "MASK"))} | alphabet
    vocabulary |= {"ab": 261, "abc": 262}
    model = {"type": "BPE", "vocab": vocabulary, "merges": [["a", "b"], ["ab", "c"]]}
    folder = tmp_path_factory.mktemp("merging")
    document = {"model": model, "pre_tokenizer": BYTE_LEVEL, "added_tokens": []}
    (folder / "tokenizer.json").write_text(json.dumps(document))
    return Tokenizer.from_file(folder / "tokenizer.json")


def test_the_border_moves_to_where_a_token_begins(merging: Tokenizer) -> None:
    a, b, c, d = (merging.encode(letter)[0] for letter in "abcd")
    assert merging.encode_choices("d", ["a", "b"]) == ([d], [[a], [b]])
    assert merging.encode_choices("", ["a", "ab"]) == ([1], [[a], [261]]), "an empty context is [EOS]"
    assert merging.encode_choices("da", ["b", "d"]) == ([d], [[261], [a, d]]), (
        "the merged token is the choice's"
    )
    assert merging.encode_choices("a", ["b"]) == ([1], [[261]]), "every token of the context merges"
    assert merging.encode_choices("da", ["b", "bc"]) == ([d], [[261], [262]]), "one choice begins the other"
    assert merging.encode_choices("ab", ["d", "dd"]) == ([261], [[d], [d, d]])
    assert merging.encode_choices("ab", []) == ([261], [])
    assert c in merging.encode("bc")


def test_a_jamo_at_the_border_composes(merging: Tokenizer) -> None:
    """U+AC00 and U+11A8 are U+AC01: the last byte of the syllable belongs to the choice."""
    first, second, third = merging.encode("각")
    other = merging.encode("가")[2]
    assert merging.encode_choices("가", ["\u11a8"]) == ([first, second], [[third]])
    space = merging.encode(" ")
    assert merging.encode_choices("가", ["\u11a8", " "]) == ([first, second], [[third], [other, *space]])


@pytest.mark.parametrize(("context", "choices"), [("d", ["a", ""]), ("", ["a", ""]), ("da", ["b", ""])])
def test_a_choice_that_adds_no_token_is_named(merging: Tokenizer, context: str, choices: list[str]) -> None:
    with pytest.raises(PromptError, match=r"choice 2 \(''\) adds no token") as caught:
        merging.encode_choices(context, choices)
    assert "2번째 선택지" in caught.value.ko


def test_a_border_inside_a_token_of_the_prefix_is_refused(merging: Tokenizer) -> None:
    assert merging.encode_choices("d", ["a"], prefix="ab") == merging.encode_choices("d", ["a"])
    for context in ("b", ""):
        with pytest.raises(PromptError, match="no token begins after the shared text 'a'"):
            merging.encode_choices(context, ["c"], prefix="a")


# --------------------------------------------------------------------------------------- special tokens


def test_special_ids_are_read_from_the_file(tokenizer: Tokenizer) -> None:
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 1)
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (2, 3, 4)
    assert tokenizer.special_ids == {0, 1, 2, 3, 4}
    assert tokenizer.n_vocab == TINY.n_vocab


@pytest.mark.parametrize("name", ["[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]"])
def test_text_that_spells_a_special_token_is_text(tokenizer: Tokenizer, name: str) -> None:
    for text in (name, f"가{name}나", f" {name} ", name * 3):
        ids = tokenizer.encode(text)
        assert not tokenizer.special_ids & set(ids)
        assert tokenizer.decode(ids) == text


def test_special_tokens_are_no_text(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("가나")
    assert tokenizer.decode([0, *ids, 1, 1]) == "가나"
    first, second, third = "각".encode()
    finest = byte_tokens(tokenizer)
    assert stream(tokenizer, [finest[first], 1, finest[second], 2, finest[third]]) == "각"
    assert all(tokenizer.token_bytes(token) == b"" for token in tokenizer.special_ids)


def edited(tiny_tokenizer: Path, folder: Path, edit: Callable[[dict[str, Any]], object]) -> Path:
    document = json.loads(tiny_tokenizer.read_text())
    edit(document)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(document))
    return path


def test_a_special_token_spelled_by_a_user_is_text(tiny_tokenizer: Path, tmp_path: Path) -> None:
    def add(document: dict[str, Any]) -> None:
        plain = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False}
        document["added_tokens"].append(plain | {"id": 512, "content": "<|끝|>", "special": True})
        document["added_tokens"].append(plain | {"id": 513, "content": "<요약>", "special": False})
        document["added_tokens"].append(plain | {"id": 514, "content": "<쪽>", "special": False})
        document["model"]["ignore_merges"] = True

    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"pad_token": "<쪽>"}))
    tokenizer = Tokenizer.from_file(edited(tiny_tokenizer, tmp_path, add))
    assert tokenizer.n_vocab == 515
    for text in ("<|끝|>", "<쪽>", "[EOS]", "[EOS]<|끝|>가<쪽>"):
        ids = tokenizer.encode(text)
        assert not {0, 1, 2, 3, 4, 512, 514} & set(ids)
        assert tokenizer.decode(ids) == text
    assert tokenizer.encode("<요약>[EOS]") == [513, *tokenizer.encode("[EOS]")], (
        "only added words are cut out"
    )
    assert tokenizer.decode([512, 513, 514]) == "<요약>"


def test_special_text_as_a_whole_word_is_text(tiny_tokenizer: Path, tmp_path: Path) -> None:
    """With ignore_merges the library looks whole words up in its vocabulary before it merges anything."""

    def keep_words(document: dict[str, Any]) -> None:
        document["model"]["ignore_merges"] = True
        document["pre_tokenizer"]["use_regex"] = False

    tokenizer = Tokenizer.from_file(edited(tiny_tokenizer, tmp_path, keep_words))
    for name in ("[BOS]", "[EOS]", "[PAD]"):
        ids = tokenizer.encode(name)
        assert not tokenizer.special_ids & set(ids) and tokenizer.decode(ids) == name


def test_foreign_names_of_special_tokens(tiny_tokenizer: Path, tmp_path: Path) -> None:
    def rename(document: dict[str, Any]) -> None:
        document["added_tokens"] = [{"id": 0, "content": "<|endoftext|>", "special": True}]
        vocabulary = document["model"]["vocab"]
        for name in ("[BOS]", "[EOS]", "[UNK]", "[PAD]", "[MASK]"):
            del vocabulary[name]
        vocabulary["<|endoftext|>"] = 0

    path = edited(tiny_tokenizer, tmp_path, rename)
    with pytest.raises(TokenizerError, match="no '\\[EOS\\]'"):
        Tokenizer.from_file(path)
    names = {"bos_token": "<|endoftext|>", "eos_token": {"content": "<|endoftext|>"}, "unk_token": None}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    tokenizer = Tokenizer.from_file(path)
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (0, 0)
    assert (tokenizer.unk_token_id, tokenizer.pad_token_id, tokenizer.mask_token_id) == (None, None, None)


def test_a_tokenizer_that_lacks_bytes_says_which_text_it_cannot_hold(
    tiny_tokenizer: Path, tmp_path: Path
) -> None:
    lacking = next(character for character, byte in BYTES.items() if byte == 0xF0)
    path = edited(tiny_tokenizer, tmp_path, lambda document: document["model"]["vocab"].pop(lacking))
    tokenizer = Tokenizer.from_file(path)
    assert tokenizer.decode(tokenizer.encode("가나다")) == "가나다"
    with pytest.raises(PromptError, match="byte 0xF0"):
        tokenizer.encode(FAMILY)


# ------------------------------------------------------------------- what transformers writes into a folder

WORDS = ("서울숲역", "앞", "AB", "<sum>", "!", "은", " 안녕")
WORD_TEXT = st.lists(
    st.sampled_from(
        [*WORDS, "오늘", " ", "  ", "\n", "B", "ab", "에서", "A", "!!", "1", "[EOS", "은는", "."]
    ),
    max_size=8,
).map("".join)


@pytest.fixture(scope="module", params=["plain", "lstrip", "rstrip", "single_word", "normalized", "all"])
def with_words(
    request: pytest.FixtureRequest, tiny_tokenizer: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Tokenizer, Any]:
    """Ours, and transformers', of one folder: words added by `add_tokens` with one flag, or with all."""
    flags = [request.param] if request.param != "all" else ["lstrip", "rstrip", "single_word"]
    theirs = PreTrainedTokenizerFast(tokenizer_file=str(tiny_tokenizer), eos_token="[EOS]")
    off = {"lstrip": False, "rstrip": False, "single_word": False, "normalized": False}
    on = off | {flag: True for flag in flags if flag != "plain"}
    theirs.add_tokens([AddedToken(word, **on) for word in WORDS])
    folder = tmp_path_factory.mktemp("words")
    theirs.save_pretrained(folder)
    return Tokenizer.from_file(folder / "tokenizer.json"), theirs


@given(WORD_TEXT)
@settings(deadline=None, max_examples=200)
def test_added_words_are_cut_as_transformers_does(with_words: tuple[Tokenizer, Any], text: str) -> None:
    ours, theirs = with_words
    assert ours.encode(text) == theirs.encode(text, add_special_tokens=False)
    assert ours.encode_batch([text]) == [ours.encode(text)]


def test_a_word_is_one_id_and_eos_is_text(with_words: tuple[Tokenizer, Any]) -> None:
    ours, theirs = with_words
    ids = ours.encode("오늘 서울숲역 앞에서")
    number = theirs.convert_tokens_to_ids("서울숲역")
    assert number >= TINY.n_vocab and number in ids and ours.decode([number]) == "서울숲역"
    ids = ours.encode("[EOS]")
    assert ours.eos_token_id not in ids and ours.decode(ids) == "[EOS]"
    assert number in ours.encode(unicodedata.normalize("NFD", " 서울숲역 ")), (
        "text is in NFC before it is cut"
    )


def test_words_of_the_built_in_model_s_folder(tmp_path: Path) -> None:
    """The example of the report: 4 ids, not 6."""
    theirs = PreTrainedTokenizerFast.from_pretrained(str(MINI))
    theirs.add_tokens(["서울숲역", "앞에서"])
    theirs.save_pretrained(tmp_path)
    ours = Tokenizer.from_file(tmp_path / "tokenizer.json")
    text = "오늘 서울숲역 앞에서"
    assert ours.encode(text) == theirs.encode(text) == [*theirs.encode("오늘 "), 8192, 225, 8193]


def word(content: str, index: int, **flags: object) -> dict[str, Any]:
    return {"id": index, "content": content, "special": False} | flags


def test_a_word_keeps_the_id_that_the_file_gives_it(tiny_tokenizer: Path, tmp_path: Path) -> None:
    def add(document: dict[str, Any]) -> None:
        document["model"]["ignore_merges"] = True
        document["added_tokens"] += [word("<sum>", 600), word("ÀĀ", 700, single_word=True)]

    tokenizer = Tokenizer.from_file(edited(tiny_tokenizer, tmp_path, add))
    assert tokenizer.n_vocab == 701
    a = tokenizer.encode("a")
    assert tokenizer.encode("a<sum>a ÀĀ") == [*a, 600, *a, *tokenizer.encode(" "), 700]
    assert tokenizer.decode(tokenizer.encode("ÀĀa")) == "ÀĀa" and 700 not in tokenizer.encode("ÀĀa")
    assert tokenizer.decode([600, 700, 650]) == "<sum>ÀĀ"


@pytest.mark.parametrize("role", ["pad_token", "unk_token", "eos_token"])
@pytest.mark.parametrize("piece", ["!", "습니다", "Ġ"])
@pytest.mark.parametrize("twice", [False, True])
def test_a_role_that_is_an_ordinary_piece_stays_text(
    role: str, piece: str, twice: bool, tiny_tokenizer: Path, tmp_path: Path
) -> None:
    """transformers names the role in tokenizer_config.json, and adds a special token when it saves again."""
    document = json.loads(tiny_tokenizer.read_text())
    stored = "".join(next(c for c, byte in BYTES.items() if byte == b) for b in piece.encode())
    stored = piece if piece == "Ġ" else stored
    number = document["model"]["vocab"].get(stored)
    if number is None:
        pytest.skip("the small vocabulary has no such piece")
    if twice:
        document["added_tokens"].append({"id": number, "content": stored, "special": True})
    (tmp_path / "tokenizer.json").write_text(json.dumps(document))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({role: stored}))
    tokenizer, plain = Tokenizer.from_file(tmp_path / "tokenizer.json"), Tokenizer.from_file(tiny_tokenizer)
    assert getattr(tokenizer, f"{role}_id") == number and number not in tokenizer.special_ids
    for text in (*PROSE, *HARD, f"{piece}가{piece}{piece}"):
        assert tokenizer.encode(text) == plain.encode(text)
        assert tokenizer.decode(tokenizer.encode(text)) == nfc(text)


def test_transformers_pad_token_loads(tmp_path: Path) -> None:
    theirs = PreTrainedTokenizerFast.from_pretrained(str(MINI))
    theirs.pad_token = "!"
    theirs.save_pretrained(tmp_path / "once")
    PreTrainedTokenizerFast.from_pretrained(tmp_path / "once").save_pretrained(tmp_path / "twice")
    for folder in ("once", "twice"):
        tokenizer = Tokenizer.from_file(tmp_path / folder / "tokenizer.json")
        assert (
            tokenizer.pad_token_id == theirs.pad_token_id
            and tokenizer.decode(tokenizer.encode("봄!!")) == "봄!!"
        )


def template(*single: Any) -> dict[str, Any]:
    tokens = {"[BOS]": {"id": "[BOS]", "ids": [0], "tokens": ["[BOS]"]}, "[EOS]": {"id": "[EOS]", "ids": [1]}}
    return {"type": "TemplateProcessing", "single": [*single], "pair": [], "special_tokens": tokens}


TEXT = {"Sequence": {"id": "A", "type_id": 0}}
BOS, EOS = ({"SpecialToken": {"id": name, "type_id": 0}} for name in ("[BOS]", "[EOS]"))


@pytest.mark.parametrize("nested", [False, True])
def test_a_template_puts_bos_before_prompts(nested: bool, tiny_tokenizer: Path, tmp_path: Path) -> None:
    bos = tokenizers.processors.TemplateProcessing("[BOS] $A", "[BOS] $A $B", [("[BOS]", 0)])
    byte_level = tokenizers.processors.ByteLevel(trim_offsets=True)
    library = tokenizers.Tokenizer.from_file(str(tiny_tokenizer))
    library.post_processor = tokenizers.processors.Sequence([byte_level, bos]) if nested else bos
    library.save(str(tmp_path / "tokenizer.json"))
    tokenizer = Tokenizer.from_file(tmp_path / "tokenizer.json")
    ids = tokenizer.encode("가나")
    assert 0 not in ids, "documents that are packed have no prompt's beginning"
    assert tokenizer.encode_prompt("가나") == library.encode("가나").ids == [0, *ids]
    assert tokenizer.encode_prompt("") == []
    assert tokenizer.prompt_start == tokenizer.document_start == (0,)
    assert tokenizer.encode_choices("가", ["나"])[0] == [0, *tokenizer.encode("가")]
    assert tokenizer.encode_choices("", ["나"])[0] == [0]
    assert tokenizer.encode_choices("나\n", ["다"], prefix="가\n")[0] == tokenizer.encode("나\n")


def test_without_a_template_nothing_stands_before_a_prompt(tokenizer: Tokenizer) -> None:
    assert tokenizer.encode_prompt("가나") == tokenizer.encode("가나")
    assert (tokenizer.prompt_start, tokenizer.document_start) == ((), (1,))


def test_a_tokenizer_without_bos_loads(tiny_tokenizer: Path, tmp_path: Path) -> None:
    def remove(document: dict[str, Any]) -> None:
        del document["model"]["vocab"]["[BOS]"], document["added_tokens"][0]

    tokenizer = Tokenizer.from_file(edited(tiny_tokenizer, tmp_path, remove))
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id) == (None, 1)


# --------------------------------------------------------------------------------------------- streaming


def test_the_byte_alphabet_is_the_library_s(tokenizer: Tokenizer) -> None:
    assert sorted(BYTES) == sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    assert sorted(BYTES.values()) == list(range(256))
    assert b"".join(map(tokenizer.token_bytes, byte_tokens(tokenizer))) == bytes(range(256))


def test_every_syllable_streams_whole_at_every_split(tokenizer: Tokenizer) -> None:
    """Each syllable byte by byte after a split at every earlier byte: no piece is ever a part of one."""
    finest = byte_tokens(tokenizer)
    for syllable in SYLLABLES:
        first, second, third = (finest[byte] for byte in syllable.encode())
        decoder = tokenizer.decoder()
        assert [decoder.push(token) for token in (first, second, third)] == ["", "", syllable]
        assert decoder.push(first) == "" and decoder.n_pending == 1
        assert decoder.push(second) == "" and decoder.n_pending == 2
        assert decoder.push(third) == syllable and decoder.n_pending == 0


@pytest.mark.parametrize("text", [*HARD, *(unicodedata.normalize("NFD", text) for text in PROSE)])
def test_every_cut_of_a_stream_shows_a_prefix_of_the_text(tokenizer: Tokenizer, text: str) -> None:
    """Cut anywhere between bytes, what was shown is the text's longest prefix of whole characters."""
    finest = byte_tokens(tokenizer)
    data = text.encode()
    decoder, shown = tokenizer.decoder(), ""
    for end, byte in enumerate(data, 1):
        shown += decoder.push(finest[byte])
        assert shown == data[:end].decode("utf-8", "ignore")
        assert tokenizer.decode([finest[byte] for byte in data[:end]]) == shown
    assert shown == text


@given(st.lists(st.integers(0, TINY.n_vocab - 1)))
@settings(deadline=None, max_examples=200)
def test_streamed_text_is_the_final_text_for_any_ids(tokenizer: Tokenizer, ids: list[int]) -> None:
    """Random ids are mostly broken UTF-8: streamed and not, both show what one strict decoder would."""
    decoder = tokenizer.decoder()
    pieces = [decoder.push(token) for token in ids]
    n_pending = decoder.n_pending
    assert "".join(pieces) + decoder.flush() == tokenizer.decode(ids)
    data = b"".join(map(tokenizer.token_bytes, ids))
    assert tokenizer.decode(ids) == data[: len(data) - n_pending].decode("utf-8", "replace")


@given(st.lists(st.integers(0, TINY.n_vocab - 1), max_size=12))
@settings(deadline=None)
def test_finished_text_is_the_library_s(tokenizer: Tokenizer, tiny_tokenizer: Path, ids: list[int]) -> None:
    library = tokenizers.Tokenizer.from_file(str(tiny_tokenizer))
    whole = [*ids, *tokenizer.encode("끝")]  # so that nothing is unfinished
    assert tokenizer.decode(whole) == library.decode(whole)


def test_a_replacement_character_of_the_text_does_not_stall(tokenizer: Tokenizer) -> None:
    finest = byte_tokens(tokenizer)
    decoder = tokenizer.decoder()
    assert [decoder.push(finest[byte]) for byte in "\ufffd가".encode()] == ["", "", "\ufffd", "", "", "가"]


def test_an_unfinished_character_is_left_out_and_counted(tokenizer: Tokenizer) -> None:
    finest = byte_tokens(tokenizer)
    ids = [finest[byte] for byte in "가나".encode()[:-1]]
    assert tokenizer.decode(ids) == stream(tokenizer, ids) == "가"
    decoder = tokenizer.decoder()
    for token in ids:
        decoder.push(token)
    assert decoder.n_pending == 2
    assert decoder.flush() == "" and decoder.n_pending == 0
    assert decoder.push(finest[ord("a")]) == "a"


def test_ids_without_a_token_are_no_text(tokenizer: Tokenizer) -> None:
    assert tokenizer.decode([*tokenizer.encode("가"), tokenizer.n_vocab, 10**9]) == "가"


# ------------------------------------------------------------------------------------------------ refused


def put(*keys: str) -> Callable[[Any], Callable[[dict[str, Any]], object]]:
    """An edit that sets one entry of a tokenizer.json."""

    def at(value: Any) -> Callable[[dict[str, Any]], object]:
        def edit(document: dict[str, Any]) -> None:
            for key in keys[:-1]:
                document = document[key]
            document[keys[-1]] = value

        return edit

    return at


def split_by(*regexes: str, behavior: str = "Isolated") -> dict[str, Any]:
    splits = [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": behavior, "invert": False}
        for regex in regexes
    ]
    last = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False}
    return {"type": "Sequence", "pretokenizers": [*splits, last]}


BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
UNFIT = {
    "unigram": put("model", "type")("Unigram"),
    "word pieces": put("model", "type")("WordPiece"),
    "no model": put("model")(None),
    "dropout": put("model", "dropout")(0.1),
    "prefix": put("model", "continuing_subword_prefix")("##"),
    "byte fallback": put("model", "byte_fallback")(True),
    "lowercase": put("normalizer")({"type": "Lowercase"}),
    "NFKC": put("normalizer")({"type": "Sequence", "normalizers": [{"type": "NFKC"}]}),
    "normalizers": put("normalizer")({"type": "Sequence", "normalizers": 7}),
    "metaspace": put("pre_tokenizer")({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always"}),
    "whitespace": put("pre_tokenizer")(
        {"type": "Sequence", "pretokenizers": [{"type": "Whitespace"}, BYTE_LEVEL]}
    ),
    "no pre-tokenizer": put("pre_tokenizer")(None),
    "a last step without a type": put("pre_tokenizer")(
        {"type": "Sequence", "pretokenizers": [BYTE_LEVEL, {}]}
    ),
    "steps without types": put("pre_tokenizer")({"type": "Sequence", "pretokenizers": [{}, {}]}),
    "prefix space": put("pre_tokenizer", "add_prefix_space")(True),
    "removing": put("pre_tokenizer")(split_by(r"\s+", behavior="Removed")),
    "exponential": put("pre_tokenizer")(split_by(r"(a+)+$")),
    "cubic": put("pre_tokenizer")(split_by(r"\p{L}*\p{L}*\d")),
    "200 steps": put("pre_tokenizer")(split_by(*[r"\p{L}+|\d"] * 200)),
    "no regex": put("pre_tokenizer")(split_by(r"[")),
    "vocabulary is a list": put("model", "vocab")([]),
    "id is a string": put("model", "vocab", "Q")("7"),
    "id is negative": put("model", "vocab", "Q")(-1),
    "id is huge": put("model", "vocab", "Q")(10**12),
    "id twice": put("model", "vocab", "Q")(300),
    "merge of nothing": put("model", "merges")([["a", "zzzz"]]),
    "merges": put("model", "merges")(3),
    "no merges": put("model", "merges")(None),
    "merges in an object": put("model", "merges")({"a b": 0}),
    "merge of one": put("model", "merges")([["a"]]),
    "merge of three": put("model", "merges")(["a b c"]),
    "merge of numbers": put("model", "merges")([[1, 2]]),
    "merge of half a character": put("model", "merges")([["\ud800", "b"]]),  # in many lines of the library
    "merge in an object": put("model", "merges")([{"a": 0, "b": 1}]),
    "ignore_merges": put("model", "ignore_merges")("yes"),
    "added tokens": put("added_tokens")(5),
    "added token": put("added_tokens")([{"id": 0}]),
    "added ids": put("added_tokens")([{"id": 10**9, "content": "[EOS]"}]),
    "added flag": put("added_tokens")([word("<a>", 600, lstrip="yes")]),
    "added nothing": put("added_tokens")([word("", 600)]),
    "added id twice": put("added_tokens")([word("<a>", 300)]),
    "added with another id": put("added_tokens")([word("Q", 600)]),
    "added twice in NFC": put("added_tokens")([word("가", 600), word("\u1100\u1161", 601)]),
    "text, then EOS": put("post_processor")(template(TEXT, EOS)),
    "text in a pair": put("post_processor")(template(TEXT, TEXT)),
    "empty template": put("post_processor")(template()),
    "long template": put("post_processor")(template(*[BOS] * 17, TEXT)),
    "unknown in a template": put("post_processor")(template({"SpecialToken": {"id": "[CLS]"}}, TEXT)),
    "id out of the vocabulary": put("post_processor")(
        template(BOS, TEXT) | {"special_tokens": {"[BOS]": {"ids": [512]}}}
    ),
    "BERT's template": put("post_processor")(
        {"type": "BertProcessing", "sep": ["[EOS]", 1], "cls": ["[BOS]", 0]}
    ),
    "post-processor": put("post_processor")(7),
}


@pytest.mark.parametrize("case", UNFIT)
def test_foreign_and_broken_tokenizers_are_refused(case: str, tiny_tokenizer: Path, tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="not a byte-level BPE tokenizer") as caught:
        Tokenizer.from_file(edited(tiny_tokenizer, tmp_path, UNFIT[case]))
    assert "\n" not in caught.value.en + caught.value.ko


@pytest.mark.parametrize(
    "content",
    [
        *(b"", b"{", b"[]", b"\xff", b'{"model": NaN}', b'{"a": 1, "a": 2}'),
        *(b"[" * 100_000, b'{"a":' * 100_000),
        b'{"a": ' + b"[" * 64 + b"]" * 64 + b"}",
    ],
)
def test_what_is_not_json_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "tokenizer.json"
    path.write_bytes(content)
    with pytest.raises(TokenizerError, match="JSON"):
        Tokenizer.from_file(path)


def test_a_missing_or_huge_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TokenizerError, match="is missing"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")
    with (tmp_path / "tokenizer.json").open("wb") as file:
        file.truncate(1 << 40)
    with pytest.raises(TokenizerError, match="1,099,511,627,776 bytes"):
        Tokenizer.from_file(tmp_path / "tokenizer.json")


@pytest.mark.parametrize(
    "regex",
    [
        r" ?[\p{L}\p{M}]+| ?\p{N}{1,2}| ?[^\s\p{L}\p{M}\p{N}]+|\r?\n|[^\S\r\n]+(?!\S)|\s+",
        r"(?i:'s|'t)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|\s*[\r\n]+|\s+(?!\S)|\s+",
        r"[\uac00-\ud7a3]+(?:은|는)?|\(\)+|[()*+]+",
    ],
)
def test_plain_patterns_are_accepted(regex: str, tiny_tokenizer: Path, tmp_path: Path) -> None:
    path = edited(tiny_tokenizer, tmp_path, put("pre_tokenizer")(split_by(regex)))
    tokenizer = Tokenizer.from_file(path)
    for text in (*PROSE, *HARD):
        assert tokenizer.decode(tokenizer.encode(text)) == nfc(text)


def test_a_panic_of_the_library_is_an_error_of_ours(
    tiny_tokenizer: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tokenizer = Tokenizer.from_file(tiny_tokenizer)
    panic = type("PanicException", (BaseException,), {})

    class Library:
        def encode(self, text: str, add_special_tokens: bool) -> None:
            raise panic("retry-limit-in-match over") if text else KeyboardInterrupt

    monkeypatch.setattr(tokenizer, "_library", Library())
    with pytest.raises(TokenizerError, match="gave up on a text"):
        tokenizer.encode("가")
    with pytest.raises(KeyboardInterrupt):
        tokenizer.encode("")


# ------------------------------------------------------------------------------------------ model and text


def test_the_vocabulary_must_fit_the_model(tokenizer: Tokenizer) -> None:
    tokenizer.check_fits(TINY)
    tokenizer.check_fits(replace(TINY, n_vocab=520))  # rows beyond the tokenizer's are padding
    with pytest.raises(TokenizerError, match="512 ids, the model's vocabulary 511"):
        tokenizer.check_fits(replace(TINY, n_vocab=511))
    with pytest.raises(TokenizerError, match="id 1, the model's 0"):
        tokenizer.check_fits(replace(TINY, eos_token_id=0))
    tokenizer.check_fits(replace(TINY, eos_token_id=0, further_eos_token_ids=(1,)))
