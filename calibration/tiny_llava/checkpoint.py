"""tiny-llava's configuration, processor and checkpoint folder."""

from pathlib import Path

import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessor,
    CLIPVisionConfig,
    GenerationConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from calibration.tiny_llava.vocabulary import ASSISTANT, BOS, EOS, IMAGE, PAD, UNK, USER, WORD_ID, WORDS

IMAGE_SIZE = 112
PATCH_SIZE = 14
GRID = IMAGE_SIZE // PATCH_SIZE
NUM_VISUAL = GRID * GRID
WIDTH = 128
NUM_LAYERS = 8
HEAD_SIZE = 32
# Room for a few turns: a first turn takes 76 positions and each further one 10.
MAX_POSITIONS = 256
PROMPT_HEAD = (WORD_ID[BOS], WORD_ID[USER])
"""Token numbers before the image in every prompt that the chat template writes."""

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ message['role'] }} "
    "{% if message['content'] is string %}{{ message['content'] }}"
    "{% else %}"
    # As LLaVA-1.5's own template does: a message's images come before its text.
    "{% for part in message['content'] if part['type'] == 'image' %}<image> {% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}"
    "{% endif %}"
    f"{{% if message['role'] == '{ASSISTANT}' %}} {EOS}{{% endif %}} "
    "{% endfor %}"
    f"{{% if add_generation_prompt %}}{ASSISTANT}{{% endif %}}"
)


def build_config() -> LlavaConfig:
    """The model's configuration: 64 visual tokens, 8 decoder layers of width 128."""
    vision = CLIPVisionConfig(
        hidden_size=WIDTH,
        intermediate_size=3 * WIDTH,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=IMAGE_SIZE,
        patch_size=PATCH_SIZE,
        projection_dim=WIDTH,
        hidden_act="gelu",
    )
    text = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=2 * WIDTH,
        num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=HEAD_SIZE,
        max_position_embeddings=MAX_POSITIONS,
        bos_token_id=WORD_ID[BOS],
        eos_token_id=WORD_ID[EOS],
        pad_token_id=WORD_ID[PAD],
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=WORD_ID[IMAGE],
        vision_feature_layer=-1,
        vision_feature_select_strategy="default",
        image_seq_length=NUM_VISUAL,
        tie_word_embeddings=False,
    )


def build_processor() -> LlavaProcessor:
    """Tokenizer (one word, one token), image processor and chat template as one processor."""
    backend = Tokenizer(models.WordLevel(WORD_ID, unk_token=UNK))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.Whitespace()
    backend.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A $B", special_tokens=[(BOS, WORD_ID[BOS])]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        unk_token=UNK,
        additional_special_tokens=[IMAGE],
        padding_side="left",
        model_max_length=MAX_POSITIONS,
    )
    image_processor = CLIPImageProcessor(
        do_resize=True,
        size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        do_center_crop=False,
        crop_size={"height": IMAGE_SIZE, "width": IMAGE_SIZE},
        image_mean=[0.5, 0.5, 0.5],
        image_std=[0.5, 0.5, 0.5],
    )
    return LlavaProcessor(
        image_processor,
        tokenizer,
        patch_size=PATCH_SIZE,
        vision_feature_select_strategy="default",
        chat_template=CHAT_TEMPLATE,
        image_token=IMAGE,
        num_additional_image_tokens=1,
    )


def build_model() -> LlavaForConditionalGeneration:
    """A model with transformers' random weights."""
    return LlavaForConditionalGeneration(build_config())


def save_checkpoint(model: LlavaForConditionalGeneration, folder: Path) -> None:
    """Writes `model` rounded to float16, its configurations and its processor to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    state = {name: tensor.detach().to("cpu", torch.float16) for name, tensor in model.state_dict().items()}
    half = LlavaForConditionalGeneration(build_config()).to(torch.float16)
    half.load_state_dict(state)
    half.config.dtype = torch.float16
    half.generation_config = GenerationConfig(
        bos_token_id=WORD_ID[BOS],
        eos_token_id=WORD_ID[EOS],
        pad_token_id=WORD_ID[PAD],
        do_sample=False,
        max_new_tokens=4,
    )
    half.save_pretrained(folder)
    build_processor().save_pretrained(folder)
    for path in folder.iterdir():
        path.chmod(0o644)  # safetensors writes its file for the owner alone
