"""Raw text -> tokenizer -> token shards -> model."""
