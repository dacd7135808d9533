"""Search: files -> paragraphs -> an index on disk -> the paragraphs that answer a question.

analysis   text -> stems of words and character 2-grams
readers    files and folders -> documents of passages
postings   passages -> a segment of postings, and BM25 over it
store      one SQLite file: transactions, locks, damage
index      Index: add, remove, query
reranking  the model's opinion of the first passages
"""
