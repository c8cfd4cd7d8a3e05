"""Operations of a prefill, against a count layer by layer and torch's own."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from iwp_export.pruning.cost import PrefillCost

COSTS = st.builds(
    PrefillCost,
    layers=st.integers(1, 40),
    hidden=st.sampled_from([64, 1024]),
    inner=st.sampled_from([96, 2816]),
    query=st.sampled_from([64, 1024]),
    key_value=st.sampled_from([32, 256]),
    vocabulary=st.sampled_from([0, 48, 32000]),
    visual=st.integers(1, 700),
    text=st.integers(0, 99),
)


def test_by_hand():
    """Two layers, one of which prunes 4 of 6 visual tokens: projections of all 7 tokens, the rest of 3."""
    cost = PrefillCost(layers=2, hidden=10, inner=20, query=8, key_value=4, vocabulary=100, visual=6, text=1)
    head = 10 * 100
    pruning = 7 * 10 * (8 + 4 + 4) + 3 * 8 * 10 + 3 * 3 * 10 * 20 + 2 * 3 * 3 * 8
    whole = 7 * 10 * (8 + 4 + 4) + 7 * 8 * 10 + 7 * 3 * 10 * 20 + 2 * 7 * 7 * 8
    short = 3 * 10 * (8 + 4 + 4) + 3 * 8 * 10 + 3 * 3 * 10 * 20 + 2 * 3 * 3 * 8
    assert cost.operations(0, 2) == pruning + short + head
    assert cost.operations(1, 2) == whole + pruning + head
    assert cost.operations(0, 6) == cost.operations(1, 6) == 2 * whole + head


@given(COSTS, st.data())
def test_the_most_tokens_that_give_a_speedup(cost, data):
    layer = data.draw(st.integers(0, cost.layers - 1))
    speedup = data.draw(st.floats(1.0, 20.0))
    fitting = [kept for kept in range(1, cost.visual + 1) if cost.speedup(layer, kept) >= speedup]
    assert cost.kept_for(layer, speedup) == (max(fitting) if fitting else None)
    assert cost.speedup(layer, cost.visual) == 1


def test_no_image_gives_no_speedup():
    assert PrefillCost(2, 10, 20, 8, 4, 100, visual=0, text=5).kept_for(0, 1.5) is None


def test_the_benchmarks_model_is_a_configuration_like_any_other():
    pytest.importorskip("torch")
    pytest.importorskip("onnxruntime")
    from tests.benchmarks.cpu_model import TEXT_TOKENS, Shape

    shape = Shape()
    text = SimpleNamespace(
        num_hidden_layers=shape.layers,
        hidden_size=shape.hidden,
        intermediate_size=shape.inner,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.heads,
        vocab_size=shape.vocabulary,
    )
    assert PrefillCost.of(text, shape.visual, TEXT_TOKENS) == shape.cost


@pytest.mark.parametrize("decoder", ["llama", "mistral", "qwen2"])
def test_torch_counts_the_same(decoder):
    torch = pytest.importorskip("torch")
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoConfig, AutoModelForCausalLM

    from tests.exporter.tiny import DECODERS, TEXT

    values = {**TEXT, **DECODERS[decoder]}
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    model = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(input_ids=torch.ones(1, 90, dtype=torch.int64), logits_to_keep=1)
    cost = PrefillCost.of(config, visual=64, text=26)
    assert counter.get_total_flops() == 2 * cost.operations(1, 64)


def test_widths_of_a_configuration():
    text = SimpleNamespace(
        num_hidden_layers=2,
        hidden_size=64,
        intermediate_size=96,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=48,
        head_dim=32,
    )
    cost = PrefillCost.of(text, 10, 5)
    assert (cost.query, cost.key_value) == (128, 64)
    text.head_dim = None
    assert (PrefillCost.of(text, 10, 5).query, PrefillCost.of(text, 10, 5).key_value) == (64, 32)
