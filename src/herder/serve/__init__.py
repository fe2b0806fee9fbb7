"""Talking to a model (paper section 6): in the terminal."""

from herder.serve.terminal import chat

__all__ = ["chat"]
