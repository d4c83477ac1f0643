"""Reading, cleaning and mixing: iterators of `Example`."""
