"""The experiments: each file is one, and `default.py` names every knob."""
