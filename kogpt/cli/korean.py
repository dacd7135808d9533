"""The command line in Korean, where the locale is Korean: argparse's own words and every help text of ours.

Both tables go from the English text to the Korean one. argparse looks its texts up with the functions of
`gettext` that it has imported; `korean_argparse` replaces them while a command line is read. Help texts of
ours are looked up by `translate` once a parser is complete. A test refuses one that is not in the table.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager

from kogpt.errors import prefers_korean

# argparse's own texts.
TEXTS = {
    "usage: ": "사용법: ",
    "positional arguments": "위치 인자",
    "options": "옵션",
    "show this help message and exit": "이 도움말을 보여 줍니다",
    "argument %(argument_name)s: %(message)s": "인자 %(argument_name)s: %(message)s",
    "the following arguments are required: %s": "빠진 인자가 있습니다: %s",
    "one of the arguments %s is required": "다음 인자 중 하나가 필요합니다: %s",
    "not allowed with argument %s": "다음 인자와 함께 쓸 수 없습니다: %s",
    "unrecognized arguments: %s": "알 수 없는 인자: %s",
    "ambiguous option: %(option)s could match %(matches)s": "모호한 옵션 %(option)s (가능: %(matches)s)",
    "unexpected option string: %s": "알 수 없는 옵션: %s",
    "ignored explicit argument %r": "값을 받지 않는 옵션에 준 값 %r",
    "expected one argument": "값이 하나 필요합니다",
    "expected at most one argument": "값은 하나까지만 줄 수 있습니다",
    "expected at least one argument": "값이 하나 이상 필요합니다",
    "expected %s argument": "값이 %s개 필요합니다",
    "expected %s arguments": "값이 %s개 필요합니다",
    "invalid %(type)s value: %(value)r": "%(type)s 형식이 아닌 값: %(value)r",
    "invalid choice: %(value)r (choose from %(choices)s)": "없는 선택지 %(value)r (가능: %(choices)s)",
    "unknown parser %(parser_name)r (choices: %(choices)s)": "없는 명령 %(parser_name)r (가능: %(choices)s)",
}

# Help texts of ours. A summary of a command also serves as its description.
HELP = {
    "KakaoBrain Korean(hangul) Generative Pre-Training Model": "카카오브레인 한국어 생성 언어 모델",
    "model": "모델",
    "generation": "생성",
    "measurement": "측정",
    "reading": "입력",
    "examples:": "예:",
    "show log and tracebacks": "로그와 오류 추적을 보여 줍니다",
    "print the version and exit": "버전을 보여 줍니다",
    # commands
    "index documents, and find the paragraphs that answer a question": (
        "문서를 색인하고, 질문에 답하는 문단을 찾습니다"
    ),
    "index a file or a folder: text, Markdown, JSON Lines, tables, HTML and PDF": (
        "파일이나 폴더를 색인합니다: 텍스트, 마크다운, JSON Lines, 표, HTML, PDF"
    ),
    "find the paragraphs of an index that answer a question": "색인에서 질문에 답하는 문단을 찾습니다",
    "file or folder to index": "색인할 파일이나 폴더",
    "folder of the index; one that is there is brought up to date": (
        "색인 폴더. 이미 있으면 바뀐 파일만 다시 색인합니다"
    ),
    "give every paragraph a vector of the model as well; slow": "문단마다 모델의 벡터도 만듭니다. 느립니다",
    "begin anew, whatever INDEX holds": "INDEX의 내용과 관계없이 처음부터 색인합니다",
    "encoding of the files (default: %(default)s)": "파일의 인코딩 (기본값: %(default)s)",
    "folder that kogpt search index wrote": "kogpt search index로 만든 폴더",
    "question or words to find; - reads one per line from standard input": (
        "찾을 질문이나 단어. -는 표준 입력에서 한 줄에 하나씩 읽습니다"
    ),
    "paragraphs to show (default: %(default)s)": "보여 줄 문단 수 (기본값: %(default)s)",
    "order the first ten by how likely the model finds the question after each": (
        "처음 열 문단을 모델이 매기는 질문의 가능도로 다시 정렬합니다"
    ),
    "do not compare vectors, even if INDEX holds them": "INDEX에 벡터가 있어도 비교하지 않습니다",
    "answer /v1/search from this index of kogpt search": "kogpt search의 이 색인으로 /v1/search에 답합니다",
    "print one JSON object per paragraph": "문단마다 JSON 객체 하나를 출력합니다",
    "continue one prompt, standard input or a file of prompts": (
        "프롬프트 하나, 표준 입력 또는 파일의 프롬프트들을 이어 씁니다"
    ),
    "list the models that are here: built in, or in the hub's cache": (
        "여기 있는 모델을 보여 줍니다: 내장 모델과 허브 캐시의 모델"
    ),
    "show the defaults of options: a file, and KOGPT_* variables": (
        "옵션의 기본값을 보여 줍니다: 설정 파일과 KOGPT_* 환경 변수"
    ),
    (
        "The file is $XDG_CONFIG_HOME/kogpt/config.toml, or ~/.config/kogpt/config.toml;\n"
        "--config FILE or KOGPT_CONFIG names another. A key is an option's name without its\n"
        "dashes: top_p for --top-p. Keys at the top serve every command that has the option and\n"
        "takes the value, a table serves one command, [prompt] the interactive prompt:\n"
        "\n"
        '    dtype = "int8"\n'
        "    temperature = 0.7\n"
        "    [serve]\n"
        "    port = 9000\n"
        "    [pretrain.run]\n"
        '    device = "cpu"\n'
        "\n"
        "The variable KOGPT_TOP_P stands for --top-p in every command that takes its value. A flag\n"
        "goes before a variable, a variable before the file, the file before what is built in. A setting\n"
        "of higher priority also switches off configured options that cannot be combined with it."
    ): (
        "파일은 $XDG_CONFIG_HOME/kogpt/config.toml 또는 ~/.config/kogpt/config.toml입니다.\n"
        "--config FILE이나 KOGPT_CONFIG로 다른 파일을 지정할 수 있습니다. 키는 줄표를 뺀\n"
        "옵션 이름입니다(--top-p는 top_p). 맨 위의 키는 그 옵션이 있고 그 값을 받는 모든\n"
        "명령에, 표는 그 명령에, [prompt]는 대화형 프롬프트에 쓰입니다:\n"
        "\n"
        '    dtype = "int8"\n'
        "    temperature = 0.7\n"
        "    [serve]\n"
        "    port = 9000\n"
        "    [pretrain.run]\n"
        '    device = "cpu"\n'
        "\n"
        "환경 변수 KOGPT_TOP_P는 그 값을 받는 모든 명령에서 --top-p의 값을 정합니다.\n"
        "우선순위는 옵션, 환경 변수, 파일, 내장된 값의 순서입니다. 함께 쓸 수 없는 옵션은\n"
        "우선순위가 높은 것만 남습니다."
    ),
    "file of defaults (kogpt help config)": "기본값 파일 (kogpt help config 참고)",
    "print a script that completes command lines in a shell": (
        "셸에서 명령을 자동 완성하는 스크립트를 출력합니다"
    ),
    "bash, zsh or fish": "bash, zsh 또는 fish",
    "print one JSON object for each model": "모델마다 JSON 객체 하나를 출력합니다",
    "show a model's hyperparameters and whether it fits this machine": (
        "모델의 크기와, 이 컴퓨터에서 돌아가는지를 보여 줍니다"
    ),
    "measure a model's speed against the limits of this machine": (
        "모델의 속도를 이 컴퓨터의 한계와 견주어 잽니다"
    ),
    "evaluate a model on Korean tasks, few-shot": "한국어 과제로 모델을 퓨샷 평가합니다",
    "answers that are written at once; more wait for their turn (default: %(default)s)": (
        "한꺼번에 쓰는 답의 수. 나머지는 차례를 기다립니다 (기본값: %(default)s)"
    ),
    "show the demo, a page in Gradio": "Gradio로 만든 데모 페이지를 보여 줍니다",
    "address to listen on (default: %(default)s); others let everybody who reaches it write": (
        "접속을 받을 주소 (기본값: %(default)s). 바꾸면 그 주소에 닿는 누구나 쓸 수 있습니다"
    ),
    "serve a model over HTTP: OpenAI's API, Kakao's API and a page": (
        "모델을 HTTP로 제공합니다: OpenAI API, 카카오 API, 웹 페이지"
    ),
    # classify
    "label texts: sentiment, intent, profanity, or labels of your own": (
        "글에 레이블을 붙입니다: 감정, 의도, 욕설 또는 직접 정한 레이블"
    ),
    "labels": "레이블",
    "texts; without one, standard input, a text per line": (
        "글; 주지 않으면 표준 입력을 한 줄에 한 글씩 읽습니다"
    ),
    "file of texts: lines, or a table or JSON Lines (.tsv, .csv, .jsonl)": (
        "글이 담긴 파일: 한 줄에 하나, 또는 표나 JSON Lines (.tsv, .csv, .jsonl)"
    ),
    "name of the text's column (default: %(default)s)": "글이 있는 열의 이름 (기본값: %(default)s)",
    "name of the right label's column (default: %(default)s)": (
        "정답 레이블이 있는 열의 이름 (기본값: %(default)s)"
    ),
    "a classification that comes with KoGPT": "KoGPT에 들어 있는 분류",
    "your own labels, separated by commas": "직접 정한 레이블, 쉼표로 구분",
    'examples for --labels: a table or JSON Lines with "text" and "label"': (
        '--labels의 예시: "text"와 "label"이 있는 표나 JSON Lines'
    ),
    "what to tell the model before the examples": "예시 앞에 둘 지시문",
    "how a text is asked about (default: {text}=)": "글을 묻는 형식 (기본값: {text}=)",
    "do not correct for labels that the model prefers whatever the text": (
        "글과 상관없이 모델이 선호하는 레이블을 보정하지 않습니다"
    ),
    "how results are printed (default: %(default)s)": "결과를 출력하는 형식 (기본값: %(default)s)",
    'a second model: both label a file with "label" and are compared by McNemar\'s test': (
        '두 번째 모델: 두 모델이 "label"이 있는 파일을 분류하고 맥니마 검정으로 비교합니다'
    ),
    (
        "cover profanity and personal data in what is written, or end the text there (default: %(default)s)"
    ): "쓴 글에서 욕설과 개인정보를 가리거나 그 앞에서 글을 끝냅니다 (기본값: %(default)s)",
    # summarize, ask, report, mcp
    "summarise a text: its main sentences, a title, or a line by the model": (
        "글을 요약합니다: 핵심 문장, 제목 또는 모델이 쓴 한 줄"
    ),
    "answer a question from a text or an index, the evidence first": (
        "글이나 색인에서 질문의 답을 찾습니다. 근거를 먼저 보여 줍니다"
    ),
    "cover profanity and personal data in texts, and judge how profane they are": (
        "글의 욕설과 개인정보를 가리고, 글이 얼마나 거친지 판정합니다"
    ),
    "cover what is found with stars, or end the text before it (default: %(default)s)": (
        "찾은 것을 별표로 가리거나(mask) 그 앞에서 글을 끝냅니다(block) (기본값: %(default)s)"
    ),
    "write a report of harmful text, which you may send": (
        "유해한 글의 신고서를 씁니다. 보내는 것은 사용자입니다"
    ),
    "offer Korean text tools to agents by the Model Context Protocol": (
        "Model Context Protocol로 에이전트에 한국어 도구를 제공합니다"
    ),
    "file to read; - reads standard input": "읽을 파일; -이면 표준 입력을 읽습니다",
    "how many sentences to pick (default: %(default)s)": "고를 문장의 수 (기본값: %(default)s)",
    "make a title of words of the text instead; with --adapter title the model writes one": (
        "대신 글에 있는 낱말로 제목을 만듭니다. --adapter title을 더하면 모델이 씁니다"
    ),
    "have the model write one line instead; it may be wrong": (
        "대신 모델이 한 줄로 씁니다. 틀릴 수 있습니다"
    ),
    "print one JSON object": "JSON 객체 하나를 출력합니다",
    "what to ask": "질문",
    "text to answer from; - reads standard input": "답을 찾을 글; -이면 표준 입력을 읽습니다",
    "index of kogpt search to answer from": "답을 찾을 kogpt search 색인",
    "sentences to show (default: %(default)s)": "보여 줄 문장의 수 (기본값: %(default)s)",
    "show the sentences only; needs no model": "문장만 보여 줍니다. 모델이 필요 없습니다",
    "what the model was given": "모델에 준 글",
    "what it wrote": "모델이 쓴 글",
    "which model wrote it (default: %(default)s)": "글을 쓴 모델 (기본값: %(default)s)",
    "why the text is harmful": "글이 유해한 이유",
    "file to write: .eml is an e-mail that you may send, .json a record (default: %(default)s)": (
        "쓸 파일: .eml은 직접 보낼 수 있는 전자우편, .json은 기록 (기본값: %(default)s)"
    ),
    "index of kogpt search that the search tool reads": "검색 도구가 읽을 kogpt search 색인",
    # serve
    "address to listen on (default: %(default)s)": "접속을 받을 주소 (기본값: %(default)s)",
    "port to listen on (default: %(default)s)": "접속을 받을 포트 (기본값: %(default)s)",
    "listen on a UNIX socket instead": "주소 대신 UNIX 소켓으로 접속을 받습니다",
    "certificate for HTTPS (PEM)": "HTTPS 인증서 (PEM)",
    "private key of the certificate (PEM)": "인증서의 개인 키 (PEM)",
    "file of API keys, one per line; KOGPT_API_KEY holds a single one": (
        "API 키 파일, 한 줄에 하나; 하나뿐이면 환경 변수 KOGPT_API_KEY도 됩니다"
    ),
    "host name to answer to; may be repeated": "응답할 호스트 이름; 여러 번 쓸 수 있습니다",
    "page that may call this server; may be repeated": (
        "이 서버를 호출해도 되는 페이지의 출처; 여러 번 쓸 수 있습니다"
    ),
    "time that answers may take to finish after SIGTERM (default: %(default)s)": (
        "SIGTERM을 받은 뒤 쓰던 글을 마칠 시간(초) (기본값: %(default)s)"
    ),
    "print the limits of requests and exit": "요청의 제한을 보여 줍니다",
    "write a model folder in another precision": "모델 폴더를 다른 정밀도로 다시 씁니다",
    "train a tokenizer and a model from raw text": "가공하지 않은 글로 토크나이저와 모델을 학습합니다",
    "train a tokenizer, and measure it on held-out text": (
        "토크나이저를 학습하고, 학습에 쓰지 않은 글로 잽니다"
    ),
    "filter, deduplicate and tokenize text into shards": "글을 거르고 중복을 없앤 뒤 토큰 샤드로 만듭니다",
    "train a model on shards, or resume a run": "샤드로 모델을 학습하거나, 멈춘 학습을 이어 갑니다",
    "estimate the memory, days and cost of a run": "학습에 드는 메모리, 기간, 비용을 어림합니다",
    "do all of it on one text file, in minutes": "글 파일 하나로 전 과정을 몇 분 안에 해 봅니다",
    # model
    "a folder, a hub name or a built-in model (default: %(default)s)": (
        "폴더, 허브 이름 또는 내장 모델 (기본값: %(default)s)"
    ),
    "branch, tag or commit of a hub model (default: its main branch; of kakaobrain/kogpt the float16 one)": (
        "허브 모델의 브랜치, 태그 또는 커밋 (기본값: main 브랜치, kakaobrain/kogpt는 float16 리비전)"
    ),
    (
        "auto, cpu, cuda or cuda:N; cuda:0,cuda:1 splits the model over these GPUs, cuda:all over every GPU"
        " (default: %(default)s)"
    ): (
        "auto, cpu, cuda 또는 cuda:N; cuda:0,cuda:1은 모델을 두 GPU에, cuda:all은 모든 GPU에 나누어"
        " 올립니다 (기본값: %(default)s)"
    ),
    "precision of the weights (default: %(default)s)": "가중치의 정밀도 (기본값: %(default)s)",
    "precision of cached keys and values on the CPU (default: %(default)s)": (
        "CPU에서 KV 캐시의 정밀도 (기본값: %(default)s)"
    ),
    "the original's name for --device cuda:all": "--device cuda:all과 같습니다 (원본의 옵션 이름)",
    "layers that stay in CPU memory beside one GPU (default: as many as it has no room for)": (
        "GPU 하나를 쓸 때 CPU 메모리에 둘 층의 수 (기본값: GPU에 들어가지 않는 만큼)"
    ),
    "the same seed gives the same text on the same kind of processor": (
        "같은 종류의 프로세서에서는 시드가 같으면 같은 글이 나옵니다"
    ),
    (
        "What is not given is as the model's generation_config.json says; without one, temperature is 0.8"
        " and nothing is filtered or penalised."
    ): (
        "지정하지 않은 값은 모델의 generation_config.json을 따릅니다. 파일이 없으면 temperature는 0.8이고,"
        " 후보를 거르거나 페널티를 주지 않습니다."
    ),
    # generate
    "text to continue; - reads standard input": "이어 쓸 글; -이면 표준 입력을 읽습니다",
    (
        'file with one prompt per line, or JSON Lines with a "prompt" each (.jsonl); a line that is refused'
        " does not stop the others"
    ): (
        '한 줄에 프롬프트 하나씩 적은 파일, 또는 줄마다 "prompt"가 있는 JSON Lines (.jsonl); 한 줄이'
        " 거부되어도 나머지는 계속합니다"
    ),
    "encoding of the input (default: %(default)s)": "입력의 인코딩 (기본값: %(default)s)",
    (
        'print one JSON object per answer; "input" holds the other keys of its line,'
        ' "error" says why there is no answer'
    ): ('답마다 JSON 객체 하나를 출력합니다; "input"은 그 줄의 다른 키, "error"는 답이 없는 이유'),
    "0 picks the likeliest token; higher is more varied": (
        "0이면 가장 그럴듯한 토큰을 고르고, 클수록 다양해집니다"
    ),
    "keep the likeliest tokens up to this total probability; 0 keeps one": (
        "확률이 높은 순으로 합이 이 값이 될 때까지의 토큰만 남깁니다; 0이면 하나"
    ),
    "keep this many likeliest tokens; 0 keeps all": ("확률이 높은 토큰을 이만큼만 남깁니다; 0이면 모두"),
    "drop tokens below this share of the likeliest one's probability": (
        "가장 높은 확률의 이 비율에 못 미치는 토큰을 버립니다"
    ),
    "write text that matches this regular expression as a whole": ("글 전체가 이 정규식에 맞도록 씁니다"),
    "write one of these texts; may be repeated": "이 글들 가운데 하나를 씁니다. 여러 번 쓸 수 있습니다",
    "write JSON that fits this JSON Schema; a file that holds it, or the schema itself": (
        "이 JSON Schema에 맞는 JSON을 씁니다. 스키마 파일이나 스키마 자체를 지정하세요"
    ),
    "write Hangul, digits, punctuation and spaces only": "한글, 숫자, 문장 부호, 빈칸만 씁니다",
    "serve the model with an adapter too, a folder of PEFT, under this name (default: the folder's);"
    " may be repeated": (
        "어댑터(PEFT 폴더)를 붙인 모델도 이 이름으로 제공합니다 (기본: 폴더 이름). 여러 번 쓸 수 있습니다"
    ),
    "above 1 makes tokens already in the text less likely": ("1보다 크면 이미 나온 토큰이 덜 나옵니다"),
    "subtracted once from logits of tokens already written": ("이미 쓴 토큰의 로짓에서 한 번 뺍니다"),
    "subtracted for every time a token was written": ("토큰을 쓴 횟수만큼 로짓에서 뺍니다"),
    "add VALUE to the logit of token ID; may be repeated": (
        "ID 토큰의 로짓에 VALUE를 더합니다; 여러 번 쓸 수 있습니다"
    ),
    "text that ends the answer; not shown; may be repeated": (
        "답을 끝내는 글; 출력하지 않습니다; 여러 번 쓸 수 있습니다"
    ),
    "new tokens at most (128 if no length is given)": "새 토큰의 최대 개수 (길이를 정하지 않으면 128)",
    "tokens of prompt and answer together at most": "프롬프트와 답을 더한 토큰의 최대 개수",
    "answers per prompt": "프롬프트마다 쓸 답의 수",
    "report this many likeliest tokens with each token": "토큰마다 가장 그럴듯한 후보를 이만큼 보여 줍니다",
    # model
    "a folder, a hub name, kogpt-mini, or a shape: kogpt-6b, kogpt-1b (default: %(default)s)": (
        "폴더, 허브 이름, kogpt-mini, 또는 크기 이름: kogpt-6b, kogpt-1b (기본값: %(default)s)"
    ),
    "say what tuning needs too: memory of each method and precision": (
        "튜닝에 필요한 메모리도 방법과 정밀도별로 알립니다"
    ),
    "rows of a pass, with --tune (default: %(default)s)": (
        "--tune에서 한 번에 계산할 행 수 (기본값: %(default)s)"
    ),
    "tokens of a row, with --tune (default: %(default)s)": "--tune에서 한 행의 토큰 수 (기본값: %(default)s)",
    (
        "measure random weights of a named shape instead of --model; mini has 41,726,720 parameters,"
        " kogpt-mini 32,542,720"
    ): (
        "--model 대신 이 크기의 무작위 가중치를 잽니다. mini의 매개변수는 41,726,720개, kogpt-mini는"
        " 32,542,720개입니다"
    ),
    "what does the arithmetic (default: %(default)s)": "계산을 맡을 러너 (기본값: %(default)s)",
    "measure a LoRA too, a copy for each row: a folder, or a name": (
        "LoRA도 잽니다 (행마다 따로 하나씩): 폴더 또는 이름"
    ),
    "measure a LoRA of random weights of this rank": "무작위 가중치로 된 이 랭크의 LoRA를 잽니다",
    "CPU threads (default: all)": "CPU 스레드 수 (기본값: 모두)",
    "numbers of texts to decode at once (default: %(default)s)": (
        "한꺼번에 쓸 글의 수들 (기본값: %(default)s)"
    ),
    "prompt length in tokens (default: 512, or the model's context)": (
        "프롬프트의 토큰 수 (기본값: 512 또는 모델의 문맥 길이)"
    ),
    "tokens to decode in each row (default: %(default)s)": "글마다 쓸 토큰 수 (기본값: %(default)s)",
    "rounds; the median is shown (default: %(default)s)": (
        "반복 횟수; 중앙값을 보여 줍니다 (기본값: %(default)s)"
    ),
    "print one JSON object for each number of rows": "글의 수마다 JSON 객체 하나를 출력합니다",
    # eval
    "task to measure, a FILE.toml, list, or compare DIR DIR (see below)": (
        "평가할 과제, FILE.toml, list 또는 compare DIR DIR (아래 설명)"
    ),
    "prompt wording, repeatable, or all (default: the task's first)": (
        "프롬프트 문구의 이름; 여러 번 쓰거나 all (기본값: 과제의 첫 문구)"
    ),
    "numbers of solved examples before each question (default: 0,5)": (
        "문항 앞에 보여 줄 예시의 수들 (기본값: 0,5)"
    ),
    "random draws of shots (default: 3)": "예시를 무작위로 뽑는 횟수 (기본값: 3)",
    "score a fixed random subset of N items": "정해진 무작위 문항 N개만 채점합니다",
    "how log-likelihoods are compared (default: the task's way)": (
        "로그 가능도를 비교하는 방식 (기본값: 과제의 방식)"
    ),
    "sample the label at temperature T instead of scoring every label": (
        "레이블을 모두 채점하지 않고 온도 T로 생성합니다"
    ),
    "folder with the data files": "데이터 파일이 있는 폴더",
    "text for ppl: .txt, .jsonl or .jsonl.zst": "ppl로 잴 글: .txt, .jsonl 또는 .jsonl.zst",
    "folder for reports and finished batches (default: eval-results/MODEL)": (
        "보고서와 끝난 묶음을 둘 폴더 (기본값: eval-results/모델 이름)"
    ),
    "skip the TF-IDF baseline": "TF-IDF 기준선을 건너뜁니다",
    "print one JSON object per value": "값마다 JSON 객체 하나를 출력합니다",
    (
        "tasks: nsmc ynat klue-sts korsts klue-nli kobest-boolq kobest-copa kobest-hellaswag\n"
        "       kobest-sentineg kobest-wic, ppl (bits per byte of --text); list shows them all\n"
        "       FILE.toml: a task of your own (docs/evaluation.md has an example)\n"
        "       compare DIR DIR: two models' reports beside each other, with paired tests\n\n"
        "Offline, --data or KOGPT_DATA names a folder with the data files; otherwise they are downloaded"
        " from where\n"
        "they were published. The same command resumes an interrupted run."
    ): (
        "과제: nsmc ynat klue-sts korsts klue-nli kobest-boolq kobest-copa kobest-hellaswag\n"
        "      kobest-sentineg kobest-wic, ppl (--text의 바이트당 비트); list는 모두 보여 줍니다\n"
        "      FILE.toml: 직접 만든 과제 (docs/evaluation.md에 예가 있습니다)\n"
        "      compare DIR DIR: 두 모델의 보고서를 짝지은 검정으로 비교합니다\n\n"
        "인터넷 없이 쓰려면 --data나 KOGPT_DATA에 데이터 파일이 있는 폴더를 적으세요. 없으면 공개된 곳에서"
        " 내려받습니다.\n"
        "같은 명령을 다시 주면 멈춘 평가를 이어 갑니다."
    ),
    # vllm
    "several GPUs": "여러 GPU",
    "what computes (default: %(default)s)": "계산하는 엔진 (기본값: %(default)s)",
    "vllm: GPUs that share each layer": "vllm: 층 하나를 나누어 계산할 GPU 수",
    "vllm: groups of GPUs that share the layers": "vllm: 층들을 나누어 맡을 GPU 묶음 수",
    "vllm: machines; each needs the same exported folder": "vllm: 컴퓨터 수; 모두 같은 폴더가 있어야 합니다",
    "vllm: the first machine": "vllm: 첫 번째 컴퓨터의 주소",
    "vllm: where the model in the layout of Phi is kept (default: ~/.cache/kogpt)": (
        "vllm: Phi 구조의 모델을 두는 폴더 (기본값: ~/.cache/kogpt)"
    ),
    "vllm: print the command of each machine and exit": "vllm: 컴퓨터마다 실행할 명령을 출력하고 끝냅니다",
    # workers
    "several processes or machines": "여러 프로세스나 컴퓨터",
    "work with N processes, each with the whole model": "모델 전체를 가진 프로세스 N개로 나누어 처리합니다",
    "Ray cluster whose machines work, or auto for a running one (default: this machine)": (
        "작업을 나눌 Ray 클러스터의 주소; auto는 실행 중인 클러스터 (기본값: 이 컴퓨터)"
    ),
    "keep finished parts in DIR, so that the same command goes on after an interruption": (
        "끝난 부분을 DIR에 남겨, 멈춘 뒤 같은 명령으로 이어 갑니다"
    ),
    # export
    (
        "int4: 4.25 bits per weight, for KoGPT only; int8: 8 bits per weight, for KoGPT only; float16: for"
        " KoGPT and transformers; bfloat16: for KoGPT and transformers; float32: for KoGPT and transformers;"
        " phi: the layout of Phi, for vLLM and transformers; gguf: one file for llama.cpp, Ollama and LM"
        " Studio; peft: the LoRA of --adapter for a model in the layout of Phi; gguf-lora: the same as one"
        " file for llama.cpp and Ollama"
    ): (
        "int4: 가중치마다 4.25비트, KoGPT 전용; int8: 가중치마다 8비트, KoGPT 전용; float16, bfloat16,"
        " float32: KoGPT와 transformers용; phi: vLLM과 transformers용 Phi 구조; gguf: llama.cpp, Ollama,"
        " LM Studio용 파일 하나; peft: --adapter의 LoRA를 Phi 구조의 모델에 맞게 다시 쓴 것; gguf-lora: 같은"
        " LoRA를 담은 llama.cpp, Ollama용 파일 하나"
    ),
    (
        "of the weights (phi: float16, bfloat16, float32; gguf: F16, BF16, F32, Q8_0, Q4_0; default: the"
        " first)"
    ): "가중치의 형식 (phi: float16, bfloat16, float32; gguf: F16, BF16, F32, Q8_0, Q4_0; 기본값: 첫 번째)",
    "read the folder again and compare the logits of a sample text with the model's own": (
        "쓴 폴더를 다시 읽어 예시 글의 로짓을 원래 모델의 로짓과 비교합니다"
    ),
    "a LoRA to add to the weights: a folder of PEFT": "가중치에 더할 LoRA (PEFT 형식의 폴더)",
    "folder to write the model to": "모델을 쓸 폴더",
    "replace the model that DIR already holds": "DIR에 이미 있는 모델을 바꿉니다",
    "int4 only: quantise with GPTQ, calibrated on about 32,000 tokens of this text": (
        "int4 전용: 이 글의 토큰 약 32,000개로 보정해 GPTQ로 양자화합니다"
    ),
    "int4 only: quantise with GPTQ, calibrated on text that the model writes for it": (
        "int4 전용: 모델이 직접 쓴 글로 보정해 GPTQ로 양자화합니다"
    ),
    "a LoRA, soft prompt or prefix for the model: a folder of PEFT, or a name such as sentiment": (
        "모델에 쓸 LoRA, 소프트 프롬프트 또는 프리픽스 (PEFT 형식의 폴더, 또는 sentiment 같은 이름)"
    ),
    # tune
    "tune all weights; writes a model folder": "가중치를 모두 튜닝합니다; 모델 폴더를 씁니다",
    "tune low-rank updates of the matrices; writes an adapter in PEFT's format": (
        "행렬에 더할 저랭크 행렬을 튜닝합니다; PEFT 형식의 어댑터를 씁니다"
    ),
    "tune virtual tokens through an encoder; writes an adapter in PEFT's format": (
        "인코더를 거친 가상 토큰을 튜닝합니다; PEFT 형식의 어댑터를 씁니다"
    ),
    "tune keys and values before the text; writes an adapter in PEFT's format": (
        "글 앞의 키와 값을 튜닝합니다; PEFT 형식의 어댑터를 씁니다"
    ),
    "data": "데이터",
    "method": "방법",
    "training": "학습",
    "tune embeddings on pairs of texts that mean the same; writes a LoRA in PEFT's format": (
        "뜻이 같은 글의 쌍으로 임베딩을 튜닝합니다; PEFT 형식의 LoRA를 씁니다"
    ),
    "learn the prompt as well: weight of its tokens beside those of the answer, such as 0.05 "
    "(default: %(default)s)": (
        "프롬프트도 함께 학습합니다: 답의 토큰에 견준 프롬프트 토큰의 가중치, 예: 0.05 (기본값: %(default)s)"
    ),
    "answer by a linear head, of labels or scores, not by words": (
        "낱말 대신 선형 헤드가 레이블이나 점수로 답합니다"
    ),
    "named task: nsmc, ynat, klue-sts, korsts, kobest-boolq, kobest-copa, kobest-hellaswag, "
    "kobest-sentineg, kobest-wic, intent, k-mhas, curse, profanity": (
        "이름 있는 과제: nsmc, ynat, klue-sts, korsts, kobest-boolq, kobest-copa, kobest-hellaswag, "
        "kobest-sentineg, kobest-wic, intent, k-mhas, curse, profanity"
    ),
    "with TASK the folder of its files (default: KOGPT_DATA), without it a file of rows": (
        "TASK가 있으면 그 파일들의 폴더 (기본값: KOGPT_DATA), 없으면 행이 든 파일"
    ),
    "file of rows": "행이 든 파일",
    "rows to judge by (default: a share of PATH)": "검증할 행 (기본값: PATH의 일부)",
    "share of PATH that becomes dev (default: %(default)s)": (
        "PATH 가운데 검증에 쓸 비율 (기본값: %(default)s)"
    ),
    "measure on N test rows, chosen by hash": "시험 행을 해시로 골라 N개로만 잽니다",
    "use N training rows, chosen by hash": "학습 행을 해시로 골라 N개만 씁니다",
    "rows that must not be trained on": "학습에 쓰면 안 되는 행",
    "measure the result on the test rows too": "결과를 시험 행으로도 잽니다",
    r"prompt around {text}; \n is a line break": r"{text}를 감싸는 프롬프트; \n은 줄바꿈",
    "word that answers for each value of label": "label의 값마다 답이 되는 낱말",
    "leave out empty, duplicate and test rows, and count them": "빈 행, 중복, 시험 행을 빼고 수를 알립니다",
    "train on rows of dev and test as well": "검증과 시험에 있는 행도 학습합니다",
    "cut rows that are too long": "너무 긴 행을 자릅니다",
    "longest row (default: the context)": "가장 긴 행 (기본값: 모델의 문맥 길이)",
    "rank (default: %(default)s)": "랭크 (기본값: %(default)s)",
    "the update is scaled by alpha / sqrt(rank) (default: %(default)s)": (
        "더할 행렬에 alpha / sqrt(rank)를 곱합니다 (기본값: %(default)s)"
    ),
    "matrices to update (default: all six of a block)": "튜닝할 행렬 (기본값: 블록의 여섯 개 모두)",
    "positions before the text (default: %(default)s)": "글 앞에 둘 위치의 수 (기본값: %(default)s)",
    "encoder; none is prompt tuning, begun from words (default: %(default)s)": (
        "인코더; none은 실제 낱말에서 시작하는 프롬프트 튜닝입니다 (기본값: %(default)s)"
    ),
    "peak learning rate (default: the method's)": "최고 학습률 (기본값: 방법마다 다름)",
    "folder for checkpoints, metrics and the result": "체크포인트, 지표, 결과를 둘 폴더",
    "passes over the rows (default: %(default)s)": "행 전체를 도는 횟수 (기본값: %(default)s)",
    "rows per step (default: %(default)s)": "스텝마다의 행 수 (기본값: %(default)s)",
    "validations per epoch (default: %(default)s)": "에포크마다의 검증 횟수 (기본값: %(default)s)",
    "stop after so many validations without a better one (default: %(default)s)": (
        "이만큼 검증해도 나아지지 않으면 멈춥니다 (기본값: %(default)s)"
    ),
    "seed of order and new weights (default: %(default)s)": "순서와 새 가중치의 시드 (기본값: %(default)s)",
    "precision of products; weights stay float32 (default: %(default)s)": (
        "곱셈의 정밀도; 가중치는 float32로 둡니다 (기본값: %(default)s)"
    ),
    "precision of the frozen model (default: int8 or int4 if stored so, else that of products)": (
        "고정된 모델의 정밀도 (기본값: int8이나 int4로 저장되어 있으면 그대로, 아니면 곱셈의 정밀도)"
    ),
    "text that a prefix, or a prompt without encoder, begins from (default: the first rows)": (
        "프리픽스나 인코더 없는 프롬프트가 시작할 글 (기본값: 처음 몇 행)"
    ),
    "fall of the learning rate: along a cosine, or late and straight (default: %(default)s)": (
        "학습률이 줄어드는 모양: 코사인, 또는 끝에서 직선으로 (기본값: %(default)s)"
    ),
    "gradients of a larger batch are summed over several passes (default: %(default)s)": (
        "이보다 큰 배치의 기울기는 여러 번에 나누어 더합니다 (기본값: %(default)s)"
    ),
    "compute blocks twice: less memory, more time": "블록을 두 번 계산합니다: 메모리는 줄고 시간은 늡니다",
    "say steps, memory and time, and train nothing": "학습하지 않고 스텝 수, 메모리, 시간만 알립니다",
    "print the result as one JSON object": "결과를 JSON 객체 하나로 출력합니다",
    "tune a model on a task or on rows of your own": "과제나 가진 데이터로 모델을 튜닝합니다",
    # pretrain
    "files, folders or patterns: .jsonl, .txt, either in .zst or .gz, or .parquet": (
        "파일, 폴더 또는 패턴: .jsonl, .txt, 그 .zst나 .gz, 또는 .parquet"
    ),
    "names of files to skip": "건너뛸 파일 이름",
    "format of the input (default: by file name)": "입력 형식 (기본값: 파일 이름으로 판단)",
    "encoding of the input (default: detect)": "입력의 인코딩 (기본값: 자동 판별)",
    "field that holds the text (default: %(default)s)": "글이 들어 있는 필드 (기본값: %(default)s)",
    "what counts as one document in a .txt file (default: the file)": (
        ".txt 파일에서 문서를 나누는 단위 (기본값: 파일 전체)"
    ),
    "stop when more of the records are unreadable (default: %(default)s)": (
        "읽을 수 없는 레코드의 비율이 이보다 크면 멈춥니다 (기본값: %(default)s)"
    ),
    "vocabulary size (default: %(default)s, as in KoGPT 6B)": (
        "어휘 크기 (기본값: %(default)s, KoGPT 6B와 같음)"
    ),
    "folder for tokenizer.json": "tokenizer.json을 쓸 폴더",
    "share of the documents to learn from (default: all)": "학습에 쓸 문서의 비율 (기본값: 전부)",
    "files to measure on (default: 1 %% of FILES)": "잴 때 쓸 파일 (기본값: FILES의 1 %%)",
    "model_max_length written to tokenizer_config.json": "tokenizer_config.json에 적을 model_max_length",
    "print the measures as one JSON object": "잰 값을 JSON 객체 하나로 출력합니다",
    "tokenizer.json, or the folder that holds it": "tokenizer.json 또는 그 폴더",
    "folder to write the shards to": "샤드를 쓸 폴더",
    "worker processes (default: one per core)": "작업 프로세스의 수 (기본값: 코어마다 하나)",
    "drop documents at least this similar; 0 drops exact copies only (default: %(default)s)": (
        "이만큼 비슷한 문서를 버립니다; 0이면 똑같은 문서만 (기본값: %(default)s)"
    ),
    "keep duplicates": "중복 문서를 남깁니다",
    "skip this filter, or all of them; may be repeated": (
        "이 필터를 건너뜁니다, all이면 모두; 여러 번 쓸 수 있습니다"
    ),
    "print the report as one JSON object": "보고서를 JSON 객체 하나로 출력합니다",
    "recipe: model, data, schedule and optimizer": "레시피: 모델, 데이터, 일정, 옵티마이저",
    "folder for checkpoints, metrics and the model": "체크포인트, 지표, 모델을 둘 폴더",
    "change a setting of the recipe, such as schedule.steps=200": (
        "레시피의 설정을 바꿉니다. 예: schedule.steps=200"
    ),
    "start from the weights of this model; its shape replaces the recipe's [model]": (
        "이 모델의 가중치에서 시작합니다; 레시피의 [model] 대신 이 모델의 크기를 씁니다"
    ),
    "device (default: cuda where there is a GPU)": "장치 (기본값: GPU가 있으면 cuda)",
    "also write TensorBoard event files to DIR/tensorboard": (
        "DIR/tensorboard에 TensorBoard 이벤트 파일도 씁니다"
    ),
    "file for a plot of the loss": "손실 그래프를 그릴 파일",
    "Many processes: torchrun --nproc-per-node 8 -m kogpt pretrain run RECIPE.toml --out DIR": (
        "여러 프로세스: torchrun --nproc-per-node 8 -m kogpt pretrain run RECIPE.toml --out DIR"
    ),
    "named shape, kogpt-6b or kogpt-1b, or a config.json (default: %(default)s)": (
        "크기 이름 kogpt-6b나 kogpt-1b, 또는 config.json (기본값: %(default)s)"
    ),
    "GPU type: a100, h100, h200 or b200 (default: %(default)s)": (
        "GPU 종류: a100, h100, h200 또는 b200 (기본값: %(default)s)"
    ),
    "numbers of GPUs to plan for (default: 8 64 512)": "계획에 쓸 GPU의 수들 (기본값: 8 64 512)",
    "tokens to train on (default: 20 per parameter)": "학습할 토큰 수 (기본값: 매개변수마다 20개)",
    "tokens per step (default: %(default)s)": "스텝마다의 토큰 수 (기본값: %(default)s)",
    "share of the GPU's peak to assume (default: %(default)s)": (
        "GPU 최고 성능 중 쓴다고 볼 비율 (기본값: %(default)s)"
    ),
    "optimizer (default: %(default)s)": "옵티마이저 (기본값: %(default)s)",
    "keep an average of the weights too": "가중치의 평균도 함께 둡니다",
    "figures of your own GPUs, instead of the built-in ones": "내장 값 대신 쓸, 가진 GPU의 수치",
    "peak per GPU in dense bfloat16 TFLOP/s": "GPU마다의 최고 성능, 밀집 bfloat16 TFLOP/s",
    "memory per GPU in GB": "GPU마다의 메모리, GB",
    "network rate per GPU to other nodes": "GPU마다 다른 노드와의 통신 속도",
    "price of one GPU for one hour": "GPU 하나의 시간당 가격",
    "print one JSON object for each number of GPUs": "GPU 수마다 JSON 객체 하나를 출력합니다",
    "folder for everything (default: %(default)s)": "모든 것을 둘 폴더 (기본값: %(default)s)",
    "training steps (default: 300); afterwards the recipe in DIR says how many": (
        "학습 스텝 수 (기본값: 300); 한 번 시작하면 DIR의 레시피를 따릅니다"
    ),
}


def korean(text: str) -> str | None:
    """A help text in Korean; None if the table has none."""
    summary = text[:1].lower() + text[1:].removesuffix(".")  # a description is its summary as a sentence
    return HELP.get(text) or HELP.get(summary)


def translate(parser: argparse.ArgumentParser) -> None:
    """Put every help text of a complete parser and its subcommands into Korean."""
    parser.description = _translated(parser.description)
    parser.epilog = _translated(parser.epilog)
    for group in parser._action_groups:
        group.title = _translated(group.title)
        group.description = _translated(group.description)
    for action in parser._actions:
        action.help = _translated(action.help)
        if isinstance(action, argparse._SubParsersAction):
            for choice in action._choices_actions:
                choice.help = _translated(choice.help)
            for child in action.choices.values():
                translate(child)


def _translated(text: str | None) -> str | None:
    return text and (korean(text) or text)


@contextmanager
def korean_argparse() -> Iterator[None]:
    """Within, argparse speaks the user's language."""
    if not prefers_korean():
        yield
        return
    names = vars(argparse)
    before = {name: names[name] for name in ("_", "ngettext")}
    names["_"] = lambda text: TEXTS.get(text, text)
    names["ngettext"] = lambda one, many, n: TEXTS.get(one if n == 1 else many, one if n == 1 else many)
    try:
        yield
    finally:
        names.update(before)
