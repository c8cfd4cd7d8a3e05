"""Pieces of text from tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from iwp_export.errors import RequestError
from iwp_export.runtime.processor import user_message
from iwp_export.runtime.result import Detokenizer

TEXT = "Größe: 3 €, 日本語 und 🤖🦾! Naïve café.\n\nNext line,  two spaces"


def bytes_decoder(ids: list[int]) -> str:
    return bytes(ids).decode(errors="replace")


def pieces(decode: Callable[[list[int]], str], ids: list[int]) -> list[str]:
    detokenizer = Detokenizer(decode)
    out = [detokenizer.add(token) for token in ids] + [detokenizer.finish()]
    assert "".join(out) == detokenizer.text
    return out


def test_only_complete_characters_come_out() -> None:
    out = pieces(bytes_decoder, list(TEXT.encode()))
    assert "".join(out) == TEXT
    assert all("\ufffd" not in piece for piece in out)
    assert " 🤖" in out  # the space waited for it


@pytest.mark.parametrize("kind", ["byte_level", "sentencepiece"])
def test_equals_decoding_at_once(kind: str) -> None:
    if kind == "byte_level":
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
        tokenizer.decoder = decoders.ByteLevel()
        trainer = trainers.BpeTrainer(vocab_size=300, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
        tokenizer.train_from_iterator([TEXT], trainer)
    else:  # a Llama tokenizer: words begin with a mark, unknown characters fall back to bytes
        marks = ["▁", "▁Gr", "öße", ":", "▁und", "!", "▁Na", "ïve", "▁ca", "fé", ".", "N", "e", "x", "t", "3", ","]
        names = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), *marks]
        vocab = {name: index for index, name in enumerate(names)}
        tokenizer = Tokenizer(models.BPE(vocab, [], unk_token="<unk>", byte_fallback=True))
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    ids = tokenizer.encode(TEXT).ids
    assert len(ids) > 20
    assert "".join(pieces(tokenizer.decode, ids)) == tokenizer.decode(ids) == TEXT


def test_space_around_the_text_is_dropped_and_within_kept() -> None:
    out = pieces(bytes_decoder, list(b"  \n two  words \n"))
    assert "".join(out) == "two  words"
    assert pieces(bytes_decoder, list(b"  ")) == ["", "", ""]


def test_an_unfinished_character_is_marked_at_the_end() -> None:
    assert "".join(pieces(bytes_decoder, list("a€".encode()[:-1]))) == "a\ufffd"


def test_tokens_without_text_are_silent() -> None:
    assert pieces(lambda ids: "".join("" if i == 0 else chr(i) for i in ids), [0, 65, 0, 0, 66]) == [
        "",
        "A",
        "",
        "",
        "B",
        "",
    ]


def test_prompts_that_no_tokenizer_takes() -> None:
    user_message("größer 🤖", 0)
    with pytest.raises(RequestError, match="not valid UTF-8 at character 5"):
        user_message(b"what \xff ?".decode(errors="surrogateescape"), 0)
    with pytest.raises(RequestError, match="a prompt is a text, got bytes"):
        user_message(b"what ?", 0)  # type: ignore[arg-type]
