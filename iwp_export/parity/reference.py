"""What an artefact is compared with: the interface, and another artefact in its place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from iwp_export.backends.session import Ints
from iwp_export.parity.identity import Identity
from iwp_export.parity.observation import Look, Observation, observe
from iwp_export.parity.sample import Sample, read_prompt
from iwp_export.runtime.pipeline import Pipeline


class ParityReference(Protocol):
    """What is right."""

    @property
    def name(self) -> str:
        """What to call it in a report."""

    @property
    def identity(self) -> Identity:
        """Of which checkpoint it is, and how it prunes."""

    @property
    def dtype(self) -> str:
        """Element type in which it computes."""

    @property
    def samples(self) -> Sequence[Sample] | None:
        """The only samples that it knows; None if it can be asked any."""

    @property
    def keeps(self) -> Sequence[float] | None:
        """The only keep ratios that it knows; None if it can be asked any."""

    @property
    def new_tokens(self) -> int | None:
        """The most tokens of an answer that it knows; None if it can be asked for any number."""

    @property
    def no_hidden_states(self) -> str:
        """Why it has no states between layers; empty if it has."""

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        """Its answer, as many tokens as asked, and what it was made of.

        Raises:
            RequestError: the sample cannot be asked.
            BackendError: the backend failed.
            RecordingError: a recording does not have it.
        """

    def observe_choosing(
        self, sample: Sample, keep: float, forced: Sequence[int], kept: Ints, hidden_states: bool = False
    ) -> Observation | None:
        """The same along an answer and with the prompt's tokens that an artefact kept; None if that is not possible.

        It tells an artefact that broke a tie otherwise from one that went wrong after it.
        """


class SessionReference:
    """Another bundle or engine.

    Args:
        pipeline: it.
        name: its file's.
    """

    samples = None
    keeps = None
    new_tokens = None

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        self._pipeline = pipeline
        self.identity = Identity.of(pipeline.manifest)
        self.dtype = pipeline.manifest.decoder.dtype
        self.name = f"{name}, {pipeline.provider}, {self.dtype}"

    @property
    def no_hidden_states(self) -> str:
        return self._pipeline.session.no_look

    def observe(self, sample: Sample, keep: float, max_new_tokens: int, hidden_states: bool = False) -> Observation:
        """See `ParityReference.observe`."""
        look: Look = "nothing"
        if not self._pipeline.session.no_look:
            look = "layers" if hidden_states else "choice"
        return observe(self._pipeline, read_prompt(self._pipeline, sample), keep, max_new_tokens, look=look)

    def observe_choosing(
        self, sample: Sample, keep: float, forced: Sequence[int], kept: Ints, hidden_states: bool = False
    ) -> None:
        """An artefact chooses for itself."""
