"""What a user can get wrong, as exceptions.

    KoGPTError                the base: one clear line, in Korean or English by locale; exit code 2
      ConfigError             dimensions that are impossible or not a GPT-J
      CheckpointError         a model folder that is missing, damaged, foreign or hostile
      TokenizerError          a tokenizer file that is missing, damaged or does not fit the model
      SamplingError           a generation setting outside its range
      PromptError             a prompt that is empty, too long or not text
      InputError              an input file or stream that cannot be read as what it claims to be
      NotEnoughMemory         the model would not fit; raised before anything is allocated
      MissingExtra            a capability whose optional packages are not installed

Each message names the value, the limit and the remedy. Bugs of ours are `assert`s, never one of these.
"""

from __future__ import annotations

import os


def prefers_korean() -> bool:
    """Whether the environment's message locale is Korean (POSIX precedence)."""
    variables = ("LC_ALL", "LC_MESSAGES", "LANG")
    locale = next((value for name in variables if (value := os.environ.get(name))), "")
    return locale.startswith("ko")


def localized(en: str, ko: str) -> str:
    """The one of two equivalent texts that suits the user's locale."""
    return ko if prefers_korean() else en


class KoGPTError(ValueError):
    """A mistake that the user can mend; `str()` gives the line in the user's language."""

    def __init__(self, en: str, ko: str) -> None:
        super().__init__(en, ko)
        self.en = en
        self.ko = ko

    def __str__(self) -> str:
        return localized(self.en, self.ko)


class ConfigError(KoGPTError):
    """Dimensions that are impossible, or a config that is not a GPT-J's."""


class CheckpointError(KoGPTError):
    """A model folder that is missing, damaged, foreign or hostile."""


class TokenizerError(KoGPTError):
    """A tokenizer file that is missing, damaged or does not fit the model."""


class SamplingError(KoGPTError):
    """A generation setting outside its range."""


class PromptError(KoGPTError):
    """A prompt that is empty, too long or not text."""


class InputError(KoGPTError):
    """An input file or stream that cannot be read as what it claims to be."""


class NotEnoughMemory(KoGPTError):
    """The model would not fit; raised before anything is allocated."""


class MissingExtra(KoGPTError):
    """A capability whose optional packages are not installed."""

    def __init__(self, what: str, extra: str) -> None:
        super().__init__(
            f"{what} needs packages that are not installed: pip install 'kogpt[{extra}]'",
            f"{what}: 필요한 패키지가 설치되어 있지 않습니다: pip install 'kogpt[{extra}]'",
        )
