"""What can be wrong with keys; the text always says what to do."""

from __future__ import annotations


class KeysError(Exception):
    """Root of the key errors."""


class WrongPassphraseError(KeysError):
    """The passphrase does not open the wrapped contract key."""


class KeyFileError(KeysError):
    """A key file or a recovery sheet is missing, damaged, or open to other users."""
