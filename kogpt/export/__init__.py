"""A model folder written anew in another format: folder.py. Every format is a way to make its tensors."""
