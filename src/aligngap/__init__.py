"""aligngap: online and offline alignment that share every line but where the pairs come from.

Importing this package pulls in no torch, transformers, ray or matplotlib; each room is imported when it is used.
"""

__version__ = "0.1.0"
