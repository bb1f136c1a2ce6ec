"""Providers of machines: `base.py` is the protocol, `registry.py` lists those that there are."""
