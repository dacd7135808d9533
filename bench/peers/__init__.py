"""KoGPT beside transformers, llama.cpp, ik_llama.cpp and CTranslate2 on the same weights and machine.

convert.py    a model folder -> what each engine reads
engines.py    one class per engine: load, logits, prefill, decode
child.py      one engine in a process of its own, told what to do line by line
__main__.py   the comparison: `python -m bench.peers --help`

The peers are development dependencies: bench/requirements.txt. ik_llama.cpp is built by hand; --ik names the
folder of its programs.
"""
