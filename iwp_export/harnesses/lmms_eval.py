"""Entry point of lmms-eval 0.7 and later (group `lmms_eval.models`): any bundle or engine as its model `iwp_export`."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from lmms_eval.models.registry_v2 import ModelManifest

NAME = "iwp_export"
CLASS = "iwp_export.harnesses.lmms_eval_model.IwpExport"


def manifest() -> ModelManifest:
    """What lmms-eval registers. It calls this while it is being imported, so the model's class is only named here."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(NAME, chat_class_path=CLASS, aliases=("iwp-export",))
