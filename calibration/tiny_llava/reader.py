"""Stage 3: the language model learns to answer, reading the image late."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.nn import functional
from transformers import LlamaModel, LlavaForConditionalGeneration

from calibration.tiny_llava.batches import Batch
from calibration.tiny_llava.checkpoint import HEAD_SIZE, NUM_LAYERS, NUM_VISUAL, PROMPT_HEAD, WIDTH
from calibration.tiny_llava.vocabulary import ASSISTANT, EOS, QUESTION_LENGTH, USER, WORD_ID

IMAGE_START = len(PROMPT_HEAD)
TEXT_START = IMAGE_START + NUM_VISUAL
# The end of a turn is easy: it must be learnt but not compete with the answers.
_EOS_WEIGHT = 0.1
_EMBEDDING_STD = 0.5
_RESIDUAL_STD = 0.02


@dataclass(frozen=True)
class Layout:
    """How several questions about one image share a sequence.

    Attributes:
        name: "separate" questions do not see each other and take the same positions; in a "conversation" they are the
            turns of one chat, as the chat template writes it.
        turn_length: tokens of one turn.
        positions: [1, length].
        causal: what each token may attend to, [1, 1, length, length] (bool).
        blind: the same, but text does not see the image.
        asking: where the assistant's word stands, whose output is the answer, [questions].
    """

    name: str
    turn_length: int
    positions: torch.Tensor
    causal: torch.Tensor
    blind: torch.Tensor
    asking: torch.Tensor


def build_layout(name: str, questions: int, device: str = "cpu") -> Layout:
    """Masks and positions for `questions` questions; `name` as in `Layout`."""
    separate = name == "separate"
    # Question, "assistant", answer; in a conversation also <eos> and "user".
    turn_length = QUESTION_LENGTH + (2 if separate else 4)
    text = torch.arange(questions * turn_length)
    length = TEXT_START + len(text)
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    if separate:
        block = torch.cat([torch.zeros(TEXT_START, dtype=torch.long), 1 + text // turn_length])
        causal &= (block[:, None] == block) | (block == 0)
    blind = causal.clone()
    blind[TEXT_START:, IMAGE_START:TEXT_START] = False
    positions = torch.cat([torch.arange(TEXT_START), TEXT_START + (text % turn_length if separate else text)])
    asking = TEXT_START + QUESTION_LENGTH + turn_length * torch.arange(questions)
    tensors = (positions[None], causal[None, None], blind[None, None], asking)
    return Layout(name, turn_length, *(tensor.to(device) for tensor in tensors))


def turn_tokens(layout: Layout, questions: torch.Tensor, answers: torch.Tensor) -> torch.Tensor:
    """Token numbers of the text, [B, Q * turn_length], from questions [B, Q, 6] and answers [B, Q]."""
    parts = [questions, torch.full_like(answers, WORD_ID[ASSISTANT])[..., None], answers[..., None]]
    if layout.name == "conversation":
        parts += [torch.full_like(answers, WORD_ID[word])[..., None] for word in (EOS, USER)]
    return torch.cat(parts, dim=-1).flatten(1)


def run_layers(
    decoder: LlamaModel, embeddings: torch.Tensor, positions: torch.Tensor, masks: Sequence[torch.Tensor]
) -> torch.Tensor:
    """The decoder with an attention mask of its own in each layer.

    Args:
        decoder: the language model without its head.
        embeddings: [B, length, 128].
        positions: [1, length].
        masks: one for each layer, [1 or B, 1, length, length] (bool, True = may attend).

    Returns:
        Normalised hidden states [B, length, 128].
    """
    rotary = decoder.rotary_emb(embeddings, positions)
    hidden = embeddings
    for layer, mask in zip(decoder.layers, masks, strict=True):
        hidden = layer(hidden, attention_mask=mask, position_embeddings=rotary)
    return decoder.norm(hidden)


def embed_prompt(model: LlavaForConditionalGeneration, features: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
    """Embeddings of <bos>, "user", the image and the text, [B, length, 128].

    Args:
        model: whose embeddings and projector to use.
        features: the tower's, [B, 64, 128].
        text: token numbers [B, any].
    """
    embed = model.model.language_model.embed_tokens
    head = embed(torch.tensor(PROMPT_HEAD, device=text.device)).expand(len(text), -1, -1)
    return torch.cat([head, model.model.multi_modal_projector(features), embed(text)], dim=1)


def reading_loss(
    model: LlavaForConditionalGeneration, features: torch.Tensor, batch: Batch, layout: Layout, first_layer: int
) -> torch.Tensor:
    """Cross-entropy of the answers (and, weighted little, of the <eos> after each).

    Args:
        model: the model in training.
        features: the tower's, [B, 64, 128].
        batch: its questions and answers.
        layout: how the questions share the sequence.
        first_layer: the first decoder layer in which text may attend to the image.
    """
    masks = [layout.blind if layer < first_layer else layout.causal for layer in range(NUM_LAYERS)]
    text = turn_tokens(layout, batch.questions, batch.answers)
    hidden = run_layers(model.model.language_model, embed_prompt(model, features, text), layout.positions, masks)
    answer = model.lm_head(hidden[:, layout.asking]).flatten(0, 1)
    end = model.lm_head(hidden[:, layout.asking + 1]).flatten(0, 1)
    eos = torch.full((len(end),), WORD_ID[EOS], device=end.device)
    return functional.cross_entropy(answer, batch.answers.flatten()) + _EOS_WEIGHT * functional.cross_entropy(end, eos)


def initialise_reader(model: LlavaForConditionalGeneration) -> None:
    """Gives projector and language model the start from which attention to single patches is learnt fast.

    Embeddings are large enough to tell words apart, each query projection starts as a copy of its key projection (so
    that tokens attend to similar ones), and the layers' outputs start small.
    """
    with torch.no_grad():
        decoder = model.model.language_model
        for name, weight in decoder.named_parameters():
            if weight.dim() == 2:
                residual = "o_proj" in name or "down_proj" in name
                std = _EMBEDDING_STD if "embed" in name else _RESIDUAL_STD if residual else WIDTH**-0.5
                nn.init.normal_(weight, std=std)
        for layer in decoder.layers:
            attention = layer.self_attn
            keys = attention.k_proj.weight.view(-1, HEAD_SIZE, WIDTH)
            group = attention.q_proj.weight.shape[0] // attention.k_proj.weight.shape[0]
            attention.q_proj.weight.copy_(keys.repeat_interleave(group, dim=0).flatten(0, 1))
        nn.init.normal_(model.lm_head.weight, std=_RESIDUAL_STD)
        for weight in model.model.multi_modal_projector.parameters():
            if weight.dim() == 2:
                nn.init.normal_(weight, std=WIDTH**-0.5)
            else:
                nn.init.zeros_(weight)
