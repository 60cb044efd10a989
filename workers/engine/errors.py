"""Why a run cannot go on, in words for the person who sent the model."""


class EngineError(Exception):
    """The message is shown to the user: what is wrong, where, and what to do about it. `code` is stable."""

    code = "run_failed"


class InvalidRunError(EngineError):
    """What is to be done cannot be read."""

    code = "invalid_run"


class InvalidModelError(EngineError):
    """The file is not a model that can be read, or says something impossible."""

    code = "invalid_model"


class UnsupportedModelError(EngineError):
    """The model is sound, but uses something that the engine does not know."""

    code = "unsupported_model"


class InvalidDataError(EngineError):
    """The data cannot be read or does not fit the model."""

    code = "invalid_data"


class StepError(EngineError):
    """A step does not apply to this model or met values it cannot work with."""

    code = "step_failed"


class DeadlineError(EngineError):
    """The job's budget of time ran out."""

    code = "deadline_exceeded"


class UnusableResultError(EngineError):
    """The compressed file does not run: a mistake of the engine's, not of the user's."""

    code = "unusable_result"
