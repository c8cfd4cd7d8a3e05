"""tiny-llava: a small LLaVA trained on a visual task in which single image regions matter."""

from pathlib import Path

HELDOUT = Path(__file__).parent / "heldout" / "questions.jsonl"
"""The fixed held-out questions, which `make_questions` draws; `iwp_export.questions` reads them."""
