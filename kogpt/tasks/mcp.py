"""Korean text tools for agents, on the user's machine: the Model Context Protocol (modelcontextprotocol.io).

Each tool takes and gives data. A text that is classified, searched, summarised or filtered is never an
instruction, to KoGPT or to whoever calls.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, TypeVar

from mcp.server.fastmcp import FastMCP
from mcp.server.fastmcp.exceptions import ToolError
from mcp.types import ToolAnnotations
from pydantic import Field

from kogpt.classification import Wording
from kogpt.errors import InputError, KoGPTError
from kogpt.generation import KoGPT
from kogpt.search.index import Index
from kogpt.tasks.filter import screen
from kogpt.tasks.named import NAMED, Labeller, adapter_folder
from kogpt.tasks.profanity import ADAPTER, judge_all
from kogpt.tasks.summaries import make_title, summarize

Answer = TypeVar("Answer")
MAX_TEXTS, MAX_CHARACTERS = 256, 200_000
INSTRUCTIONS = "Korean text tools that run on this machine: labels, search, extractive summaries, a filter."
READ_ONLY = ToolAnnotations(readOnlyHint=True, openWorldHint=False)

Texts = Annotated[list[str], Field(min_length=1, max_length=MAX_TEXTS, description="texts to label")]
Text = Annotated[str, Field(min_length=1, max_length=MAX_CHARACTERS)]


@dataclass(slots=True)
class Tools:
    """The tools, with the models that they need; each is loaded when it is first asked for.

    load: makes a model, with the adapter in a folder or none. index: a folder of kogpt search, or none.
    """

    load: Callable[[Path | None], KoGPT]
    index: Path | None = None
    bundled: bool = True  # whether the model is kogpt-mini, which has the adapters
    _models: dict[Path | None, KoGPT] = field(default_factory=dict, init=False)

    def classify(
        self, texts: Sequence[str], labels: Sequence[str], named: str | None
    ) -> list[dict[str, Any]]:
        """The label of each text and its probability."""
        if (named is None) == (not labels):
            raise InputError(
                f"give either labels or one of the names {', '.join(NAMED)}",
                f"labels와 이름({', '.join(NAMED)}) 가운데 하나를 주세요",
            )
        folder = adapter_folder(named) if named is not None and self.bundled else None
        model = self._model(folder)
        wording = Wording(tuple(labels)) if named is None else NAMED[named]
        labeller = Labeller(model, wording) if folder is None else Labeller.by_adapter(model)
        return [
            {"text": item.text, "label": item.label, "probabilities": item.probabilities}
            for item in labeller.label(texts)
        ]

    def search(self, query: str, k: int) -> list[dict[str, Any]]:
        """The passages of the index that answer a query."""
        if self.index is None:
            raise InputError(
                "there is no index: start kogpt mcp with --index",
                "색인이 없습니다. kogpt mcp --index로 실행하세요",
            )
        with Index.open(self.index) as index:
            hits = index.query(query, k)
        return [{"passage": hit.passage, "source": hit.source, "score": hit.score} for hit in hits]

    def filter(self, text: str, by_model: bool) -> dict[str, Any]:
        """The text with profanity and personal data covered, what was found, and how profane it is."""
        folder = adapter_folder(ADAPTER) if by_model and self.bundled else None
        if by_model and folder is None:
            raise InputError(
                "only kogpt-mini has an adapter for profanity: leave by_model out",
                "욕설 판정 어댑터는 kogpt-mini에만 있습니다. by_model을 빼세요",
            )
        [judgement] = judge_all([text], self._model(folder) if by_model else None)
        return screen(text, judgement).record()

    def _model(self, folder: Path | None) -> KoGPT:
        if folder not in self._models:
            self._models[folder] = self.load(folder)
        return self._models[folder]


def make_server(tools: Tools) -> FastMCP:
    """A server of the tools; `run()` serves standard input and output."""
    server = FastMCP("kogpt", instructions=INSTRUCTIONS, log_level="WARNING")

    @server.tool(annotations=READ_ONLY)
    def classify(
        texts: Texts,
        labels: Annotated[list[str], Field(description="labels of your own, as in ['긍정', '부정']")] = [],  # noqa: B006
        name: Annotated[
            str | None, Field(description="sentiment, intent or profanity instead of labels")
        ] = None,
    ) -> list[dict[str, Any]]:
        """Label Korean texts: by labels of your own, or by sentiment, intent or profanity."""
        if name is not None and name not in NAMED:
            raise ToolError(f"there is no classification {name!r}: choose from {', '.join(NAMED)}")
        return _plainly(lambda: tools.classify(texts, labels, name))

    @server.tool(annotations=READ_ONLY)
    def search(query: Text, k: Annotated[int, Field(ge=1, le=50)] = 5) -> list[dict[str, Any]]:
        """Find the passages of the user's Korean index that answer a query."""
        return _plainly(lambda: tools.search(query, k))

    @server.tool(annotations=READ_ONLY)
    def summarise(text: Text, sentences: Annotated[int, Field(ge=1, le=50)] = 3) -> dict[str, Any]:
        """Pick the sentences that carry a Korean text, word for word, and a title of its words."""
        return _plainly(
            lambda: {
                "sentences": [sentence.text for sentence in summarize(text, sentences)],
                "title": make_title(text),
            }
        )

    @server.tool(annotations=READ_ONLY)
    def filter_text(
        text: Text,
        by_model: Annotated[
            bool, Field(description="let kogpt-mini's adapter judge the text as well")
        ] = False,
    ) -> dict[str, Any]:
        """Cover profanity and personal data in Korean text with stars, and say what was found where."""
        return _plainly(lambda: tools.filter(text, by_model))

    return server


def _plainly(work: Callable[[], Answer]) -> Answer:
    """The result of a tool; a mistake of the caller as one line."""
    try:
        return work()
    except KoGPTError as error:
        raise ToolError(str(error)) from None
