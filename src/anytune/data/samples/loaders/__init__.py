"""Readers of the packages: each takes the folder of unpacked data files and gives ``Records``.

Label markup is stripped here, so that no text carries its own answer: FOLDOC's <field>, Brown's tags, mail headers,
licence keys. Every reader is a pure function of the files; its order of rows is the order of the files.
"""
