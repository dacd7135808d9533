"""State of the interactive prompt between two texts, and the commands that change or show it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from kogpt.cli.options import SETTINGS
from kogpt.errors import InputError, KoGPTError, localized

if TYPE_CHECKING:
    from kogpt.generation import KoGPT

# Settings of /set and of the options of `kogpt`. The length counts prompt and answer, as in the question.
OTHERS = ("logit_bias", "max_tokens", "regex", "choice", "json_schema", "n", "logprobs")
NAMES = tuple(name for name in SETTINGS if name not in OTHERS)
SWITCH = {"on": True, "off": False}
TEMPERATURE, LENGTH = 0.8, 128  # the original's numbers
ROOM = 64  # tokens that the default length leaves for an answer at least


class Conversation:
    """Texts that were written, and the settings that the user chose."""

    def __init__(self, model_name: str, chosen: dict[str, Any]) -> None:
        self.model_name = model_name
        self.chosen = chosen
        self.own: Mapping[str, Any] = {}  # the model's settings, once it is loaded
        self.written: list[str] = []
        self.answered: dict[str, Any] = {}  # numbers that were typed as answers

    def temperature(self) -> float:
        """The value in the parentheses of the question: what was answered last, else what was chosen."""
        value: float = {**self.own, **self.chosen, **self.answered}.get("temperature", TEMPERATURE)
        return value

    def length(self, model: KoGPT, prompt: str) -> int:
        """As `temperature`; else, and where the last answer has no room, a multiple of 128 that has."""
        n_prompt = len(model.tokenizer.encode_prompt(prompt))
        if n_prompt < (length := self.answered.get("max_length", 0)):
            return int(length)
        if (length := self.chosen.get("max_length")) is not None:
            return int(length)
        if (n_new := self.own.get("max_tokens")) is not None:
            return min(n_prompt + int(n_new), model.config.n_ctx)
        if (length := self.own.get("max_length")) is not None:
            return int(length)
        return min(LENGTH * -(-(n_prompt + ROOM) // LENGTH), model.config.n_ctx)

    def obey(self, line: str) -> str:
        """Carry out a line that begins with a slash; what to show. EOFError for /bye."""
        name, _, rest = line.removeprefix("/").strip().partition(" ")
        if name not in COMMANDS:
            known = " ".join(f"/{command}" for command in COMMANDS)
            raise InputError(
                f"there is no command /{name[:40]}, there are {known}; a text that begins"
                " with / needs a space before it",
                f"/{name[:40]} 명령은 없습니다. 가능한 명령: {known}. /로 시작하는 글은 앞에 빈칸을 넣으세요",
            )
        return COMMANDS[name][0](self, rest.strip())

    def _help(self, _: str) -> str:
        lines = [f"/{name:5} {localized(en, ko)}" for name, (_, en, ko) in COMMANDS.items()]
        lines.append(
            localized(
                '"""    begins and ends a prompt of several lines\n'
                "Ctrl-C stops a text or goes back to the first question; there it leaves, as Ctrl-D does",
                '"""    여러 줄 프롬프트의 시작과 끝\n'
                "Ctrl-C는 글쓰기를 멈추거나 첫 질문으로 돌아갑니다. 첫 질문에서는 Ctrl-D처럼 끝냅니다",
            )
        )
        return "\n".join(lines)

    def _set(self, rest: str) -> str:
        name, _, value = rest.partition(" ")
        name = name.replace("-", "_")
        if name not in NAMES:
            known = ", ".join(NAMES)
            raise InputError(
                f"/set NAME VALUE: the name is {name[:40]!r}, must be one of {known}",
                f"/set 이름 값: 이름 {name[:40]!r} (가능한 이름: {known})",
            )
        if not value.strip():
            self.chosen.pop(name, None)
        else:
            self.chosen[name] = _value_of(name, value.strip())
        self.answered.pop(name, None)
        return self._show("")

    def _show(self, _: str) -> str:
        lines = [localized(f"model: {self.model_name}", f"모델: {self.model_name}")]
        for name in NAMES:
            if name in (mine := self.chosen | self.answered):
                lines.append(f"{name}: {_shown(mine[name])}")
            elif name in self.own:
                lines.append(f"{name}: {_shown(self.own[name])} {localized('(the model)', '(모델의 값)')}")
        return "\n".join(lines)

    def _save(self, rest: str) -> str:
        if not rest or not self.written:
            raise InputError(
                "/save FILE: write a text first, and name a file",
                "/save 파일: 먼저 글을 쓰고 파일 이름을 적으세요",
            )
        try:
            path = self._write_new(rest)
        except KoGPTError:
            raise
        except (OSError, RuntimeError, ValueError) as error:  # a home that nobody has; a name with NUL
            reason = getattr(error, "strerror", None) or str(error)
            raise InputError(
                f"/save: {rest[:200]}: {reason}: choose another place",
                f"/save: {rest[:200]}: {reason}. 다른 곳을 쓰세요",
            ) from error
        n = len(self.written)
        return localized(f"{n} texts saved: {path}", f"글 {n}개를 저장했습니다: {path}")

    def _write_new(self, name: str) -> Path:
        """All texts in a new file; InputError where there is one already."""
        from kogpt.files import atomic_write

        path = Path(name).expanduser()
        if path.exists() or not path.parent.is_dir():
            raise InputError(
                f"/save: {name[:200]} exists already, or its folder does not: choose another name",
                f"/save: {name[:200]} 파일이 이미 있거나 폴더가 없습니다. 다른 이름을 쓰세요",
            )
        with atomic_write(path) as file:
            file.write("\n\n".join([*self.written, ""]).encode())
        return path

    def _leave(self, _: str) -> NoReturn:
        raise EOFError


def _value_of(name: str, text: str) -> Any:
    """The value of a setting; InputError for a word instead of a number, SamplingError out of its range."""
    from kogpt.sampling import Sampling

    if SETTINGS[name][0] is bool:
        if text not in SWITCH:
            raise InputError(
                f"{name} is {text[:40]!r}, must be on or off", f"{name} 값 {text[:40]!r} (조건: on 또는 off)"
            )
        return SWITCH[text]
    try:
        value: Any = (text,) if name == "stop" else SETTINGS[name][0](text)
    except ValueError as error:
        en, ko = ("a whole number", "정수") if SETTINGS[name][0] is int else ("a number", "수")
        raise InputError(
            f"{name} is {text[:40]!r}, must be {en}", f"{name} 값 {text[:40]!r} (조건: {ko})"
        ) from error
    Sampling(**{name: value})
    return value


def _shown(value: Any) -> str:
    return " ".join(map(repr, value)) if isinstance(value, tuple | list) else str(value)


# Command -> what it does, and what /help says of it.
COMMANDS: dict[str, tuple[Callable[[Conversation, str], str], str, str]] = {
    "help": (Conversation._help, "shows this", "이 도움말을 보여 줍니다"),
    "?": (Conversation._help, "shows this", "이 도움말을 보여 줍니다"),
    "set": (
        Conversation._set,
        "NAME VALUE: sets temperature, top_p and the like; without VALUE takes it back",
        "이름 값: temperature, top_p 등을 정합니다. 값이 없으면 되돌립니다",
    ),
    "show": (Conversation._show, "shows the model and the settings", "모델과 설정을 보여 줍니다"),
    "save": (Conversation._save, "FILE: saves the texts of this session", "파일: 지금까지의 글을 저장합니다"),
    "bye": (Conversation._leave, "leaves", "끝냅니다"),
}
