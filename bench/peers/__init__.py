"""KoGPT beside transformers, llama.cpp and CTranslate2 on the same weights and the same machine.

convert.py    a model folder -> what each engine reads
engines.py    one class per engine: load, logits, prefill, decode
child.py      one engine in a process of its own, told what to do line by line
__main__.py   the comparison: `python -m bench.peers --help`

The peers are development dependencies: bench/requirements.txt.
"""
