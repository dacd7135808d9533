"""The demo's page and its start. Nothing is collected, kept or fetched from outside.

A text is coloured by the rarest of its tokens. Where a filter holds text back, a word is coloured at a time.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

os.environ.setdefault("GRADIO_ANALYTICS_ENABLED", "False")  # read when gradio is imported

import gradio as gr

from kogpt.errors import KoGPTError
from kogpt.examples import EXAMPLES
from kogpt.generation import KoGPT
from kogpt.session import Piece

TEXTS = {
    "ko": {
        "title": "KoGPT에게 글의 첫머리를 주면 이어서 씁니다.",
        "prompt": "프롬프트",
        "hint": "이어 쓸 글을 적으세요. Shift+Enter로도 쓸 수 있습니다.",
        "temperature": "온도",
        "temperature_info": "0이면 가장 그럴듯한 토큰만 고르고, 높을수록 다양해집니다.",
        "length": "길이(토큰)",
        "top_p": "top-p",
        "write": "이어 쓰기",
        "stop": "멈추기",
        "text": "이어진 글",
        "tokens": "토큰마다의 확률: 진할수록 드문 토큰",
        "words": "낱말마다의 확률: 진할수록 드문 낱말",
        "examples": "예시",
        "warning": "거르지 않은 글로 배운 모델이라 사실과 다르거나 거친 말을 쓸 수 있습니다.",
    },
    "en": {
        "title": "Give KoGPT the beginning of a Korean text, and it goes on.",
        "prompt": "Prompt",
        "hint": "Begin a text. Shift+Enter writes, too.",
        "temperature": "Temperature",
        "temperature_info": "0 always takes the likeliest token; higher is more varied.",
        "length": "Length (tokens)",
        "top_p": "Top-p",
        "write": "Continue",
        "stop": "Stop",
        "text": "Continuation",
        "tokens": "Probability of every token: the darker, the rarer",
        "words": "Probability of every word: the darker, the rarer",
        "examples": "Examples",
        "warning": "The model learnt from unfiltered text: it may be wrong or rude.",
    },
}
FONTS = (
    "Pretendard",
    "Apple SD Gothic Neo",
    "Noto Sans KR",
    "Noto Sans CJK KR",
    "Malgun Gothic",
    "sans-serif",
)
# Gradio's own colours of labels, hints and the button are too light to read for many (WCAG 2.2, 1.4.3).
CONTRAST = {
    "block_title_text_color": "*primary_700",
    "block_label_text_color": "*primary_700",
    "block_info_text_color": "*neutral_600",
    "body_text_color_subdued": "*neutral_600",
    "button_primary_background_fill": "*primary_600",
    "button_primary_background_fill_dark": "*primary_600",
    "button_primary_background_fill_hover": "*primary_700",
    "button_primary_background_fill_hover_dark": "*primary_700",
}
WAITING = 64  # requests in the queue; more are refused
Shown = tuple[str, list[tuple[str, float]]]


def launch(model: KoGPT, host: str | None = None, port: int | None = None) -> None:
    """Show the demo until it is interrupted. None: as GRADIO_SERVER_NAME and GRADIO_SERVER_PORT say."""
    say = gr.I18n(**TEXTS)
    build(model, say).launch(
        server_name=host,
        server_port=port,
        theme=gr.themes.Soft(primary_hue="indigo", font=FONTS, font_mono=FONTS).set(**CONTRAST),
        i18n=say,
        share=False,
        ssr_mode=False,
        allowed_paths=[],
        footer_links=[],
        enable_monitoring=False,
    )


def build(model: KoGPT, say: gr.I18n) -> gr.Blocks:
    """The page. `say` gives a text in the reader's language."""
    longest = model.config.n_ctx
    page: gr.Blocks = gr.Blocks(title="KoGPT", analytics_enabled=False)
    with page:
        gr.Markdown("# KoGPT")
        gr.Markdown(say("title"))
        with gr.Row():
            with gr.Column(scale=3):
                prompt = gr.Textbox(
                    label=say("prompt"), placeholder=say("hint"), lines=5, autofocus=True, elem_id="prompt"
                )
                with gr.Row():
                    write = gr.Button(say("write"), variant="primary")
                    stop = gr.Button(say("stop"), variant="stop")
                text = gr.Textbox(
                    label=say("text"), lines=6, buttons=["copy"], interactive=False, elem_id="text"
                )
                tokens = gr.HighlightedText(
                    label=say("words" if _holds_back(model) else "tokens"), show_whitespaces=True
                )
            with gr.Column(scale=1, min_width=240):
                temperature = gr.Slider(
                    0, 2, 0.8, step=0.05, label=say("temperature"), info=say("temperature_info")
                )
                length = gr.Slider(1, min(longest, 512), 64, step=1, label=say("length"), elem_id="length")
                top_p = gr.Slider(0, 1, 0.95, step=0.05, label=say("top_p"))
        settings = [prompt, temperature, length, top_p]
        rows = [[e.prompt, e.temperature, e.max_tokens, e.top_p] for e in EXAMPLES]
        gr.Examples(rows, settings, label=say("examples"), example_labels=[e.name_ko for e in EXAMPLES])
        gr.Markdown(say("warning"))
        written = gr.on([write.click, prompt.submit], _writer(model), settings, [text, tokens])
        stop.click(None, cancels=[written])
    page.queue(max_size=WAITING, default_concurrency_limit=model.engine.max_rows, api_open=False)
    return page


def _writer(model: KoGPT) -> Callable[[str, float, float, float], Iterator[Shown]]:
    def write(prompt: str, temperature: float, length: float, top_p: float) -> Iterator[Shown]:
        text = ""
        colours = Colours(_holds_back(model))
        try:
            settings = {"temperature": temperature, "max_tokens": int(length), "top_p": top_p}
            for piece in model.stream(prompt, settings, logprobs=0):
                text += piece.text
                colours.add(piece)
                yield text, colours.shown
        except KoGPTError as error:
            raise gr.Error(str(error)) from error

    return write


def _holds_back(model: KoGPT) -> bool:
    """Whether the model's screen shows a word only once the next one begins."""
    return model.session.new_screen().push("가")[0] != "가"


@dataclass(slots=True)
class Colours:
    """The shown pieces of an answer, each with the rarity of its rarest token."""

    holds_back: bool  # the last word, until the first token of the next one
    shown: list[tuple[str, float]] = field(default_factory=list)
    _held: list[float] = field(default_factory=list, init=False)  # log-probabilities of what is not shown yet

    def add(self, piece: Piece) -> None:
        """Add a piece, which may be empty. The token that ends an answer has no colour."""
        own = [] if piece.token is None or piece.event.finish == "stop" else [piece.token.logprob]
        if not piece.text:
            self._held += own
            return
        whole = self._shows_its_token(piece)
        counted = self._held + own if whole or not self._held else self._held
        self.shown.append((piece.text, rarity(min(counted, default=0.0))))
        self._held = [] if whole else own

    def _shows_its_token(self, piece: Piece) -> bool:
        """Whether the text of a piece goes as far as its token, not only up to the word that it begins."""
        if not self.holds_back or piece.finish_reason not in (None, "filtered"):
            return True
        return piece.text.endswith("\n") or (not self._held and bool(piece.text.strip()))


def rarity(logprob: float) -> float:
    """0 for what was certain, -1 for one in ten thousand and rarer: Gradio colours negative scores red."""
    return max(-1.0, logprob / math.log(10_000))
