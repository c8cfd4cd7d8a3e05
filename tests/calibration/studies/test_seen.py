"""What methods see is what transformers computes, and a condensed prompt is a shorter prompt."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from calibration.studies.rivals import class_attention, last_attention
from calibration.studies.seen import Condensed, Method, RivalSession, Seen
from iwp_export.backends.torch.session import TorchFeatures, TorchSession
from iwp_export.errors import SettingsError
from iwp_export.models.llava import FAMILY
from iwp_export.pruning.settings import PruningSettings
from iwp_export.runtime.generate import build_decode, build_prompt
from tests.exporter.tiny import write_llava

IDS = np.array([2, 5, *[4] * 64, 9, 7, 12])
SETTINGS = PruningSettings(layer=1, keep=0.2)
POSITIONS = np.arange(len(IDS))[None]
TOLERANCE = 1e-4


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> Any:
    model = write_llava(tmp_path_factory.mktemp("model"))
    model.set_attn_implementation("eager")
    return model


PIXELS = np.random.default_rng(3).standard_normal((1, 3, 112, 112)).astype(np.float32)
PROMPT = build_prompt(IDS, IDS == 4, POSITIONS, SETTINGS, None)


def rival(model: Any, **method: Any) -> RivalSession:
    return RivalSession(TorchSession(model, FAMILY, SETTINGS), Method(SETTINGS, **method))


def test_layers_and_tower_are_transformers_own(llava: Any) -> None:
    views: list[Seen] = []

    def record(seen: Seen, count: int) -> torch.Tensor:
        views.append(seen)
        return torch.arange(count)

    session = rival(llava, choose=record)
    session.step(PROMPT, [session.encode({"pixel_values": PIXELS})], session.new_cache())
    (seen,) = views
    with torch.no_grad():
        outputs = llava(
            input_ids=torch.from_numpy(IDS)[None],
            pixel_values=torch.from_numpy(PIXELS),
            output_attentions=True,
            output_hidden_states=True,
        )
        tower = llava.model.vision_tower(torch.from_numpy(PIXELS), output_attentions=True)
    assert seen.below is not None
    assert seen.at is not None
    torch.testing.assert_close(seen.at.hidden, outputs.hidden_states[1], atol=TOLERANCE, rtol=0)
    expected = outputs.attentions[0][0, :, -1].mean(dim=0)
    torch.testing.assert_close(last_attention(seen.below), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(seen.words, llava.get_input_embeddings()(torch.tensor([9, 7, 12])))
    (looked,) = seen.towers()  # vision_feature_layer is -2: the layer before the last made the features
    expected = tower.attentions[-2][0, :, 0, 1:].sum(dim=0)
    torch.testing.assert_close(class_attention(looked), expected, atol=TOLERANCE, rtol=0)
    torch.testing.assert_close(looked.project(looked.hidden[1:]), seen.features, atol=TOLERANCE, rtol=0)


def test_a_condensed_prompt_is_a_shorter_prompt(llava: Any) -> None:
    """Prompt and two more tokens: logits of transformers on the embeddings of the same, shorter prompt."""
    rows = torch.tensor([3, 20, 41])

    def condense(seen: Seen, count: int) -> Condensed:
        assert count == SETTINGS.num_keep(64)
        return Condensed(2 * seen.features[rows], rows)

    session = rival(llava, condense=condense)
    cache, features = session.new_cache(), session.encode({"pixel_values": PIXELS})
    assert isinstance(features, TorchFeatures)
    output = session.step(PROMPT, [features], cache)
    assert output.kept_index.tolist() == [0, 1, 5, 22, 43, 66, 67, 68]
    assert set(cache.lengths) == {8}
    steps = [output, *(session.step(build_decode(8, POSITIONS[:, -1:] + n), [], cache) for n in (1, 2))]
    words = llava.get_input_embeddings()
    with torch.no_grad():
        image = 2 * features.values[rows]
        text = words(torch.from_numpy(IDS))
        embeds = torch.cat([text[:2], image, text[66:], words(torch.tensor([8, 8]))])[None]
        expected = llava.lm_head(llava.model.language_model(inputs_embeds=embeds).last_hidden_state)[0, -3:]
    np.testing.assert_allclose(np.stack([step.logits for step in steps]), expected.numpy(), atol=TOLERANCE)


def test_nothing_is_condensed_at_keep_1(llava: Any) -> None:
    session = rival(llava, condense=lambda seen, count: pytest.fail("condensed"))
    cache, prompt = session.new_cache(), build_prompt(IDS, IDS == 4, POSITIONS, SETTINGS, 1.0)
    session.step(prompt, [session.encode({"pixel_values": PIXELS})], cache)
    assert set(cache.lengths) == {len(IDS)}


def test_two_images_are_not_condensed(llava: Any) -> None:
    session = rival(llava, condense=lambda seen, count: pytest.fail("condensed"))
    image = session.encode({"pixel_values": PIXELS})
    ids = np.array([2, *[4] * 128, 9])
    prompt = build_prompt(ids, ids == 4, np.arange(len(ids))[None], SETTINGS, None)
    with pytest.raises(SettingsError, match="take one image a call, got 2"):
        session.step(prompt, [image, image], session.new_cache())
