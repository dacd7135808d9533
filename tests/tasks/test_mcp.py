"""The tools as a client of the official SDK sees them, over standard input and output."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import anyio
from mcp import ClientSession, StdioServerParameters
from mcp.client.stdio import stdio_client

from kogpt.search.index import Document, Index, Passage

ROOT = Path(__file__).parents[2]


def test_every_tool(tiny_folder: Path, tmp_path: Path) -> None:
    index = tmp_path / "index"
    Index.add(index, [Document("강.txt", b"1", [Passage("한강은 서울을 지난다.", 1)])])
    words = ["-m", "kogpt", "mcp", "--model", str(tiny_folder), "--index", str(index)]
    anyio.run(use, StdioServerParameters(command=sys.executable, args=words, cwd=ROOT, env=dict(os.environ)))


async def use(parameters: StdioServerParameters) -> None:
    async with stdio_client(parameters) as (read, write), ClientSession(read, write) as session:
        await session.initialize()
        tools = {tool.name: tool for tool in (await session.list_tools()).tools}
        assert sorted(tools) == ["classify", "filter_text", "search", "summarise"]
        assert all(tool.annotations and tool.annotations.readOnlyHint for tool in tools.values())

        async def call(tool: str, **arguments: Any) -> Any:
            result = await session.call_tool(tool, arguments)
            texts = [part.text for part in result.content if part.type == "text"]
            return texts if result.isError else [json.loads(text) for text in texts]

        [label] = await call("classify", texts=["하늘이 맑다"], labels=["좋음", "나쁨"])
        assert label["label"] in ("좋음", "나쁨")
        [hit] = await call("search", query="한강은 어디를 지나는가")
        assert hit["source"] == "강.txt"
        [summary] = await call("summarise", text="첫 문장이다. 둘째 문장이다.", sentences=1)
        assert summary["sentences"] == ["첫 문장이다."]
        [message] = await call("filter_text", text="글", by_model=True)  # not kogpt-mini
        assert "by_model" in message
        [filtered] = await call("filter_text", text="전화 010-0123-4567")
        assert filtered["text"] == "전화 ***-****-****" and filtered["found"][0]["kind"] == "mobile"
        for arguments in (
            {"texts": ["글"]},
            {"texts": ["글"], "labels": ["하나"]},
            {"texts": ["글"], "name": "x"},
        ):
            [message] = await call("classify", **arguments)
            assert isinstance(message, str) and "\n" not in message
