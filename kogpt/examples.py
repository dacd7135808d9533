"""The seven uses that Kakao's KoGPT API showed, with its settings: what a page offers for a first try.

Source: Kakao Developers, KoGPT REST API. The prompts are its own where it printed them whole; where it left
out an article or a conversation, ours stands in its place.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Example:
    """A prompt, and the settings that go with it. Names are for people."""

    name_en: str
    name_ko: str
    prompt: str
    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0


_ARTICLE = (
    "서울시는 내년부터 시내버스 전 노선에 저상버스를 도입한다고 밝혔다. 시는 정책제안서를 오는 9월까지"
    " 국토교통부에 제출하고, 예산 300억 원을 들여 2027년까지 모든 버스를 바꿀 계획이다. 교통 약자 단체는"
    " 환영하면서도 정류장 시설 개선을 함께 요구했다."
)
_REVIEWS = (
    "상품 후기를 긍정 또는 부정으로 분류합니다.\n"
    "가격대비좀 부족한게많은듯=부정\n"
    "재구매 친구들이 좋은 향 난다고 해요=긍정\n"
    "ㅠㅠ약간 후회가 됩니다..=부정\n"
    "이전에 먹고 만족해서 재구매합니다=긍정\n"
    "튼튼하고 잘 쓸수 있을 것 같습니다. 이 가격에 이 퀄리티면 훌륭하죠="
)
_POLITE = (
    "주어진 문장을 존댓말 문장으로 바꿔주세요.\n\n"
    "문장:하지마!\n존댓말:하지 말아주세요.\n\n"
    "문장:나 지금 피곤해\n존댓말:저 지금 피곤해요.\n\n"
    "문장:당장 제자리에 돌려놔\n존댓말:"
)
_CHAT = (
    "정보:거주지 서울, 나이 30대, 직업 요리사, 말투 친절함\n정보를 바탕으로 질문에 답하세요.\n"
    "Q:안녕하세요, 어디에 사세요?\nA:안녕하세요, 서울에 살고 있어요.\n"
    "Q:무슨 일을 하시나요?\nA:작은 식당에서 요리를 하고 있어요.\n"
    "Q:오 그렇군요, 결혼은 하셨나요?\nA:"
)
_WAR = (
    "임진왜란은 1592년 일본이 조선을 침략하면서 시작되었다. 당시 조선의 왕은 선조였고, 이순신이 수군을"
    " 이끌었다.\n\n임진왜란 때 조선의 왕은?\n\n답:"
)

EXAMPLES = (
    Example(
        "Continue a sentence",
        "다음 문장 만들기",
        "인간처럼 생각하고, 행동하는 '지능'을 통해 인류가 이제까지 풀지 못했던",
        max_tokens=64,
        temperature=0.7,
        top_p=0.8,
    ),
    Example("Classify", "문장 분류하기", _REVIEWS, max_tokens=1, temperature=0.4),
    Example("Summarise", "뉴스 한 줄 요약하기", f"{_ARTICLE}\n\n한줄 요약:", max_tokens=128, top_p=0.7),
    Example(
        "Answer a question",
        "질문에 답변하기",
        f"{_ARTICLE}\n정책제안서를 제출하는 시기는 언제인가?:",
        max_tokens=128,
        temperature=0.2,
    ),
    Example("Find a fact", "특정 정보 추려내기", _WAR, max_tokens=1, temperature=0.3),
    Example("Change the tone", "말투 바꾸기", _POLITE, max_tokens=10, temperature=0.7),
    Example("Chat", "채팅하기", _CHAT, max_tokens=32, temperature=0.3, top_p=0.85),
)
