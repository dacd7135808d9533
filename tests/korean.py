"""Korean of our own writing: prose to train a tokenizer on, and texts that are hard to carry."""

from __future__ import annotations

PROSE = (
    "아침에 일어나 창문을 열면 골목 끝에서 빵 굽는 냄새가 올라온다.",
    "오늘 서울의 날씨는 맑고 낮 기온은 21도까지 오르겠습니다.",
    "할머니는 장독대 옆에 앉아 마늘을 까며 옛날이야기를 들려주셨다.",
    "옛날 옛적에 깊은 산골에 나무꾼과 토끼가 살고 있었습니다.",
    "이 영화는 정말 재미있었다. 배우들의 연기도 좋고 음악도 훌륭했다 ㅋㅋㅋ",
    "별로였어요. 두 시간이 너무 길게 느껴졌습니다 ㅠㅠ",
    "질문: 한글은 누가 만들었습니까?\n대답: 세종대왕이 1443년에 만들었습니다.",
    "지하철 2호선은 시청, 을지로, 왕십리를 지나 성수까지 간다.",
    "제1조(목적) 이 규칙은 도서관의 이용에 필요한 사항을 정함을 목적으로 한다.",
    "컴퓨터 프로그램은 자료를 읽고 계산한 다음 결과를 화면에 보여 준다.",
    "def add(a, b):\n    return a + b  # 두 수를 더한다\n",
    "봄에는 꽃이 피고, 여름에는 비가 오고, 가을에는 단풍이 들고, 겨울에는 눈이 내린다.",
    "The quick answer is no, but the long answer (약 300쪽) is in the book.",
    "우리는 내일 오전 9시 30분에 학교 앞에서 만나기로 했다.",
)

SYLLABLES = "".join(map(chr, range(0xAC00, 0xD7A4)))  # all 11,172

HARD = (
    "가족 👨‍👩‍👧‍👦, 의사 👩🏽‍⚕️, 깃발 🇰🇷, 하트 ❤️‍🔥",  # ZWJ sequences, skin tones, regional indicators
    "한글",  # conjoining jamo (NFD)
    "나랏〮말〯ᄊᆞ미〮 듀ᇰ귁〮에〮 달아〮",  # Hangul of the 15th century, with tone marks
    "劉備와 關羽, 色溫(색온), 𠀀𠮷",  # Hanja, two of them beyond the basic plane
    "ㄱㄴㄷ ㅏㅑㅓ ﾡﾢﾣ ㅤ",  # compatibility and half-width jamo, the invisible filler
    "㈜카카오 ① ㎏ Ⅳ ％ Ａ",  # what NFKC would destroy
    "\ufffd는 진짜 글자입니다 \ufffd\ufffd",  # the replacement character itself
    "\ufeff머리\u200b글\u2028줄\x00널\x7f\t\t  끝  \n\n\r\n",
    "[BOS][EOS] [UNK][PAD] [MASK] [EOS",
    "العربية ไทย မြန်မာ ελληνικά",
)
