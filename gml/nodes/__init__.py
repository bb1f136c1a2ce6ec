"""The life of a node: `create.py`, `change.py`; what fails on the way is removed by `undo.py`."""
