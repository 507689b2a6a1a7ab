"""What a technique changes about plain training: the protocol, the registry and four rooms with one file per method.

Adding a method means adding one file to ``pretrain``, ``tune``, ``transfer`` or ``recycle``; nothing else changes.
"""
