#!/usr/bin/env bash
# kogpt-mini from its corpus: tokenizer, shards, training, model card, and whether it replaces the one in the
# package. One command:
#
#     CORPUS=path/to/corpus WORK=/tmp/mini runs/mini.sh
#
# RECIPE=runs/mini.toml is the second edition, mini_cpu.toml the first, for machines without a GPU; mini_tiny.toml
# tries this script on a part of the corpus. EVAL=path/to/eval adds the tables of runs/tables.py of both editions.
# UNTIL=text ends before the training, UNTIL=training after it: on a lent GPU, measure elsewhere.
# CORPUS holds train_SOURCE_NN.jsonl.zst and valid_SOURCE.jsonl.zst; `petitions` is not trained on, it accuses
# living people. Each step is skipped or resumed if WORK has it already.
set -euo pipefail
: "${CORPUS:?folder of the corpus}" "${WORK:?folder to work in}"
mkdir -p "$WORK"
CORPUS=$(realpath -e "$CORPUS")
WORK=$(realpath "$WORK")
RECIPE=$(realpath -e "${RECIPE:-$(dirname "$0")/mini3.toml}")
[ -z "${EVAL:-}" ] || EVAL=$(realpath -e "$EVAL")
cd "$(dirname "$(realpath "$0")")/.."
MACHINE=${MACHINE:-$(uname -m), $(nproc) cores}
export PYTHONPATH=$PWD
ln -sfn "$CORPUS" "$WORK/corpus"
name=$(basename "$RECIPE" .toml) # of the run's folder
[ "$RECIPE" -ef "$WORK/$name.toml" ] || cp "$RECIPE" "$WORK/$name.toml"

python runs/mini_text.py "$WORK/$name.toml" "$CORPUS" "$WORK"
[ "${UNTIL:-}" != text ] || exit 0

# Large blocks from a heap that keeps them: fresh pages for every activation cost a fifth of the time.
export MALLOC_MMAP_THRESHOLD_=8589934592 MALLOC_TRIM_THRESHOLD_=17179869184 MALLOC_TOP_PAD_=268435456
export GLIBC_TUNABLES=glibc.malloc.hugetlb=1
python -m kogpt pretrain run "$WORK/$name.toml" --out "$WORK/$name"
[ "${UNTIL:-}" != training ] || exit 0

[ -f "$WORK/ngram.json" ] || python runs/ngram.py "$CORPUS" --out "$WORK/ngram.json"
python runs/mini_card.py "$WORK/$name.toml" "$WORK/$name" "$CORPUS" --ngram "$WORK/ngram.json" --machine "$MACHINE"
if [ -n "${EVAL:-}" ]; then
    for model in kogpt-mini "$WORK/$name/model"; do
        python runs/tables.py --data "$EVAL" --model "$model" --out "$WORK/tables_$(basename "$model")" ${TABLES:-}
    done
fi
python runs/mini_edition.py "$WORK/$name"
