"""Canaries: one small test per thing the code takes for granted about the libraries below it.

They test no code of ours. When one falls after an upgrade, its one sentence says what upstream no longer does and
which file leans on it; the reason follows in brackets. Then either that file is changed (and the canary with it), or
the upgrade is held back in ``pyproject.toml``. A canary that guards a defence ("... swallows unknown inputs") falls
when upstream got better: the defence may then go.
"""
