"""Errors of the lab: one root, so that a test or the CLI can tell a broken lab from a broken program."""

from __future__ import annotations


class LabError(Exception):
    """The lab did not do what was asked; the text names the command, host or process and what came."""


class LabUnavailableError(LabError):
    """This machine cannot run the lab at all; one plain sentence says why."""


class ProcessEndedError(LabError):
    """A process ended, or stayed silent, while something was expected of it; the text ends with its last output."""
