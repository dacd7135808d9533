#!/usr/bin/env bash
# kogpt-mini from its corpus: tokenizer, shards, training, model card. One command:
#
#     CORPUS=path/to/corpus WORK=/tmp/mini runs/mini.sh
#
# RECIPE=runs/mini_cpu.toml trains a smaller one, for machines without a GPU.
# CORPUS holds train_SOURCE_NN.jsonl.zst and valid_SOURCE.jsonl.zst; `petitions` is not trained on, it accuses
# living people. Each step is skipped or resumed if WORK has it already.
set -euo pipefail
: "${CORPUS:?folder of the corpus}" "${WORK:?folder to work in}"
mkdir -p "$WORK"
CORPUS=$(realpath -e "$CORPUS")
WORK=$(realpath "$WORK")
RECIPE=$(realpath -e "${RECIPE:-$(dirname "$0")/mini.toml}")
cd "$(dirname "$(realpath "$0")")/.."
MACHINE=${MACHINE:-$(uname -m), $(nproc) cores}
export PYTHONPATH=$PWD
ln -sfn "$CORPUS" "$WORK/corpus"
name=$(basename "$RECIPE" .toml) # of the run's folder
[ "$RECIPE" -ef "$WORK/$name.toml" ] || cp "$RECIPE" "$WORK/$name.toml"

[ -f "$WORK/tokenizer/tokenizer.json" ] || python runs/mini_tokenizer.py "$CORPUS" "$WORK/tokenizer"

for source in kowiki nsmc law msdocs devdocs pydocs bible chat klue_sents novels pytorch; do
    [ -f "$WORK/shards/$source/index.json" ] || python -m kogpt pretrain pack "$CORPUS/train_${source}_"*.jsonl.zst \
        --tokenizer "$WORK/tokenizer" --out "$WORK/shards/$source" --without-filter all --keep-duplicates
done

# Large blocks from a heap that keeps them: fresh pages for every activation cost a fifth of the time.
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
python -m kogpt pretrain run "$WORK/$name.toml" --out "$WORK/$name"

[ -f "$WORK/ngram.json" ] || python runs/ngram.py "$CORPUS" --out "$WORK/ngram.json"
python runs/mini_card.py "$WORK/$name.toml" "$WORK/$name" "$CORPUS" --ngram "$WORK/ngram.json" --machine "$MACHINE"
