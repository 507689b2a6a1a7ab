"""Data: labelled files to tasks, text to packed blocks, real samples by name.

``tasks`` and ``domains`` are the nouns; ``tables`` reads files; ``splits`` holds every seeded choice; ``packing``,
``masking`` and ``batches`` make tensors of them.
"""
