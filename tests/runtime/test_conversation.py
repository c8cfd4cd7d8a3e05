"""Conversations over the toy session: what is run, what is reused, at which positions."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from iwp_export.backends.session import CallLimits
from iwp_export.errors import BackendError, RequestError
from iwp_export.runtime.pipeline import IMAGES_REMEMBERED
from tests.runtime.toy import ToyCache, next_token, toy_picture, toy_pipeline

IMAGE, OTHER = np.random.default_rng(2).integers(0, 256, (2, 60, 90, 3), np.uint8)
EOS, RED, TWO = 3, 33, 32


def words(*ids: int) -> list[int]:
    return list(ids)


def test_only_new_tokens_are_run_and_the_whole_conversation_is_in_the_cache() -> None:
    pipeline, session = toy_pipeline(keep=0.25)
    chat = pipeline.chat()
    first = chat.ask("what colour ?", IMAGE, max_new_tokens=3)
    assert (first.prompt_tokens, first.reused_tokens, first.visual_tokens, first.visual_tokens_kept) == (70, 0, 64, 16)
    assert first.kept == [list(range(16))]
    second = chat.ask("how many ?", max_new_tokens=3)
    # The first answer's last token was chosen but not run, so it is among the second turn's new tokens.
    assert second.reused_tokens == 72 and not second.note
    assert second.prompt_tokens == 72 + session.calls[3].input_ids.size
    assert session.calls[3].input_ids[0, 0] == first.token_ids[-1]
    assert session.calls[3].input_ids[0, 1] == EOS  # the template writes it after an answer
    third = chat.ask("what digit ?", OTHER, max_new_tokens=3)
    assert (
        third.visual_tokens == 64
        and third.kept == [list(range(16))]
        and third.reused_tokens == second.prompt_tokens + 2
    )
    ids = [token for call in session.calls for token in call.input_ids[0]]
    text = pipeline.processor.render(chat.messages[:-1])
    rendered = pipeline.processor.token_ids(text, [pipeline.processor.image(IMAGE), pipeline.processor.image(OTHER)])
    assert ids == [*rendered, *third.token_ids[:-1]]
    positions = [place for call in session.calls for place in call.position_ids[0]]
    assert positions == list(range(len(ids)))


def test_reused_cache_answers_as_a_fresh_reading_does_when_nothing_is_pruned() -> None:
    pipeline, _ = toy_pipeline()
    chat = pipeline.chat(keep=1)
    chat.ask("what colour ?", IMAGE, max_new_tokens=4)
    answer = chat.ask("how many ?", OTHER, max_new_tokens=4)
    fresh = pipeline.chat(keep=1)
    fresh._messages, fresh._pictures = chat.messages[:2], list(chat._pictures[:1])
    again = fresh.ask("how many ?", OTHER, max_new_tokens=4)
    assert again.reused_tokens == 0 and answer.reused_tokens > 0
    assert again.token_ids == answer.token_ids


def test_cache_lengths_per_layer_and_bytes() -> None:
    pipeline, _ = toy_pipeline(keep=0.25)
    chat = pipeline.chat()
    result = chat.ask("what colour ?", IMAGE, max_new_tokens=3)
    cache = chat._context.cache
    assert isinstance(cache, ToyCache)
    assert cache.lengths == (72, 72 - 48)
    assert result.cache_bytes == (72 + 24) * 2 * 3 * 4
    assert result.cache_bytes_unpruned == 2 * 72 * 2 * 3 * 4


def test_an_answer_ends_at_the_end_token_at_the_limit_or_where_the_model_ends() -> None:
    pipeline, session = toy_pipeline()
    session.answers = words(RED, TWO, EOS)
    result = pipeline(IMAGE, "what ?", max_new_tokens=9)
    assert (result.token_ids, result.finish_reason) == ([RED, TWO, EOS], "stop")
    assert result.text == pipeline.processor.decode([RED, TWO])
    assert pipeline(IMAGE, "what ?", max_new_tokens=1).finish_reason == "length"
    short, _ = toy_pipeline(max_positions=71)
    result = short(IMAGE, "what ?", max_new_tokens=9)  # 69 tokens of prompt; the last generated one has no position
    assert (result.finish_reason, len(result.token_ids)) == ("context", 3)


def test_too_long_a_prompt() -> None:
    pipeline, session = toy_pipeline(max_positions=68)
    with pytest.raises(RequestError, match="position 69 with 64 new visual tokens, the model takes 68"):
        pipeline(IMAGE, "what ?")
    assert not session.calls


def test_an_end_token_that_was_generated_is_not_doubled() -> None:
    pipeline, session = toy_pipeline()
    chat = pipeline.chat()
    session.answers = words(RED, EOS)
    chat.ask("what ?", IMAGE)
    session.answers = words(TWO, EOS)
    result = chat.ask("how many ?")
    assert not result.note
    ids = [token for call in session.calls for token in call.input_ids[0]]
    assert ids.count(EOS) == 1 and ids[ids.index(RED) + 1] == EOS


def test_an_answer_that_is_rendered_otherwise_is_run_again() -> None:
    pipeline, session = toy_pipeline()
    chat = pipeline.chat()
    session.answers = words(RED, 1, TWO, EOS)  # <unk> has no text
    chat.ask("what ?", IMAGE)
    result = chat.ask("how many ?", max_new_tokens=2)
    assert "run again" in result.note and result.reused_tokens == 0
    assert result.visual_tokens == 64 and session.encoded == 1  # the image's features were still there
    assert not chat.ask("which digit ?", max_new_tokens=2).note


QUESTIONS = (("what colour ?", IMAGE), ("how many ?", None), ("which digit ?", OTHER), ("what ?", None))


@pytest.mark.parametrize("tokens", [512, 100, 80])
def test_a_conversation_is_run_again_turn_by_turn_where_a_call_takes_one_image(tokens: int) -> None:
    pipeline, session = toy_pipeline(keep=0.25)
    chat, broken = pipeline.chat(), pipeline.chat()
    first = [chat.ask(prompt, image, max_new_tokens=7) for prompt, image in QUESTIONS]
    for prompt, image in QUESTIONS[:3]:
        broken.ask(prompt, image, max_new_tokens=7)
    left = broken.stream("how many ?")
    next(left)
    left.close()
    session.call_limits = CallLimits(tokens, 64)
    session.calls.clear()
    result = broken.ask(*QUESTIONS[3], max_new_tokens=7)
    assert "differs" in result.note and result.note.endswith(", turn by turn")
    assert (result.token_ids, result.reused_tokens) == (first[3].token_ids, 0)  # which depend on all that was kept
    assert result.prompt_tokens == first[3].prompt_tokens
    assert result.kept == [*first[0].kept, *first[2].kept] and result.visual_tokens == 128
    assert [picture.digest for picture in result.pictures] == [first[i].pictures[0].digest for i in (0, 2)]
    prompts = [call for call in session.calls if call.input_ids.size > 1]
    assert [int((call.feature_index >= 0).sum()) for call in prompts] == [64, *[0] * (tokens == 80), 64, 0]
    assert np.concatenate([call.position_ids[0] for call in prompts]).tolist() == list(range(result.prompt_tokens))
    assert not broken.ask("what colour ?", max_new_tokens=2).note


def test_a_conversation_without_images_is_run_again_in_pieces() -> None:
    pipeline, session = toy_pipeline()
    chat, broken = pipeline.chat(), pipeline.chat()
    for each in (chat, broken):
        each.ask("what colour ?", max_new_tokens=60)
    broken._context.intact = False
    session.call_limits = CallLimits(30, 64)
    session.calls.clear()
    result, expected = (each.ask("how many ?", max_new_tokens=4) for each in (broken, chat))
    assert "interrupted" in result.note and result.token_ids == expected.token_ids
    assert [call.input_ids.size for call in session.calls[:3]] == [30, 30, result.prompt_tokens - 60]


def test_a_failure_while_it_is_run_again_does_not_spoil_the_conversation(monkeypatch: pytest.MonkeyPatch) -> None:
    pipeline, session = toy_pipeline(keep=0.25)
    chat, broken = pipeline.chat(), pipeline.chat()
    for each in (chat, broken):
        each.ask("what colour ?", IMAGE, max_new_tokens=4)
        each.ask("which digit ?", OTHER, max_new_tokens=4)
    broken._context.intact = False
    session.call_limits = CallLimits(512, 64)
    step, done = session.step, len(session.calls)

    def fail_in_the_second_call(*call: Any) -> Any:
        session.fail = len(session.calls) > done
        return step(*call)

    with monkeypatch.context() as patch, pytest.raises(BackendError):
        patch.setattr(session, "step", fail_in_the_second_call)
        broken.ask("how many ?")
    session.fail = False
    result, expected = (each.ask("how many ?", max_new_tokens=4) for each in (broken, chat))
    assert "interrupted" in result.note and result.token_ids == expected.token_ids


def test_a_turn_of_too_many_images_is_refused_as_ever() -> None:
    pipeline, session = toy_pipeline()
    session.call_limits = CallLimits(512, 64)
    with pytest.raises(RequestError, match="beyond the toy's limits"):
        pipeline([IMAGE, OTHER], "what ?")


def test_a_stream_that_is_left_early_leaves_no_turn() -> None:
    pipeline, _ = toy_pipeline()
    chat = pipeline.chat()
    stream = chat.stream("what ?", IMAGE)
    next(stream)
    with pytest.raises(RequestError, match="not complete"):
        _ = stream.result
    stream.close()
    assert chat.messages == []
    # Same tokens, another image: the cache must not be taken for it.
    result = chat.ask("what ?", OTHER, max_new_tokens=4)
    assert result.note and result.token_ids == pipeline(OTHER, "what ?", max_new_tokens=4).token_ids


def test_another_image_in_the_place_of_a_cached_one_is_noticed() -> None:
    pipeline, _ = toy_pipeline()
    chat = pipeline.chat()
    next(chat.stream("what ?", IMAGE))
    longer = "what ? assistant red"  # begins with all the tokens that the cache holds
    result = chat.ask(longer, OTHER, max_new_tokens=4)
    assert "differs" in result.note and result.token_ids == pipeline(OTHER, longer, max_new_tokens=4).token_ids


def test_an_overtaken_stream_is_an_error() -> None:
    pipeline, _ = toy_pipeline()
    chat = pipeline.chat()
    stream = chat.stream("what ?", IMAGE)
    next(stream)
    answer = chat.ask("how many ?", max_new_tokens=3)
    with pytest.raises(RequestError, match="overtaken"):
        list(stream)
    assert answer.token_ids == pipeline(None, "how many ?", max_new_tokens=3).token_ids
    assert len(chat.messages) == 2


def test_a_failed_call_does_not_spoil_the_conversation() -> None:
    pipeline, session = toy_pipeline()
    chat = pipeline.chat()
    chat.ask("what ?", IMAGE, max_new_tokens=2)
    session.fail = True
    with pytest.raises(BackendError):
        chat.ask("how many ?")
    session.fail = False
    result = chat.ask("how many ?", max_new_tokens=2)
    assert "interrupted" in result.note and len(chat.messages) == 4


def test_pieces_are_the_text() -> None:
    pipeline, _ = toy_pipeline()
    stream = pipeline.stream(IMAGE, "what ?", max_new_tokens=6)
    pieces = list(stream)
    assert len(pieces) > 3 and "".join(pieces) == stream.result.text
    heard: list[str] = []
    result = pipeline(IMAGE, "what ?", max_new_tokens=6, on_token=heard.append)
    assert heard == pieces and result.text == stream.result.text
    assert result.timing.decode_tokens == 5 and result.timing.tokens_per_second > 0
    assert result.timing.time_to_first_token > 0


def test_features_are_computed_once_per_image_and_forgotten_in_order() -> None:
    pipeline, session = toy_pipeline()
    pipeline([IMAGE, OTHER, IMAGE], "what ?", max_new_tokens=1)
    pipeline(OTHER, "how many ?", max_new_tokens=1)
    assert session.encoded == 2
    for shade in range(IMAGES_REMEMBERED):
        pipeline(np.full((8, 8, 3), 20 * shade, np.uint8), "what ?", max_new_tokens=1)
    pipeline(OTHER, "what ?", max_new_tokens=1)
    assert session.encoded == 2 + IMAGES_REMEMBERED + 1


def test_images_keep_their_order() -> None:
    pipeline, session = toy_pipeline()
    result = pipeline([IMAGE, OTHER], "what ?", max_new_tokens=1, keep=1)
    swapped = pipeline([OTHER, IMAGE], "what ?", max_new_tokens=1, keep=1)
    assert [p.digest for p in result.pictures] == [p.digest for p in swapped.pictures][::-1]
    half = pipeline([IMAGE, OTHER], "what ?", max_new_tokens=1, keep=0.75)
    assert [len(kept) for kept in half.kept] == [64, 32]  # one pool; the toy keeps the first ones
    assert session.calls[-1].feature_index.max() == 127


def test_text_alone() -> None:
    pipeline, session = toy_pipeline()
    result = pipeline(None, "what colour ?", max_new_tokens=2)
    assert (result.visual_tokens, result.kept, result.pictures, session.encoded) == (0, [], (), 0)
    assert result.timing.vision == 0


def test_generate_ids() -> None:
    pipeline, session = toy_pipeline()
    picture = pipeline.processor.image(IMAGE)
    ids = np.array([[2, 5, *[4] * 64, 9, 6]])
    result = pipeline.generate_ids(ids, [picture], max_new_tokens=3, keep=1, return_logits=True)
    assert result.logits is not None and [int(step.argmax()) for step in result.logits] == result.token_ids
    keys = np.stack([ids[0]] * 3, 1).astype(np.float32)
    keys[2:66] = np.rint(picture.inputs["pixel_values"].reshape(3, 8, 14, 8, 14).mean((2, 4)) * 4).reshape(3, 64).T
    assert result.token_ids[0] == next_token(keys, 67)
    forced = iter([RED, EOS, TWO])
    result = pipeline.generate_ids([2, 5], max_new_tokens=3, choose=lambda logits: next(forced), stop_at_eos=False)
    assert result.token_ids == [RED, EOS, TWO] and result.logits is None
    assert session.calls[-1].input_ids.tolist() == [[EOS]]


@pytest.mark.parametrize(
    ("ids", "pixels", "message"),
    [
        ([2, 4, 4, 6], None, "2 visual tokens, 0 image"),
        ([2, 6], np.zeros((3, 112, 112)), "0 visual tokens"),
        ([2, 6], np.zeros((112, 112)), r"pixel_values have shape \[1, 112, 112\], the model takes \[1, 3, 112, 112\]"),
        ([2, 6], np.zeros((3, 56, 56)), "pixel_values have shape"),
        ([2, 6], np.full((3, 112, 112), np.nan), "not finite"),
        ([2, 48], None, "token ids must be within 0 and 47"),
        ([-1], None, "token ids must be within"),
        ([[2, 6], [2, 7]], None, r"whole numbers \[S\] or \[1, S\], got int64 \[2, 2\]"),
        ([[2, 6], [2]], None, "list of whole numbers"),
        ([2.5, 6], None, "whole numbers"),
        ([], None, "empty"),
    ],
)
def test_generate_ids_refuses(ids: Any, pixels: Any, message: str) -> None:
    pipeline, _ = toy_pipeline()
    with pytest.raises(RequestError, match=message):
        pipeline.generate_ids(ids, [] if pixels is None else [toy_picture(pixels)])


@pytest.mark.parametrize(
    "options",
    [{"max_new_tokens": 0}, {"max_new_tokens": 1.5}, {"temperature": -1}, {"top_k": 3}, {"keep": 0}, {"keep": 2}],
)
def test_bad_requests(options: dict[str, Any]) -> None:
    pipeline, session = toy_pipeline()
    with pytest.raises(RequestError):
        pipeline(IMAGE, "what ?", **options)
    with pytest.raises(RequestError, match="a prompt is a text"):
        pipeline(IMAGE, None)  # type: ignore[arg-type]
    assert not session.calls


def test_drawing_of_a_result() -> None:
    pipeline, _ = toy_pipeline()
    result = pipeline(IMAGE, "what ?", max_new_tokens=1)
    assert pipeline.draw_kept(result).size == (768, 768)
    with pytest.raises(RequestError, match="1 picture"):
        pipeline.draw_kept(result, 1)
