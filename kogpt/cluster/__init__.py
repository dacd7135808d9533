"""More than one process: batch work over the machines of a Ray cluster, and serving by an installed vLLM."""
