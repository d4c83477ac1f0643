"""The base model, its trunk and top, and the adapter bundle."""
