"""Examples of every command, shown by --help and in docs/cli.md; a test parses each."""

from __future__ import annotations

EXAMPLES: dict[str, tuple[str, ...]] = {
    "kogpt": ("kogpt", "kogpt --model kakaobrain/kogpt --revision KoGPT6B-ryan1.5b-float16 --device cuda"),
    "kogpt generate": (
        'kogpt generate "제1조(목적) 이 법은" --max-tokens 64 --seed 1',
        "kogpt generate --file prompts.jsonl -n 4 --json > answers.jsonl",
    ),
    "kogpt models": ("kogpt models",),
    "kogpt info": ("kogpt info", "kogpt info kogpt-6b"),
    "kogpt bench": ("kogpt bench", "kogpt bench --shape 6b --dtype int4 --rows 1"),
    "kogpt eval": (
        "kogpt eval nsmc klue-sts --shots 0,5 --limit 500",
        "kogpt eval ppl --text book.txt",
        "kogpt eval examples/reviews.toml --adapter sentiment",
        "kogpt eval compare eval-results/kogpt-mini eval-results/kogpt-mini-sentiment",
    ),
    "kogpt classify": (
        "kogpt classify --as sentiment '배우들 연기가 훌륭하다'",
        "kogpt classify --labels 긍정,부정 --examples shots.tsv --file reviews.tsv --format tsv",
        "kogpt classify --labels 긍정,부정 --file reviews.tsv --compare other-model",
    ),
    "kogpt search": (
        "kogpt search index documents/ --out documents.index",
        "kogpt search query documents.index '훈민정음은 언제 만들었나?' --rerank",
    ),
    "kogpt search index": (
        "kogpt search index documents/ --out documents.index",
        "kogpt search index documents/ --out documents.index --embed --adapter search",
    ),
    "kogpt search query": (
        "kogpt search query documents.index '훈민정음은 언제 만들었나?' -k 3",
        "kogpt search query documents.index '훈민정음은 언제 만들었나?' --adapter search --rerank",
        "kogpt search query documents.index - --json",
    ),
    "kogpt summarize": ("kogpt summarize article.txt", "kogpt summarize article.txt --title"),
    "kogpt ask": (
        "kogpt ask '정책제안서를 제출하는 시기는 언제인가?' --file article.txt",
        "kogpt ask '임진왜란 때 조선의 왕은?' --index history --json",
    ),
    "kogpt filter": (
        "kogpt filter '문의는 010-0123-4567로 주세요'",
        "kogpt filter --file comments.tsv --adapter profanity --format tsv",
    ),
    "kogpt report": ("kogpt report --prompt '오늘' --text '...' --note '욕설' --temperature 0.8",),
    "kogpt mcp": ("kogpt mcp --index notes",),
    "kogpt serve": ("kogpt serve", "kogpt serve --host 0.0.0.0 --api-key-file keys.txt"),
    "kogpt demo": ("kogpt demo", "kogpt demo --model kogpt-int4 --port 7861"),
    "kogpt export": ("kogpt export int4 --model kakaobrain/kogpt --out kogpt-int4",),
    "kogpt tune": ("kogpt tune lora --data reviews.tsv --out sentiment",),
    "kogpt tune full": ("kogpt tune full nsmc --data eval/ --out nsmc-full",),
    "kogpt tune lora": (
        "kogpt tune lora --data reviews.tsv --labels '0= 부정' '1= 긍정' --out sentiment",
        "kogpt tune lora --data questions.jsonl --rank 32 --out answers --dry-run",
    ),
    "kogpt tune p-tuning": ("kogpt tune p-tuning nsmc --data eval/ --encoder lstm --out nsmc-p",),
    "kogpt tune embed": ("kogpt tune embed --data pairs.jsonl --batch 64 --out vectors",),
    "kogpt tune prefix": ("kogpt tune prefix nsmc --data eval/ --virtual-tokens 32 --out nsmc-prefix",),
    "kogpt pretrain": ("kogpt pretrain toy novel.txt --out toy",),
    "kogpt pretrain tokenizer": ("kogpt pretrain tokenizer corpus/ --vocab 16384 --out tokenizer",),
    "kogpt pretrain pack": ("kogpt pretrain pack corpus/ --tokenizer tokenizer --out shards",),
    "kogpt pretrain run": (
        "kogpt pretrain run recipe.toml --out run",
        "kogpt pretrain run recipe.toml --init kogpt-mini --out continued",
    ),
    "kogpt pretrain plan": ("kogpt pretrain plan --gpu h200 --gpus 8 64",),
    "kogpt config": ("kogpt config", "kogpt config --config team.toml"),
    "kogpt completion": ("kogpt completion bash > ~/.local/share/bash-completion/completions/kogpt",),
    "kogpt pretrain toy": ("kogpt pretrain toy novel.txt --out toy",),
}
