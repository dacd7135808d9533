// What the page says, in Korean and English, and the seven examples of Kakao's KoGPT API.

export const TEXTS = {
  ko: {
    model: "모델",
    theme: "밝게/어둡게",
    prompt: "프롬프트",
    hint: "Enter로 쓰기를 시작하고, Shift+Enter로 줄을 바꾸고, Esc로 멈춰요.",
    temperature: "온도",
    length: "길이(토큰)",
    topP: "top-p",
    penalty: "반복 벌점",
    texts: "글 개수",
    seed: "시드",
    write: "이어 쓰기",
    stop: "멈추기",
    shade: "확률을 색으로 보기",
    examples: "예시",
    answers: "이어진 글",
    empty: "아직 쓴 글이 없어요. 토큰을 가리키면 확률이 보이고, 누르면 다른 토큰에서 다시 이어 쓸 수 있어요.",
    answer: "결과",
    answerNumber: "결과 {number}",
    undo: "되돌리기",
    copy: "복사",
    copied: "복사했어요.",
    tokens: "토큰 {count}개",
    speed: "초당 {rate}개",
    finish_stop: "끝까지 씀",
    finish_length: "길이 제한",
    finish_stopped: "멈춤",
    finish_failed: "실패",
    finish_cancelled: "멈춤",
    writing: "쓰고 있어요.",
    finished: "다 썼어요.",
    choices: "다른 토큰 고르기",
    chosen: "{token} — {percent}",
    refused: "서버가 거절했어요({status}).",
    cut: "서버와의 연결이 도중에 끊겼어요. 다시 시도하세요.",
    unreachable: "서버에 연결하지 못했어요. 서버가 켜져 있는지 확인하세요.",
    warning: "거르지 않은 글로 배운 모델이라 사실과 다르거나 거친 말을 쓸 수 있어요.",
  },
  en: {
    model: "Model",
    theme: "Light/dark",
    prompt: "Prompt",
    hint: "Enter starts writing, Shift+Enter begins a new line, Esc stops.",
    temperature: "Temperature",
    length: "Length (tokens)",
    topP: "top-p",
    penalty: "Repetition penalty",
    texts: "Texts",
    seed: "Seed",
    write: "Continue",
    stop: "Stop",
    shade: "Shade by probability",
    examples: "Examples",
    answers: "Continuations",
    empty: "Nothing written yet. Point at a token to see probabilities; press it to go on from another token.",
    answer: "Result",
    answerNumber: "Result {number}",
    undo: "Undo",
    copy: "Copy",
    copied: "Copied.",
    tokens: "{count} tokens",
    speed: "{rate} per second",
    finish_stop: "finished",
    finish_length: "length limit",
    finish_stopped: "stopped",
    finish_failed: "failed",
    finish_cancelled: "stopped",
    writing: "Writing.",
    finished: "Finished.",
    choices: "Choose another token",
    chosen: "{token} — {percent}",
    refused: "The server refused the request ({status}).",
    cut: "The connection was cut. Try again.",
    unreachable: "The server cannot be reached. Check that it is running.",
    warning: "The model learnt from unfiltered text: it may be wrong or rude.",
  },
};

const ARTICLE =
  "서울시는 내년부터 시내버스 전 노선에 저상버스를 도입한다고 밝혔다. 시는 정책제안서를 오는 9월까지 국토교통부에 제출하고, " +
  "예산 300억 원을 들여 2027년까지 모든 버스를 바꿀 계획이다. 교통 약자 단체는 환영하면서도 정류장 시설 개선을 함께 요구했다.";

// Tasks and settings: Kakao Developers, KoGPT REST API; the texts are our own where the original asks for one.
export const EXAMPLES = [
  {
    name: { ko: "다음 문장 만들기", en: "Continue a sentence" },
    prompt: "인간처럼 생각하고, 행동하는 '지능'을 통해 인류가 이제까지 풀지 못했던",
    length: 64,
    temperature: 0.7,
    topP: 0.8,
  },
  {
    name: { ko: "문장 분류하기", en: "Classify" },
    prompt:
      "상품 후기를 긍정 또는 부정으로 분류합니다.\n가격대비좀 부족한게많은듯=부정\n재구매 친구들이 좋은 향 난다고 해요=긍정\n" +
      "ㅠㅠ약간 후회가 됩니다..=부정\n이전에 먹고 만족해서 재구매합니다=긍정\n" +
      "튼튼하고 잘 쓸수 있을 것 같습니다. 이 가격에 이 퀄리티면 훌륭하죠=",
    length: 1,
    temperature: 0.4,
  },
  {
    name: { ko: "한 줄 요약하기", en: "Summarise" },
    prompt: `${ARTICLE}\n\n한줄 요약:`,
    length: 128,
    topP: 0.7,
  },
  {
    name: { ko: "질문에 답변하기", en: "Answer a question" },
    prompt: `${ARTICLE}\n정책제안서를 제출하는 시기는 언제인가?:`,
    length: 128,
    temperature: 0.2,
  },
  {
    name: { ko: "정보 추려내기", en: "Find a fact" },
    prompt:
      "임진왜란은 1592년 일본이 조선을 침략하면서 시작되었다. 당시 조선의 왕은 선조였고, 이순신이 수군을 이끌었다.\n\n" +
      "임진왜란 때 조선의 왕은?\n\n답:",
    length: 1,
    temperature: 0.3,
  },
  {
    name: { ko: "말투 바꾸기", en: "Change the tone" },
    prompt:
      "주어진 문장을 존댓말 문장으로 바꿔주세요.\n\n문장:하지마!\n존댓말:하지 말아주세요.\n\n문장:나 지금 피곤해\n" +
      "존댓말:저 지금 피곤해요.\n\n문장:당장 제자리에 돌려놔\n존댓말:",
    length: 10,
    temperature: 0.7,
  },
  {
    name: { ko: "채팅하기", en: "Chat" },
    prompt:
      "정보:거주지 서울, 나이 30대, 직업 요리사, 말투 친절함\n정보를 바탕으로 질문에 답하세요.\nQ:안녕하세요, 어디에 사세요?\n" +
      "A:안녕하세요, 서울에 살고 있어요.\nQ:무슨 일을 하시나요?\nA:",
    length: 32,
    temperature: 0.3,
    topP: 0.85,
  },
];
